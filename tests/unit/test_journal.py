"""The journal of finished prompts, read as a kill may have left it."""

import dataclasses
import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import not_files
import pytest

from pytest_infer.records import PromptRecord
from pytest_infer.storage import journal
from pytest_infer.storage.journal import Entry, Journal

DATA = Path(__file__).parents[1] / "data"
NO_PID = 2**22 + 1
"""One more than the largest pid that Linux gives."""


@pytest.fixture(scope="module")
def record():
    return msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)


def entry(record, nodeid="t.py::t[a]", key="k"):
    return Entry(nodeid=nodeid, key=key, record=dataclasses.replace(record, nodeid=nodeid))


def left_behind(storage, *entries, name=f"20261124-100000-{NO_PID}.jsonl", tail=b"", mtime=None):
    path = storage / journal.FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(e) + b"\n" for e in entries) + tail)
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    return path


def test_a_line_a_prompt_and_what_is_read_is_what_was_written(tmp_path, record):
    written = [entry(record, f"t.py::t[{name}]") for name in "ab"]
    book = Journal(tmp_path)
    assert not book.path.exists(), "a run that measures nothing leaves nothing"
    for one in written:
        book.append(one)
    assert book.entries == 2
    assert book.path.parent == tmp_path / journal.FOLDER
    assert str(os.getpid()) in book.path.name
    assert len(book.path.read_bytes().splitlines()) == 2
    assert journal.read(book.path) == journal.Left(path=book.path, entries=tuple(written))


def test_each_line_is_on_the_disk_before_the_next_prompt(tmp_path, record, monkeypatch):
    synced = []
    monkeypatch.setattr(journal.os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    book = Journal(tmp_path)
    book.append(entry(record))
    assert synced == [book.path.stat().st_size]


def test_the_output_of_a_model_cannot_break_a_line(tmp_path, record):
    output = dataclasses.replace(record.output, text="one\ntwo\r\n\u2028three\x1b[31m\x00\ud7ff")
    book = Journal(tmp_path)
    book.append(entry(dataclasses.replace(record, output=output)))
    (read,) = journal.read(book.path).entries
    assert read.record.output == output


def test_a_line_cut_short_is_left_out(tmp_path, record):
    whole = [entry(record, f"t.py::t[{name}]") for name in "abc"]
    cut = msgspec.json.encode(entry(record, "t.py::t[d]"))
    for length in (1, len(cut) // 2, len(cut) - 1):
        path = left_behind(tmp_path, *whole, tail=cut[:length])
        assert journal.read(path) == journal.Left(path=path, entries=tuple(whole))


def test_a_disk_that_was_full_costs_no_later_prompt(tmp_path, record, full_disk):
    book, entries = Journal(tmp_path), [entry(record, f"t.py::t[{name}]") for name in "abc"]
    book.append(entries[0])
    with full_disk(book.path.stat().st_size + 10), pytest.raises(OSError, match="File too large"):
        book.append(entries[1])
    assert not book.path.read_bytes().endswith(b"\n"), "a part of the line was written"
    book.append(entries[2])
    assert journal.read(book.path) == journal.Left(path=book.path, entries=(entries[0], entries[2]))
    book.path.unlink()
    book.append(entries[1])
    assert journal.read(book.path).entries == (entries[1],)


def test_a_line_of_another_schema_is_left_out(tmp_path, record):
    path = left_behind(tmp_path, entry(record), tail=b'{"nodeid": "x", "key": "k", "record": {"old": 1}}\n\xff\xfe\n')
    left = journal.read(path)
    assert len(left.entries) == 1
    assert left.damage.startswith("line 2: ")
    assert left.damage.endswith(" (and 1 more lines)")


DAMAGED_LINES = {
    "a byte that is not UTF-8": b'{"nodeid":"a\xff","key":"b","record":{}}\n',
    "a byte in what nobody reads": b'{"nodeid":"a","key":"b","more":"\xff"}\n',
    "nesting": b'{"nodeid":"a","key":"b","record":' + b"[" * 2000 + b"]" * 2000 + b"}\n",
    "another type": b'{"nodeid":1,"key":"b","record":{}}\n',
    "a missing key": b'{"nodeid":"a","key":"b","record":{}}\n',
    "zeros": b"\0" * 5000 + b"\n",
}


@pytest.mark.parametrize("line", DAMAGED_LINES.values(), ids=DAMAGED_LINES)
def test_a_damaged_line_costs_no_other(tmp_path, record, line):
    path = left_behind(tmp_path, entry(record), tail=line + msgspec.json.encode(entry(record, "t.py::t[b]")) + b"\n")
    (left,) = journal.interrupted(tmp_path)
    assert [e.nodeid for e in left.entries] == ["t.py::t[a]", "t.py::t[b]"]
    assert left.damage.startswith("line 2: ")
    assert not left.used_up({e.work for e in left.entries}), f"{path} holds something that a person may mend"


def record_of(record, **trace):
    first = dataclasses.replace(record.rounds[0], trace=dataclasses.replace(record.rounds[0].trace, **trace))
    return dataclasses.replace(record, rounds=(first, *record.rounds[1:]))


@pytest.mark.parametrize(
    "unsound",
    [
        lambda record: dataclasses.replace(record, rounds=()),
        lambda record: record_of(record, stamps_ns=()),
        lambda record: record_of(record, tick_sizes=(1,)),
        lambda record: record_of(record, token_ids=(1,)),
        lambda record: record_of(record, stamps_ns=tuple(reversed(record.rounds[0].trace.stamps_ns))),
    ],
)
def test_a_record_that_no_run_makes_is_damage(tmp_path, record, unsound):
    left_behind(tmp_path, Entry(nodeid="t", key="k", record=unsound(record)))
    (left,) = journal.interrupted(tmp_path)
    assert left.entries == ()
    assert "line 1: " in left.damage


@pytest.mark.parametrize("field", ["parameter_bytes", "parameters", "expert_bytes", "max_new_tokens"])
@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**400], ids=["2^64", "-2^63-1", "10^400"])
def test_a_number_that_no_counter_holds_is_damage(tmp_path, record, field, number):
    line = msgspec.json.encode(entry(record))
    damaged = re.sub(rf'"{field}":(\d+|null)'.encode(), f'"{field}":{number}'.encode(), line)
    assert damaged != line
    left_behind(tmp_path, tail=damaged + b"\n")
    (left,) = journal.interrupted(tmp_path)
    assert left.entries == ()
    assert "line 1: " in left.damage


@not_files.needs_posix
@pytest.mark.parametrize("make", not_files.EVERY, ids=lambda make: make.__name__)
def test_what_is_no_file_is_named_and_never_opened(tmp_path, record, make):
    good = left_behind(tmp_path, entry(record))
    make(good.with_name("x.jsonl"))
    found = {left.path: left for left in journal.interrupted(tmp_path)}
    assert len(found[good].entries) == 1
    assert "not a file" in found[good.with_name("x.jsonl")].damage


@not_files.needs_posix
@pytest.mark.parametrize("make", not_files.EVERY, ids=lambda make: make.__name__)
def test_a_lock_that_is_no_file_holds_nobody_up(tmp_path, record, make):
    good = left_behind(tmp_path, entry(record))
    make(good.with_suffix(".lock"))
    assert paths(tmp_path) == [good]


def test_a_journal_without_an_end_is_not_read(tmp_path):
    path = left_behind(tmp_path)
    with path.open("wb") as file:
        file.truncate(2**40)
    (left,) = journal.interrupted(tmp_path)
    assert left.damage == "too large: 1.00 TiB"


def test_what_runs_left_that_finished_no_prompt_is_cleaned(tmp_path, record):
    empty = left_behind(tmp_path, name="1.jsonl", tail=b'{"nod', mtime=1000)
    lock = left_behind(tmp_path, name="2.lock", mtime=1000)
    young = left_behind(tmp_path, name="3.jsonl", tail=b'{"nod')
    kept = left_behind(tmp_path, entry(record), name="4.jsonl", mtime=1000)
    alive = Journal(tmp_path)
    alive.append(entry(record))
    os.utime(alive.path.with_suffix(".lock"), (1000, 1000))
    alive.path.unlink()
    assert paths(tmp_path) == [kept]
    left = {path.name for path in empty.parent.iterdir()}
    assert left >= {young.name, kept.name, alive.path.with_suffix(".lock").name}
    assert not {empty.name, lock.name} & left
    alive.discard()


def test_discarding_twice_is_no_error(tmp_path, record):
    book = Journal(tmp_path)
    book.discard()
    book.append(entry(record))
    book.discard()
    assert not book.path.exists()


def paths(storage):
    return [left.path for left in journal.interrupted(storage)]


def test_no_journal_no_interrupted_run(tmp_path):
    assert journal.interrupted(tmp_path) == ()
    (tmp_path / journal.FOLDER).mkdir()
    assert journal.interrupted(tmp_path) == ()


def test_every_run_with_entries_counts_the_one_written_last_at_the_end(tmp_path, record):
    # Named the other way round: what counts is when a line was last written.
    newest = left_behind(tmp_path, entry(record, key="new"), name=f"1-{NO_PID}.jsonl", mtime=2000)
    oldest = left_behind(tmp_path, entry(record, key="old"), name=f"2-{NO_PID}.jsonl", mtime=1000)
    left_behind(tmp_path, name=f"3-{NO_PID}.jsonl", tail=b'{"nod', mtime=3000)
    assert paths(tmp_path) == [oldest, newest]
    assert [e.key for left in journal.interrupted(tmp_path) for e in left.entries] == ["old", "new"]


def seconds(record, value):
    return dataclasses.replace(record, tokenize_s=value)


def test_of_several_records_of_one_work_the_one_written_last_is_taken(tmp_path, record):
    first, second, third = (entry(seconds(record, value)) for value in (1.0, 2.0, 3.0))
    other, later = entry(seconds(record, 4.0), key="k2"), entry(seconds(record, 5.0), "t.py::t[b]")
    left_behind(tmp_path, first, other, name="2.jsonl", mtime=1000)
    left_behind(tmp_path, second, third, name="1.jsonl", mtime=2000)
    left_behind(tmp_path, later, name="0.jsonl", mtime=500)
    found = journal.newest(journal.interrupted(tmp_path))
    assert {work: made.tokenize_s for work, made in found.items()} == {
        ("t.py::t[a]", "k"): 3.0,
        ("t.py::t[a]", "k2"): 4.0,
        ("t.py::t[b]", "k"): 5.0,
    }


def test_a_journal_is_used_up_when_all_of_its_work_is_done(tmp_path, record):
    left_behind(tmp_path, entry(record), entry(record, "t.py::t[b]", "k2"))
    (left,) = journal.interrupted(tmp_path)
    assert not left.used_up({("t.py::t[a]", "k")})
    assert not left.used_up({("t.py::t[a]", "k"), ("t.py::t[b]", "k")}), "the same test with other options"
    assert left.used_up({("t.py::t[a]", "k"), ("t.py::t[b]", "k2"), ("t.py::t[c]", "k")})


def test_a_run_that_goes_on_beside_us_was_not_interrupted(tmp_path, record):
    dead = left_behind(tmp_path, entry(record, key="dead"), name=f"1-{NO_PID}.jsonl", mtime=1000)
    alive = Journal(tmp_path)
    alive.append(entry(record, key="alive"))
    assert paths(tmp_path) == [dead]
    journal.remove(dead)
    assert paths(tmp_path) == []
    assert len(journal.read(alive.path).entries) == 1
    alive.close()
    assert paths(tmp_path) == [alive.path], "left by a run that was interrupted and has ended"
    alive.discard()
    assert list(alive.path.parent.iterdir()) == []


WRITER = """
import pathlib, sys
from pytest_infer.storage import journal
book = journal.Journal(pathlib.Path(sys.argv[1]))
book.append(journal.read(pathlib.Path(sys.argv[2])).entries[0])
print("written", flush=True)
sys.stdin.read()
"""


def test_a_killed_run_gives_its_journal_up(tmp_path, record):
    given = left_behind(tmp_path / "elsewhere", entry(record))
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(given)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"written\n"
        assert paths(tmp_path) == []
        process.kill()
    (found,) = journal.interrupted(tmp_path)
    assert len(found.entries) == 1
    journal.remove(found.path)
    assert list(found.path.parent.iterdir()) == []


def test_where_there_are_no_locks_there_is_a_journal_all_the_same(tmp_path, record, monkeypatch):
    def acquire(self, **kwargs):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(journal.FileLock, "acquire", acquire)
    book = Journal(tmp_path)
    book.append(entry(record))
    book.append(entry(record, "t.py::t[b]"))
    assert [len(left.entries) for left in journal.interrupted(tmp_path)] == [2]


def test_two_runs_of_one_second_and_pid_write_apart(tmp_path):
    assert len({Journal(tmp_path).path for _ in range(9)}) == 9


def test_a_journal_that_goes_while_we_look_is_nobodys(tmp_path, record, monkeypatch):
    path = left_behind(tmp_path, entry(record))
    monkeypatch.setattr(journal.Path, "glob", lambda folder, pattern: [path, path.with_name("gone.jsonl")])
    assert paths(tmp_path) == [path]
    path.unlink()
    assert paths(tmp_path) == []


def test_a_pid_that_was_given_out_again_is_not_that_run(tmp_path, record):
    # In a container every run may be process 1.
    path = left_behind(tmp_path, entry(record), name=f"20200101-000000-{os.getpid()}.jsonl")
    assert paths(tmp_path) == [path]


def test_a_number_that_is_no_pid_is_no_running_run(tmp_path, record):
    path = left_behind(tmp_path, entry(record), name=f"1-{'9' * 30}.jsonl")
    assert paths(tmp_path) == [path]


def test_a_name_without_a_pid_is_read(tmp_path, record):
    path = left_behind(tmp_path, entry(record), name="moved.jsonl")
    assert paths(tmp_path) == [path]


def test_only_the_same_test_with_the_same_key_matches(tmp_path, record):
    left_behind(tmp_path, entry(record, "t.py::t[a]", "k1"), entry(record, "t.py::t[b]", "k2"))
    found = journal.newest(journal.interrupted(tmp_path))
    assert found["t.py::t[b]", "k2"].nodeid == "t.py::t[b]"
    assert ("t.py::t[a]", "k2") not in found
    assert ("t.py::t[c]", "k1") not in found
    assert journal.newest([]) == {}


def test_what_matches_is_the_record_itself(tmp_path, record):
    entries = [entry(record, key="k"), entry(seconds(record, 99.0), key="k2")]
    left_behind(tmp_path, *entries)
    assert journal.newest(journal.interrupted(tmp_path))["t.py::t[a]", "k2"] == entries[1].record


def test_a_look_of_another_run_does_not_make_a_dead_one_alive(tmp_path, record, monkeypatch):
    # Both ask for the lock at the same moment. On a busy machine the other one may hold it for longer.
    monkeypatch.setattr(journal, "_PATIENCE_S", 10.0)
    path = left_behind(tmp_path, entry(record))
    lock = journal.FileLock(path.with_suffix(".lock"), thread_local=False)
    lock.acquire()
    timer = threading.Timer(0.02, lock.release)
    timer.start()
    assert paths(tmp_path) == [path]
    timer.join()
