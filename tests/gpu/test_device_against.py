"""A comparison in turns on one device: of identical code, and of a kernel that takes a little longer."""

import json
import subprocess
import sys
from pathlib import Path

CONFTEST = """
import os
import sys

import kernel
import pytest

sys.path.insert(0, os.environ["ON_DEVICE"])
from on_device import Own, Spinner
from pytest_infer.records import ModelInfo

class Spinning(Own):
    def check(self):
        pass

    def load(self):
        return ModelInfo(name="spinning", engine="own", dtype="float32", device=os.environ["DEVICE"], threads=1)

    def encode(self, prompt):
        return [1, 2, 3]

    def decode(self, token_ids):
        return " ".join(map(str, token_ids))

@pytest.fixture(scope="session")
def engine():
    import torch

    spinner = Spinner(torch.device(os.environ["DEVICE"]))
    # Both sides count the same cycles, whatever each has measured of the clock.
    spinner.cycles_per_s = 1.5e9
    return Spinning(spinner, lambda _: spinner(kernel.SECONDS))
"""
PROMPTS = """
[[prompt]]
name = "spin"
text = "one two three"
max_new_tokens = 24
"""


def repository(path, *seconds):
    """Make a repository with a commit for each duration of the kernel."""
    who = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    for name, text in (("conftest.py", CONFTEST), ("prompts.toml", PROMPTS), (".gitignore", "__pycache__\nresults\n")):
        path.joinpath(name).write_text(text)
    path.joinpath("test_all.py").write_text("def test_prompt(infer, prompt):\n    infer(prompt)\n")
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=path, check=True)
    for one in seconds:
        path.joinpath("kernel.py").write_text(f"SECONDS = {one}\n")
        subprocess.run(["git", "add", "-A"], cwd=path, check=True)
        subprocess.run(["git", *who, "commit", "-q", "-m", f"spin {one}"], cwd=path, check=True)


def compared(path, device, monkeypatch, *options):
    monkeypatch.setenv("DEVICE", str(device))
    monkeypatch.setenv("ON_DEVICE", str(Path(__file__).parent))
    chosen = ["--infer-against=HEAD~1", "--infer-inconclusive=pass", "--infer-repeat-disturbed=0", "--infer-no-probe"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--benchmark-json=run.json", *chosen, *options],
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert path.joinpath("run.json").is_file(), done.stdout[-3000:] + done.stderr[-1000:]
    rows = json.loads(path.joinpath("run.json").read_text())["benchmarks"]
    return done, rows[0]["extra_info"]["pytest_infer"]["against"]["turns"]


def test_both_sides_take_turns(device, tmp_path, monkeypatch):
    repository(tmp_path, 0.002, 0.004)
    few = ("--infer-launches=1", "--infer-rounds=1", "--infer-time=2s", "--infer-gate=off")
    done, turns = compared(tmp_path, device, monkeypatch, *few)
    assert done.returncode == 0, done.stdout[-3000:]
    assert turns["cycles"] >= 1
    assert turns["strayed"] == 0


def test_identical_code_passes_and_a_slower_kernel_does_not(card, tmp_path, monkeypatch, record_property):
    for name, slower, code in (("identical", 1.0, 0), ("planted", 1.02, 1)):
        path = tmp_path / name
        path.mkdir()
        # A comment keeps git from seeing the same tree twice.
        repository(path, 0.004, f"{0.004 * slower}  # {name}")
        options = ("--infer-launches=2", "--infer-rounds=2", "--infer-time=8s", "--infer-gate=tpot:1%")
        done, _ = compared(path, card, monkeypatch, *options)
        record_property(name, " ".join(done.stdout.split())[-600:])
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-1000:]
