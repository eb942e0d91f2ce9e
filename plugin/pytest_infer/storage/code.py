"""The state of the code under test: its commit and what differs from it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from pytest_infer.checkouts.git import git
from pytest_infer.errors import AgainstError

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def code_state(folder: Path) -> str | None:
    """Return the commit and a hash of the uncommitted changes to tracked files; None outside git."""
    commit, diff = (_said(folder, *command) for command in (("rev-parse", "HEAD"), ("diff", "HEAD")))
    if commit is None or diff is None:
        return None
    changes = f"+{hashlib.sha256(diff.encode(errors='surrogateescape')).hexdigest()}" if diff else ""
    return commit.strip() + changes


def resolve(revision: str, folder: Path | None = None) -> str | None:
    """Return the commit that git finds for a tag, branch or expression; None for none."""
    if revision.startswith("-"):
        return None
    found = _said(folder or Path.cwd(), "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    return None if found is None else found.strip()


def subjects(commits: Collection[str], folder: Path | None = None) -> dict[str, str]:
    """Return the first line of each commit's message, as far as git knows them here; nothing outside git."""
    wanted = sorted({commit for commit in commits if _COMMIT.fullmatch(commit)})
    command = ("log", "--no-walk", "--ignore-missing", "--format=%H %s", "--stdin")
    found = _said(folder or Path.cwd(), *command, stdin="\n".join(wanted)) if wanted else None
    lines = (line.partition(" ") for line in (found or "").split("\n"))
    return {commit: subject.encode(errors="replace").decode() for commit, _, subject in lines if commit in wanted}


def _said(folder: Path, *command: str, stdin: str | None = None) -> str | None:
    try:
        done = git(folder, *command, stdin=stdin)
    except (OSError, AgainstError):
        return None
    return done.stdout if done.returncode == 0 else None
