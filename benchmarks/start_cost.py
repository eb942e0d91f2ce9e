"""What the plugin costs: a pytest run that does not measure, and one that does, over what nobody can save.

    python benchmarks/start_cost.py start --pairs 20
    python benchmarks/start_cost.py job --model reference-moe --runs 5
    python benchmarks/start_cost.py job --model reference-moe --runs 5 --other ../another-checkout/plugin

`start` starts pytest on a folder with one empty test, A B B A: with the plugin, and with `-p no:pytest_infer.plugin`.
pytest-benchmark and whatever else is installed is loaded on both sides. It prints the medians, of the pairs the median
difference and ratio, and their 95 % intervals (order statistics of the pairs).

`job` runs `pytest bench --benchmark-autosave` into a scratch storage and times from within, by itself as a plugin,
where the wall time goes. What nobody can save are a bare pytest start (measured as in `start`, without the plugin),
what is imported of others (torch, transformers, …), loading the model, and the rounds that the record asks for:
warm-up, timed and profile. Rounds in the place of disturbed ones are counted apart: they depend on the machine's other
work. What is left is ours, or pytest-benchmark's. With `--other` another checkout's package runs in turns with this
one, A B B A, and the spread of the rounds is shown of both: rounds must be as still as before, whatever is saved around
them.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cpuinfo

HERE = Path(__file__).resolve().parent
OUT = "START_COST_OUT"
"""The file that a run with this module as its plugin writes its times to."""
WITHOUT = ("-p", "no:pytest_infer.plugin")

# the side of the run that is timed


class Times:
    """Wall time by what it goes to, seconds; what happens within one of them is not counted a second time."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.rounds: list[list[float]] = []
        self._open: list[tuple[str, float]] = []
        self._collecting: float | None = None

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the block's time for `name`, and that of blocks within it for theirs."""
        now = time.perf_counter()
        if self._open:
            self.spent[self._open[-1][0]] += now - self._open[-1][1]
        self._open.append((name, now))
        try:
            yield
        finally:
            now = time.perf_counter()
            name, since = self._open.pop()
            self.spent[name] += now - since
            if self._open:
                self._open[-1] = (self._open[-1][0], now)

    def inside(self, name: str) -> bool:
        """Return whether a block of that name is open."""
        return any(name == other for other, _ in self._open)

    def around(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return the call, counted."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.of(name):
                return call(*args, **kwargs)

        return timed

    def collecting(self, phase: str, info: dict[str, int]) -> None:  # noqa: ARG002 - as the interpreter calls it
        """Count a collection of garbage outside all blocks."""
        if phase == "start" and not self._open:
            self._collecting = time.perf_counter()
        elif phase == "stop" and self._collecting is not None:
            self.spent["collecting garbage"] += time.perf_counter() - self._collecting
            self._collecting = None


TIMES = Times()


def pytest_configure() -> None:
    """Start counting, where this module is the plugin of a run."""
    if OUT in os.environ:
        _count(TIMES, Path(os.environ[OUT]))


def _count(times: Times, out: Path) -> None:
    gc.callbacks.append(times.collecting)
    # What is counted is imported late, so that a run imports it from the checkout that it belongs to.
    from pytest_infer.measure import rounds  # noqa: PLC0415
    from pytest_infer.measure.loading import timed  # noqa: PLC0415
    from pytest_infer.measure.machine import probe  # noqa: PLC0415

    timed.measured = times.around(timed.measured, "loading the model")
    probe.measure = times.around(probe.measure, "probing the machine")
    cpuinfo.get_cpu_info = times.around(cpuinfo.get_cpu_info, "describing the processor, by pytest-benchmark")
    subprocess.run = times.around(subprocess.run, "other programs, as git")
    one, measure = rounds.timed_round, rounds.measure

    def counted(*args: Any, **kwargs: Any) -> Any:
        found = one(*args, **kwargs)
        times.spent["rounds"] += found.counters.wall_s
        return found

    def measured(*args: Any, **kwargs: Any) -> Any:
        found = measure(*args, **kwargs)
        repeated = sum(r.counters.wall_s for r in found.repeated)
        times.spent["rounds"] -= repeated
        times.spent["repeated rounds"] += repeated
        times.rounds.append([r.counters.wall_s for r in found.rounds])
        return found

    rounds.timed_round, rounds.measure = counted, measured
    atexit.register(lambda: out.write_text(json.dumps({"spent": times.spent, "rounds": times.rounds})))


def _count_imports(times: Times) -> None:
    """Count what is imported, of others and of ours; what a load imports belongs to the load."""
    bootstrap: Any = vars(importlib)["_bootstrap"]
    load = bootstrap._find_and_load

    def find_and_load(name: str, import_: Any) -> Any:
        if times.inside("loading the model"):
            return load(name, import_)
        with times.of("importing pytest_infer" if name.partition(".")[0] == "pytest_infer" else "importing others"):
            return load(name, import_)

    bootstrap._find_and_load = find_and_load


if OUT in os.environ:
    # At once: as an option's plugin it is imported before the installed ones.
    _count_imports(TIMES)


# the side that starts runs


def run(arguments: Sequence[str], folder: Path, plugin: Path | None = None, out: Path | None = None) -> float:
    """Run pytest and return its wall time, seconds."""
    paths = [str(path) for path in (plugin, HERE if out is not None else None) if path is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    environment |= {} if out is None else {OUT: str(out)}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    wall_s = time.perf_counter() - started
    assert done.returncode == 0, done.stdout + done.stderr
    return wall_s


def median_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % interval by order statistics."""
    ordered = sorted(values)
    reach = 0.98 * len(ordered) ** 0.5
    low, high = int(len(ordered) / 2 - reach), int(len(ordered) / 2 + reach)
    return statistics.median(ordered), ordered[max(0, low)], ordered[min(len(ordered) - 1, high)]


def in_turns(number: int) -> Sequence[int]:
    """Return which of two sides goes first and which second in a pair: A B, then B A."""
    return (0, 1) if number % 2 == 0 else (1, 0)


def start(pairs: int) -> float:
    """Compare bare starts with those that load the plugin; return the bare median, seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.joinpath("test_nothing.py").write_text("def test_nothing(): pass\n")
        found: list[list[float]] = []
        for number in range(-1, pairs):
            pair = [0.0, 0.0]
            for side in in_turns(number):
                pair[side] = run(WITHOUT if side == 0 else (), folder)
            found += [pair] if number >= 0 else []  # the first one warms the page cache
    bare = statistics.median(a for a, _ in found)
    difference = [1000 * value for value in median_and_interval([b - a for a, b in found])]
    ratio = median_and_interval([b / a for a, b in found])
    print(f"bare pytest start {bare:.3f} s, with the plugin {statistics.median(b for _, b in found):.3f} s")
    print("difference {:+.1f} ms ({:+.1f} to {:+.1f})".format(*difference))
    print("ratio {:.3f} ({:.3f} to {:.3f})".format(*ratio), f"of {pairs} pairs")
    return bare


def job(model: str, runs: int, other: Path | None, bare: float) -> None:
    """Time the main job, in turns with another checkout's if there is one."""
    sides = [HERE.parent / "plugin", *([other.resolve()] if other is not None else [])]
    found: list[list[tuple[float, dict[str, Any]]]] = [[] for _ in sides]
    for number in range(-1, runs):
        for side in in_turns(number)[: len(sides)] if other is not None else (0,):
            with tempfile.TemporaryDirectory() as name:
                out = Path(name) / "times.json"
                arguments = ["bench", "--benchmark-autosave", f"--benchmark-storage={name}", f"--infer-model={model}"]
                wall_s = run([*arguments, "-p", "start_cost"], HERE.parent, sides[side], out)
                found[side] += [(wall_s, json.loads(out.read_text()))] if number >= 0 else []
    for path, results in zip(sides, found, strict=True):
        print(f"\n{model}, {path}: medians of {runs} runs")
        _show(results, bare)


def _show(results: Sequence[tuple[float, dict[str, Any]]], bare: float) -> None:
    walls = [wall for wall, _ in results]
    names = dict.fromkeys(name for _, times in results for name in times["spent"])
    parts = {name: [times["spent"].get(name, 0.0) for _, times in results] for name in names}
    print(f"  {statistics.median(walls):7.2f} s  wall")
    print(f"  {bare:7.2f} s  a bare pytest start")
    for name, values in sorted(parts.items(), key=lambda part: -statistics.median(part[1])):
        print(f"  {statistics.median(values):7.2f} s  {name}")
    needed = ("importing others", "loading the model", "rounds")
    costs = [bare + sum(times["spent"].get(name, 0.0) for name in needed) for _, times in results]
    repeats = [times["spent"].get("repeated rounds", 0.0) for _, times in results]
    for name, extra in (("", [0.0] * len(walls)), (" and repeated rounds", repeats)):
        ratios = [wall / (cost + more) for wall, cost, more in zip(walls, costs, extra, strict=True)]
        print("  {:7.3f} ({:.3f} to {:.3f})".format(*median_and_interval(ratios)), end="  ")
        print(f"wall / (bare start, imports of others, load and rounds{name})")
    spreads = [statistics.stdev(r) / statistics.mean(r) for _, times in results for r in times["rounds"] if len(r) > 1]
    print(
        f"  {100 * statistics.median(spreads):7.2f} %  spread of a prompt's rounds (sd / mean, median of all prompts)"
    )


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("start", "job"))
    parser.add_argument("--pairs", type=int, default=20, help="pairs of starts")
    parser.add_argument("--model", default="reference-moe")
    parser.add_argument("--runs", type=int, default=5, help="runs of the main job on each side")
    parser.add_argument("--other", type=Path, help="the plugin/ folder of another checkout")
    given = parser.parse_args()
    bare = start(given.pairs)
    if given.what == "job":
        job(given.model, given.runs, given.other, bare)


if __name__ == "__main__":
    main()
