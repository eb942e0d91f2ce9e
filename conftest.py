"""The two hooks that `pytest-benchmark compare` reads from the current folder."""

from pytest_infer.storage.native import pytest_benchmark_group_stats, pytest_benchmark_scale_unit

__all__ = ["pytest_benchmark_group_stats", "pytest_benchmark_scale_unit"]
