"""The state of the code under test: its commit and what differs from it."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Collection
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def code_state(folder: Path) -> str | None:
    """Return the commit and a hash of the uncommitted changes to tracked files; None outside git."""
    try:
        commit, diff = (
            subprocess.run(["git", *command], cwd=folder, capture_output=True, check=True, timeout=30).stdout
            for command in (["rev-parse", "HEAD"], ["diff", "HEAD"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit.decode().strip()}+{hashlib.sha256(diff).hexdigest()}" if diff else commit.decode().strip()


def resolve(revision: str, folder: Path | None = None) -> str | None:
    """Return the commit that git finds for a tag, branch or expression; None for none."""
    if revision.startswith("-"):
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"],
            cwd=folder,
            capture_output=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.decode().strip()


def subjects(commits: Collection[str], folder: Path | None = None) -> dict[str, str]:
    """Return the first line of each commit's message, as far as git knows them here; nothing outside git."""
    wanted = sorted({commit for commit in commits if _COMMIT.fullmatch(commit)})
    if not wanted:
        return {}
    try:
        found = subprocess.run(
            ["git", "log", "--no-walk", "--ignore-missing", "--format=%H %s", "--stdin"],
            cwd=folder,
            input="\n".join(wanted),
            capture_output=True,
            check=True,
            timeout=30,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = (line.partition(" ") for line in found.stdout.split("\n"))
    return {commit: subject for commit, _, subject in lines if commit in wanted}
