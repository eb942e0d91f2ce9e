"""The counters of other processes: what a worker did is what they say, within what the kernel's own account allows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

import denied
import worker as worker_module
from processes import PATIENCE_S
from pytest_infer.measure.counters import peak
from pytest_infer.measure.counters.elsewhere import memory, use
from pytest_infer.measure.counters.elsewhere.loading import loaded
from pytest_infer.measure.counters.elsewhere.portable import PsutilTree
from pytest_infer.measure.counters.elsewhere.tree import Tree
from pytest_infer.measure.counters.elsewhere.use import TreeUse, process_clock_ns
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.measure.counters.peak_helper import _with_children, tree_reader
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.timeline import helper
from pytest_infer.measure.timeline.recorder import TimelineSampler
from pytest_infer.records import Counters, Observed, Quality, Reading, absent
from pytest_infer.records.reading import NOT_READ
from worker import Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

WORKER = Path(worker_module.__file__)
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
MIB = 2**20


def observed(worker: Worker) -> Observed:
    return Observed(pids=(worker.pid,), source="a test", started=True)


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.end()


@pytest.fixture
def system(worker):
    made = SystemCounters(observed=observed(worker))
    yield made
    made.close()


def readings(counters: Counters) -> dict[str, Reading]:
    return {field.name: getattr(counters, field.name) for field in fields(counters) if field.name != "wall_s"}


def test_cpu_time_is_its_own(worker, system) -> None:
    before = system.begin()
    told = worker.do("burn 0.3")
    more = worker.do("thread 0.3")
    counters = system.end(before)
    assert counters.cpu_s.value == pytest.approx(told["cpu"] + more["cpu"], rel=0.02)
    assert counters.cpu_s.quality is Quality.EXACT
    split = counters.cpu_user_s.value + counters.cpu_system_s.value
    assert split == pytest.approx(counters.cpu_s.value, abs=3 * TICK_S)
    assert counters.cpu_children_s.value == 0
    # This process waited meanwhile.
    assert 0 < counters.client_cpu_s.value < 0.05
    assert counters.client_wait_s.value >= 0
    assert str(worker.pid) in counters.cpu_s.source


def test_children_that_live_and_that_end_in_the_window_count(worker, system) -> None:
    before = system.begin()
    told = worker.do("child 0.5")
    counters = system.end(before)
    assert counters.cpu_s.value == pytest.approx(told["cpu"] + 0.5, rel=0.05)
    assert counters.cpu_children_s.value == 0
    assert counters.cpu_s.source.endswith(", with 1 child")
    # It ends: what it used before this window is not of this window.
    before = system.begin()
    told = worker.do("end")
    counters = system.end(before)
    assert 0 <= counters.cpu_s.value < told["cpu"] + 0.03 + 3 * TICK_S
    assert counters.cpu_children_s.value == pytest.approx(told["ended"], abs=2 * TICK_S)
    assert counters.cpu_s.quality is Quality.ESTIMATED
    # One that was never seen.
    before = system.begin()
    more = [worker.do("child 0.1"), worker.do("end")]
    counters = system.end(before)
    assert counters.cpu_s.value == pytest.approx(sum(a["cpu"] + a["ended"] for a in more), abs=2 * TICK_S + 0.002)
    assert counters.minor_faults.value == pytest.approx(sum(a["faults"] for a in more), rel=0.05)


def test_a_child_that_nobody_waits_for_is_lost_and_that_is_said(worker, system) -> None:
    worker.do("autoreap")
    worker.do("child 0.05")
    before = system.begin()
    told = [worker.do("end"), worker.do("burn 0.05")]
    counters = system.end(before)
    assert counters.cpu_s.quality is Quality.BOUND
    assert 0 <= counters.cpu_s.value <= sum(a["cpu"] for a in told) + 0.05
    assert "ended unwaited for" in counters.minor_faults.source
    assert counters.minor_faults.value >= 0


def test_whoever_was_seen_is_followed_when_its_parent_leaves_it(worker) -> None:
    tree = Tree((worker.pid,))
    worker.do("child 0")
    own = {m.pid for m in tree.refresh()}
    assert own == {worker.pid, *worker.account["children"]}
    # Its parent is killed, and another process adopts it.
    with subprocess.Popen(
        [sys.executable, "-IS", str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdin.write("child 0\n")
        other.stdin.flush()
        (left,) = json.loads(other.stdout.readline())["children"]
        both = Tree((worker.pid, other.pid))
        assert left in {m.pid for m in both.refresh()}
        os.kill(left, signal.SIGSTOP)  # or it would end with its input
        other.kill()
        other.wait()
        deadline = time.monotonic() + PATIENCE_S
        while other.pid in (seen := {m.pid for m in both.refresh()}) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert left in seen
        os.kill(left, signal.SIGKILL)
        assert both.missing() == f"process {other.pid} has ended"
        both.close()
    tree.close()


def test_memory_is_its_own(worker, system) -> None:
    worker.do("keep 20")
    before = system.begin()
    worker.do("spike 40")
    account = worker.do("nothing")
    counters = system.end(before)
    assert counters.peak_rss_bytes.value == pytest.approx(account["hwm"], rel=0.02)
    assert counters.peak_rss_bytes.quality is Quality.EXACT
    assert counters.rss_bytes.value == pytest.approx(account["rss"], rel=0.02)
    assert counters.peak_rss_bytes.value > counters.rss_bytes.value + 39 * MIB
    assert counters.rss_anon_bytes.value > 20 * MIB
    # The mark was reset.
    after = system.end(system.begin())
    assert after.peak_rss_bytes.value == pytest.approx(account["rss"], rel=0.02)
    rollup = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    found, private = system.footprint()
    assert found.value == pytest.approx(pss, rel=0.02)
    assert 20 * MIB < private.value <= found.value


def test_memory_of_several_is_the_sum(worker, system) -> None:
    worker.do("child 0")
    before = system.begin()
    worker.do("spike 30")
    counters = system.end(before)
    (child,) = worker.account["children"]
    pages = int(Path(f"/proc/{child}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert counters.peak_rss_bytes.value == pytest.approx(worker.account["hwm"] + pages, rel=0.02)
    assert counters.peak_rss_bytes.quality is Quality.ESTIMATED
    assert "with 1 child" in counters.rss_bytes.source
    one = memory.footprint(alone := Tree((child,)))[0].value
    alone.close()
    assert system.footprint()[0].value > one
    before = system.begin()
    worker.do("end")
    assert system.end(before).peak_rss_bytes.quality is Quality.BOUND


def test_the_files_of_a_model_that_it_maps(worker, system, tmp_path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"\1" * (4 * MIB))
    assert system.mapped([file]).value == 0
    worker.do(f"map {file}")
    assert system.mapped([file]).value == 4 * MIB
    assert system.mapped([]).value is None


def test_what_it_reads_and_writes(worker, system, tmp_path) -> None:
    before = system.begin()
    worker.do(f"write {tmp_path}/file")
    counters = system.end(before)
    assert MIB <= counters.write_chars.value < MIB + 4096
    assert 16 <= counters.write_calls.value < 20
    assert counters.read_chars.value > 0
    # A tmpfs writes to no device.
    assert counters.write_bytes.value == 0 or MIB <= counters.write_bytes.value < 1.1 * MIB


def test_how_often_its_threads_gave_up_their_cores(worker, system) -> None:
    before = system.begin()
    worker.do("nap 20")
    counters = system.end(before)
    assert 20 <= counters.voluntary_switches.value < 60
    assert counters.involuntary_switches.value >= 0
    assert counters.run_queue_wait_s.value >= 0


def test_every_figure_is_told_or_has_a_reason_and_no_file_stays_open(worker) -> None:
    opened = len(list(Path("/proc/self/fd").iterdir()))
    system = SystemCounters(observed=observed(worker))
    found = readings(system.end(system.begin()))
    for name, reading in found.items():
        assert (reading.value is None) == (reading.reason is not None), name
        assert reading != NOT_READ, name
    assert "in another" in (found["device_peak_bytes"].reason or "")
    system.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


@pytest.mark.parametrize("when", ["before", "within"])
def test_one_that_has_ended_is_a_reason(when) -> None:
    worker = Worker()
    if when == "before":
        worker.end()
    system = SystemCounters(observed=observed(worker))
    before = system.begin()
    worker.end()
    found = readings(system.end(before))
    why = f"process {worker.pid} has ended"
    for name in ("cpu_s", "minor_faults", "read_bytes", "rss_bytes", "run_queue_wait_s"):
        assert (found[name].value, found[name].reason) == (None, why), name
    assert found["peak_rss_bytes"].value is None
    assert found["steal_s"].value is not None
    assert system.footprint()[0].reason == why
    system.close()


def test_a_number_that_is_given_again_is_another_process(worker, tmp_path, monkeypatch) -> None:
    tree = Tree((worker.pid,))
    (member,) = tree.members()
    worker.end()
    with pytest.raises(ProcessLookupError):
        member.read("stat")
    with pytest.raises((ProcessLookupError, FileNotFoundError)):
        member.whole("status")
    # Nor is a child one that is another's by the time it is looked at.
    monkeypatch.setattr(type(member), "children", lambda self: [os.getppid()])
    mine = Tree((os.getpid(),))
    assert [m.pid for m in mine.members()] == [os.getpid()]
    mine.close()
    tree.close()


@pytest.mark.parametrize("why", ["no list of children", "no clock of others"])
def test_kernels_that_tell_less(worker, monkeypatch, why) -> None:
    worker.do("child 0.05")
    real = time.clock_gettime_ns

    def clock(number: int) -> int:
        if number < 0:
            raise OSError(22, "Invalid argument")
        return real(number)

    def children(self: object) -> list[int]:
        raise FileNotFoundError(2, "No such file or directory")

    if why == "no list of children":
        monkeypatch.setattr("pytest_infer.measure.counters.elsewhere.tree.Member.children", children)
    else:
        monkeypatch.setattr(time, "clock_gettime_ns", clock)
    system = SystemCounters(observed=observed(worker))
    before = system.begin()
    told = worker.do("burn 0.05")
    counters = system.end(before)
    assert counters.cpu_s.source.endswith("with 1 child")
    assert counters.cpu_s.value == pytest.approx(told["cpu"], abs=3 * TICK_S)
    assert counters.cpu_s.quality is (Quality.EXACT if why == "no list of children" else Quality.ESTIMATED)
    system.close()


def test_a_server_elsewhere_has_no_counters_and_says_why() -> None:
    system = SystemCounters(observed=Observed(absent="the server is on another machine, example.org"))
    found = readings(system.end(system.begin()))
    told = {name for name, reading in found.items() if reading.value is not None}
    assert told == {"client_cpu_s", "client_wait_s"}
    own = {name for name in found if name.startswith("server_")}
    assert {found[name].reason for name in found.keys() - told - own} == {
        "the server is on another machine, example.org"
    }
    assert {found[name].reason for name in own} == {"the server tells no metrics"}
    assert {r.reason for r in (*system.footprint(), system.mapped([WORKER]))} == {found["cpu_s"].reason}
    system.close()
    system.close()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_systems_without_proc_tell_what_psutil_knows(worker, platform) -> None:
    system = SystemCounters(observed=observed(worker), platform=platform)
    before = system.begin()
    told = worker.do("burn 0.05")
    found = readings(system.end(before))
    assert found["cpu_s"].value == pytest.approx(told["cpu"], abs=3 * TICK_S)
    assert found["rss_bytes"].value == pytest.approx(told["rss"], rel=0.02)
    for name, reading in found.items():
        assert (reading.value is None) == (reading.reason is not None), name
        assert reading != NOT_READ, name
    assert system.footprint()[0].reason == system.mapped([WORKER]).reason == "only Linux tells it of another process"
    system.close()
    worker.end()
    system = SystemCounters(observed=observed(worker), platform=platform)
    assert "psutil" in (readings(system.end(system.begin()))["cpu_s"].reason or "")
    system.close()


def test_where_marks_cannot_be_reset_a_helper_samples_the_sum(worker, monkeypatch) -> None:
    monkeypatch.setattr(memory, "known_problem", lambda proc: "not here")
    worker.do("child 0")
    system = SystemCounters(observed=observed(worker))
    before = system.begin()
    worker.do("keep 30")
    time.sleep(0.15)
    counters = system.end(before)
    assert counters.peak_rss_bytes.quality is Quality.SAMPLED
    assert f"sum of resident sizes of {worker.pid} and children" in counters.peak_rss_bytes.source
    assert counters.peak_rss_bytes.value == pytest.approx(counters.rss_bytes.value, rel=0.02)
    system.close()


def test_the_mark_of_this_process_is_left_to_its_own_windows(worker) -> None:
    own = SystemCounters()
    before = own.begin()
    spike = bytearray(b"\1") * (64 * MIB)
    spiked = len(spike) + own.end(before).rss_before_bytes.value
    del spike
    before = own.begin()
    spike = bytearray(b"\1") * (64 * MIB)
    del spike
    other = SystemCounters(observed=observed(worker))
    other.end(other.begin())
    assert own.end(before).peak_rss_bytes.value == pytest.approx(spiked, rel=0.1)
    other.close()
    own.close()


def test_where_this_process_cannot_reset_its_mark_nobody_is_asked_to(tmp_path) -> None:
    (tmp_path / "self").mkdir()
    assert "has no" in (peak.known_problem(tmp_path) or "")
    assert peak.known_problem(tmp_path) == peak.known_problem(tmp_path)


def test_marks_of_a_process_that_is_another_users(worker, monkeypatch) -> None:
    def denied(self: object, name: str, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pytest_infer.measure.counters.elsewhere.tree.Member.write", denied)
    tree = Tree((worker.pid,))
    meter = memory.peak_of(tree, Path("/proc"), 4)
    assert isinstance(meter._source, peak.HelperPeak)
    assert "permission denied" in (meter._fallback_reason or "")
    meter.close()
    tree.close()


def test_the_helper_ends_with_what_it_watches(worker) -> None:
    read = tree_reader([worker.pid])
    assert read() > 2 * MIB
    worker.end()
    with pytest.raises(ProcessLookupError):
        [read() for _ in range(100)]


@pytest.mark.parametrize("of", [helper.with_children, lambda proc, roots: [*_with_children(roots, proc)]])
def test_processes_that_may_not_be_read_are_no_children(tmp_path, monkeypatch, of) -> None:
    # As of other users where /proc is mounted with hidepid=1.
    for pid, parent in ((10, 1), (11, 10), (12, 1)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) b) S {parent} 0 0")
    read = Path.read_bytes

    def denied(path):
        if path.parent.name == "12":
            raise PermissionError
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert of(str(tmp_path), [10]) == [10, 11]


def test_the_timeline_is_that_of_the_tree(worker) -> None:
    worker.do("child 0")
    sampler = TimelineSampler(usable_cores=4, observed=observed(worker))
    with sampler.sampling() as window:
        worker.do("keep 30")
    seen = window.timeline
    assert seen is not None
    assert seen.absent == {}
    own = Tree((worker.pid,))
    both = memory.TreeMemory(own).read()
    own.close()
    assert not isinstance(both, Unavailable)
    assert seen.rss_bytes[-1] == pytest.approx(both["rss"], rel=0.02)
    assert seen.rss_bytes[-1] > 30 * MIB
    sampler.close()
    remote = TimelineSampler(usable_cores=4, observed=Observed(absent="another machine"))
    with remote.sampling() as window:
        pass
    assert (window.timeline, window.absent, remote.helper) == (None, "another machine", None)


def test_the_load_is_that_of_its_whole_life(worker) -> None:
    worker.do("keep 20")
    worker.do("spike 30")
    cached = absent("not asked")
    load = loaded(observed(worker), cached)
    assert load is not None
    assert load.cached is cached
    assert load.peak_rss_bytes.value == pytest.approx(worker.account["hwm"], rel=0.02)
    assert load.rss_anon_bytes.value == load.anon_growth_bytes.value > 20 * MIB
    assert load.read_bytes.value >= 0
    assert loaded(Observed(pids=(worker.pid,)), cached) is None
    assert loaded(Observed(absent="x"), cached) is None
    elsewhere = loaded(observed(worker), cached, platform="darwin")
    assert elsewhere is not None
    assert "Linux" in (elsewhere.read_bytes.reason or "")


def test_where_a_worker_ends_psutil_tells_what_those_that_live_used(worker) -> None:
    """What it had used before the window was taken off: CPU time and I/O were negative."""
    system, tree = SystemCounters(observed=observed(worker), platform="darwin"), PsutilTree((worker.pid,))
    worker.do("child 0.5")
    used, before = tree.used_s(), system.begin()
    told = [worker.do("end"), worker.do("burn 0.1")]
    counters = system.end(before)
    assert counters.cpu_s.value == pytest.approx(sum(a["cpu"] for a in told), abs=5 * TICK_S)
    assert counters.cpu_s.quality is Quality.BOUND
    assert (counters.rss_before_bytes.quality, counters.rss_bytes.quality) == (Quality.ESTIMATED, Quality.EXACT)
    assert counters.rss_before_bytes.source.endswith("pages that they share counted in each")
    assert counters.read_calls.value >= 0
    assert tree.used_s() >= used + 0.1 - 5 * TICK_S
    system.close()


def test_the_machines_other_processes_are_not_those_of_the_tree(worker) -> None:
    tree = Tree((worker.pid,))
    spent = TreeUse(tree)
    before = spent.used_s()
    told = worker.do("burn 0.3")
    assert spent.used_s() - before == pytest.approx(told["cpu"], rel=0.1)
    tree.close()


def test_the_clock_of_another_process() -> None:
    assert process_clock_ns(os.getpid()) == pytest.approx(time.process_time_ns(), rel=0.02)
    with pytest.raises(OSError, match="Invalid argument"):
        process_clock_ns(2**22 + 1)


def test_a_stopped_process_is_read(worker, system) -> None:
    os.kill(worker.pid, signal.SIGSTOP)
    counters = system.end(system.begin())
    os.kill(worker.pid, signal.SIGCONT)
    assert counters.cpu_s.value == pytest.approx(0, abs=0.01)


FILES = ("stat", "status", "io", "clear_refs", "task", "task/*/schedstat", "task/*/status", "task/*/children")


def counted(whose: Observed) -> dict[str, Reading]:
    system = SystemCounters(observed=whose)
    try:
        found = readings(system.end(system.begin()))
        return found | {"pss": system.footprint()[0], "mapped": system.mapped([WORKER])}
    finally:
        system.close()


@pytest.mark.parametrize("how", denied.HOWS)
def test_each_file_that_is_withheld_costs_its_own_figures_and_says_why(worker, how) -> None:
    worker.do("child 0")
    with denied.withheld() as files:
        whole = counted(observed(worker))
    own = {f"/proc/*/{name}" for name in (*FILES, "smaps", "smaps_rollup")}
    assert own <= files.seen
    lost = {}
    for path in sorted(own):
        with denied.withheld(path, how):
            found = counted(observed(worker))
        lost[path] = {name for name, reading in found.items() if reading.value is None} - {
            name for name, reading in whole.items() if reading.value is None
        }
        assert all(r.reason for r in found.values() if r.value is None), path
    if how in ("denied", "missing", "failing"):
        assert lost["/proc/*/io"] == set(use._IO)
        assert lost["/proc/*/task/*/schedstat"] == {"run_queue_wait_s", "client_wait_s"}
        assert lost["/proc/*/task/*/status"] == {"voluntary_switches", "involuntary_switches"}
        assert lost["/proc/*/smaps_rollup"] == {"pss"}
        assert lost["/proc/*/smaps"] == {"mapped"}
        assert lost["/proc/*/task/*/children"] == lost["/proc/*/clear_refs"] == set()
        assert {"rss_bytes", "rss_anon_bytes"} <= lost["/proc/*/status"]
        assert {"cpu_s", "minor_faults"} <= lost["/proc/*/stat"]


def test_the_reason_for_a_refusal_is_the_file(worker) -> None:
    with denied.withheld("/proc/*/io", "denied"):
        found = counted(observed(worker))
    assert found["read_bytes"].reason == f"permission denied: /proc/{worker.pid}/io"
