"""The script of a visit to a machine with an accelerator, with a Python that fails where a test wants it to."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "accelerator_check.sh"
STEPS = (
    "wheels of what is missing",
    "the machine",
    "the models",
    "clock, memory, the card",
    "models as on the CPU",
    "the main job",
    "run, report, figures",
    "two commits in turns",
    "tests of devices beside others",
    "the tests' results",
)
STUB = """#!/bin/sh
case "$*" in
{cases}
*--benchmark-storage=*) folder=${{*##*--benchmark-storage=}}; mkdir -p "$folder"; echo stored > "$folder/0001.json" ;;
esac
"""


def run(tmp_path, cases="", **environment):
    stub = tmp_path / "python"
    stub.write_text(STUB.format(cases=cases))
    stub.chmod(0o755)
    return subprocess.run(
        [SCRIPT, "--dry-run", tmp_path / "out"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ACCELERATOR_CHECK_PYTHON": str(stub), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def told(done):
    return {name: line.split()[0] for line in done.stdout.splitlines() for name in STEPS if f" {name} " in line}


def test_shellcheck_finds_nothing():
    tool = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if tool is None:
        pytest.skip("shellcheck is not installed")
    # Older ones do not see that steps are called by their names.
    done = subprocess.run([tool, "--exclude=SC2317", SCRIPT], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


def test_every_step_is_told(tmp_path):
    done = run(tmp_path)
    assert told(done) == dict.fromkeys(STEPS, "ok"), done.stdout
    assert done.returncode == 0
    assert "every step passed" in done.stdout
    assert len([*(tmp_path / "out").rglob("*")]) <= 8


@pytest.mark.parametrize(
    ("cases", "failed"),
    [
        ("*test_device_models.py*) echo it broke; exit 3 ;;", "models as on the CPU"),
        ("*'import sys, torch'*) exit 1 ;;", "the machine"),
        ("*accelerator_models.py*) exit 1 ;;", "the models"),
        ("*test_device_clock.py*) kill -9 $$ ;;", "clock, memory, the card"),
        ("*-m?pytest?bench*) echo nothing is left; exit 1 ;;", "the main job"),
    ],
)
def test_a_step_that_fails_is_told_and_the_next_goes_on(tmp_path, cases, failed):
    done = run(tmp_path, cases)
    seen = told(done)
    assert list(seen) == list(STEPS)
    # Without a run there is no report of one.
    also = {"run, report, figures"} if failed == "the main job" else set()
    assert {name for name, how in seen.items() if how == "FAILED"} == {failed, *also}, done.stdout
    assert done.returncode == 1
    assert failed in done.stdout.splitlines()[-1]


def test_what_hangs_ends_at_its_limit_and_the_whole_at_its_own(tmp_path):
    done = run(tmp_path, "*test_device_clock.py*) sleep 60 ;;", ACCELERATOR_CHECK_S="3")
    seen = told(done)
    assert seen["clock, memory, the card"] == "FAILED", done.stdout
    assert list(seen.values())[4:] == ["left"] * (len(STEPS) - 4)
    assert done.returncode == 1
