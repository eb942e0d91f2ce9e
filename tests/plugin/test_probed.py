"""A run whose machine's probe was wrong: what its file, its summary and its advice say."""

import json

import pytest

ENGINE = """
import dataclasses
import sys
import types

from pytest_infer.measure.machine import probe
from pytest_infer.records import MachineProbe, Work

sys.modules.setdefault("torch", types.ModuleType("torch"))  # as if the engine had loaded it
ANSWERS = {answers}

def measure(threads, device, flops):
    bandwidth, spread = ANSWERS.pop(0) if len(ANSWERS) > 1 else ANSWERS[0]
    return MachineProbe(threads=threads, read_bandwidth=bandwidth, read_bandwidth_spread=spread,
                        flops={{"float32": 1e15}}, caches={{}}, at_ns=1, boot=probe.boot())

probe.measure = measure

class Scripted(Scripted):
    def load(self):
        work = Work(read_bytes=10**6, parameters=1000, head_parameters=10, expert_parameters={{}}, pair_flops=1)
        return dataclasses.replace(super().load(), threads=1, work=work)

    def cache_bytes(self):
        return 100

    def generate(self, prompt_ids, limits, clock):
        self.delays = [0.01 if len(prompt_ids) == 2 else 0.05] * 3
        return super().generate(prompt_ids, limits, clock)

@pytest.fixture(scope="session")
def engine():
    return Scripted()
"""
# A step reads 1 MB in 50 ms, then in 10 ms.
GOOD, BETWEEN, SCATTERING = (1e15, 0.01), (3e7, 0.01), (1e9, 0.41)


@pytest.fixture
def probed(suite, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(tmp_path_factory.mktemp("cache")))

    def run(*answers):
        pytester = suite(engine=ENGINE.format(answers=list(answers)), virtual=True)
        result = pytester.runpytest("--benchmark-autosave", "--infer-rounds=2", "--infer-timeline=off", "-v")
        result.assert_outcomes(passed=2)
        (path,) = pytester.path.glob(".benchmarks/*/*.json")
        document = json.loads(path.read_text())
        blocks = [row["extra_info"]["pytest_infer"] for row in document["benchmarks"]]
        return result, [b for b in blocks if b["phase"] == "total"], document["pytest_infer"].get("probe")

    return run


def test_a_good_probe_is_kept(probed):
    result, blocks, runs = probed(GOOD)
    assert all(block["metrics"]["mbu"]["value"] < 1 for block in blocks)
    assert "discarded" not in runs
    result.stdout.no_fnmatch_line("*no probe*")


def test_a_probe_that_the_second_test_beats_is_replaced_in_the_first_as_well(probed):
    result, blocks, runs = probed(BETWEEN, GOOD)
    assert [block["machine"]["probe"]["read_bandwidth"] for block in blocks] == [1e15] * 2
    assert all(block["metrics"]["mbu"]["value"] < 1e-6 for block in blocks)
    assert [one["read_bandwidth"] for one in runs["discarded"]] == [3e7]
    result.stdout.no_fnmatch_line("*no probe*")


@pytest.mark.parametrize(("answer", "why"), [(BETWEEN, "a round read "), (SCATTERING, "its reads disagree")])
def test_a_probe_that_stays_wrong_is_in_no_test(probed, answer, why):
    result, blocks, runs = probed(answer)
    for block in blocks:
        assert "probe" not in block["machine"]
        assert why in block["machine"]["probe_absent"]
        assert {"mbu", "mfu", "decode_ceiling"}.isdisjoint(block["metrics"])
        assert all(why in block["absent"][key] for key in ("mbu", "mfu", "decode_ceiling"))
    assert len(runs["discarded"]) == 3
    result.stdout.fnmatch_lines([f"*no probe of the machine: *{why}*"])
    result.stdout.no_fnmatch_line("*of what this machine's memory allows*")
    result.stdout.no_fnmatch_line("*of the probed memory bandwidth*")
