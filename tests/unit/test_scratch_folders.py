"""The folder for files of a comparison: removed after a killed run, and of no other."""

import errno
import os
import sys

import pytest
from filelock import FileLock

from pytest_infer.ab import other_commit
from pytest_infer.errors import AgainstError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no comparison on Windows")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_run_left_is_removed_and_nothing_else(temporary):
    killed, used = (temporary / f"pytest-infer-cache-{name}" for name in ("killed", "used"))
    others = temporary / "pytest-infer-cache-of-others"
    for folder in (killed, used, others):
        folder.mkdir()
        (folder / "ours").touch()
    (killed / "lock").touch()
    with FileLock(used / "lock"):
        folder, lock = other_commit._scratch()
        assert not killed.exists()
        assert (used / "ours").exists()
        assert (others / "ours").exists()
        # Nor does the next run of another process take this one's.
        again, _ = other_commit._scratch()
        assert folder.exists()
        assert again != folder
    lock.release()


def test_where_there_is_no_room_for_a_lock_no_folder_is_left(temporary, monkeypatch):
    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(FileLock, "acquire", full)
    with pytest.raises(AgainstError, match=r"^no temporary folder: No space left on device; name another one with TM"):
        other_commit._scratch()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(errno.ENOLCK, "No locks available")])
def test_a_file_system_without_locks_will_do(temporary, monkeypatch, error):
    def fail(self, *_, **__):
        raise error

    monkeypatch.setattr(FileLock, "acquire", fail)
    folder, _ = other_commit._scratch()
    again, _ = other_commit._scratch()
    # Who cannot tell whether it is in use leaves it alone.
    assert {folder, again} == set(temporary.iterdir())
