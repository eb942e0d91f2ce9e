"""Reads one option: from the command line, else from the ini file, with an error that names where it stood."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_infer import untrusted
from pytest_infer.engines import models
from pytest_infer.engines.base import Sampling
from pytest_infer.errors import OptionError, alternatives
from pytest_infer.pytest_face.options import BARE, OFF, OPTIONS, Option

_SAMPLING: dict[str, Callable[[str], float | int]] = {"temperature": float, "top_p": float, "seed": int}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h)?")
_SECONDS = {None: 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
MOST_SEED = 2**63 - 1
"""The largest seed that every random generator of torch takes."""


class OptionReader:
    """Reads an option from the command line, else from the ini file."""

    def __init__(
        self, config: pytest.Config, *, ignored: tuple[str, ...] = (), not_in_ini: tuple[str, ...] = ()
    ) -> None:
        """Leave some options out by the beginnings of their names, and those of `not_in_ini` out of the ini file."""
        self._config = config
        self._ignored = ignored
        self._not_in_ini = not_in_ini
        self._options = {option.name: option for option in OPTIONS}

    def _raw(self, name: str) -> tuple[str | bool | None, str]:
        option = self._options[name]
        if name.startswith(self._ignored):
            return None, option.key
        given = self._config.getoption(option.key)
        if given is not None:
            return given, option.command_line
        return None if name in self._not_in_ini else self._ini(option) or None, option.key

    def _ini(self, option: Option) -> Any:
        """Return what the ini file says; raise OptionError where that is TOML of another type, as a number."""
        try:
            return self._config.getini(option.key)
        except (TypeError, pytest.UsageError) as error:
            written = '["…"]' if option.lines else '"…"'
            raise OptionError(f"{error}: write {option.key} = {written}") from error

    def place(self, name: str) -> str:
        """Return how an error names the option: as it was typed, or its ini key."""
        return self._raw(name)[1]

    def typed(self, name: str) -> bool:
        """Return whether lines of an option stand on the command line, and behind them no `off`.

        Alone, it takes those of the ini file.
        """
        return (self._typed(name) or [OFF])[-1] != OFF

    def _typed(self, name: str) -> list[str] | None:
        """Return the lines on the command line; an `off` takes back those before it, which may stand in `addopts`."""
        given: list[str] | None = self._config.getoption(self._options[name].key)
        if given is None or given[-1] == OFF:
            return given
        after = len(given) - given[::-1].index(OFF) if OFF in given else 0
        return [line for line in given[after:] if line != BARE]

    def text(self, name: str) -> str | None:
        """Return what was given, or None; raise OptionError for an empty value."""
        value, where = self._raw(name)
        if value is not None and not str(value).strip():
            raise OptionError(f"{where} is empty")
        return None if value is None else str(value)

    def given(self, name: str) -> bool:
        """Return whether an option was given, or a flag is set."""
        return self.flag(name) if self._options[name].flag else self.text(name) is not None

    def lines(self, name: str) -> list[str] | None:
        """Return what was given on the command line, behind the ini file's lines where that is no value of its own."""
        option = self._options[name]
        if name.startswith(self._ignored):
            return None
        own, kept = self._typed(name), [] if name in self._not_in_ini else self._ini(option)
        if own is None:
            return kept or None
        if any(not line.strip() for line in own):
            raise OptionError(f"{self.place(name)} is empty")
        return own or [line for line in kept if line != OFF]

    def path(self, name: str) -> Path | None:
        """Return a path, absolute, or None."""
        value = self.text(name)
        return None if value is None else self._base(name) / models.expanded(value)

    def file(self, name: str, value: str) -> str:
        """Return a path that is part of an option's value, absolute."""
        return str(self._base(name) / models.expanded(value))

    def model(self, name: str, value: str) -> str:
        """Return a model that is an option's value, or part of it, as it is unless it lies beside the ini file."""
        beside = self._base(name) / models.expanded(value)
        written = self.place(name).startswith("infer_") and value not in models.BUNDLED
        return str(beside) if value and written and untrusted.exists(beside) else value

    def _base(self, name: str) -> Path:
        # An ini file's path is relative to the ini file, an option's to where it was typed.
        return self._config.rootpath if self.place(name).startswith("infer_") else self._config.invocation_params.dir

    def number(self, name: str, default: Any, *, least: int, most: int | None = None) -> Any:
        """Return a whole number within bounds, or the default; raise OptionError for another."""
        value, where = self._raw(name)
        if value is None:
            return default
        try:
            number = int(str(value))
        except ValueError:
            raise OptionError(f"{where} takes a whole number, not {value!r}") from None
        if number < least:
            raise OptionError(f"{where} must be {least} or more, not {number}")
        if most is not None and number > most:
            raise OptionError(f"{where} must be {most} or less, not {number}")
        return number

    def duration(self, name: str, default: float) -> float:
        """Return seconds."""
        text, where = self.text(name), self.place(name)
        if text is None:
            return default
        found = _DURATION.fullmatch(text.strip())
        seconds = 0.0 if found is None else float(found[1]) * _SECONDS[found[2]]
        if not 0 < seconds < math.inf:
            raise OptionError(f"{where} takes a time above 0, as 60s or 2min, not {text!r}")
        return seconds

    def flag(self, name: str) -> bool:
        """Return whether a flag is set; raise OptionError for what is neither true nor false."""
        value, where = self._raw(name)
        text = str(value).lower()
        if text in ("true", "yes", "on", "1"):
            return True
        if value is None or text in ("false", "no", "off", "0"):
            return False
        raise OptionError(f"{where} takes true or false, not {value!r}")

    def choice(self, name: str, known: tuple[str, ...], default: str) -> str:
        """Return one of the known values, or the default; raise OptionError for another."""
        value, where = self._raw(name)
        if value is not None and value not in known:
            raise OptionError(f"{where}: {alternatives('value', str(value), known)}")
        return default if value is None else str(value)

    def sampling(self, name: str) -> Sampling | None:
        """Return how to sample, or None for greedy decoding; raise OptionError for what cannot be read."""
        spec, where = self.text(name), self.place(name)
        if spec is None:
            return None
        given: dict[str, Any] = {}
        for part in spec.split(","):
            key, _, value = (piece.strip() for piece in part.partition("="))
            if key not in _SAMPLING:
                raise OptionError(f"{where}: {alternatives('key', key, _SAMPLING)}")
            try:
                given[key] = _SAMPLING[key](value)
            except ValueError:
                raise OptionError(f"{where}: {key} takes a number, not {value!r}") from None
        sampling = Sampling(**given)
        if not 0 < sampling.temperature < math.inf or not 0 < sampling.top_p <= 1:
            raise OptionError(f"{where}: temperature must be above 0 and top_p in (0, 1]")
        if not 0 <= sampling.seed <= MOST_SEED:
            raise OptionError(f"{where}: seed must be from 0 to {MOST_SEED}, not {sampling.seed}")
        return sampling
