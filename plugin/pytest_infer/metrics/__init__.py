"""THE table of metrics and how a record is read through it."""

from pytest_infer.metrics.metric import Direction, Fact, Kind, Metric
from pytest_infer.metrics.summary import Summary, summarize
from pytest_infer.metrics.table import METRICS, by_key, columns

__all__ = ["METRICS", "Direction", "Fact", "Kind", "Metric", "Summary", "by_key", "columns", "summarize"]
