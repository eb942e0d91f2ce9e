"""How often gates cry wolf and how often they sleep: real rounds of the embedded model with a planted slow-down.

    python benchmarks/gate_quality.py --sessions 7 --out gate_quality.json

A temporary repository holds a suite of six prompts and an engine that spins for a share of each step's own time: 0 in
the base commit, 0, 3, 5 or 10 % in the others. Every session is a real `pytest` of its own, in random order. Each of
its six prompts is a trial. Reported per share: how often it was called a regression, passed, or neither, by

- the native gate, `--benchmark-compare-fail=median:5%`: the run against the newest earlier run of the base commit
- our gate against stored runs, `itl_p50:2.5%`: the same two runs, with ten runs of the base commit, measured among the
  others, as its history
- our A/B gate, `--infer-against`, `itl_p50:2.5%`, at most thirty pairs of rounds

A regression at 0 % is a false alarm; passing at 3 % or more (it is above the threshold of 2.5 %) is a miss.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from pytest_infer.analysis.compare import gate, rules
from pytest_infer.storage import runs
from pytest_infer.storage.history import History
from pytest_infer.storage.runs import Run

SHARES = (0, 3, 5, 10)
FIGURE = "itl_p50"
"""The median of a round's inter-token latencies: a neighbour's burst within the round moves it least."""
THRESHOLD = 2.5
NATIVE = 0.05
HISTORY = 10
CONFTEST = '''
import time

import pytest

from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.transformers.engine import TransformersEngine

SHARE = {share}


class Spinning:
    """A clock that lets a share of each step's own time pass before it tells the real one."""

    def __init__(self, clock):
        self.clock, self.last = clock, time.perf_counter_ns()

    def tick(self, token_ids):
        now = time.perf_counter_ns()
        until = now + SHARE * (now - self.last)
        while time.perf_counter_ns() < until:
            pass
        self.clock.tick(token_ids)
        self.last = time.perf_counter_ns()

    def prefilled(self):
        self.clock.prefilled()


class Slowed(TransformersEngine):
    def generate(self, prompt_ids, limits, clock):
        return super().generate(prompt_ids, limits, Spinning(clock))


@pytest.fixture(scope="session")
def engine():
    made = Slowed(EngineOptions(model="reference-moe", threads=1))
    yield made
    made.close()
'''
TEST = "def test_prompt(infer, prompt):\n    infer(prompt)\n"
SUITE = """
[defaults]
max_new_tokens = 32

[[prompt]]
name = "capital"
text = "The capital of the country is"

[[prompt]]
name = "code"
text = "def add(a, b):\\n    return"

[[prompt]]
name = "story"
text = "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do."

[[prompt]]
name = "list"
text = "apples, pears, plums, cherries,"

[[prompt]]
name = "question"
text = "How does a steam engine work? It"

[[prompt]]
name = "dialogue"
text = "'Who are you?' said the Caterpillar. 'I hardly know, sir,' she said,"
"""
COMMON = ("-q", "-p", "no:cacheprovider", "--infer-no-profile", "--infer-warmup=2", "--infer-ignore-eos")


def git(repository: Path, *command: str) -> None:
    """Run git quietly."""
    who = ("-c", "user.name=gate_quality", "-c", "user.email=nobody@localhost")
    subprocess.run(["git", *who, *command], cwd=repository, check=True, capture_output=True)


def make_repository(folder: Path) -> Path:
    """Return a repository with the tags base, slow-0, slow-3, …"""
    bench = folder / "bench"
    bench.mkdir(parents=True)
    (bench / "test_prompts.py").write_text(TEST)
    (bench / "prompts.toml").write_text(SUITE)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / ".gitignore").write_text("__pycache__/\n")
    git(folder, "init", "-q")
    for tag, share in [("base", 0), *((f"slow-{share}", share) for share in SHARES)]:
        # A comment makes slow-0 a commit of its own, with the same code.
        (bench / "conftest.py").write_text(CONFTEST.format(share=share / 100) + f"# {tag}\n")
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", tag)
        git(folder, "tag", tag)
    return folder


def pytest_run(repository: Path, tag: str, *options: str) -> None:
    """Check a tag out and run its suite there; stop if it neither passed nor was gated."""
    git(repository, "checkout", "-q", tag)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
    command = [sys.executable, "-m", "pytest", "bench", *COMMON, *options]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1, 3):
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
        )


def stored(repository: Path, tag: str, path: Path) -> Run:
    """Measure a run of five rounds and return it."""
    pytest_run(repository, tag, f"--benchmark-json={path}", "--infer-rounds=5")
    return runs.read(path)


def stored_verdicts(before: Run, base: list[Run], run: Run) -> tuple[list[str], list[str]]:
    """Return what the native gate and ours say of each row, held against `before`, one of the runs of the base."""
    native = []
    for row in run.rows:
        old = before.row(row.test)
        if old is not None:
            worse = float(row.metrics["total_s"].value) > (1 + NATIVE) * float(old.metrics["total_s"].value)
            native.append("regressed" if worse else "unchanged")
    pairs, _, _ = gate.stored_pairs(before, run.rows, History(folder=Path(), runs=tuple(base)))
    judged = gate.judge(pairs, rules.parse([f"{FIGURE}:{THRESHOLD}%"]))
    return native, [j.verdict.value for j in judged.judgements if j.verdict is not None]


def paired_verdicts(repository: Path, share: int, path: Path) -> list[dict[str, Any]]:
    """Run the A/B gate and return its judgements."""
    rule = f"--infer-gate={FIGURE}:{THRESHOLD}%"
    pytest_run(repository, f"slow-{share}", "--infer-against=base", rule, f"--benchmark-json={path}")
    found: list[dict[str, Any]] = json.loads(path.read_text())["pytest_infer"]["gate"]["judgements"]
    return found


def interval(count: int, trials: int) -> str:
    """Return a rate with its 95 % interval (Clopper & Pearson 1934), in percent."""
    if not trials:
        return "—"
    low, high = stats.binomtest(count, trials).proportion_ci(0.95, "exact")
    return f"{100 * count / trials:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def report(raw: list[dict[str, Any]]) -> None:
    """Print a table: a row a gate and a planted slow-down."""
    verdicts: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    pairs: dict[int, list[int]] = defaultdict(list)
    for session in raw:
        share = session["share"]
        if session["gate"] == "stored":
            verdicts["native median:5%", share].update(session["native"])
            verdicts[f"stored runs {FIGURE}:{THRESHOLD}%", share].update(session["verdicts"])
        else:
            judgements = session["judgements"]
            verdicts[f"A/B {FIGURE}:{THRESHOLD}%", share].update(j["verdict"] for j in judgements)
            pairs[share] += [j["rounds"][0] for j in judgements if j["rounds"]]
    print("| gate | planted | trials | regressed | passed | inconclusive |")
    print("|---|---|---|---|---|---|")
    for (name, share), counts in sorted(verdicts.items()):
        trials = counts.total()
        passed = counts["unchanged"] + counts["improved"]
        rest = trials - counts["regressed"] - passed
        cells = (interval(counts["regressed"], trials), interval(passed, trials), interval(rest, trials))
        print(f"| {name} | {share} % | {trials} | {' | '.join(cells)} |")
    for share, used in sorted(pairs.items()):
        print(f"pairs of rounds used at {share} %: {min(used)} to {max(used)}, mean {sum(used) / len(used):.0f}")


def in_turn(sessions: int, kinds: Sequence[str], seed: int) -> list[tuple[str, int]]:
    """Return what is measured when: every block holds each gate and share once, shuffled; the base's runs among them.

    The first is a run of the base, as the first that is judged needs one before it.
    """
    order = random.Random(seed)  # noqa: S311 - not for secrets
    found = []
    for _ in range(sessions):
        block = [(kind, share) for kind in kinds for share in SHARES]
        order.shuffle(block)
        found += block
    if "stored" in kinds:
        for number in range(HISTORY):
            found.insert(number * len(found) // HISTORY, ("base", 0))
    return found


def judged(runs: list[tuple[int, Run]]) -> list[dict[str, Any]]:
    """Return the verdicts on the stored runs; a share of -1 marks those of the base."""
    base = [run for share, run in runs if share < 0]
    found, before = [], base[0]
    for share, run in runs:
        if share < 0:
            before = run
            continue
        native, ours = stored_verdicts(before, base, run)
        found.append({"gate": "stored", "share": share, "native": native, "verdicts": ours})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=7, help="of each gate and share; six trials each")
    parser.add_argument("--only", choices=("stored", "paired"), help="leave the other gates out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep every verdict here; those of A/B after each session")
    options = parser.parse_args()
    raw: list[dict[str, Any]] = []
    runs: list[tuple[int, Run]] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = make_repository(folder / "repository")
        plan = in_turn(options.sessions, [options.only] if options.only else ["stored", "paired"], options.seed)
        for number, (kind, share) in enumerate(plan):
            path = folder / f"run-{number}.json"
            if kind == "paired":
                found = paired_verdicts(repository, share, path)
                raw.append({"gate": kind, "share": share, "judgements": found})
            else:
                tag = "base" if kind == "base" else f"slow-{share}"
                runs.append((-1 if kind == "base" else share, stored(repository, tag, path)))
            if options.out:
                options.out.write_text(json.dumps(raw, indent=1))
            progress = f"{number + 1} of {len(plan)}: {kind} {share} % after {time.monotonic() - started:.0f} s"
            print(progress, file=sys.stderr)
        raw += judged(runs) if runs else []
        if options.out:
            options.out.write_text(json.dumps(raw, indent=1))
    report(raw)


if __name__ == "__main__":
    main()
