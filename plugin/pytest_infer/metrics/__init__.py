"""THE table of metrics and how a record is read through it."""

from pytest_infer.metrics.summary import Summary, summarize
from pytest_infer.metrics.table import METRICS, Direction, Kind, Metric, by_key, columns

__all__ = ["METRICS", "Direction", "Kind", "Metric", "Summary", "by_key", "columns", "summarize"]
