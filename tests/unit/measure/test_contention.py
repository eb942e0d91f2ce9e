from __future__ import annotations

import os

import pytest

from pytest_infer.measure.counters import cgroup, contention
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.records import Quality, Reading


def waited(instrument: contention.RunQueue, before: object, after: object) -> Reading:
    return instrument.readings(before, after)["run_queue_wait_s"]  # type: ignore[arg-type]


def test_run_queue_wait_is_summed_over_threads_old_and_new(proc) -> None:
    instrument = contention.RunQueue(proc.root)
    before = instrument.read()
    assert before == {"10": 2000, "11": 500}
    proc.write("self/task/10/schedstat", "1 1002000 3\n")
    proc.write("self/task/12/schedstat", "1 3000000 3\n")
    reading = waited(instrument, before, instrument.read())
    assert reading.value == pytest.approx(0.004)
    assert "ended" not in reading.source
    instrument.close()
    assert isinstance(instrument.read(), Unavailable)


def test_threads_that_vanish_are_left_out_and_said(proc) -> None:
    instrument = contention.RunQueue(proc.root)
    before = instrument.read()
    proc.remove("self/task/11/schedstat")
    (proc.root / "self/task/11").rmdir()
    reading = waited(instrument, before, instrument.read())
    assert reading.value == 0
    assert reading.source.endswith("without 1 that ended")
    instrument.close()


def test_a_thread_that_vanishes_between_listing_and_reading(proc, monkeypatch: pytest.MonkeyPatch) -> None:
    instrument = contention.RunQueue(proc.root)
    assert instrument.read() == {"10": 2000, "11": 500}
    real = os.pread
    gone = instrument._fds["11"]

    def pread(fd: int, size: int, offset: int) -> bytes:
        if fd == gone:
            raise ProcessLookupError(3, "No such process")
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    (proc.root / "self/task/13").mkdir()  # a thread without the file: ended after the folder was listed
    assert instrument.read() == {"10": 2000}
    assert list(instrument._fds) == ["10"]
    instrument.close()


def test_a_thread_id_given_again_starts_from_nothing(proc) -> None:
    instrument = contention.RunQueue(proc.root)
    assert waited(instrument, {"10": 5_000_000_000}, {"10": 1_000_000_000}).value == 1.0
    instrument.close()


def test_many_threads_do_not_use_up_descriptors(proc) -> None:
    for number in range(100, 200):
        proc.write(f"self/task/{number}/schedstat", f"1 {number} 1\n")
    instrument = contention.RunQueue(proc.root)
    sample = instrument.read()
    assert not isinstance(sample, Unavailable)
    assert len(sample) == 102
    assert sample["150"] == 150
    assert len(instrument._fds) == 64
    instrument.close()


def test_kernels_that_do_not_count_the_wait(proc) -> None:
    proc.write("self/schedstat", "0 0 0\n")
    instrument = contention.RunQueue(proc.root)
    reading = waited(instrument, instrument.read(), instrument.read())
    assert reading.value is None
    assert "does not count" in (reading.reason or "")
    proc.remove("self/schedstat")
    instrument = contention.RunQueue(proc.root)
    assert "has no" in (waited(instrument, {"10": 1}, instrument.read()).reason or "")


def test_machine_time_in_ticks() -> None:
    # user 100, nice 10, system 50, irq 1, softirq 4; guests (7, 3) are part of user and nice; steal 20.
    text = b"cpu  100 10 50 9000 5 1 4 20 7 3\ncpu0 1\n"
    assert contention.parse_stat(text, 100) == {"busy": 1.65, "steal": 0.2}
    with pytest.raises(ValueError, match="all cores"):
        contention.parse_stat(b"intr 1\n", 100)


def test_other_cpu_is_the_machine_less_own(proc) -> None:
    own = iter([10.0, 10.5, 20.0])
    instrument = contention.MachineTime(proc.root, lambda: next(own))
    before = instrument.read()
    proc.write("stat", "cpu  200 10 50 9000 5 1 4 30 7 3\n")
    readings = instrument.readings(before, instrument.read())
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    assert readings["other_cpu_s"].value == pytest.approx(100 / ticks_per_s - 0.5)
    assert readings["other_cpu_s"].quality is Quality.SAMPLED
    assert readings["steal_s"].value == pytest.approx(10 / ticks_per_s)
    assert instrument.readings(before, instrument.read())["other_cpu_s"].value == 0
    instrument.close()


def test_pressure_of_the_machine(proc) -> None:
    instrument = contention.Pressure("cpu", cgroup.ControlGroups(), proc.root)
    before = instrument.read()
    assert before == {"some": 8827004}
    proc.write("pressure/cpu", "some avg10=0.06 avg60=0.65 avg300=0.59 total=9827004\n")
    reading = instrument.readings(before, instrument.read())["pressure_cpu_s"]
    assert (reading.value, reading.source) == (1.0, "/proc/pressure/cpu some")
    instrument.close()


def test_pressure_of_the_own_group_comes_first(proc, groups) -> None:
    top = groups.mount("cgroup2", "", "/a")
    (top / "a").mkdir()
    (top / "a/io.pressure").write_text("some avg10=0 avg60=0 avg300=0 total=3\nfull total=1\n")
    instrument = contention.Pressure("io", cgroup.discover(proc.root), proc.root)
    assert instrument.read() == {"some": 3}
    reading = instrument.readings(instrument.read(), instrument.read())["pressure_io_s"]
    assert (reading.value, reading.source) == (0, "io.pressure some, whole cgroup")
    instrument.close()


def test_no_pressure_has_the_reason(proc) -> None:
    proc.remove("pressure/memory")
    instrument = contention.Pressure("memory", cgroup.ControlGroups(), proc.root)
    reading = instrument.readings(instrument.read(), instrument.read())["pressure_memory_s"]
    assert reading.value is None
    assert "psi=1" in (reading.reason or "")
    with pytest.raises(ValueError, match="some"):
        contention.parse_pressure(b"full total=1\n")
