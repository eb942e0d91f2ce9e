"""Heads of run files, kept in the cache: they save time and never change what is read."""

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from pytest_infer.analysis.compare import gate
from pytest_infer.storage import files, history, runfile, runs, shared_work


@pytest.fixture
def reads(monkeypatch):
    """Return the files whose heads were read."""
    found = []
    read = runs.read

    def counted(path):
        found.append(path.name)
        return read(path)

    monkeypatch.setattr(history, "read", counted)
    return found


def kept(tmp_path):
    (path,) = (tmp_path / "cache" / "history").iterdir()
    return path


def test_a_head_is_read_once_and_is_the_same_from_the_cache(storage, make_block, reads):
    gate = {"result": "regressed", "against": "0001", "rules": ["ttft:5%"]}
    storage.add([make_block()], gate=gate, failed={"x": {}}, unmeasured=["y"])
    storage.add([], commit="unversioned", branch="(unknown)", dirty=True)
    first = storage.load()
    second = storage.load()
    assert len(reads) == 2
    assert second == first
    assert second.runs[0].gate == runfile.Mark(result="regressed", against="0001", rules=("ttft:5%",))
    assert (second.runs[0].failed, second.runs[0].unmeasured) == (("x",), ("y",))
    assert [row.name for row in second.runs[0].rows] == ["guide"]
    assert second.runs[0].regressed


def test_a_changed_file_is_read_again(storage, make_block, reads):
    path = storage.add([make_block()])
    storage.add([make_block()])
    storage.load()
    files.mark(path, runfile.Mark(result="regressed"))
    assert [run.regressed for run in storage.load().runs] == [True, False]
    assert len(reads) == 3


def test_a_change_of_the_same_length_is_seen(storage, make_block):
    path = storage.add([make_block()], branch="main")
    state = path.stat()
    storage.load()
    path.write_text(path.read_text().replace('"main"', '"side"'))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert path.stat().st_size == state.st_size
    assert storage.load().runs[0].branch == "side"


def put_back(path, state):
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)


def test_a_change_whose_time_was_put_back_is_seen(storage, make_block):
    path = storage.add([make_block()], branch="main")
    state = path.stat()
    storage.load()
    time.sleep(0.02)  # a file's times go on in steps of the kernel's clock
    path.write_text(path.read_text().replace('"main"', '"side"'))
    put_back(path, state)
    assert storage.load().runs[0].branch == "side"


def test_another_file_in_its_place_is_seen(storage, make_block):
    path = storage.add([make_block()], branch="main")
    state = path.stat()
    storage.load()
    other = path.with_suffix(".other")
    other.write_text(path.read_text().replace('"main"', '"side"'))
    put_back(other, state)
    other.replace(path)
    assert storage.load().runs[0].branch == "side"


def test_a_link_to_another_file_is_seen(storage, make_block, tmp_path):
    for branch in ("main", "side"):
        storage.add([make_block()], branch=branch).rename(tmp_path / branch)
    link = storage.folder / "0001_link.json"
    seen = []
    for branch in ("main", "side"):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / branch)
        seen.append(storage.load().runs[-1].branch)
    assert seen == ["main", "side"]


def test_a_file_that_went_away_is_forgotten(storage, make_block, tmp_path):
    path = storage.add([make_block()])
    storage.add([make_block()])
    storage.load()
    before = kept(tmp_path).stat().st_size
    path.unlink()
    assert [run.number for run in storage.load().runs] == ["0002"]
    assert kept(tmp_path).stat().st_size < before


def test_a_damaged_file_is_warned_of_every_time(storage, make_block):
    storage.add([make_block()])
    (storage.folder / "0002_x.json").write_text("{")
    assert storage.load().warnings == storage.load().warnings != ()


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x80", b"\x82\xa6fields\x90\xa5heads\x80"])
def test_a_damaged_cache_is_not_believed(storage, make_block, tmp_path, content):
    storage.add([make_block()])
    first = storage.load()
    kept(tmp_path).write_bytes(content)
    assert storage.load() == first


@pytest.mark.parametrize("run", [{}, {"time": "yesterday"}, [], None, {"gate": 1}])
def test_a_cache_that_says_something_else_is_not_believed(storage, make_block, tmp_path, run):
    path = storage.add([make_block()])
    first = storage.load()
    content = msgspec.msgpack.decode(kept(tmp_path).read_bytes())
    assert list(content["runs"]) == [str(path)]
    content["runs"][str(path)][1] = {**content["runs"][str(path)][1], **run} if run else run
    kept(tmp_path).write_bytes(msgspec.msgpack.encode(content))
    assert storage.load() == first


def test_a_cache_that_cannot_be_written_costs_only_time(storage, make_block, tmp_path, reads):
    (tmp_path / "cache").write_text("in the way")
    storage.add([make_block()])
    assert storage.load() == storage.load()
    assert len(reads) == 2


def test_two_storages_do_not_mix(storage, make_block, tmp_path):
    storage.add([make_block()])
    other = type(storage)(tmp_path / "other")
    other.add([make_block(), make_block("b")])
    for _ in range(2):
        assert [run.tests for run in storage.load().runs] == [1]
        assert [run.tests for run in other.load().runs] == [2]


# what is worked out of runs


@pytest.fixture
def rows_read(monkeypatch):
    """Return the files whose tests were read."""
    found = []
    rows = runs.rows

    def counted(path, metrics=None):
        found.append(path.name)
        return rows(path, metrics)

    monkeypatch.setattr(runs, "rows", counted)
    return found


def numbers(storage):
    """Compare the newest run with the one before, and return the TPOT of each earlier run that this learns from."""
    history = storage.load()
    pairs, _, _ = gate.stored_pairs(history.runs[-2], history.runs[-1].rows, history)
    return [row.metrics["tpot_s"].value for row in pairs[0].history]


def test_earlier_runs_are_read_once(storage, make_block, rows_read):
    for value in range(1, 8):
        storage.add([make_block(tpot_s=[value / 1000] * 4)])
    expected = [value / 1000 for value in range(1, 7)]
    assert numbers(storage) == expected
    assert len(rows_read) == 7
    rows_read.clear()
    assert numbers(storage) == expected
    assert len(rows_read) == 2


@pytest.mark.parametrize("change", ["edited", "replaced", "damaged", "gone"])
def test_an_earlier_run_that_changed_is_read_again(storage, make_block, rows_read, change):
    paths = [storage.add([make_block(tpot_s=[value / 1000] * 4)]) for value in range(1, 8)]
    numbers(storage)
    rows_read.clear()
    path, text = paths[2], paths[2].read_text()
    other = text.replace("0.003", "0.009")
    assert other != text
    if change == "replaced":
        path.with_suffix(".other").write_text(other)
        path.with_suffix(".other").replace(path)
    elif change == "gone":
        path.unlink()
    else:
        path.write_text(other if change == "edited" else text.replace('"rounds"', '"rounds": 1, "x"'))
    left = {"edited": [0.009], "replaced": [0.009]}.get(change, [])
    assert numbers(storage) == [0.001, 0.002, *left, 0.004, 0.005, 0.006]
    assert (path.name in rows_read) == (change != "gone")


def test_what_cannot_have_been_measured_stays_out(storage, make_block):
    for value in range(1, 8):
        storage.add([make_block(tpot_s=[-0.003 if value == 3 else value / 1000] * 4)])
    expected = [0.001, 0.002, 0.004, 0.005, 0.006]
    assert [numbers(storage), numbers(storage)] == [expected, expected]


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x80"])
def test_damaged_digests_are_not_believed(storage, make_block, tmp_path, content):
    for value in range(1, 8):
        storage.add([make_block(tpot_s=[value / 1000] * 4)])
    expected = numbers(storage)
    (path,) = (tmp_path / "cache" / "digests").iterdir()
    path.write_bytes(content)
    assert numbers(storage) == expected


# many files


ON_TWO_CORES = """
import sys
from pathlib import Path
from pytest_infer.analysis.history import trends
from pytest_infer.metrics import by_key
from pytest_infer.storage import history, shared_work

shared_work.WORTH_BYTES, shared_work._cores = int(sys.argv[2]), lambda: 3
found = history.load(Path(sys.argv[1]), print)
print([run.label for run in found.runs], found.warnings)
for shift in trends.told(found.runs, [by_key("tpot_s"), by_key("ttft_s")]).shifts:
    print(shift.test, shift.metric.key, shift.point, shift.run.label)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="files are shared among processes on Linux only")
def test_processes_that_share_files_find_what_one_does(storage, make_block, tmp_path, monkeypatch):
    for value in [5, 6, 5, 6, 5, 6, 9, 8, 9, 8, 9, 8]:
        path = storage.add([make_block(tpot_s=[value / 1000] * 4)])
        if storage.made == 4:
            path.write_text(path.read_text()[:-100])
        if storage.made == 8:
            path.write_text(path.read_text().replace('"rounds"', '"rounds": 1, "x"'))
    said = []
    for size in (10**9, 0):
        monkeypatch.setenv("PYTEST_INFER_CACHE", str(tmp_path / str(size)))
        command = [sys.executable, "-c", ON_TWO_CORES, str(storage.folder), str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.stderr == ""
        said.append(done.stdout)
    assert said[0] == said[1]
    assert "0004" in said[0]
    assert "left out" in said[0]
    assert "tpot_s" in said[0]


@pytest.mark.skipif(sys.platform != "linux", reason="files are shared among processes on Linux only")
@pytest.mark.parametrize("lacking", ["fork", "pipe"])
def test_without_another_process_one_does_all_of_it(monkeypatch, lacking):
    def none():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(shared_work, "_cores", lambda: 4)
    monkeypatch.setattr(shared_work.os, lacking, none)
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    found = shared_work.by_all_cores(lambda part: [n * n for n in part], range(8), shared_work.WORTH_BYTES)
    assert found == [0, 1, 4, 9, 16, 25, 36, 49]
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="files are shared among processes on Linux only")
def test_the_work_of_a_process_that_dies_is_done_by_the_other(capfd):
    code = """
import os, sys
from pytest_infer.storage import shared_work
shared_work._cores = lambda: 4
own = os.getpid()

def work(part):
    if os.getpid() != own and 3 in part:
        os.kill(os.getpid(), 9)
    if os.getpid() != own and 5 in part:
        raise MemoryError
    return [number * number for number in part]

print(shared_work.by_all_cores(work, list(range(8)), shared_work.WORTH_BYTES))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "[0, 1, 4, 9, 16, 25, 36, 49]\n"
