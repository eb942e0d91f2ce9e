"""The trace of a stored run agrees with its counts, token by token, and is there only when it was asked for."""

import json

import numpy as np
import pytest

from pytest_infer.storage import runs, sidecar

pytestmark = pytest.mark.real

SUITE = """
from pytest_infer.prompts import Prompt

def test_story(infer):
    infer(Prompt(name="story", text="Once upon a time there was a little"))
"""


def run(pytester, *options):
    folder = pytester.path
    folder.joinpath("test_suite.py").write_text(SUITE)
    folder.joinpath("pytest.ini").write_text("[pytest]\n")
    small = [
        "--infer-rounds=1",
        "--infer-warmup=0",
        "--infer-max-new-tokens=9",
        "--infer-threads=1",
        "--infer-no-probe",
    ]
    pytester.runpytest_subprocess("-q", "--benchmark-json=run.json", *small, *options).assert_outcomes(passed=1)
    (row,) = runs.rows(folder / "run.json")
    return row, sidecar.read(folder / "run.json")


def test_trace_adds_up_to_the_counts(forked):
    row, arrays = run(forked, "--infer-experts=trace")
    usage = row.experts
    assert (usage.check, usage.trace, usage.tokens.decode) == ("passed", True, 8)
    for number, site in enumerate(usage.sites):
        trace = arrays[f"{row.test}|experts|{site.name}"]
        assert trace.dtype == np.uint8
        assert trace.shape == (usage.tokens.prefill + 8, site.k)
        assert all(len(set(selected)) == site.k for selected in trace.tolist())
        for phase, part in (("prefill", trace[: usage.tokens.prefill]), ("decode", trace[usage.tokens.prefill :])):
            assert tuple(np.bincount(part.ravel(), minlength=site.slots)) == getattr(usage.counts, phase)[number]
    # The model's router weighs the experts of a token so that the weights sum to 1.
    for phase, tokens in (("prefill", usage.tokens.prefill), ("decode", usage.tokens.decode)):
        for weights in getattr(usage.weights, phase):
            assert sum(weights) == pytest.approx(tokens, rel=1e-3)


def test_counts_alone_leave_no_trace(forked):
    row, arrays = run(forked)
    assert row.experts.trace is False
    assert not any("|experts|" in key for key in arrays)
    assert "trace" not in json.dumps(json.loads((forked.path / "run.json").read_text())["benchmarks"][0]["extra_info"])
