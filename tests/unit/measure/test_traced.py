"""From a trace of torch's profiler to operators, memory and what Perfetto opens, on traces written by hand."""

import gzip
import json

import pytest

from pytest_infer.measure.breakdown import traced
from pytest_infer.records import Role

ROLES = {"experts, layer 0": "experts", "KV cache": "KV cache"}


class Trace:
    """A Chrome trace; times in microseconds, as torch writes it."""

    def __init__(self):
        self.events = [{"ph": "M", "name": "process_name", "ts": 1.0, "pid": 7, "tid": 0, "args": {"name": "python"}}]
        self.total = 0

    def _add(self, cat, name, ts, dur, tid=7, **args):
        self.events.append(
            {"ph": "X", "cat": cat, "name": name, "pid": 7, "tid": tid, "ts": ts, "dur": dur, "args": args}
        )
        return self

    def op(self, name, ts, dur, dims=(), number=0, tid=7):
        more = {"Input Dims": list(dims), "Input type": ["float"] * len(dims), "External id": number}
        return self._add("cpu_op", name, ts, dur, tid, **more)

    def range(self, name, ts, dur):
        return self._add("user_annotation", name, ts, dur)

    def token(self, ts, dur=1.0):
        return self.range(traced.BOUNDARY, ts, dur)

    def kernel(self, ts, dur, of, tid=20, cat="kernel"):
        return self._add(cat, "sgemm", ts, dur, tid, **{"External id": of, "stream": tid})

    def memory(self, ts, size, address, device=0, lost=0):
        self.total += size + lost
        args = {"Bytes": size, "Addr": address, "Total Allocated": self.total, "Device Type": device, "Device Id": -1}
        event = {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "pid": 7, "tid": 7, "ts": ts, "args": args}
        self.events.append(event)
        return self

    def read(self, *, accelerator=False, prefill=True):
        whole = {"schemaVersion": 1, "host_name": "vm-17", "traceName": "/home/me/x.json", "traceEvents": self.events}
        return traced.read(json.dumps(whole, indent=2).encode(), ROLES, accelerator=accelerator, prefill=prefill)


def rows(phase):
    return {(row.role, row.name, row.shapes): (row.calls, round(1e6 * row.self_s, 6)) for row in phase.operators}


def generation():
    """A prefill from 11 to 100, and decode steps from 101 to 200 and from 201 to 300."""
    return Trace().token(10).token(100).token(200).token(300)


def test_self_times_by_role_and_step():
    trace = generation()
    trace.op("aten::linear", 20, 10, [[4, 8], [8, 8]]).op("aten::addmm", 21, 8, [[8], [4, 8], [8, 8], []])
    trace.range("experts, layer 0", 40, 50).op("aten::mm", 45, 20, [[4, 8], [8, 16]]).op("aten::mm", 70, 10)
    for begin in (110, 210):
        trace.range("experts, layer 0", begin, 40).op("aten::mm", begin + 5, 10, [[1, 8], [8, 16]])
        trace.range("KV cache", begin + 20, 10).op("aten::cat", begin + 22, 4, [[[1, 8], [1, 8]], []])
    found = trace.read()
    assert (found.prefill.steps, found.decode.steps) == (1, 2)
    assert rows(found.prefill) == {
        (Role.LOOP, "aten::linear", "[4, 8], [8, 8]"): (1, 2),
        (Role.LOOP, "aten::addmm", "[8], [4, 8], [8, 8]"): (1, 8),
        ("experts", "aten::mm", "[4, 8], [8, 16]"): (1, 20),
        ("experts", "aten::mm", ""): (1, 10),
    }
    assert rows(found.decode) == {
        ("experts", "aten::mm", "[1, 8], [8, 16]"): (1, 10),
        ("KV cache", "aten::cat", "[1, 8], [1, 8]"): (1, 4),
    }
    assert found.prefill.self_s == pytest.approx(40e-6)
    assert found.decode.self_s == pytest.approx(14e-6)
    assert [row.self_s for row in found.prefill.operators] == sorted(
        (row.self_s for row in found.prefill.operators), reverse=True
    )


def test_what_is_outside_the_steps_is_in_none():
    trace = Trace().op("aten::before", 1, 5).token(10).op("aten::mm", 20, 5).token(100).op("aten::after", 110, 5)
    found = trace.read()
    assert set(rows(found.prefill)) == {(Role.LOOP, "aten::mm", "")}
    assert found.decode is None


def test_a_prefill_that_was_not_recorded_is_no_step():
    trace = generation().op("aten::mm", 20, 30).op("aten::mm", 120, 6).op("aten::mm", 220, 9).memory(21, 8, 1)
    found = trace.read(prefill=False)
    assert found.prefill is None
    assert (found.decode.steps, found.decode.self_s, found.decode.peak_bytes) == (3, pytest.approx(15e-6), 8)
    drawn = json.loads(gzip.decompress(found.trace))["traceEvents"]
    assert [e["name"] for e in drawn if e.get("cat") == "step"] == [f"decode step {n}" for n in (1, 2, 3)]


def test_sizes_that_grow_from_step_to_step_are_one_row():
    trace = generation().op("aten::mm", 20, 1, [[4, 8]])
    for step, begin in ((0, 110), (1, 210)):
        trace.op("aten::bmm", begin, 10, [[2, 1, 8], [2, 8, 12 + step]]).op("aten::mm", begin + 20, 2, [[1, 8]])
    found = rows(trace.read().decode)
    assert found == {
        (Role.LOOP, "aten::bmm", "[2, 1, 8], [2, 8, 12-13]"): (1, 10),
        (Role.LOOP, "aten::mm", "[1, 8]"): (1, 2),
    }


def test_many_tensors_and_odd_arguments():
    trace = generation().op("aten::cat", 20, 5, [[[1, 8]] * 64, [], "", None])
    assert list(rows(trace.read().prefill)) == [(Role.LOOP, "aten::cat", ", ".join(["[1, 8]"] * 4))]


def test_only_the_largest_are_kept_and_all_count():
    trace = Trace().token(0)
    for number in range(50):
        trace.op(f"aten::op{number}", 10 + 100 * number, 1 + number)
    found = trace.token(6000).read().prefill
    assert [row.name for row in found.operators] == [f"aten::op{n}" for n in range(49, 19, -1)]
    assert found.self_s == pytest.approx(sum(range(1, 51)) * 1e-6)


def test_threads_do_not_count_for_each_other():
    trace = generation().op("aten::mm", 20, 40).op("aten::copy_", 30, 5, tid=8)
    assert rows(trace.read().prefill) == {
        (Role.LOOP, "aten::mm", ""): (1, 40),
        (Role.LOOP, "aten::copy_", ""): (1, 5),
    }


def test_kernels_belong_to_what_started_them():
    # They run later than it, in streams of the device.
    trace = generation().range("experts, layer 0", 19, 15).op("aten::linear", 20, 12, number=1)
    trace.op("aten::mm", 22, 8, number=2).kernel(60, 30, 2).kernel(95, 20, 2).kernel(40, 2, 99, cat="gpu_memset")
    trace.op("aten::item", 50, 20, number=3).kernel(90, 1, 3, cat="gpu_memcpy")
    found = trace.read(accelerator=True).prefill
    assert [(row.role, row.name, round(1e6 * row.device_s)) for row in found.operators] == [
        ("experts", "aten::mm", 50),
        (Role.LOOP, "aten::item", 1),
        ("experts", "aten::linear", 0),
    ]
    assert found.device_s == pytest.approx(51e-6)
    assert generation().op("aten::mm", 20, 5).read().prefill.operators[0].device_s is None


def test_without_a_step_there_is_nothing():
    for trace in (Trace(), Trace().token(10)):
        assert trace.op("aten::mm", 20, 5).read().absent == "no operator of torch ran in this thread"


def test_nothing_of_torch_is_a_reason():
    assert generation().range("KV cache", 20, 5).read().absent == "no operator of torch ran in this thread"


# memory


def test_the_most_that_was_held():
    trace = generation().op("aten::mm", 20, 1).range("experts, layer 0", 20, 30).range("KV cache", 60, 10)
    trace.memory(21, 100, 0xA).memory(22, 50, 0xB).memory(30, -100, 0xA).memory(35, 30, 0xC)
    trace.memory(62, 1000, 0xD).memory(75, 7, 0xE).memory(80, -30, 0xC).memory(90, -7, 0xE)
    trace.memory(120, 10, 0xA).memory(150, -50, 0xB).memory(220, 300, 0xB)
    found = trace.read()
    assert found.prefill.peaks == {"experts": 150, "KV cache": 1000, Role.LOOP: 7}
    assert found.prefill.peak_bytes == 50 + 30 + 1000 + 7
    # What is still held from earlier steps counts, wherever it is freed.
    assert found.decode.peaks == {"experts": 50, "KV cache": 1000, Role.LOOP: 310}
    assert found.decode.peak_bytes == 1000 + 10 + 300
    assert found.peaks_absent is None


def test_the_innermost_range_has_what_is_allocated():
    trace = generation().op("aten::mm", 20, 1).range("experts, layer 0", 20, 50).range("KV cache", 30, 10)
    trace.memory(25, 1, 0xA).memory(31, 2, 0xB).memory(41, 4, 0xC).memory(71, 8, 0xD)
    assert trace.read().prefill.peaks == {"experts": 5, "KV cache": 2, Role.LOOP: 8}


def test_an_address_that_is_given_twice_is_held_once():
    trace = generation().op("aten::mm", 20, 1)
    trace.memory(25, 100, 0xA).memory(31, 40, 0xA)
    assert trace.read().prefill.peaks == {Role.LOOP: 100}


def test_what_was_there_before_is_no_activation():
    trace = Trace().memory(5, 10_000, 0xA).token(10).op("aten::mm", 20, 1).memory(21, 5, 0xB).memory(30, -10_000, 0xA)
    assert trace.token(100).memory(110, 99, 0xC).read().prefill.peaks == {Role.LOOP: 5}


def test_memory_of_the_other_kind_does_not_count():
    trace = generation().op("aten::mm", 20, 1).memory(21, 5, 0xB).memory(25, 640, 0xC, device=1)
    assert trace.read(accelerator=True).prefill.peaks == {Role.LOOP: 640}


@pytest.mark.parametrize(
    ("trace", "why"),
    [
        (generation().op("aten::mm", 20, 1), "torch's allocator reported nothing"),
        (
            generation().op("aten::mm", 20, 1).memory(21, 5, 1).memory(22, 7, 2, lost=64),
            "torch's allocator reported less than it counted",
        ),
    ],
)
def test_memory_that_cannot_be_told_is_absent(trace, why):
    found = trace.read()
    assert (found.prefill.peak_bytes, found.prefill.peaks, found.peaks_absent) == (None, {}, why)
    assert found.prefill.operators


# the trace itself


def test_perfetto_sees_the_steps_and_no_names_of_this_machine():
    found = generation().op("aten::mm", 20, 1).read()
    text = gzip.decompress(found.trace).decode()
    assert "vm-17" not in text
    assert "/home/me" not in text
    whole = json.loads(text)
    assert whole["schemaVersion"] == 1
    steps = [event for event in whole["traceEvents"] if event.get("cat") == "step"]
    assert [(e["name"], e["ts"], e["dur"]) for e in steps] == [
        ("prefill", 11, 89),
        ("decode step 1", 101, 99),
        ("decode step 2", 201, 99),
    ]
    # On a track of their own, in the same process.
    assert {(e["pid"], e["tid"]) for e in steps} == {(7, 0)}
    assert any(e["name"] == "aten::mm" for e in whole["traceEvents"])


def test_a_trace_that_is_too_large_is_left_out(monkeypatch):
    monkeypatch.setattr(traced, "MOST_TRACE_BYTES", 100)
    found = generation().op("aten::mm", 20, 1).read()
    assert found.trace is None
    assert found.trace_absent.endswith(", and at most 100 B are kept")
    assert found.prefill.operators


def test_ranges_that_an_accelerator_repeats_are_no_boundaries():
    trace = generation().op("aten::mm", 20, 5, number=1).kernel(150, 40, 1)
    trace._add("gpu_user_annotation", traced.BOUNDARY, 150, 40, 20)
    found = trace.read(accelerator=True)
    assert (found.prefill.steps, found.decode.steps) == (1, 2)
    assert found.prefill.device_s == pytest.approx(40e-6)
