"""The tables of docs/ that count trials say what benchmarks/trials/ holds: nobody writes a rate by hand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRIALS = ROOT / "benchmarks" / "trials"


def told(script):
    if not TRIALS.exists():
        pytest.skip("the wheel is tested without benchmarks/")
    found = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{script}.py", "--read", TRIALS / f"{script}.jsonl"],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.splitlines()


@pytest.mark.parametrize(
    ("script", "page", "of"),
    [
        ("gate_quality", "statistics.md", r"\| token[^|]*\| (?!all of them)"),
        ("bisect_quality", "bisect.md", r"\| right \|"),
        ("attribution", "breakdown.md", r"\| all of them \|"),
    ],
)
def test_the_page_has_what_the_trials_say(script, page, of):
    lines = [line for line in told(script) if re.match(of, line)]
    assert lines
    missing = [line for line in lines if line not in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()]
    assert not missing
