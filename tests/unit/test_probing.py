"""When the machine is probed, what of it is kept, and what is told of a bandwidth that moved."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest

from pytest_infer.engines.bundled import cache
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.pytest_face import probing
from pytest_infer.pytest_face.probing import Probing
from pytest_infer.records import MachineProbe, ModelInfo
from pytest_infer.storage import probes

MODEL = ModelInfo(name="m", engine="e", threads=2, device="cpu")


def made(threads=2, bandwidth=40e9, spread=0.03, **changes):
    base = MachineProbe(
        threads=threads,
        read_bandwidth=bandwidth,
        read_bandwidth_spread=spread,
        flops={"float32": 180e9},
        caches={},
        at_ns=1,
        boot=probes.probe.boot(),
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.ENV, str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())


@pytest.fixture
def measured(monkeypatch):
    """Return the calls of the probe; `answers` are its results in turn."""

    class Calls(list):
        answers = ()

    calls = Calls()

    def measure(threads, device, flops):
        calls.append((threads, device, flops))
        return calls.answers[len(calls) - 1] if calls.answers else made(threads, device=device)

    monkeypatch.setattr(probing.probe, "measure", measure)
    return calls


def test_a_split_model_has_no_probe(measured):
    run = Probing([].append, wanted=True)
    split = dataclasses.replace(MODEL, device="cuda:0, cpu")
    assert not run.due(split)
    assert run.before(split) is None
    assert not measured


def test_once_before_and_once_after_for_each_threads_and_device(measured):
    run = Probing([].append, wanted=True)
    assert run.due(MODEL)
    first = run.before(MODEL)
    assert run.before(MODEL) is first
    assert not run.due(MODEL)
    assert run.before(dataclasses.replace(MODEL, threads=1)).threads == 1
    run.after()
    flops = {"float32": 180e9}
    assert measured == [(2, "cpu", None), (1, "cpu", None), (2, "cpu", flops), (1, "cpu", flops)]
    assert [p["threads"] for p in run.stored()["before"]] == [2, 1]
    assert [p["threads"] for p in run.stored()["after"]] == [2, 1]


def test_the_best_gemm_rate_of_a_boot_counts_for_its_threads(measured):
    slow, other = made(flops={"float32": 60e9, "bfloat16": 400e9}), made(threads=1, flops={"float32": 50e9})
    measured.answers = (slow, made(flops={"float32": 170e9}), slow, other)
    found = [Probing([].append, wanted=True).before(MODEL).flops for _ in range(3)]
    assert found == [slow.flops, *[{"float32": 170e9, "bfloat16": 400e9}] * 2]
    assert Probing([].append, wanted=True).before(dataclasses.replace(MODEL, threads=1)).flops == other.flops
    assert [flops for *_, flops in measured] == [None] * 4


def test_the_rates_of_a_disturbed_machine_are_not_kept(measured):
    measured.answers = (made(spread=0.5), made())
    assert Probing([].append, wanted=True).before(MODEL).flops == {"float32": 180e9}
    assert probes.load(2) is None
    Probing([].append, wanted=True).before(MODEL)
    assert [flops for *_, flops in measured] == [None, None]


@pytest.mark.parametrize(
    ("model", "wanted"), [(MODEL, False), (dataclasses.replace(MODEL, threads=None), True)], ids=["option", "engine"]
)
def test_not_probed(measured, model, wanted):
    run = Probing([].append, wanted=wanted)
    assert not run.due(model)
    assert run.before(model) is None
    run.after()
    assert run.stored() is None
    assert measured == []


def test_torch_is_never_loaded_for_it(measured, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    assert Probing([].append, wanted=True).before(MODEL) is None
    assert measured == []


@pytest.mark.parametrize(
    ("after", "spread", "said"),
    [(30e9, 0.03, "fell from 40.0 GB/s to 30.0 GB/s"), (50e9, 0.03, "rose"), (37e9, 0.03, None), (30e9, 0.4, None)],
)
def test_a_bandwidth_that_moved_is_told(measured, after, spread, said):
    notes = []
    measured.answers = (made(), made(bandwidth=after, spread=spread))
    run = Probing(notes.append, wanted=True)
    run.before(MODEL)
    run.after()
    assert [said in note for note in notes] == ([] if said is None else [True])


def test_a_machine_that_cannot_be_probed_says_why_once(measured):
    notes = []
    measured.answers = (Unavailable("too little memory"),)
    run = Probing(notes.append, wanted=True)
    assert run.before(MODEL) is None
    assert run.before(MODEL) is None
    run.after()
    assert notes == ["no probe of the machine: too little memory"]
    assert run.stored() is None


# the kept ones


def test_a_probe_is_valid_for_its_boot_threads_and_device():
    probes.save(made())
    assert probes.load(2) == made()
    assert probes.load(1) is None
    assert probes.load(2, "cuda:0") is None
    probes.save(made(threads=1, boot="the boot before"))
    assert probes.load(1) is None


def test_the_newest_are_kept():
    for number in range(probes.MOST + 2):
        probes.save(made(threads=number + 1, at_ns=number))
    assert probes.load(1) is None
    assert probes.load(2) is None
    assert probes.load(3) is not None
    assert probes.load(probes.MOST + 2) is not None


def test_a_broken_file_is_none_and_is_replaced():
    probes.save(made())
    probes.path().write_text("{", encoding="utf-8")
    assert probes.load(2) is None
    probes.save(made())
    assert probes.load(2) == made()


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.ENV, str(tmp_path / "file"))
    probes.save(made())
    assert probes.load(2) is None
