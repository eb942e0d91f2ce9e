"""What the page cache holds of files: dropped, filled, kept by who maps them, and why it may not be known."""

import ctypes
import mmap
import os
import sys
from pathlib import Path

import pytest

from pytest_infer.measure.loading import page_cache

PAGES = 256
linux = pytest.mark.skipif(sys.platform != "linux", reason="mincore and posix_fadvise as Linux has them")


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(PAGES * mmap.PAGESIZE))
    page_cache.drop([path])
    if page_cache.cached([path]).value:
        pytest.skip(f"the file system of {tmp_path} keeps the file in memory (tmpfs?)")
    return path


@linux
def test_what_is_dropped_is_gone_and_what_is_read_is_there(weights):
    assert page_cache.cached([weights]).value == 0
    assert page_cache.fill([weights]) is None
    assert page_cache.cached([weights]).value == pytest.approx(1, abs=0.02)  # the kernel may take pages back
    assert page_cache.drop([weights]) is None
    assert page_cache.cached([weights]).value == 0


@linux
def test_a_file_that_was_just_written_is_dropped_too(tmp_path, weights):
    # Its pages are dirty: without writing them out first they would stay.
    fresh = tmp_path / "fresh"
    fresh.write_bytes(bytes(PAGES * mmap.PAGESIZE))
    assert page_cache.cached([fresh]).value == pytest.approx(1, abs=0.02)
    page_cache.drop([fresh])
    assert page_cache.cached([fresh]).value == 0


@linux
def test_pages_that_a_process_maps_stay(weights):
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        page_cache.fill([weights])
        for page in range(PAGES // 4):
            mapped[page * mmap.PAGESIZE]
        page_cache.drop([weights])
        # The kernel maps some neighbours of a page that is touched along with it.
        assert 0.25 <= page_cache.cached([weights]).value < 0.5
    page_cache.drop([weights])
    assert page_cache.cached([weights]).value == 0


@linux
def test_the_share_is_of_the_pages_of_all_files(tmp_path, weights):
    cold = tmp_path / "cold"
    cold.write_bytes(bytes(3 * PAGES * mmap.PAGESIZE + 1))
    page_cache.drop([cold])
    page_cache.fill([weights])
    assert page_cache.cached([weights, cold]).value == pytest.approx(PAGES / (4 * PAGES + 1), abs=0.02)


@linux
def test_a_large_file_is_looked_at_in_parts(weights, monkeypatch):
    page_cache.fill([weights])
    monkeypatch.setattr(page_cache, "_WINDOW", 100 * mmap.PAGESIZE)
    assert [*page_cache._counts(weights)] == [(100, 100), (100, 100), (56, 56)]
    assert page_cache.cached([weights]).value == pytest.approx(1, abs=0.02)  # the kernel may take pages back


@linux
def test_a_last_page_that_is_not_full_is_a_page(tmp_path):
    path = tmp_path / "odd"
    path.write_bytes(b"x" * (mmap.PAGESIZE + 1))
    assert [*page_cache._counts(path)] == [(2, 2)]


@linux
def test_only_the_lowest_bit_tells(weights, monkeypatch):
    class Reserved:
        @staticmethod
        def mincore(_start, _length, flags):
            flags.raw = bytes([0xFE, 0xFF]) * (PAGES // 2)
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_options: Reserved)
    assert page_cache.cached([weights]).value == pytest.approx(0.5, abs=0.02)


@linux
def test_a_refusal_of_the_kernel_is_the_reason(weights, monkeypatch):
    class Refusing:
        @staticmethod
        def mincore(_start, _length, _flags):
            ctypes.set_errno(12)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_options: Refusing)
    reading = page_cache.cached([weights])
    assert (reading.value, reading.reason) == (None, f"model.safetensors: {os.strerror(12)}")


@linux
def test_somebody_elses_file_is_not_called_cached(weights, monkeypatch):
    # To them mincore(2) says that every page is resident.
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    reading = page_cache.cached([weights])
    assert reading.value is None
    assert "those who may write model.safetensors" in reading.reason
    monkeypatch.setattr(os, "access", lambda _path, _mode: True)
    assert page_cache.cached([weights]).value == 0


@pytest.mark.parametrize(
    ("paths", "platform", "says"),
    [
        ([], "linux", "no files of the weights"),
        ([Path("/nowhere/model.bin")], "linux", "has no model.bin"),
        ([Path("/nowhere/model.bin")], "darwin", "only Linux"),
    ],
)
def test_what_cannot_be_known_is_absent_with_the_reason(paths, platform, says):
    reading = page_cache.cached(paths, platform=platform)
    assert reading.value is None
    assert says in reading.reason


def test_empty_files_have_no_share(tmp_path):
    (tmp_path / "empty").touch()
    assert page_cache.cached([tmp_path / "empty"], platform="linux").reason == "the files are empty"


def test_what_cannot_be_dropped_or_read_is_said(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    assert "gone" in page_cache.fill([gone])
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: None, raising=False)
    assert "gone" in page_cache.drop([gone])
    monkeypatch.delattr(os, "posix_fadvise")
    assert page_cache.drop([gone]) == "this system has no posix_fadvise"
