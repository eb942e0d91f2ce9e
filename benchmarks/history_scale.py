"""How long a large history takes: our commands beside reading every file whole, as pytest-benchmark's comparison does.

    python benchmarks/history_scale.py --template results/…/0001_….json      # or without: one is measured first

It writes RUNS files of ROWS tests made from a real run, then times in turns (A B C A B C …) whole commands, each in a
process of its own, with its peak memory. "cold" is the first time that these files are listed: each is read then,
and what the list needs of it is kept in the user's cache folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pytest_infer.storage import files


def measured_template(folder: Path) -> dict[str, Any]:
    """Measure the suite of this repository once, briefly, and return its run."""
    storage = folder / "measured"
    saved = ["--benchmark-autosave", "--benchmark-storage", str(storage)]
    command = [sys.executable, "-m", "pytest", "bench", "-q", "--infer-max-new-tokens=16", *saved]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent.parent)
    (path,) = storage.rglob("*.json")
    run: dict[str, Any] = json.loads(path.read_text())
    return run


def run_file(template: dict[str, Any], number: int, rows: int, noise: random.Random) -> dict[str, Any]:
    """Return a run of `rows` tests, three native rows each, whose figures scatter by 2 %."""
    run = {key: value for key, value in template.items() if key != "benchmarks"}
    start = datetime(2026, 1, 1, tzinfo=UTC)
    run["datetime"] = (start + timedelta(hours=number)).isoformat()
    run["commit_info"] = {**template["commit_info"], "id": f"{number:040x}", "dirty": False}
    totals = [row for row in template["benchmarks"] if row["extra_info"]["pytest_infer"]["phase"] == "total"]
    phases = [row for row in template["benchmarks"] if row["extra_info"]["pytest_infer"]["phase"] != "total"]
    benchmarks = []
    for index in range(rows):
        row = copy.deepcopy(totals[index % len(totals)])
        name = f"{row['fullname']}-{index}"
        row["fullname"] = row["name"] = name
        scatter(row["extra_info"]["pytest_infer"]["metrics"].values(), noise)
        benchmarks.append(row)
        benchmarks += [
            {**phase, "fullname": f"{name}:{phase['extra_info']['pytest_infer']['phase']}"} for phase in phases[:2]
        ]
    return {**run, "benchmarks": benchmarks}


def scatter(metrics: Iterable[dict[str, Any]], noise: random.Random) -> None:
    """Change the figures of a test as another run would: all times alike, else a part were longer than the whole."""
    slower = noise.lognormvariate(0, 0.02)
    for metric in metrics:
        if not isinstance(metric["value"], float):
            continue
        factor = {"s": slower, "tok/s": 1 / slower}.get(metric["unit"]) or noise.lognormvariate(0, 0.02)
        digits = 9 if metric["unit"] == "s" else 17  # a clock tells nanoseconds
        for key in ("value", "mean", "stdev"):
            if key in metric:
                metric[key] = round(metric[key] * factor, digits)
        if "rounds" in metric:
            metric["rounds"] = [round(value * factor, digits) for value in metric["rounds"]]


def timed(command: list[str], cache: Path) -> tuple[float, float]:
    """Run a command and return how long it took, seconds, and its peak memory, MiB."""
    started = time.perf_counter()
    # With compiled modules, as users have them, whatever this environment says of writing them.
    own = {"PYTEST_INFER_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(cache.parent / "pyc")}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | own
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


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
            text = files.dumps(run_file(template, number, options.rows, noise))  # as a run is saved
            (storage / f"{number + 1:04}_run.json").write_text(text)
        paths = sorted(storage.glob("*.json"))
        size = sum(path.stat().st_size for path in paths)
        print(f"{options.runs} runs of {options.rows} tests, {size / 2**20:.0f} MiB")
        report(storage, options.turns)


_PARSE = (
    "import json, pathlib, sys; [json.loads(p.read_text('utf8')) for p in pathlib.Path(sys.argv[1]).glob('*.json')]"
)


def report(storage: Path, turns: int) -> None:
    """Time the commands in turns and print the median of each, with the ratio to parsing everything."""
    program, where = str(Path(sys.executable).with_name("pytest-infer")), ["--storage", str(storage)]
    listed = [program, "history", "-n", "100000", *where]
    steps: dict[str, tuple[list[str], bool]] = {
        "json.loads of every file": ([sys.executable, "-c", _PARSE, str(storage)], False),
        "pytest-infer history, cold": (listed, True),
        "pytest-infer history": (listed, False),
        "pytest-infer compare, cold": ([program, "compare", *where], True),
        "pytest-infer compare": ([program, "compare", *where], False),
        "history --change-points of TTFT and TPOT": (
            [program, "history", "--change-points", "--metric", "ttft", "--metric", "tpot", *where],
            False,
        ),
    }
    found: dict[str, list[tuple[float, float]]] = {step: [] for step in steps}
    cache = storage.parent / "cache"
    for command in (listed, steps["history --change-points of TTFT and TPOT"][0], steps["pytest-infer compare"][0]):
        timed(command, cache)  # compiles the modules
    for _ in range(turns):
        for step, (command, cold) in steps.items():
            if cold:
                shutil.rmtree(cache, ignore_errors=True)
            found[step].append(timed(command, cache))
    base = statistics.median(seconds for seconds, _ in found["json.loads of every file"])
    for step, figures in found.items():
        seconds, memory = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{step:<42} {seconds:7.2f} s  {memory:6.0f} MiB   {seconds / base:5.3f} of json.loads")


if __name__ == "__main__":
    main()
