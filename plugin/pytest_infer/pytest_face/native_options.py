"""pytest-benchmark's own options: those that do nothing to our tests are named, those that fail at the end refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pytest_infer.errors import OptionError, StorageError
from pytest_infer.pytest_face import command_line
from pytest_infer.storage import files

NO_EFFECT = (
    "min-time",
    "max-time",
    "min-rounds",
    "precision",
    "confidence",
    "timer",
    "calibration-precision",
    "warmup",
    "warmup-iterations",
    "disable-gc",
    "cprofile",
    "cprofile-loops",
    "cprofile-top",
    "cprofile-dump",
)
"""Options of its own loop, which only replays what we measured; `@pytest.mark.benchmark` takes some of them as well."""


DISPLAY = ("sort", "group-by", "columns", "name", "time-unit", "histogram", "compare", "compare-fail", "verbose")
"""Options of its tables, which ask for them."""


def tables_asked(config: pytest.Config) -> bool:
    """Return whether an option is given that is about pytest-benchmark's own tables."""
    return bool(command_line.given(config, (f"--benchmark-{name}" for name in DISPLAY)))


def name_ignored(config: pytest.Config, items: Iterable[pytest.Item], note: Callable[[str], None]) -> None:
    """Note the options that are given, wherever that is, and have no effect on these tests."""
    marked = {name for item in items for mark in item.iter_markers("benchmark") for name in mark.kwargs}
    found = command_line.given(config, (f"--benchmark-{name}" for name in NO_EFFECT))
    keys = [f"{key}=…" for name in NO_EFFECT if (key := name.replace("-", "_")) in marked]
    found += [f"@pytest.mark.benchmark({', '.join(keys)})"] if keys else []
    if found:
        note(
            f"{', '.join(found)}: no effect on tests that measure with `infer`: --infer-rounds and --infer-warmup say "
            "how often a prompt runs"
        )


def check(config: pytest.Config) -> None:
    """Raise OptionError for what pytest-benchmark would fail of at the end of a run, when all is measured."""
    prefixes = config.getoption("benchmark_histogram")
    if prefixes and not _installed("pygal"):
        raise OptionError("--benchmark-histogram draws with pygal: pip install 'pytest-benchmark[histogram]'")
    for prefix in prefixes:
        try:
            files.check_writable(Path(prefix).absolute().parent)
        except StorageError as error:
            raise OptionError(f"--benchmark-histogram {prefix}: nothing can be written there") from error
    native: Any = config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's own
    if native.compare_fail and not native.compared_mapping:
        lacking = "store one first, without this option" if native.compare else "add --benchmark-compare"
        raise OptionError(f"--benchmark-compare-fail compares with a stored run: {lacking}")


def _installed(package: str) -> bool:
    """Return whether a package is there, without importing it: what it takes must not show in the peak of a round."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False
