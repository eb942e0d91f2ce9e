"""The border: regular files only, bounded, and one error for whatever they hold."""

import codecs
import os
from pathlib import Path

import msgspec
import not_files
import pytest

from pytest_infer import untrusted
from pytest_infer.untrusted import Damaged

pytestmark = pytest.mark.timeout(120)


@not_files.needs_posix
@pytest.mark.parametrize(("what", "make"), not_files.KINDS.items(), ids=lambda given: getattr(given, "__name__", given))
def test_what_is_no_regular_file_is_never_opened(tmp_path, monkeypatch, what, make):
    path = tmp_path / "0001_x.json"
    make(path)
    monkeypatch.setattr(untrusted.os, "open", lambda *args: pytest.fail("it was opened"))
    with pytest.raises(Damaged, match=f"^{what}, not a file$"):
        untrusted.read(path, 100)


@not_files.needs_posix
def test_what_becomes_a_pipe_while_we_look_does_not_block(tmp_path, monkeypatch):
    path, regular = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(path)
    regular.write_bytes(b"x")
    seen = regular.stat()
    monkeypatch.setattr(untrusted.Path, "stat", lambda self: seen)
    with pytest.raises(Damaged, match="a pipe, not a file"):
        untrusted.read(path, 100)


@pytest.mark.parametrize("is_there", [untrusted.is_file, untrusted.is_dir, untrusted.exists])
def test_nothing_has_a_name_that_is_too_long_for_the_system(is_there):
    assert not is_there(Path("x" * 300))


def test_a_link_to_a_file_is_one(tmp_path):
    tmp_path.joinpath("real").write_bytes(b"content")
    tmp_path.joinpath("link").symlink_to("real")
    assert untrusted.read(tmp_path / "link", 100) == b"content"


def test_a_file_above_the_bound_is_not_read(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(Damaged, match=r"^too large: 1.00 TiB, and at most 256 MiB are read$"):
        untrusted.read(path, untrusted.RUN_BYTES)
    path.write_bytes(b"x" * 11)
    assert untrusted.read(path, 11) == b"x" * 11
    with pytest.raises(Damaged):
        untrusted.read(path, 10)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_no_further_is_read_than_a_file_says():
    # It looks regular and has no size, as /proc/kmsg, which waits for the kernel to say something.
    assert untrusted.read(Path("/proc/self/status"), 100) == b""


def test_what_is_not_there_is_the_systems_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        untrusted.read(tmp_path / "gone", 100)


class Held(msgspec.Struct):
    known: int = 0


HELD = msgspec.json.Decoder(Held)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"other": "\xff"}', "not UTF-8: invalid start byte at byte 11"),
        (b'{"oth\xffer": 1}', "not UTF-8"),
        (b'{"other": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"other": ' + b"[" * 2000 + b"]" * 2000 + b"}", "nested too deeply"),
        (b'{"known": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "."),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "nested too deeply"),
        (b'{"known": "text"}', r"Expected `int`, got `str` - at `\$.known`"),
        (b'{"known": 1e999}', "."),
        (b'{"known": NaN}', "."),
        (b"[]", "Expected `object`"),
        (b"", "Input data was truncated"),
        (b"\0" * 100, "malformed"),
    ],
)
def test_whatever_it_holds_is_one_error_in_one_line(content, why):
    with pytest.raises(Damaged, match=why) as caught:
        untrusted.decode(HELD, content)
    assert "\n" not in str(caught.value)


def test_what_is_sound_is_decoded():
    assert untrusted.decode(HELD, '{"known": 3, "other": "ü", "more": [[[]]]}'.encode()).known == 3


def test_a_byte_order_mark_is_no_part_of_it():
    assert untrusted.decode(HELD, codecs.BOM_UTF8 + b'{"known": 3}').known == 3
    assert untrusted.text(codecs.BOM_UTF8 + b"a") == "a"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (PermissionError(13, "Permission denied", "/x"), "Permission denied"),
        (ValueError("one\n  two"), "one two"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_reason_is_one_line(error, said):
    assert untrusted.reason(error) == said
