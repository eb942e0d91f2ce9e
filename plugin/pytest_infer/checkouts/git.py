"""git, started in a folder: what it says, and why it refuses."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from pytest_infer import untrusted
from pytest_infer.errors import AgainstError

_TIMEOUT_S = 600
"""A checkout of large files from a slow disk takes minutes; git that waits for a password takes for ever."""
_OF_A_HOOK = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"}
_OWNER = re.compile(r"(?:dubious ownership in|unsafe) repository (?:at )?\(?'([^']+)'")


def git(
    folder: Path, *arguments: str, stdin: str | None = None, index: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Return what git, started in a folder, ends with; raise AgainstError if it does not end.

    `index` is used in place of the checkout's own.
    """
    # In a git hook these name the repository of the hook, whatever the folder.
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_A_HOOK}
    own = {} if index is None else {"GIT_INDEX_FILE": str(index)}
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**inherited, **own, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
            input=stdin or "",
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
            timeout=_TIMEOUT_S,
            # Ctrl-C is for us: git is asked to clean up after it.
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise AgainstError(f"`git {arguments[0]}` did not end within {_TIMEOUT_S} s") from None


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return what git said last, which is why it failed."""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"git ended with {done.returncode}"


def distrust(done: subprocess.CompletedProcess[str]) -> str | None:
    """Return why git refuses a repository that is there, and the remedy; None where that is not why it failed.

    Source: git-config(1), safe.directory and safe.bareRepository.
    """
    owned = _OWNER.search(done.stderr)
    if done.returncode and owned is not None:
        remedy = f"git config --global --add safe.directory {shlex.quote(owned[1])}"
        return f"git does not trust {owned[1]}, which belongs to another user; if you do: {remedy}"
    if done.returncode and "cannot use bare repository" in done.stderr:
        return "git is told to use no bare repository that it merely finds (safe.bareRepository): run in a checkout"
    return None


def why_not_in(folder: Path) -> str | None:
    """Return why git does not work in the repository that a folder is in; None where it does, or where there is none.

    It never raises: it is asked after something else has failed, or for a note.
    """
    try:
        return distrust(git(folder, "rev-parse", "--git-dir"))
    except OSError as error:
        # As in an image without git, into which the runner of a job has put a checkout.
        inside = any(untrusted.exists(place / ".git") for place in (folder, *folder.parents))
        missing = isinstance(error, FileNotFoundError)
        why = "git is not on the PATH" if missing else f"git cannot be started: {error.strerror}"
        return why if inside else None
    except AgainstError:
        return None
