"""What somebody wrote to accept a regression: in a file of the checkout, or in a commit's message."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pytest_infer import untrusted
from pytest_infer.checkouts.git import git, why_not_in
from pytest_infer.errors import AgainstError, OptionError

FILE = "bench/accepted.toml"
"""Where it is looked for, from the folder in which a run was started."""
OFF = "off"
"""In place of a file: nothing is accepted, whatever is written anywhere."""
FORM = "[infer-accept: METRIC 5%: REASON]"

_BEGUN = re.compile(r"\[infer-accept\b", re.IGNORECASE)
_WHOLE = re.compile(
    r"""\[infer-accept:\s*(?P<metric>[A-Za-z_]\w*)\s*
        (?:\[(?P<prompt>[^\]]*)\])?\s*      # of these prompts only
        (?P<bound>[^:\[\]]*?)\s*:\s*
        (?P<reason>[^\]]*?)\s*\]""",
    re.VERBOSE | re.IGNORECASE,
)
_HASH = re.compile(r"[0-9a-f]{7,64}")
_KEYS = "metric, prompt, bound, reason, until"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One acceptance, not understood yet; `where` names its file or commit, `expired` says why it counts no more."""

    where: str
    metric: str
    reason: str
    prompt: str | None = None
    bound: str | None = None
    expired: str | None = None

    @property
    def text(self) -> str:
        """Return what is accepted as a commit's message has it: `decode[story] 5%`."""
        of = "" if self.prompt is None else f"[{self.prompt}]"
        return f"{self.metric}{of}{'' if self.bound is None else f' {self.bound}'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is accepted between two commits; `unread` says why that is nothing: git does not know them."""

    written: tuple[Written, ...] = ()
    unread: str | None = None


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""

    metric: str
    reason: str
    prompt: str | None = None
    bound: str | None = None
    until: str | None = None

    @property
    def lasting(self) -> tuple[str | None, ...]:
        """Return what makes it the same entry: one that merely lasts longer is no new one."""
        return (self.metric, self.prompt, self.bound, self.reason)


def read(folder: Path, file: Path | None, base: str | None, head: str = "HEAD") -> Found:
    """Return what is accepted of the changes from commit `base` to `head` of the repository that `folder` is in.

    That is the file as it lies there, but for what the base's own holds (`None`: `bench/accepted.toml`, if there is
    one), and the messages of the commits between the two. An entry's `until` is reached once `head` contains it.
    Where git does not find both commits nobody knows what is spent: then all is.

    Raises OptionError for what cannot be read, with one line that names the place.
    """
    path = folder / FILE if file is None else file
    root = _root(folder)
    entries = _entries(path, shown=FILE if file is None else str(file)) if file is not None or path.is_file() else ()
    log = "" if base is None or (root is None and not entries) else _messages(root, base, head)
    before = {entry.lasting for entry in _of_base(root, base, path)}
    shown = FILE if file is None else str(file)
    written = [
        Written(
            where=shown,
            metric=entry.metric,
            prompt=entry.prompt,
            bound=entry.bound,
            reason=" ".join(entry.reason.split()),
            expired="the base may have this entry already"
            if log is None
            else "the base has this entry already: remove it"
            if entry.lasting in before
            else _reached(root, entry.until, head, shown),
        )
        for entry in entries
    ]
    if log is None:
        why = why_not_in(folder) or f"git does not find {base}..{head} here {_remedy(root)}"
        return Found(written=tuple(written), unread=why)
    for commit in filter(None, map(str.strip, log.split("\x01"))):
        name, _, message = commit.partition("\x00")
        written += of_message(message, f"commit {name[:8]}")
    return Found(written=tuple(written))


def of_message(message: str, where: str) -> Iterator[Written]:
    """Yield what a commit's message accepts; raise OptionError for what begins like it and is not whole."""
    subject, _, body = message.partition("\n")
    # What reverts a commit quotes the subject of it; bytes of another encoding than UTF-8 cannot be stored.
    text = " ".join((body if subject.startswith('Revert "') else message).split()).encode(errors="replace").decode()
    for begun in _BEGUN.finditer(text):
        found = _WHOLE.match(text, begun.start())
        if found is None or not found["reason"]:
            raise OptionError(f"{where}: {text[begun.start() : begun.start() + 60]!r} cannot be read; write {FORM}")
        prompt, bound = found["prompt"], found["bound"] or None
        yield Written(where=where, metric=found["metric"], prompt=prompt, bound=bound, reason=found["reason"])


def _messages(root: Path | None, base: str, head: str) -> str | None:
    """Return the commits between two with their messages; None where git does not find both."""
    if root is None:
        return None
    log = git(root, "log", "--format=%H%x00%B%x01", "--end-of-options", f"{base}..{head}")
    return None if log.returncode else log.stdout


def _remedy(root: Path | None) -> str:
    shallow = root is not None and git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"
    return "(git fetch --unshallow, or fetch-depth: 0)" if shallow else "(compare with a run whose commit is here)"


def _root(folder: Path) -> Path | None:
    """Return the top of the checkout that a folder is in; None for none, or without git."""
    try:
        top = git(folder, "rev-parse", "--show-toplevel")
    except (OSError, AgainstError):
        return None
    return Path(top.stdout.strip()) if top.returncode == 0 and top.stdout.strip() else None


def _entries(path: Path, shown: str) -> tuple[_Entry, ...]:
    try:
        text = untrusted.text(untrusted.read(path, untrusted.TEXT_BYTES))
        return _decoded(text)
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"{shown}: {untrusted.reason(error)}") from error


def _decoded(text: str) -> tuple[_Entry, ...]:
    """Return the tables of a file; raise ValueError, saying which is wrong and how."""
    data: Mapping[str, Any] = tomllib.loads(text)
    tables = data.get("accept", [])
    if set(data) - {"accept"} or not isinstance(tables, list):
        raise ValueError(f"it holds tables [[accept]] with {_KEYS}, and nothing else")
    entries = []
    for number, table in enumerate(tables, 1):
        try:
            entry = msgspec.convert(table, _Entry)
        except msgspec.ValidationError as error:
            raise ValueError(f"entry {number}: {error}; it takes {_KEYS}") from error
        if not entry.reason.strip():
            raise ValueError(f"entry {number}: its reason is empty")
        entries.append(entry)
    return tuple(entries)


def _of_base(root: Path | None, base: str | None, path: Path) -> tuple[_Entry, ...]:
    """Return what the file holds at another commit; nothing where that has none, or none that can be read."""
    if root is None or base is None or not path.resolve().is_relative_to(root.resolve()):
        return ()
    place = path.resolve().relative_to(root.resolve()).as_posix()
    done = git(root, "show", "--end-of-options", f"{base}:{place}")
    if done.returncode:
        return ()
    try:
        return _decoded(done.stdout.removeprefix("\ufeff"))  # as untrusted.text does to the file
    except (ValueError, RecursionError):
        return ()


def _reached(root: Path | None, until: str | None, head: str, shown: str) -> str | None:
    """Return that a commit contains the one until which an entry counts; a name may not exist yet, a hash must."""
    if until is None:
        return None
    if root is None:
        raise OptionError(f"{shown}: until = {until!r} is a commit, and there is no git checkout here")
    if not until.isprintable() or not until.strip():
        raise OptionError(f"{shown}: until = {until!r} is no commit, tag or branch")
    found = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{until}^{{commit}}")
    if found.returncode:
        if _HASH.fullmatch(until):
            raise OptionError(f"{shown}: until = {until!r}: git finds no such commit")
        return None
    inside = git(root, "merge-base", "--is-ancestor", found.stdout.strip(), head).returncode == 0
    return f"{until} is reached: remove it" if inside else None
