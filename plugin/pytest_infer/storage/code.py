"""The state of the code under test: its commit and what differs from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from pytest_infer import untrusted
from pytest_infer.checkouts.git import git
from pytest_infer.errors import AgainstError

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REMOTE = re.compile(
    r"(?:(?P<scheme>https?|ssh|git|git\+ssh)://(?:[^@/\s]+@)?|(?:[\w.-]+@)(?=[^:/\s]+:))"
    r"(?P<host>[\w.-]+)(?P<port>:\d+)?[:/]+(?P<path>[\w.~/-]+?)(?:\.git)?/*",
    re.ASCII,
)

DETACHED = "(detached head)"
"""What pytest-benchmark calls the branch where a commit is checked out and no branch, as CI does."""


def branch_of_job(environ: Mapping[str, str], commit: str | None) -> str | None:
    """Return the branch that a job of GitLab or GitHub is for, where its commit is the one that is checked out.

    None elsewhere, where it is for a tag, and for a request from a fork: another repository's `main` is not ours.
    """
    if commit is None or commit not in (environ.get("CI_COMMIT_SHA"), environ.get("GITHUB_SHA")):
        return None
    names = ["CI_COMMIT_BRANCH"]
    if environ.get("CI_MERGE_REQUEST_SOURCE_PROJECT_PATH") == environ.get("CI_PROJECT_PATH"):
        names.append("CI_MERGE_REQUEST_SOURCE_BRANCH_NAME")
    if environ.get("GITHUB_REF_TYPE") == "branch" and not environ.get("GITHUB_HEAD_REF"):
        names.append("GITHUB_REF_NAME")
    if _is_own_request(environ):
        names.append("GITHUB_HEAD_REF")
    return next((environ[name] for name in names if environ.get(name)), None)


def _is_own_request(environ: Mapping[str, str]) -> bool:
    """Return whether a job of GitHub checks out a pull request from its repository itself, as its event tells."""
    path = environ.get("GITHUB_EVENT_PATH")
    # Of the other events of a pull request the base is checked out.
    if environ.get("GITHUB_EVENT_NAME") != "pull_request" or not path:
        return False
    try:
        event = json.loads(untrusted.text(untrusted.read(Path(path), untrusted.TEXT_BYTES)))
        return bool(event["pull_request"]["head"]["repo"]["full_name"] == environ.get("GITHUB_REPOSITORY"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


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


def repository(folder: Path | None = None) -> str | None:
    """Return the web address of the remote that a checkout was cloned from, without user and password.

    None outside git, without a remote (`origin`, or the only one), and where it is no address of a host.
    """
    where = folder or Path.cwd()
    names = (_said(where, "remote") or "").split()
    name = "origin" if "origin" in names else names[0] if len(names) == 1 else None
    told = None if name is None else _said(where, "remote", "get-url", name)
    return None if told is None else web_address(told.strip())


def web_address(remote: str) -> str | None:
    """Return where a browser finds what git fetches from there: `git@host:a/b.git` is `https://host/a/b`."""
    found = _REMOTE.fullmatch(remote)
    if found is None:
        return None
    scheme = "http" if found["scheme"] == "http" else "https"
    port = found["port"] or "" if found["scheme"] in ("http", "https") else ""
    return f"{scheme}://{found['host']}{port}/{found['path']}"


def commit_address(repository: str | None, commit: str | None) -> str | None:
    """Return the page of a commit; None without a repository, or where what is stored as commit is none.

    GitLab and Bitbucket have words of their own; an address with `{commit}` in it is taken as it is.
    """
    if repository is None or commit is None or not _COMMIT.fullmatch(commit):
        return None
    if "{commit}" in repository:
        return repository.replace("{commit}", commit)
    host = repository.split("/")[2]
    word = "-/commit" if "gitlab" in host else "commits" if "bitbucket" in host else "commit"
    return f"{repository.rstrip('/')}/{word}/{commit}"


def _said(folder: Path, *command: str, stdin: str | None = None) -> str | None:
    try:
        done = git(folder, *command, stdin=stdin)
    except (OSError, AgainstError):
        return None
    return done.stdout if done.returncode == 0 else None
