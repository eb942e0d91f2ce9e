"""The state of the code under test: its commit and what differs from it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path


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
