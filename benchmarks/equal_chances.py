"""Whether identical code is called a regression when a comparison starts in surroundings that favour one side.

    python benchmarks/equal_chances.py --trials 20 --out equal_chances.json

A temporary repository holds a suite of some prompts on the embedded model and two commits of the same code. Each kind
of surroundings starts `pytest bench --infer-against HEAD~1` in one of these; each prompt of a run is a trial:

- quiet: nothing else
- autogroup: two busy loops in pytest's own session, with the kernel's autogroups on (sched(7)), where they can be set
- neighbour: a busy loop in a session of its own
- second: the same suite measured by another pytest, again and again
- taskset, nice: on one core; below all others
- coverage, cprofile: pytest started under these (without coverage installed: under a tracer of its own)
- tracer, profiler, monitoring: `sys.settrace`, cProfile and `sys.monitoring`, switched on by the conftest of one side

Reported per kind and per figure: trials called regressed, improved, passed (unchanged), inconclusive. It ends with 1 if
anything was called regressed. A run starts two processes a launch and measures each prompt for `--time` at most: with
more `--prompts` as many trials take fewer runs, and fewer launches stand behind them.
"""

from __future__ import annotations

import argparse
import atexit
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scratch_repository
from scratch_repository import BUSY, TEXTS, git

CONFTEST = "# {tag}\n"
TRACER = "import sys\n\n\ndef trace(frame, event, arg):\n    return trace\n\n\nsys.settrace(trace)\n"
PROFILER = "import cProfile\n\nPROFILER = cProfile.Profile()\nPROFILER.enable()\n"
MONITORING = """
import sys

TOOL = sys.monitoring.PROFILER_ID
sys.monitoring.use_tool_id(TOOL, "counting")
sys.monitoring.register_callback(TOOL, sys.monitoring.events.LINE, lambda code, line: None)
sys.monitoring.set_events(TOOL, sys.monitoring.events.LINE)
"""
UNDER_A_TRACER = f"{TRACER}import pytest\nsys.exit(pytest.console_main())\n"
MODEL = ("--infer-model=reference-moe", "--infer-threads=1", "--infer-ignore-eos", "--infer-no-probe")
QUICK = ("-q", "-p", "no:cacheprovider", "--infer-no-profile", "--infer-timeline=off")
AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")
LONGEST_S = 600
VERDICTS = ("regressed", "improved", "unchanged", "inconclusive")
Python = Sequence[str]


@dataclass(frozen=True)
class Kind:
    """Surroundings: what pytest is started by, what runs beside it, and which commit of this side's conftest."""

    name: str
    pytest: Callable[[], Python] = lambda: (sys.executable, "-m", "pytest")
    beside: Callable[[Path, ExitStack], None] = lambda _repository, _stack: None
    tag: str = "same"
    impossible: Callable[[], str | None] = lambda: None


def plain() -> Python:
    return (sys.executable, "-m", "pytest")


def covered() -> Python:
    import importlib.util  # noqa: PLC0415

    if importlib.util.find_spec("coverage") is None:
        return (sys.executable, "-c", UNDER_A_TRACER)
    # Not the null device: coverage removes what it is to write, which as root is the device itself.
    data = Path(tempfile.mkdtemp()) / "coverage"
    atexit.register(shutil.rmtree, data.parent, ignore_errors=True)
    return (sys.executable, "-m", "coverage", "run", f"--data-file={data}", "-m", "pytest")


def profiled() -> Python:
    return (sys.executable, "-m", "cProfile", "-o", os.devnull, "-m", "pytest")


@contextmanager
def running(command: Sequence[str], *, own_session: bool, cwd: Path | None = None) -> Iterator[None]:
    """Let a process run beside; it is killed at the end, with what it started where it has a session of its own."""
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=own_session
    )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            (os.killpg if own_session else os.kill)(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def autogroups() -> Iterator[None]:
    """Switch the kernel's autogroups on, and back to what they were."""
    before = AUTOGROUP.read_text()
    if before.strip() != "1":
        AUTOGROUP.write_text("1")
    try:
        yield
    finally:
        if before.strip() != "1":
            AUTOGROUP.write_text(before)


def two_loops(_repository: Path, stack: ExitStack) -> None:
    stack.enter_context(autogroups())
    for _ in range(2):
        stack.enter_context(running((sys.executable, "-c", BUSY), own_session=False))


def one_loop(_repository: Path, stack: ExitStack) -> None:
    stack.enter_context(running((sys.executable, "-c", BUSY), own_session=True))


def another_run(repository: Path, stack: ExitStack) -> None:
    again = " ".join([sys.executable, "-m", "pytest", "bench", *QUICK, *MODEL, "--infer-rounds=50"])
    command = ("sh", "-c", f"while kill -0 $PPID; do {again}; done")
    stack.enter_context(running(command, own_session=True, cwd=repository))


def no_autogroups() -> str | None:
    if not AUTOGROUP.exists():
        return "this kernel has no autogroups"
    on = AUTOGROUP.read_text().strip() == "1"
    return None if on or os.access(AUTOGROUP, os.W_OK) else f"{AUTOGROUP} is off and cannot be written"


def no_monitoring() -> str | None:
    return None if hasattr(sys, "monitoring") else "sys.monitoring came with Python 3.12"


def lacks(program: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(program) else f"there is no {program}"


KINDS = (
    Kind("quiet"),
    Kind("autogroup", beside=two_loops, impossible=no_autogroups),
    Kind("neighbour", beside=one_loop),
    Kind("second", beside=another_run),
    Kind("taskset", pytest=lambda: ("taskset", "-c", "0", *plain()), impossible=lacks("taskset")),
    Kind("nice", pytest=lambda: ("nice", "-n", "10", *plain()), impossible=lacks("nice")),
    Kind("coverage", pytest=covered),
    Kind("cprofile", pytest=profiled),
    Kind("tracer", tag="tracer"),
    Kind("profiler", tag="profiler"),
    Kind("monitoring", tag="monitoring", impossible=no_monitoring),
)


def make_repository(folder: Path, prompts: int, tokens: int) -> Path:
    """Return a repository whose tags all hold the same suite; the conftest of some switches a tool on."""
    scratch_repository.make(folder, dict(list(TEXTS.items())[:prompts]), tokens)
    contents = {"base": "", "same": "", "tracer": TRACER, "profiler": PROFILER, "monitoring": MONITORING}
    for tag, content in contents.items():
        (folder / "bench" / "conftest.py").write_text(CONFTEST.format(tag=tag) + content)
        scratch_repository.commit(folder, tag)
    return folder


def run(repository: Path, kind: Kind, options: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """Compare a commit with its equal in these surroundings and return the judgements; stop where there are none."""
    git(repository, "checkout", "-q", kind.tag)
    asked = ["--infer-against=base", f"--infer-turns={options.turns}", f"--infer-gate={options.rules}"]
    asked += (
        [f"--infer-launches={options.launches}", f"--infer-time={options.time}"] if options.turns != "round" else []
    )
    command = [*kind.pytest(), "bench", *QUICK, *MODEL, *asked, f"--benchmark-json={path}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GITHUB_", "PYTEST_"))}
    with ExitStack() as stack:
        kind.beside(repository, stack)
        done = subprocess.run(
            command, cwd=repository, env=environment, capture_output=True, text=True, check=False, timeout=LONGEST_S
        )
    if not path.is_file():
        raise SystemExit(
            f"{kind.name}: {' '.join(command)} ended with {done.returncode}\n{done.stdout[-4000:]}"
            f"\n{done.stderr[-4000:]}"
        )
    whole = json.loads(path.read_text()).get("pytest_infer", {})
    found: list[dict[str, Any]] = whole.get("gate", {}).get("judgements", [])
    if not found:
        raise SystemExit(f"{kind.name}: nothing was judged\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return found


def trials(judgements: Sequence[dict[str, Any]]) -> list[str]:
    """Return the verdict on each prompt: the worst of its figures'."""
    of_prompt: dict[str, set[str]] = defaultdict(set)
    for judgement in judgements:
        of_prompt[judgement["prompt"]].add(judgement.get("verdict") or "unchanged")
    order = ("regressed", "missing", "incomparable", "inconclusive", "improved", "unchanged")
    return [next((word for word in order if word in found), "new") for found in of_prompt.values()]


def report(raw: Sequence[dict[str, Any]]) -> bool:
    """Print a table per kind and one per kind and figure; return whether anything was called regressed."""
    prompts: dict[str, Counter[str]] = defaultdict(Counter)
    figures: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    widest: dict[tuple[str, str], list[float]] = defaultdict(list)
    for session in raw:
        prompts[session["kind"]].update(trials(session["judgements"]))
        for judgement in session["judgements"]:
            key = session["kind"], judgement.get("rule") or "test"
            figures[key][judgement.get("verdict") or "unchanged"] += 1
            if judgement.get("change") is not None:
                widest[key].append(judgement["change"])
    print("| kind | trials | regressed | improved | passed | inconclusive | other |\n|---|---|---|---|---|---|---|")
    for kind, counts in prompts.items():
        print(f"| {kind} | {_cells(counts)} |")
    print("\n| kind | figure | trials | regressed | improved | passed | inconclusive | other | changes |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (kind, figure), counts in figures.items():
        changes = widest[kind, figure]
        seen = f"{100 * min(changes):+.2g} to {100 * max(changes):+.2g} %" if changes else "—"
        print(f"| {kind} | {figure} | {_cells(counts)} | {seen} |")
    return any(counts["regressed"] for counts in prompts.values())


def _cells(counts: Counter[str]) -> str:
    known = [counts[word] for word in VERDICTS]
    return " | ".join(map(str, (counts.total(), *known, counts.total() - sum(known))))


def main() -> None:
    names = [kind.name for kind in KINDS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, help="of each kind")
    parser.add_argument("--prompts", type=int, default=3, choices=range(1, len(TEXTS) + 1), help="of a run")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="KIND", help=", ".join(names))
    parser.add_argument("--turns", choices=("token", "round"), default="token")
    parser.add_argument("--launches", type=int, default=4)
    parser.add_argument("--time", default="8s", help="for a prompt, at most")
    parser.add_argument("--tokens", type=int, default=20, help="that a prompt generates")
    parser.add_argument("--rules", default="output:exact,ttft:3%,tpot:3%,total:3%,peak_rss:3%")
    parser.add_argument("--out", type=Path, help="keep every judgement here, after each run")
    options = parser.parse_args()
    raw: list[dict[str, Any]] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        repository = make_repository(Path(name) / "repository", options.prompts, options.tokens)
        for kind in (kind for kind in KINDS if kind.name in options.only):
            why = kind.impossible()
            if why is not None:
                print(f"{kind.name}: left out, {why}", file=sys.stderr)
                continue
            for number in range(math.ceil(options.trials / options.prompts)):
                found = run(repository, kind, options, Path(name) / f"{kind.name}-{number}.json")
                raw.append({"kind": kind.name, "judgements": found})
                if options.out:
                    options.out.write_text(json.dumps(raw, indent=1))
                told = Counter(trials(found))
                print(f"{time.monotonic() - started:.0f} s: {kind.name} {number + 1}: {dict(told)}", file=sys.stderr)
    if report(raw):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
