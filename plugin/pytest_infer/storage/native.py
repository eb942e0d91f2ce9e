"""What pytest-benchmark's comparisons take from us: two hooks of a ./conftest.py (groups, scale), and no noise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable
from typing import Any

from pytest_benchmark import plugin as native

from pytest_infer.storage.schema import KEY

Row = dict[str, Any]


def pytest_benchmark_group_stats(
    config: Any, benchmarks: Iterable[Row], group_by: str
) -> list[tuple[str | None, list[Row]]]:
    """Group one run by phase, and several runs by prompt and phase: only like is compared with like.

    Any `--group-by` of the user's own goes to pytest-benchmark.
    """
    rows = list(benchmarks)
    several = len({row.get("source") for row in rows}) > 1
    if group_by != "group" or not several or not any(KEY in row["extra_info"] for row in rows):
        groups: list[tuple[str | None, list[Row]]] = native.pytest_benchmark_group_stats(config, rows, group_by)
        return groups
    by_name: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        by_name[row["fullname"] if KEY in row["extra_info"] else row["group"]].append(row)
    return list(by_name.items())


def pytest_benchmark_scale_unit(
    config: Any, unit: str, benchmarks: list[Row], best: Row, worst: Row, sort: str
) -> tuple[str, float]:
    """Keep the OPS column of our rows unscaled: for the `tpot` phase it reads tokens per second."""
    if unit == "operations" and all(KEY in row["extra_info"] for row in benchmarks):
        return "", 1.0
    scaled: tuple[str, float] = native.pytest_benchmark_scale_unit(config, unit, benchmarks, best, worst, sort)
    return scaled


def comparing(session: Any, machine_info: Row, compared: Row) -> Generator[None, object, object]:
    """Keep noise and a storage outside the working folder from upsetting a look at the machine of a compared run."""
    align_noise(machine_info, compared)
    try:
        return (yield)
    except ValueError:
        # pytest-benchmark words its warning with a path relative to the working folder, where there may be none.
        session.logger.warning(
            f"the run to compare with was made on another machine, or with other software (in {session.storage})"
        )
        return None


def align_noise(machine_info: Row, compared: Row) -> None:
    """Give a compared run of ours the momentary clock rate of now: it is no difference between machines."""
    ours = any(KEY in row.get("extra_info", {}) for row in compared.get("benchmarks", ()))
    now, then = machine_info.get("cpu"), compared.get("machine_info", {}).get("cpu")
    if not ours or not isinstance(now, dict) or not isinstance(then, dict):
        return
    for key in [key for key in {*now, *then} if key.startswith(("hz_actual", "hz_advertised"))]:
        if key in now:
            then[key] = now[key]
        else:
            then.pop(key)
