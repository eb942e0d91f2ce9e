"""How long a large history takes: ours beside reading every file whole, as pytest-benchmark's own comparison does.

    python benchmarks/history_scale.py --template results/…/0001_….json      # or without: one is measured first

It writes RUNS files of ROWS tests made from a real run, then times in turns (A B A B …): reading the heads of all runs,
parsing all files with `json`, a comparison of two runs with its history, and change points over everything.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from pytest_infer.analysis import compare, gate, trends
from pytest_infer.metrics import by_key
from pytest_infer.storage import history


def measured_template(folder: Path) -> dict[str, Any]:
    """Measure the suite of this repository once, briefly, and return its run."""
    path = folder / "template.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "bench",
        "-q",
        "--infer-max-new-tokens=16",
        "--benchmark-json",
        str(path),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent.parent)
    run: dict[str, Any] = json.loads(path.read_text())
    return run


def run_file(template: dict[str, Any], number: int, rows: int, noise: random.Random) -> dict[str, Any]:
    """Return a run of `rows` tests, three native rows each, whose times scatter by 2 %."""
    run = {key: value for key, value in template.items() if key != "benchmarks"}
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    run["datetime"] = (start + timedelta(hours=number)).isoformat()
    run["commit_info"] = {**template["commit_info"], "id": f"{number:040x}", "dirty": False}
    totals = [row for row in template["benchmarks"] if row["extra_info"]["pytest_infer"]["phase"] == "total"]
    phases = [row for row in template["benchmarks"] if row["extra_info"]["pytest_infer"]["phase"] != "total"]
    benchmarks = []
    for index in range(rows):
        row = copy.deepcopy(totals[index % len(totals)])
        name = f"{row['fullname']}-{index}"
        row["fullname"] = row["name"] = name
        for metric in row["extra_info"]["pytest_infer"]["metrics"].values():
            if isinstance(metric["value"], float):
                metric["value"] *= noise.lognormvariate(0, 0.02)
        benchmarks.append(row)
        benchmarks += [
            {**phase, "fullname": f"{name}:{phase['extra_info']['pytest_infer']['phase']}"} for phase in phases[:2]
        ]
    return {**run, "benchmarks": benchmarks}


def timed(what: Callable[[], object]) -> float:
    """Return how long a call takes, seconds."""
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--template", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        template = json.loads(options.template.read_text()) if options.template else measured_template(folder)
        storage = folder / "storage"
        storage.mkdir()
        noise = random.Random(0)  # noqa: S311 - not for secrets
        for number in range(options.runs):
            text = json.dumps(run_file(template, number, options.rows, noise), indent=4)
            (storage / f"{number + 1:04}_run.json").write_text(text)
        paths = sorted(storage.glob("*.json"))
        size = sum(path.stat().st_size for path in paths)
        print(f"{options.runs} runs of {options.rows} tests, {size / 2**20:.0f} MiB")
        report(storage, paths, options.turns)


def report(storage: Path, paths: list[Path], turns: int) -> None:
    """Time the steps in turns and print the median of each, with the ratio to parsing everything."""

    def parse_everything() -> None:
        for path in paths:
            json.loads(path.read_text(encoding="utf8"))

    def compare_newest() -> None:
        found = history.load(storage)
        before, after = found.runs[-2:]
        pairs, _, _ = gate.stored_pairs(before, after.rows, found)
        wanted = compare.all_metrics()
        compare.judge(pairs, lambda _row: wanted)

    def change_points() -> None:
        trends.shifts(history.load(storage).runs, [by_key("ttft_s"), by_key("tpot_s")])

    steps: dict[str, Callable[[], object]] = {
        "json.loads of every file": parse_everything,
        "heads of all runs": lambda: history.load(storage),
        "heads, then compare two runs with their history": compare_newest,
        "change points of two metrics in every test": change_points,
    }
    times: dict[str, list[float]] = {step: [] for step in steps}
    for _ in range(turns):
        for step, call in steps.items():
            times[step].append(timed(call))
    base = statistics.median(times["json.loads of every file"])
    for step, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{step:<50} {middle:7.2f} s   {middle / base:5.2f} of json.loads")


if __name__ == "__main__":
    main()
