"""The peak of a device's memory against an allocation of known size, and what a lack of memory leaves."""

import json
import subprocess
import sys

import pytest
from on_device import Own

from asked import asked
from pytest_infer.measure.rounds import timed_round
from pytest_infer.records import Limits, Quality

MIB = 2**20


@pytest.mark.parametrize("mebibytes", [64, 1024])
def test_the_peak_is_what_was_allocated(card, spinner, system, mebibytes):
    import torch

    def work(step):
        if step == 1:
            block = torch.empty(mebibytes * MIB, dtype=torch.uint8, device=card)
            block.fill_(1)

    held = torch.cuda.memory_allocated(card)
    for _ in range(2):  # the second round allocates from what torch has kept
        peak = timed_round(Own(spinner, work), asked([1]), Limits(max_new_tokens=3), system).counters.device_peak_bytes
        assert peak.value - held == pytest.approx(mebibytes * MIB, rel=0.02)
        assert peak.quality is Quality.EXACT
    small = timed_round(Own(spinner, lambda _: None), asked([1]), Limits(max_new_tokens=3), system).counters
    assert small.device_peak_bytes.value == pytest.approx(held, abs=MIB)


CONFTEST = """
import os

import pytest
import torch
from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.transformers.engine import TransformersEngine

class Hungry(TransformersEngine):
    def generate(self, prompt_ids, limits, clock):
        if limits.max_new_tokens == 5:
            torch.empty(2**50, dtype=torch.uint8, device=self.running.model.device)
        return super().generate(prompt_ids, limits, clock)

@pytest.fixture(scope="session")
def engine():
    made = Hungry(EngineOptions(model="reference-moe", device=os.environ["DEVICE"]))
    yield made
    made.close()
"""
PROMPTS = """
[[prompt]]
name = "first"
text = "He walked"
max_new_tokens = 4
[[prompt]]
name = "hungry"
text = "He walked"
max_new_tokens = 5
[[prompt]]
name = "last"
text = "He walked"
max_new_tokens = 4
"""


def test_no_memory_is_one_line_and_the_rest_is_measured(device, tmp_path, monkeypatch):
    monkeypatch.setenv("DEVICE", str(device))
    for name, text in (("conftest.py", CONFTEST), ("prompts.toml", PROMPTS)):
        tmp_path.joinpath(name).write_text(text)
    tmp_path.joinpath("test_all.py").write_text("def test_prompt(infer, prompt):\n    infer(prompt)\n")
    options = ["--infer-rounds=2", "--infer-no-profile", "--infer-no-probe", "--infer-repeat-disturbed=0"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--benchmark-json=run.json", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(("E  ", "FAILED")) or "Failed:" in line][:1]
    assert "memory" in line
    assert "Traceback" not in done.stdout
    stored = json.loads(tmp_path.joinpath("run.json").read_text())
    measured = {row["name"] for row in stored["benchmarks"]}
    assert any("first" in name for name in measured)
    assert any("last" in name for name in measured)
    assert not any("hungry" in name for name in measured)
