"""How often gates cry wolf and how often they sleep: real rounds of a real model with planted slow-downs.

    python benchmarks/gate_quality.py --runs 3 --out gate_quality.jsonl
    python benchmarks/gate_quality.py --models reference-moe smollm2 --threads 1 2 --neighbour off on --runs 50
    python benchmarks/gate_quality.py --read benchmarks/trials/gate_quality.jsonl

A temporary repository holds a suite of six prompts and an engine that spins for a share of each step's own time: none
in the base commit; in the other one 0, 0, 0, 1, 2 and 5 %, each prompt its own, and another one in every run. A trial
is one prompt of one run; the prompts of a run share its launches, so trials of different shares are not independent,
and of the unchanged ones three of a run. Runs of all cells (model, threads, neighbour) and gates take turns. The
neighbour burns a core for random seconds, and rests for random seconds. Reported per cell and share: how often it was
called a regression, passed, or neither, and how often the interval did not hold 0, by

- the A/B gate in turns of a token, `--infer-against`, `tpot:1%`
- the A/B gate in turns of a round, `--infer-against --infer-turns=round`, `tpot:1%`, ten to thirty pairs
- our gate against stored runs, `tpot:1%`, with ten runs of the base commit as its history
- the native gate, `--benchmark-compare-fail=median:1%`, the same runs

Rates of one in a hundred need more runs than one sitting has: `--trials` appends what was said of each trial to a file
that every sitting adds to, benchmarks/trials/gate_quality.jsonl, and `--read` tells of all of them. Those of the A/B
gate as it was before undisturbed turns counted alone are called "token, all turns" there, and those beside a neighbour
"token, waits of 5 %" from when such waits disturbed, and "token, by scatter" from when scatter alone decided which
turns count.

`--resample` also judges random choices of eight launches out of all that a cell has: more trials than there are, which
are not independent, but show what the launches that were measured would have said.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import scratch_repository
from scipy import stats
from scratch_repository import COMES_AND_GOES, TEXTS

from pytest_infer.analysis.compare import comparison, gate, rules
from pytest_infer.analysis.compare.launches import FIRST, STEP
from pytest_infer.records import Turns
from pytest_infer.storage import runs
from pytest_infer.storage.history import History
from pytest_infer.storage.runs import Row, Run, row_of

SHARES = (0, 1, 2, 5, 0, 0)
RULE = "tpot:1%"
KEPT = ("prompt", "verdict", "change", "change_low", "change_high")
"""What a file of trials keeps of a judgement."""
NATIVE = 0.01
HISTORY = 10
LAUNCHES = 8
ALL = "all of them"
TOKENS = 32
CONFTEST = '''
import time

import pytest

from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.transformers.engine import TransformersEngine

SHARES = {shares}


class Spinning:
    """A clock that lets a share of each step's own time pass before it tells the real one."""

    def __init__(self, clock, share):
        self.clock, self.share, self.last = clock, share, time.perf_counter_ns()

    def tick(self, token_ids):
        now = time.perf_counter_ns()
        until = now + self.share * (now - self.last)
        while time.perf_counter_ns() < until:
            pass
        self.clock.tick(token_ids)
        self.last = time.perf_counter_ns()

    def prefilled(self):
        self.clock.prefilled()


class Slowed(TransformersEngine):
    def encode(self, prompt):
        self.share = SHARES[prompt.name]
        return super().encode(prompt)

    def generate(self, prompt_ids, limits, clock):
        return super().generate(prompt_ids, limits, Spinning(clock, self.share))


@pytest.fixture(scope="session")
def engine(request):
    made = Slowed(EngineOptions(model="{model}", threads={threads}))
    yield made
    made.close()
'''
COMMON = ("-q", "-p", "no:cacheprovider", "--infer-no-profile", "--infer-no-probe", "--infer-ignore-eos")


@dataclass(frozen=True, slots=True)
class Cell:
    """What a share is measured with."""

    model: str
    threads: int
    neighbour: str

    def __str__(self) -> str:
        beside = ", beside a neighbour" if self.neighbour == "on" else ""
        return f"{self.model}, {self.threads} thread{'s' * (self.threads > 1)}{beside}"


@contextmanager
def neighbour(state: str) -> Iterator[None]:
    """Let a loop burn a core now and then, if asked for."""
    if state == "off":
        yield
        return
    loop = subprocess.Popen([sys.executable, "-c", COMES_AND_GOES])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def commit(repository: Path, cell: Cell, shares: dict[str, int], tag: str) -> None:
    """Commit an engine that is slower by these shares, in percent."""
    text = CONFTEST.format(
        shares={name: share / 100 for name, share in shares.items()}, model=cell.model, threads=cell.threads
    )
    # A comment makes a commit that changes nothing one of its own.
    (repository / "bench" / "conftest.py").write_text(f"{text}# {tag}\n")
    scratch_repository.commit(repository, tag)


def pytest_run(repository: Path, cell: Cell, *options: str) -> None:
    """Run the suite as it is checked out; stop if it neither passed nor was gated."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
    command = [sys.executable, "-m", "pytest", "bench", *COMMON, *options]
    with neighbour(cell.neighbour):
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    if "gate against" not in done.stdout and done.returncode != 0:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
        )


def paired(repository: Path, cell: Cell, shares: dict[str, int], turns: str, options: Sequence[str]) -> dict[str, Any]:
    """Run an A/B gate; return its judgements and the blocks that they were made from."""
    path = repository.parent / "run.json"
    none = dict.fromkeys(TEXTS, 0)
    commit(repository, cell, none, "base")
    commit(repository, cell, shares, "head")
    started = time.monotonic()
    pytest_run(
        repository, cell, "--infer-against=base", f"--infer-turns={turns}", f"--infer-gate={RULE}",
        f"--benchmark-json={path}", *options,
    )  # fmt: skip
    stored = json.loads(path.read_text())
    blocks = [row["extra_info"]["pytest_infer"] for row in stored["benchmarks"]]
    by_prompt = {block["prompt"]["name"]: block for block in blocks if block["phase"] == "total"}
    return {
        "seconds": time.monotonic() - started,
        "prompt_seconds": [block["against"]["turns"]["seconds"] for block in by_prompt.values()],
        "undisturbed": [block["against"]["turns"].get("undisturbed", {}).get(STEP) for block in by_prompt.values()],
        "judgements": stored["pytest_infer"]["gate"]["judgements"],
        "blocks": by_prompt,
    }


def stored(repository: Path, cell: Cell, shares: dict[str, int]) -> dict[str, Any]:
    """Measure a history of the base and one run of the other commit; return what both gates say of it."""
    folder = repository.parent
    commit(repository, cell, dict.fromkeys(TEXTS, 0), "base")
    base = []
    for number in range(HISTORY):
        path = folder / f"base-{number}.json"
        pytest_run(repository, cell, f"--benchmark-json={path}")
        base.append(runs.read(path))
    commit(repository, cell, shares, "head")
    pytest_run(repository, cell, f"--benchmark-json={folder / 'head.json'}")
    run = runs.read(folder / "head.json")
    pairs, _, _ = gate.stored_pairs(base[-1], run.rows, History(folder=Path(), runs=tuple(base)))
    judged = gate.judge(pairs, rules.parse([RULE]))
    return {"judgements": msgspec.to_builtins(judged.judgements), "native": _native(base[-1], run)}


def _native(before: Run, run: Run) -> list[dict[str, Any]]:
    found = []
    for row in run.rows:
        old = before.row(row.test)
        if old is not None:
            change = float(row.metrics["total_s"].value) / float(old.metrics["total_s"].value) - 1
            verdict = "regressed" if change > NATIVE else "unchanged"
            found.append({"prompt": row.name, "verdict": verdict, "change": change})
    return found


def resampled(measured: list[dict[str, Any]], times: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield judgements of random choices of launches, out of all runs of a cell; each prompt keeps its run's share.

    A choice takes one run's prompts and shares, and launches of any run: those of another are shifted by the difference
    of the two shares, which is what was planted. Only what the medians of turns tell is chosen from, of runs in which
    they tell each prompt.
    """
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    measured = [run for run in measured if _launches(run)]
    if not measured:
        return
    for _ in range(times):
        mine = chance.choice(measured)
        launches = [(run, n) for run in measured for n in range(_launches(run))]
        chosen = chance.sample(launches, min(LAUNCHES, len(launches)))
        turns = {}
        for name, block in mine["blocks"].items():
            kept = msgspec.convert(block["against"]["turns"], Turns)
            ratios = {
                key: tuple(_shifted(run, name, key, n, mine["shares"][name]) for run, n in chosen)
                for key in (FIRST, STEP)
            }
            turns[name] = replace(kept, ratios=ratios, rounds=0)
        yield judged(mine, turns)


def judged(run: dict[str, Any], turns: dict[str, Turns] | None = None) -> dict[str, Any]:
    """Return a run as the gate of today judges it, or what other turns would have said."""
    pairs = []
    for name, block in run["blocks"].items():
        rows = _rows(block)
        own = msgspec.convert(block["against"]["turns"], Turns) if turns is None else turns[name]
        pairs.append(comparison.RowPair(before=rows[0], after=rows[1], paired=True, turns=own))
    return {**run, "judgements": msgspec.to_builtins(gate.judge(pairs, rules.parse([RULE])).judgements)}


def _launches(run: dict[str, Any]) -> int:
    return min(len(block["against"]["turns"]["ratios"].get(STEP, ())) for block in run["blocks"].values())


def _shifted(run: dict[str, Any], name: str, key: str, launch: int, share: int) -> tuple[float, ...]:
    shift = math.log1p(share / 100) - math.log1p(run["shares"][name] / 100)
    return tuple(value + shift for value in run["blocks"][name]["against"]["turns"]["ratios"][key][launch])


def _rows(block: dict[str, Any]) -> tuple[Row, Row]:
    test = block["test"] if "test" in block else block["prompt"]["name"]
    return row_of(test, test, {**block, "metrics": block["against"]["metrics"]}), row_of(test, test, block)


def interval(count: int, trials: int) -> str:
    """Return a rate with its 95 % interval (Clopper & Pearson 1934), in percent."""
    if not trials:
        return "—"
    low, high = stats.binomtest(count, trials).proportion_ci(0.95, "exact")
    return f"{100 * count / trials:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def report(measured: Sequence[dict[str, Any]]) -> None:
    """Print a table: a row a gate, a cell (and all of them together) and a planted slow-down."""
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for run in measured:
        for judgement in run["judgements"]:
            for cell in (run["cell"], ALL):
                found[run["gate"], cell, run["shares"][judgement["prompt"]]].append(judgement)
    print(
        "| gate | cell | planted | trials | regressed | passed | neither | interval without 0 | estimate, mean ± sd |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (kind, cell, share), judgements in sorted(found.items()):
        trials = len(judgements)
        verdicts = [j["verdict"] for j in judgements]
        passed = sum(v in ("unchanged", "improved") for v in verdicts)
        failed = verdicts.count("regressed")
        told = sum(bool(j.get("change_low") and j.get("change_high") and j["change_low"] * j["change_high"] > 0)
                   for j in judgements)  # fmt: skip
        changes = [100 * j["change"] for j in judgements if j.get("change") is not None]
        mean = f"{sum(changes) / len(changes):+.2f}" if changes else "—"
        spread = f"{stats.tstd(changes):.2f}" if len(changes) > 1 else "—"
        cells = [interval(count, trials) for count in (failed, passed, trials - failed - passed, told)]
        print(f"| {kind} | {cell} | {share} % | {trials} | {' | '.join(cells)} | {mean} ± {spread} % |")
    turns = [run for run in measured if run["gate"].startswith("token")]
    for cell in sorted({run["cell"] for run in turns}):
        runs_of = [run for run in turns if run["cell"] == cell]
        each = statistics.fmean(seconds for run in runs_of for seconds in run["prompt_seconds"])
        print(f"{cell}: {each:.0f} s a prompt, {statistics.fmean(run['seconds'] for run in runs_of):.0f} s a run")


def trials(run: dict[str, Any]) -> dict[str, Any]:
    """Return what a file of trials keeps of a run: what was said, and the ratios of each launch that said it."""
    kept = {key: value for key, value in run.items() if key != "blocks"}
    judgements = [{key: one.get(key) for key in KEPT} for one in run["judgements"]]
    ratios = {
        name: {key: [_rounded(of_launch) for of_launch in told] for key, told in turns["ratios"].items()}
        for name, block in run.get("blocks", {}).items()
        if (turns := block.get("against", {}).get("turns"))
    }
    return kept | {"judgements": judgements, "ratios": ratios, **scratch_repository.when()}


def _rounded(ratios: Sequence[float]) -> list[float]:
    return [round(one, 5) for one in ratios]


def plan(options: argparse.Namespace) -> list[tuple[int, str, Cell]]:
    """Return what is measured when: every block holds each gate and cell once, shuffled."""
    order = random.Random(options.seed)  # noqa: S311 - not for secrets
    cells = [Cell(m, t, n) for m in options.models for t in options.threads for n in options.neighbour]
    found = []
    for number in range(options.runs):
        block = [(number, kind, cell) for kind in options.gates for cell in cells]
        order.shuffle(block)
        found += block
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each gate and cell; six trials each")
    parser.add_argument("--models", nargs="+", default=["reference-moe"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--neighbour", nargs="+", choices=("off", "on"), default=["off"])
    parser.add_argument("--gates", nargs="+", choices=("token", "round", "stored"), default=["token"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append every run here, a line of JSON each")
    parser.add_argument("--trials", type=Path, help="append every trial here, without what it was judged from")
    parser.add_argument("--read", type=Path, nargs="+", help="report what is in these files; measure nothing")
    parser.add_argument("--again", action="store_true", help="with --read: judge anew what turns of a token measured")
    parser.add_argument("--resample", type=int, default=0, metavar="N", help="judge N random choices of launches")
    parser.add_argument("--option", action="append", default=[], help="of pytest, for the A/B gates (repeat it)")
    options = parser.parse_args()
    measured: list[dict[str, Any]] = []
    if options.read:
        measured = [json.loads(line) for path in options.read for line in path.read_text().splitlines()]
    else:
        measured = measure(options)
    if options.again:
        measured = [judged(run) if run["gate"] == "token" else run for run in measured]
    if options.resample:
        cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for run in measured:
            if run["gate"] == "token":
                cells[run["cell"]].append(run)
        measured = [again for group in cells.values() for again in resampled(group, options.resample, options.seed)]
    report(measured)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what was planned."""
    measured, started = [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        repository = scratch_repository.make(Path(name) / "repository", TEXTS, TOKENS)
        planned = plan(options)
        for done, (number, kind, cell) in enumerate(planned, 1):
            shares = {prompt: SHARES[(n + number + options.seed) % len(SHARES)] for n, prompt in enumerate(TEXTS)}
            run: dict[str, Any] = {"gate": kind, "cell": str(cell), "shares": shares}
            if kind == "stored":
                found = stored(repository, cell, shares)
                measured.append({**run, "gate": "native", "judgements": found.pop("native")})
            else:
                found = paired(repository, cell, shares, kind, options.option)
            measured.append(run | found)
            new = measured[-2 if kind == "stored" else -1 :]
            for path, lines in ((options.out, new), (options.trials, map(trials, new))):
                if path:
                    with path.open("a") as file:
                        file.writelines(json.dumps(one) + "\n" for one in lines)
            said = f"{done} of {len(planned)}: {kind}, {cell}, after {time.monotonic() - started:.0f} s"
            print(said, file=sys.stderr)
    return measured


if __name__ == "__main__":
    main()
