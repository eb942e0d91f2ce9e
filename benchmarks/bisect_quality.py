"""How often `pytest-infer bisect` names the right commit: a small planted slow-down in a history of thirty commits.

    python benchmarks/bisect_quality.py --repetitions 10 --out bisect_quality.jsonl
    python benchmarks/bisect_quality.py --read benchmarks/trials/bisect_quality.jsonl

A temporary repository holds a suite and an engine that spins for a share of each step's own time: 0 up to a random
commit, 2 % from there on. Every repetition plants it elsewhere and starts `pytest-infer bisect` on the whole range.
Reported: how often the right commit was named, a range that holds it, another commit, or nothing, and the time it took;
every line that was printed where it was not the right one.

`--commits 2 --share 100 --repetitions 1 -- --infer-max-rounds=12` shows in two minutes that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scratch_repository
from gate_quality import CONFTEST, interval
from scratch_repository import TEXTS, git

PLANTED, IMPORTED = "SHARES = {shares}", "from spin import SHARES"
"""The share lies in a module of its own: the suite that is laid over every commit must not bring it."""
START = (sys.executable, "-c", "from pytest_infer.cli.main import app; app()")


def make_repository(folder: Path, commits: int, first: int, share: float) -> list[str]:
    """Return the hashes of the commits of a new repository, oldest first; from number `first` on it is slow."""
    scratch_repository.make(folder, {"story": TEXTS["story"]}, 64, ini="pythonpath = .\n")
    conftest = CONFTEST.replace(PLANTED, IMPORTED).format(model="reference-moe", threads=1)
    (folder / "bench" / "conftest.py").write_text(conftest)
    for number in range(commits):
        planted = share / 100 if number >= first else 0
        (folder / "spin.py").write_text(f"SHARES = {{'story': {planted}}}\n# {number}\n")
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", f"change {number}")
    listed = subprocess.run(
        ["git", "rev-list", "--reverse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    )
    return listed.stdout.split()


def outcome(said: str, hashes: Sequence[str], first: int) -> tuple[str, int | None]:
    """Return what a bisection came to, and the number of the commit that it named."""
    named = re.search(r"^first bad commit: (\w+)$", said, flags=re.MULTILINE)
    if named is not None:
        number = list(hashes).index(named[1])
        return "right" if number == first else "wrong", number
    if "is one of these" in said:
        return "range" if hashes[first] in said else "wrong range", None
    return "nothing", None


def repetition(commits: int, first: int, share: float, options: Sequence[str]) -> dict[str, Any]:
    """Return what became of one bisection."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "repository"
        hashes = make_repository(folder, commits, first, share)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")} | {"COLUMNS": "120"}
        started = time.monotonic()
        done = subprocess.run(
            [*START, "bisect", hashes[0], hashes[-1], *options],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        took = time.monotonic() - started
    found, number = outcome(done.stdout, hashes, first)
    return {
        "planted": first,
        "named": number,
        "outcome": found,
        "exit": done.returncode,
        "seconds": round(took, 1),
        "steps": len(re.findall(r" steps? left$", done.stdout, flags=re.MULTILINE)),
        "lines": (done.stdout + done.stderr).splitlines(),
        **scratch_repository.when(),
    }


def report(found: Sequence[dict[str, Any]]) -> None:
    """Print how often each thing came out, with its 95 % interval."""
    counts = Counter(one["outcome"] for one in found)
    print("| outcome | of the bisections |")
    print("|---|---|")
    for name in ("right", "range", "wrong", "wrong range", "nothing"):
        print(f"| {name} | {interval(counts[name], len(found))} |")
    seconds = sorted(one["seconds"] for one in found)
    print(f"seconds: {seconds[0]:.0f} to {seconds[-1]:.0f}, median {seconds[len(seconds) // 2]:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--commits", type=int, default=30)
    parser.add_argument("--share", type=float, default=2.0, help="percent of a step that is spun away")
    parser.add_argument("--rule", default="tpot:1%")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append every bisection here, a line of JSON each")
    parser.add_argument("--read", type=Path, help="report what is in this file; measure nothing")
    parser.add_argument("pytest", nargs="*", help="pytest's arguments, behind --")
    options = parser.parse_args()
    if options.read:
        report([json.loads(line) for line in options.read.read_text().splitlines()])
        return
    order = random.Random(options.seed)  # noqa: S311 - not for secrets
    found: list[dict[str, Any]] = []
    for number in range(options.repetitions):
        first = order.randrange(1, options.commits)
        passed_on = [f"--rule={options.rule}", "--", "bench", "--infer-ignore-eos", *options.pytest]
        found.append(repetition(options.commits, first, options.share, passed_on))
        last = found[-1]
        if options.out:
            with options.out.open("a") as file:
                kept = {key: value for key, value in last.items() if key != "lines"}
                file.write(json.dumps({"share": options.share, "commits": options.commits, **kept}) + "\n")
        told = f"{last['outcome']} (planted at {first}, named {last['named']}), {last['seconds']:.0f} s"
        print(f"{number + 1} of {options.repetitions}: {told}", file=sys.stderr)
        if last["outcome"] != "right":
            print("\n".join(f"  {line}" for line in last["lines"]), file=sys.stderr)
    report(found)


if __name__ == "__main__":
    main()
