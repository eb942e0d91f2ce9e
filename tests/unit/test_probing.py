"""When the machine is probed, what of it is kept, and what is told of a bandwidth that moved."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from pytest_infer.engines.bundled import cache
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.measure.machine import apart
from pytest_infer.metrics import summarize
from pytest_infer.metrics.result import of_record
from pytest_infer.pytest_face import probing
from pytest_infer.pytest_face.probing import Probing
from pytest_infer.records import MachineProbe, ModelInfo, PromptRecord, Work
from pytest_infer.report.show.roofline import limit_line, machine_line
from pytest_infer.storage import cache_file, probes

DATA = Path(__file__).parents[1] / "data"
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
        waited=0.0,
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


SCATTERING = made(bandwidth=1e9, spread=0.41)
WAITING = made(bandwidth=4e9, spread=0.001, waited=0.5)


@pytest.mark.parametrize("bad", [SCATTERING, WAITING])
def test_a_probe_that_was_disturbed_is_made_again(measured, bad):
    notes = []
    measured.answers = (bad, bad, made())
    run = Probing(notes.append, wanted=True)
    assert run.before(MODEL) == made()
    assert (notes, run.absent(MODEL)) == ([], None)
    assert probes.load(2) == made()
    assert [p["read_bandwidth"] for p in run.stored()["discarded"]] == [bad.read_bandwidth] * 2


def test_a_probe_that_stays_disturbed_is_absent_with_the_reason(measured):
    notes = []
    measured.answers = (SCATTERING, WAITING, SCATTERING)
    run = Probing(notes.append, wanted=True)
    assert run.before(MODEL) is None
    assert run.before(MODEL) is None
    assert len(measured) == 3
    why = "(1.00 GB/s ± 41.0 %, 4.00 GB/s while its threads waited 50.0 % of the time, 1.00 GB/s ± 41.0 %)"
    assert why in run.absent(MODEL)
    assert notes == []
    assert probes.load(2) is None
    run.after()
    assert len(measured) == 3
    assert len(run.stored()["discarded"]) == 3


def test_the_least_doubtful_spread_is_none(measured):
    at_the_limit = made(spread=probes.probe.STEADY, waited=probes.probe.WAITED)
    measured.answers = (at_the_limit,)
    assert Probing([].append, wanted=True).before(MODEL) == at_the_limit


# a round that beats the probe


@pytest.fixture
def record():
    """A test whose steps read 0.96 MB in 45 ms: 21.4 MB/s; its prefill does some 0.2 MFLOP/s."""
    found = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    work = Work(read_bytes=100_000, parameters=5000, head_parameters=700, expert_parameters=EXPERTS, pair_flops=24)
    usage = dataclasses.replace(
        found.profile.experts,
        sites=tuple(dataclasses.replace(site, expert_bytes=1024) for site in found.profile.experts.sites),
    )
    return dataclasses.replace(
        found,
        model=dataclasses.replace(found.model, work=work, threads=2, device="cpu", dtype="float32"),
        profile=dataclasses.replace(found.profile, experts=usage),
    )


def as_kept(run, record):
    """Return the record as a run keeps it."""
    here = dataclasses.replace(record.machine, probe=run.before(record.model), probe_absent=run.absent(record.model))
    return dataclasses.replace(record, machine=here)


EXPERTS = {"layers.0.experts": 1000, "layers.1.experts": 2000}
FAST, SLOW = made(bandwidth=100e6), made(bandwidth=10e6)
LOW_RATE = made(bandwidth=100e6, flops={"float32": 1e5, "bfloat16": 5e5})


def test_a_probe_that_no_round_beats_stays(measured, record):
    measured.answers = (FAST,)
    run = Probing([].append, wanted=True)
    kept = as_kept(run, record)
    assert not run.verify(kept)
    assert run.applied(kept) is kept
    assert len(measured) == 1


def test_a_probe_that_a_round_beats_is_made_again_also_for_earlier_tests(measured, record):
    measured.answers = (SLOW, FAST)
    run = Probing([].append, wanted=True)
    slower = [
        dataclasses.replace(r, trace=dataclasses.replace(r.trace, stamps_ns=tuple(10 * ns for ns in r.trace.stamps_ns)))
        for r in record.rounds
    ]
    earlier = as_kept(run, dataclasses.replace(record, rounds=tuple(slower)))
    assert not run.verify(earlier)
    assert summarize(earlier)["mbu"].value is not None
    later = as_kept(run, record)
    assert run.verify(later)
    assert run.applied(earlier).machine.probe == run.applied(later).machine.probe == FAST
    assert summarize(run.applied(later))["mbu"].value < 1
    assert summarize(run.applied(earlier))["mbu"].value < summarize(earlier)["mbu"].value
    assert len(measured) == 2
    assert [p["read_bandwidth"] for p in run.stored()["discarded"]] == [10e6]


def test_a_probe_that_stays_beaten_is_absent_for_all_tests(measured, record):
    notes = []
    measured.answers = (SLOW, SLOW, made(bandwidth=20e6), FAST)
    run = Probing(notes.append, wanted=True)
    kept = as_kept(run, record)
    assert run.verify(kept)
    assert len(measured) == 3
    now = run.applied(kept)
    assert now.machine.probe is None
    why = summarize(now)["mbu"].reason
    assert "a round read" in why
    assert "3 probes at most 20.0 MB/s" in why
    assert summarize(now)["decode_ceiling"].reason == summarize(now)["mfu"].reason == why
    assert "no probe" in machine_line(now.machine, "float32")
    assert limit_line([of_record(now)]) is None
    assert notes == []
    # The next test of these threads has none either, and nothing is probed again.
    assert as_kept(run, record).machine.probe_absent == run.absent(record.model) == now.machine.probe_absent
    assert not run.verify(as_kept(run, record))
    assert len(measured) == 3


def test_it_is_made_again_twice_a_run_and_no_more(measured, record):
    measured.answers = (made(bandwidth=10e6, caches={"L3": 2**25}),) * 9
    run = Probing([].append, wanted=True)
    kept = as_kept(run, record)
    run.verify(kept)
    run.verify(kept)
    assert len(measured) == 3
    # What a cache holds says nothing of the memory: the others keep the probe, this test has no figure.
    assert run.before(MODEL) is not None
    assert "the weights fit into the caches" in summarize(run.applied(kept))["mbu"].reason
    assert "the weights fit into the caches" in summarize(run.applied(kept))["decode_ceiling"].reason


def test_a_disturbed_repetition_does_not_count(measured, record):
    measured.answers = (SLOW, made(bandwidth=200e6, spread=0.9), FAST)
    run = Probing([].append, wanted=True)
    kept = as_kept(run, record)
    assert run.verify(kept)
    assert run.applied(kept).machine.probe == FAST
    assert probes.load(2) == FAST


def test_a_kept_rate_of_an_earlier_run_that_a_round_beats_is_thrown_away(measured, record):
    probes.save(LOW_RATE)
    measured.answers = (LOW_RATE, made(bandwidth=100e6, flops={"float32": 9e6}))
    run = Probing([].append, wanted=True)
    kept = as_kept(run, record)
    assert "a round did" in summarize(kept)["mfu"].reason
    assert run.verify(kept)
    assert run.applied(kept).machine.probe.flops == {"float32": 9e6, "bfloat16": 5e5}
    assert summarize(run.applied(kept))["mfu"].value < 1
    assert probes.load(2).flops == {"float32": 9e6}


def test_a_kept_bandwidth_of_an_earlier_run_that_a_round_beats_is_thrown_away(measured, record):
    probes.save(SLOW)
    measured.answers = (SLOW, SLOW, SLOW)
    run = Probing([].append, wanted=True)
    assert run.verify(as_kept(run, record))
    assert probes.load(2) is None


def test_a_rate_that_stays_beaten_is_left_out_and_the_others_stay(measured, record):
    notes = []
    measured.answers = (LOW_RATE,) * 3
    run = Probing(notes.append, wanted=True)
    kept = as_kept(run, record)
    assert run.verify(kept)
    assert run.applied(kept).machine.probe.flops == {"bfloat16": 5e5}
    assert summarize(run.applied(kept))["mfu"].reason == "the probe has no rate for float32"
    assert summarize(run.applied(kept))["mbu"].value is not None
    assert ["no GEMM rate of the machine in float32" in note for note in notes] == [True]


def test_a_resumed_test_has_the_probe_of_its_own_run(measured, record):
    measured.answers = (FAST,)
    run = Probing([].append, wanted=True)
    run.before(record.model)
    resumed = dataclasses.replace(record, resumed=True)
    assert not run.verify(resumed)
    assert run.applied(resumed) is resumed


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
    work = Work(read_bytes=1, head_parameters=1, expert_parameters={})
    assert not Probing([].append, wanted=True).due(dataclasses.replace(MODEL, work=work, device="cuda"))
    asked = []
    monkeypatch.setattr(probing.apart, "measure", lambda threads, flops: asked.append((threads, flops)) or made())
    assert Probing([].append, wanted=True).before(dataclasses.replace(MODEL, work=work)) == made()
    assert (asked, measured) == ([(2, None)], [])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (f"print({msgspec.json.encode(made()).decode()!r})", made()),
        ("print('too little memory is free')", Unavailable("too little memory is free")),
        ("raise SystemExit('no torch')", Unavailable("no torch")),
        ("raise SystemExit(3)", Unavailable("the process that probes ended with 3")),
    ],
)
def test_a_process_of_its_own_answers_or_says_why_not(said, expected):
    code = f"import sys; assert b'threads' in sys.stdin.buffer.read(); {said}"
    assert apart.measure(2, program=(sys.executable, "-S", "-c", code)) == expected


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
    assert notes == []
    assert run.absent(MODEL) == "too little memory"
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
    cache_file.path(probes.NAME).write_text("{", encoding="utf-8")
    assert probes.load(2) is None
    probes.save(made())
    assert probes.load(2) == made()


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.ENV, str(tmp_path / "file"))
    probes.save(made())
    assert probes.load(2) is None
