"""What the commands read of the ini file that pytest would read, so that both have one set of rules and one storage."""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import iniconfig

from pytest_infer import untrusted
from pytest_infer.checkouts.accepted import OFF
from pytest_infer.engines.models import expanded
from pytest_infer.errors import OptionError

GATE, DOUBT, ACCEPTED, ADDOPTS = "infer_gate", "infer_inconclusive", "infer_accepted", "addopts"
ALLOWED = "infer_allow_different"
STORAGE_OPTION = "--benchmark-storage"
_ENV = "PYTEST_ADDOPTS"
_DEEPEST = 20
"""Files of options name one another no deeper than this, unless they do in a circle."""
_NAMES = ("pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")
"""In pytest's own order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IniFile:
    """One configuration of pytest: its file, and its keys as text or lists."""

    path: Path
    keys: Mapping[str, Any]

    def lines(self, key: str) -> list[str]:
        """Return the value of a key, line by line; [] where it is not set."""
        value = self.keys.get(key, [])
        return value.splitlines() if isinstance(value, str) else [str(line) for line in self._list(key, value)]

    def _list(self, key: str, value: object) -> list[object]:
        if not isinstance(value, list):
            raise OptionError(f"{self.path}: {key} is neither text nor a list of texts")
        return value

    @property
    def storage(self) -> str | None:
        """Return what `--benchmark-storage` in `addopts` names, the last one; None where it is not there."""
        value = self.keys.get(ADDOPTS, [])
        options = value if isinstance(value, str) else [str(word) for word in self._list(ADDOPTS, value)]
        return _storage_in(options, f"{self.path}: {ADDOPTS}")


def nearest(folder: Path) -> IniFile | None:
    """Return the nearest configuration of pytest at or above the folder; raise OptionError where it cannot be read."""
    for place in (folder, *folder.parents):
        for name in _NAMES:
            path = place / name
            try:
                keys = _keys(path) if path.is_file() else None
            except (OSError, ValueError, RecursionError, iniconfig.ParseError) as error:
                why = untrusted.reason(error)
                raise OptionError(f"the configuration in {place} cannot be read: {why}") from error
            if keys is not None:
                return IniFile(path=path, keys=keys)
    return None


def gate_rules(folder: Path) -> list[str]:
    """Return the lines of `infer_gate` in the nearest configuration of pytest; [] for none.

    An `off` among them is for runs that ask for no gate, as it is beside a typed `--infer-gate`.
    """
    found = nearest(folder)
    return [] if found is None else [line for line in found.lines(GATE) if line.strip() != OFF]


def doubt(folder: Path) -> str | None:
    """Return `infer_inconclusive` in the nearest configuration of pytest; None where it is not set."""
    found = nearest(folder)
    return " ".join(found.lines(DOUBT)).strip() or None if found is not None else None


def accepted(folder: Path) -> str | None:
    """Return `infer_accepted` in the nearest configuration of pytest, a path beside that; None where it is not set."""
    found = nearest(folder)
    given = "" if found is None else " ".join(found.lines(ACCEPTED)).strip()
    return None if found is None or not given else given if given == OFF else str(found.path.parent / expanded(given))


def allowed(folder: Path) -> list[str]:
    """Return the lines of `infer_allow_different` in the nearest configuration of pytest; [] for none."""
    found = nearest(folder)
    return [] if found is None else found.lines(ALLOWED)


def storage(folder: Path) -> Path | None:
    """Return the folder that pytest stores runs in by PYTEST_ADDOPTS or its nearest configuration; None for none."""
    found = nearest(folder)
    named = _storage_in(os.environ.get(_ENV, ""), _ENV) or (None if found is None else found.storage)
    return None if named is None else folder_of(named)


def _storage_in(options: str | Sequence[str], where: str) -> str | None:
    """Return what the last `--benchmark-storage` among options names; None where it is not there."""
    try:
        words = list(_read_in(shlex.split(options) if isinstance(options, str) else options))
    except (OSError, ValueError) as error:
        named = f"{error.filename}: " if isinstance(error, OSError) else ""
        raise OptionError(f"{where}: {named}{untrusted.reason(error)}") from error
    found = None
    for word, following in pairwise([*words, ""]):
        if word == STORAGE_OPTION:
            found = following
        elif word.startswith(f"{STORAGE_OPTION}="):
            found = word.partition("=")[2]
    return found or None


def _read_in(words: Iterable[str], within: int = 0) -> Iterator[str]:
    """Yield words with the lines of a file in place of `@FILE`, as pytest reads them; raise ValueError for a circle."""
    if within > _DEEPEST:
        raise ValueError("files nested too deeply")
    for word in words:
        if word.startswith("@"):
            content = untrusted.read(Path(word[1:]), untrusted.TEXT_BYTES)
            yield from _read_in(untrusted.text(content).splitlines(), within + 1)
        else:
            yield word


def folder_of(storage: str) -> Path | None:
    """Return the folder of a storage as pytest-benchmark takes it, with file:// or without; None for another kind."""
    plain = storage.removeprefix("file://")
    return None if "://" in plain else Path(plain)


def _keys(path: Path) -> Mapping[str, Any] | None:
    """Return the keys of a file that pytest would take for its configuration, None for another one."""
    if path.suffix == ".toml":
        data = tomllib.loads(untrusted.text(untrusted.read(path, untrusted.TEXT_BYTES)))
        if path.name != "pyproject.toml":
            return _table(data, "pytest")
        tool = _table(_table(data, "tool"), "pytest")
        return _table(tool, "ini_options") or tool or None
    config = iniconfig.IniConfig(str(path))
    section = "tool:pytest" if path.suffix == ".cfg" else "pytest"
    if section in config:
        return dict(config[section].items())
    # Of that name a file counts even if it is empty.
    return {} if path.name in {"pytest.ini", ".pytest.ini"} else None


def _table(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name, {})
    return found if isinstance(found, dict) else {}
