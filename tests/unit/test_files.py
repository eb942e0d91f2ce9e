"""Writing that loses nothing: claims, temporary names, folders that cannot be written to."""

import errno
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import not_files
import pytest
from pytest_benchmark.utils import safe_dumps

from pytest_infer.errors import StorageError
from pytest_infer.storage import files, leftovers
from pytest_infer.storage.schema import KEY


@pytest.fixture
def storage(tmp_path):
    folder = tmp_path / "Linux-CPython-3.12-64bit"
    folder.mkdir()
    return SimpleNamespace(
        folder=folder, get=lambda name: folder / f"0001_{name}.json", logger=logging.getLogger("storage")
    )


def save(storage, content=None, tail="abc_20261124_100000"):
    saved, lost = [], []
    files.safe_save(storage, saved.append, lost.append)({"benchmarks": []} if content is None else content, tail)
    assert lost == []
    (path,) = saved
    return path


def leftovers_in(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".") or p.suffix == ".tmp"]


def test_the_first_run_is_number_one(storage):
    path = save(storage, {"benchmarks": [1], "datetime": "now"})
    assert path == storage.folder / "0001_abc_20261124_100000.json"
    assert json.loads(path.read_text()) == {"benchmarks": [1], "datetime": "now"}
    assert leftovers_in(storage.folder) == []


def test_a_run_file_can_be_read_by_others(storage):
    assert save(storage).stat().st_mode & 0o777 == 0o644


def test_numbers_go_on(storage):
    assert [save(storage).name[:5] for _ in range(3)] == ["0001_", "0002_", "0003_"]


def test_a_gap_is_not_filled(storage):
    storage.folder.joinpath("0007_x.json").touch()
    assert save(storage).name.startswith("0008_")


@pytest.mark.parametrize(("highest", "following"), [("9999", "10000"), ("10000", "10001"), ("12345", "12346")])
def test_numbers_go_on_past_9999(storage, highest, following):
    storage.folder.joinpath("0003_x.json").touch()
    storage.folder.joinpath(f"{highest}_x.json").touch()
    assert save(storage).name.startswith(f"{following}_")


def test_other_files_are_no_runs(storage):
    for name in ("notes.json", "x_9999_y.json", "0042_x.npz", "0042.json"):
        storage.folder.joinpath(name).touch()
    assert files.next_number(storage.folder) == 1


def test_runs_that_save_at_once_get_a_number_each(storage):
    count = 12
    barrier = threading.Barrier(count)
    saved = []

    def run(number):
        barrier.wait()
        saved.append((number, save(storage, {"run": number})))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {json.loads(path.read_text())["run"] for _, path in saved} == set(range(count))
    assert all(json.loads(path.read_text())["run"] == number for number, path in saved)
    assert leftovers_in(storage.folder) == []


def test_runs_of_other_names_that_save_at_once_get_other_numbers(storage):
    # By commit, second and branch no two of them are called alike.
    count = 16
    barrier = threading.Barrier(count)

    def run(number):
        barrier.wait()
        for again in range(4):
            save(storage, {"run": number}, f"commit{number}_2026112{again}_100000")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = sorted(int(path.name.split("_")[0]) for path in storage.folder.iterdir())
    assert numbers == list(range(1, 4 * count + 1))


SAVER = """
import logging, pathlib, sys
from types import SimpleNamespace
from pytest_infer.storage import files
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
storage = SimpleNamespace(get=lambda _: folder / "x.json", logger=logging.getLogger())
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    files.safe_save(storage, lambda path: None, sys.exit)({}, f"{name}-{number}")
"""


def test_processes_that_save_at_once_get_other_numbers(storage):
    command = [sys.executable, "-c", SAVER, str(storage.folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen([*command, name], **pipes) for name in ("one", "two", "three")]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    assert [process.wait() for process in processes] == [0, 0, 0]
    for process in processes:
        process.stdin.close()
        process.stdout.close()
    numbers = sorted(int(path.name.split("_")[0]) for path in storage.folder.iterdir())
    assert numbers == list(range(1, 61))


def test_a_number_that_another_run_has_reserved_is_not_taken(storage):
    with leftovers.held(lambda: files._reservation(storage.folder, 1)):
        assert save(storage).name.startswith("0002_")
    assert save(storage).name.startswith("0003_"), "a gap is not filled"


def test_a_number_that_was_used_while_we_looked_is_not_taken(storage, monkeypatch):
    # Another run has reserved, written and released it after we looked.
    storage.folder.joinpath("0001_other.json").touch()
    monkeypatch.setattr(files, "next_number", lambda folder: 1)
    assert save(storage).name.startswith("0002_")


@pytest.mark.parametrize("name", ["9" * 30 + "_x.json", "\u0661\u0662_x.json"])
def test_a_name_that_nobody_counted_to_is_no_number(storage, name):
    storage.folder.joinpath(name).touch()
    assert save(storage).name.startswith("0001_")


DIES = """
import os, pathlib, sys
from pytest_infer.storage import files
path = pathlib.Path(sys.argv[1])
with files.replacing(path) as file:
    file.write(b"half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_save_leaves_is_cleaned_and_what_lives_is_not(storage):
    command = [sys.executable, "-c", DIES, str(storage.folder / "a.npz")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        (half,) = leftovers_in(storage.folder)
        save(storage)
        assert leftovers_in(storage.folder) == [half], "its process lives"
        process.kill()
    assert leftovers_in(storage.folder) == [half]
    files.check_writable(storage.folder)
    assert leftovers_in(storage.folder) == []


def test_a_name_as_long_as_names_can_be_is_written(tmp_path):
    path = tmp_path / f"{'n' * 251}.npz"
    with files.replacing(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"


@pytest.mark.parametrize("name", [".run-x.infer.tmp", ".0007.infer.tmp", ".0001_a.npz.x.infer.tmp"])
def test_what_was_left_by_the_dead_goes_with_the_next_save(storage, name):
    storage.folder.joinpath(name).write_bytes(b"half")
    others = ["notes.tmp", ".hidden", "x.infer.tmp"]
    for other in others:
        storage.folder.joinpath(other).touch()
    assert save(storage).name.startswith("0001_")
    assert sorted(p.name for p in storage.folder.iterdir() if not p.name.endswith(".json")) == sorted(others)


@not_files.needs_posix
@pytest.mark.parametrize("make", not_files.EVERY, ids=lambda make: make.__name__)
def test_cleaning_touches_no_other_kind_of_file(storage, make):
    make(storage.folder / ".odd.infer.tmp")
    save(storage)
    assert os.path.lexists(storage.folder / ".odd.infer.tmp")


def test_where_there_are_no_locks_age_tells(storage, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(leftovers.fcntl, "flock", no_locks)
    young, old = storage.folder / ".young.infer.tmp", storage.folder / ".old.infer.tmp"
    for path in (young, old):
        path.touch()
    os.utime(old, (1000, 1000))
    save(storage)
    assert young.exists()
    assert not old.exists()


def test_a_file_that_was_cleaned_before_it_was_locked_is_made_again(storage):
    made = []

    def make():
        descriptor, name = tempfile.mkstemp(dir=storage.folder, prefix=".x", suffix=leftovers.SUFFIX)
        if not made:
            Path(name).unlink()
        made.append(name)
        return descriptor, name

    with leftovers.held(make) as path:
        assert str(path) == made[1]
        assert path.exists()
    assert list(storage.folder.iterdir()) == []


def test_two_claims_of_the_same_name_get_two_numbers(storage, monkeypatch):
    # Both looked before either wrote.
    monkeypatch.setattr(files, "next_number", lambda folder: 1)
    assert [save(storage, tail="same").name for _ in range(2)] == ["0001_same.json", "0002_same.json"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_where_there_are_no_hard_links_nothing_is_written_over(storage, monkeypatch, code):
    def no_links(source, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "link", no_links)
    monkeypatch.setattr(files, "next_number", lambda folder: 1)
    first, second = save(storage, {"run": 1}, "same"), save(storage, {"run": 2}, "same")
    assert [json.loads(p.read_text())["run"] for p in (first, second)] == [1, 2]
    assert leftovers_in(storage.folder) == []


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_part(storage, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    saved, lost = [], []
    files.safe_save(storage, saved.append, lost.append)({}, "x")
    assert saved == []
    (line,) = lost
    assert "No space left on device" in line
    assert str(storage.folder) in line
    assert "\n" not in line
    assert list(storage.folder.glob("*.json")) == []
    assert leftovers_in(storage.folder) == []


def test_what_cannot_be_encoded_writes_nothing(storage):
    loop = {}
    loop["self"] = loop
    with pytest.raises(ValueError, match="Circular"):
        save(storage, loop)
    assert list(storage.folder.iterdir()) == []


def test_a_writable_folder_is_made_and_left_clean(tmp_path):
    folder = tmp_path / "new" / "storage"
    files.check_writable(folder)
    assert list(folder.iterdir()) == []


def test_a_file_in_the_way_is_refused(tmp_path):
    tmp_path.joinpath("results").write_text("not a folder")
    for folder in (tmp_path / "results", tmp_path / "results" / "below"):
        with pytest.raises(StorageError) as caught:
            files.check_writable(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
        assert "--benchmark-storage" in str(caught.value)
    assert tmp_path.joinpath("results").read_text() == "not a folder"


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    # Root may write anywhere, so the kernel's answer is played.
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(StorageError, match="Permission denied; choose another place with --benchmark-storage"):
        files.check_writable(tmp_path)


def test_a_disk_almost_full_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(StorageError, match="only 3 MiB are free"):
        files.check_writable(tmp_path)


def test_replacing_writes_whole_files(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    with files.replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert leftovers_in(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replacing_leaves_the_old_file_when_the_block_raises(tmp_path, error):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")

    def interrupted():
        with files.replacing(path) as file:
            file.write(b"half of the new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_bytes() == b"old"
    assert leftovers_in(tmp_path) == []


def test_an_interrupted_save_leaves_no_part(storage, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(storage)
    assert list(storage.folder.iterdir()) == []


def test_replacing_what_cannot_be_replaced_leaves_no_part(tmp_path):
    path = tmp_path / "a.npz"
    path.mkdir()
    with pytest.raises(OSError, match=r"a\.npz"), files.replacing(path) as file:
        file.write(b"new")
    assert leftovers_in(tmp_path) == []


def test_replacing_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    seen = []
    monkeypatch.setattr(files.os, "fsync", lambda fd: seen.append((os.fstat(fd).st_size, path.read_bytes())))
    with files.replacing(path) as file:
        file.write(b"brand new")
    # The file while the name is still the old one's, then the folder.
    assert seen[0] == (9, b"old")
    assert [content for _, content in seen[1:]] == [b"brand new"]


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"a": {}, "b": [], "c": [[]], "d": [{}]},
        {"counts": [[1, 2, 3], [4, 5, 6]], "none": None, "yes": True, "text": "ü\n\x1b[31m\u2028", "x": [0.1, 1e-9]},
        [1, [2, [3, {"deep": (4, 5)}]]],
        {"keys": {1: "number", None: "none"}},
        {"odd": {1, 2}, "object": object()},
        7,
    ],
)
def test_a_run_file_says_what_pytest_benchmarks_own_would(value):
    natively = json.loads(safe_dumps(value, indent=4))
    found = json.loads(files.dumps(value))
    if "object" in str(value):  # named with its address: twice the same object
        assert found["object"] == natively["object"]
    assert found == natively


def test_a_run_file_has_the_native_layout_but_for_plain_lists():
    value = {"benchmarks": [{"stats": {"data": [0.5, 0.25], "min": 1}, "extra": [[1, 2], [3]]}], "none": []}
    assert files.dumps(value) == (
        '{\n    "benchmarks": [\n        {\n            "stats": {\n                "data": [0.5,0.25],\n'
        '                "min": 1\n            },\n            "extra": [\n                [1,2],\n'
        '                [3]\n            ]\n        }\n    ],\n    "none": []\n}'
    )


def test_what_our_block_holds_is_on_a_line_each():
    block = {"metrics": {"ttft_s": {"value": 1.5, "rounds": [1, 2]}}, "parts": [{"role": "head"}], "schema": 1}
    lines = files.dumps({"benchmarks": [{"extra_info": {KEY: block}}]}).splitlines()
    assert [line.strip() for line in lines[5:8]] == [
        '"metrics": {"ttft_s":{"value":1.5,"rounds":[1,2]}},',
        '"parts": [{"role":"head"}],',
        '"schema": 1',
    ]


def publish(path, data=b"new"):
    with files.publishing(path) as file:
        file.write(data)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
@pytest.mark.parametrize("through_a_link", [False, True])
def test_an_output_that_is_a_pipe_is_written_into(tmp_path, through_a_link):
    pipe, named = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    named.symlink_to(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        publish(named if through_a_link else pipe)
        assert os.read(reader, 100) == b"new"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert named.is_symlink()


def test_an_output_in_a_folder_that_is_not_there_makes_it(tmp_path):
    publish(tmp_path / "a" / "b" / "x.csv")
    assert (tmp_path / "a" / "b" / "x.csv").read_bytes() == b"new"


def test_an_output_that_is_a_link_stays_one(tmp_path):
    there, gone = tmp_path / "there", tmp_path / "later"
    there.write_text("old")
    for target in (there, gone):
        link = tmp_path / f"link-to-{target.name}"
        link.symlink_to(target)
        publish(link)
        assert link.is_symlink()
        assert target.read_bytes() == b"new"


@pytest.mark.skipif(not Path("/proc/self/fd/2").exists(), reason="no names of open files here")
def test_an_output_that_is_this_process_own_is_written_into(tmp_path):
    kept, other = os.dup(2), tmp_path / "stderr"
    with other.open("wb") as file:
        file.write(b"before ")
        file.flush()
        os.dup2(file.fileno(), 2)
        try:
            publish(Path("/proc/self/fd/2"))
            assert other.stat().st_ino == os.fstat(2).st_ino
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    assert other.read_bytes() == b"before new"


def test_an_output_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError):
        publish(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_an_output_keeps_its_mode_and_a_new_one_has_the_umasks(tmp_path):
    before = os.umask(0o027)
    try:
        publish(tmp_path / "new")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert tmp_path.joinpath("new").stat().st_mode & 0o777 == 0o640
    tmp_path.joinpath("secret").touch(mode=0o600)
    publish(tmp_path / "secret")
    assert tmp_path.joinpath("secret").stat().st_mode & 0o777 == 0o600


def test_an_output_that_fails_changes_nothing(tmp_path):
    tmp_path.joinpath("old").write_text("old")
    with pytest.raises(TypeError):
        publish(tmp_path / "old", "no bytes")
    assert tmp_path.joinpath("old").read_text() == "old"
    assert leftovers_in(tmp_path) == []
