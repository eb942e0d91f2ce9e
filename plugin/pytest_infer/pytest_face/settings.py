"""The options of a run, read once from the command line and the ini file, and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_infer.analysis.compare import fingerprint, rules
from pytest_infer.analysis.compare.rules import Rule
from pytest_infer.analysis.sweep.axes import AXES
from pytest_infer.engines.base import EngineOptions, Sampling
from pytest_infer.engines.models import DEFAULT
from pytest_infer.errors import OptionError, alternatives
from pytest_infer.pytest_face.options import (
    BARE,
    EXPERTS,
    INTERLEAVED,
    OFF,
    OPTIONS,
    ORDERS,
    ROUND,
    SELF,
    TIMELINE,
    TURNS,
)
from pytest_infer.pytest_face.sweep.lengths import Lengths

ONLY_OURS = ("against", "cold-load", "gate", "report", "resume")
"""Beginnings of the options that the other side of a comparison must not follow, wherever they are set."""
_SAMPLING: dict[str, Callable[[str], float | int]] = {"temperature": float, "top_p": float, "seed": int}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h)?")
_SECONDS = {None: 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
DEFAULT_MIN_PAIRS = 10
DEFAULT_MAX_ROUNDS = 30
MOST_THREADS = 4096
"""More than any machine has cores; torch takes what it is given and then dies of it."""
MOST_LAUNCHES = 64
"""More pairs of processes than this are a typing error."""
MOST_SEED = 2**63 - 1
"""The largest seed that every random generator of torch takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All options, parsed and checked."""

    prompts: Path | None
    engine: str
    engine_options: EngineOptions
    cold_load: bool
    rounds: int
    warmup: int
    max_new_tokens: int | None
    ignore_eos: bool
    experts: bool
    expert_trace: bool
    timeline: bool
    advice: bool
    profile: bool
    probe: bool
    repeat_disturbed: int
    strict_memory: bool
    resume: bool
    report: Path | None
    gate: tuple[Rule, ...] | None
    baseline: str | None
    allow_different: tuple[str, ...]
    against: str | None
    against_python: str | None
    against_sequential: bool
    turns: str
    launches: int
    time_s: float
    min_pairs: int
    max_rounds: int
    batch: int | None = None
    prompt_tokens: int | None = None
    sweep: tuple[tuple[str, tuple[str, ...]], ...] = ()
    interleaved: bool = True
    curve: Lengths | None = None

    @classmethod
    def from_config(cls, config: pytest.Config, *, base: bool = False) -> Settings:
        """Read options and ini keys; raise OptionError naming the option and what it takes.

        `base` says that this run is the other side of one with --infer-against, which alone compares and gates.
        """
        read = _Reader(config, ignored=ONLY_OURS if base else ())
        folder = read.path("prompts")
        engine_options = EngineOptions(
            model=read.text("model") or DEFAULT,
            revision=read.text("revision"),
            dtype=read.text("dtype") or "auto",
            device=read.text("device"),
            threads=read.number("threads", None, least=1, most=MOST_THREADS),
            experts_implementation=read.text("experts-implementation"),
            attention=read.text("attention"),
            use_cache=not read.flag("no-cache"),
            sampling=read.sampling("sample"),
            compile=read.flag("compile"),
            trust_remote_code=read.flag("trust-remote-code"),
            quantization=read.text("quantization"),
        )
        if engine_options.compile and not engine_options.use_cache:
            raise OptionError(f"{read.place('compile')} needs the KV cache: leave out {read.place('no-cache')}")
        sweep = _sweep(read)
        if read.text("against") is not None and read.flag("resume"):
            raise OptionError(
                f"{read.place('against')} measures both sides in one run: leave out {read.place('resume')}"
            )
        if read.text("against") is not None and read.flag("cold-load"):
            raise OptionError(
                f"{read.place('cold-load')} needs a model that no other process maps, and {read.place('against')} "
                f"loads it twice: leave out {read.place('cold-load')}"
            )
        min_pairs, max_rounds = _pairs(read)
        experts = read.choice("experts", EXPERTS, "counts")
        return cls(
            prompts=folder,
            engine=read.text("engine") or "transformers",
            engine_options=engine_options,
            cold_load=read.flag("cold-load"),
            rounds=read.number("rounds", 5, least=1),
            warmup=read.number("warmup", 1, least=0),
            max_new_tokens=read.number("max-new-tokens", None, least=1),
            ignore_eos=read.flag("ignore-eos"),
            experts=experts != OFF,
            expert_trace=experts == "trace",
            timeline=read.choice("timeline", TIMELINE, "on") == "on",
            advice=read.flag("advice"),
            profile=not read.flag("no-profile"),
            probe=not read.flag("no-probe"),
            repeat_disturbed=read.number("repeat-disturbed", 3, least=0),
            strict_memory=read.flag("strict-memory"),
            resume=read.flag("resume"),
            report=read.path("report"),
            gate=_gate(read),
            baseline=read.text("baseline"),
            allow_different=_allowed(read.text("allow-different")),
            against=read.text("against"),
            against_python=read.text("against-python"),
            against_sequential=read.flag("against-sequential"),
            turns=read.choice("turns", TURNS, ROUND),
            launches=read.number("launches", 8, least=1, most=MOST_LAUNCHES),
            time_s=read.duration("time", 60.0),
            min_pairs=min_pairs,
            max_rounds=max_rounds,
            batch=read.number("batch", None, least=1),
            prompt_tokens=read.number("prompt-tokens", None, least=1),
            sweep=sweep,
            interleaved=read.choice("order", ORDERS, INTERLEAVED) == INTERLEAVED,
            curve=_curve(read, sweep),
        )


def _gate(read: _Reader) -> tuple[Rule, ...] | None:
    """Return the rules, or None for no gate; --infer-against brings rules of its own, except against itself."""
    lines, against = read.lines("gate"), read.text("against")
    if (lines or [""])[-1] == OFF or against == SELF or (lines is None and against is None):
        return None
    lines = [line for line in lines or () if line != OFF]
    for line in lines:
        if Path(line).exists():
            raise OptionError(f"--infer-gate took {line!r} for its rules: put it last, or write --infer-gate=RULES")
    return rules.parse(lines, rules.DEFAULT if against is None else rules.DEFAULT_PAIRED)


def _allowed(keys: str | None) -> tuple[str, ...]:
    found = tuple(key.strip() for key in (keys or "").split(",") if key.strip())
    fingerprint.check_allowed(found)
    return found


def _sweep(read: _Reader) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the axes in the order given, each with its values; what the values mean is checked later."""
    found: dict[str, tuple[str, ...]] = {}
    where = read.place("sweep")
    for line in read.lines("sweep") or ():
        axis, equals, values = (part.strip() for part in line.partition("="))
        if not equals:
            raise OptionError(f"{where} takes AXIS=VALUE,VALUE, not {line!r}; axes: {', '.join(AXES)}")
        if axis not in AXES:
            raise OptionError(f"{where}: {alternatives('axis', axis, AXES)}")
        if axis in found:
            raise OptionError(f"{where}: {axis} is swept twice; write all its values in one: {axis}=V1,V2")
        found[axis] = tuple(value.strip() for value in values.split(","))
        if "" in found[axis] or len(set(found[axis])) < len(found[axis]):
            raise OptionError(f"{where}: {axis} takes different values with commas between them, not {values!r}")
    if found and read.text("against") is not None:
        raise OptionError(f"{read.place('against')} compares one configuration: leave out {where}")
    return tuple(found.items())


def _curve(read: _Reader, sweep: tuple[tuple[str, tuple[str, ...]], ...]) -> Lengths | None:
    """Return the lengths of a curve, or None."""
    text = read.text("curve")
    if text is None or text.lower() == OFF:
        return None
    where = read.place("curve")
    for other in ("prompt-tokens", "against"):
        if read.text(other) is not None:
            raise OptionError(f"{where} cannot be combined with {read.place(other)}")
    if any(axis == "prompt-tokens" for axis, _ in sweep):
        raise OptionError(f"{where} sweeps prompt-tokens itself: leave it out of {read.place('sweep')}")
    return Lengths.parse(text, where)


def _pairs(read: _Reader) -> tuple[int, int]:
    """Return the least and the most pairs of rounds; one that is given moves the other's default."""
    least, most = read.number("min-pairs", None, least=1), read.number("max-rounds", None, least=1)
    if least is not None and most is not None and least > most:
        raise OptionError(f"{read.place('min-pairs')} is {least}, more than {read.place('max-rounds')}: {most}")
    return (
        min(DEFAULT_MIN_PAIRS, most or DEFAULT_MIN_PAIRS) if least is None else least,
        max(DEFAULT_MAX_ROUNDS, least or 0) if most is None else most,
    )


class _Reader:
    """Reads an option from the command line, else from the ini file."""

    def __init__(self, config: pytest.Config, *, ignored: tuple[str, ...] = ()) -> None:
        self._config = config
        self._ignored = ignored
        self._options = {option.name: option for option in OPTIONS}

    def _raw(self, name: str) -> tuple[str | bool | None, str]:
        option = self._options[name]
        if name.startswith(self._ignored):
            return None, option.key
        given = self._config.getoption(option.key)
        if given is not None:
            return given, option.command_line
        return self._config.getini(option.key) or None, option.key

    def place(self, name: str) -> str:
        """Return how an error names the option: as it was typed, or its ini key."""
        return self._raw(name)[1]

    def text(self, name: str) -> str | None:
        value, where = self._raw(name)
        if value is not None and not str(value).strip():
            raise OptionError(f"{where} is empty")
        return None if value is None else str(value)

    def lines(self, name: str) -> list[str] | None:
        """Return what was given on the command line, behind the ini file's lines where that is no value of its own."""
        key = self._options[name].key
        if name.startswith(self._ignored):
            return None
        given, kept = self._config.getoption(key), self._config.getini(key)
        if given is None:
            return kept or None
        if any(not line.strip() for line in given):
            raise OptionError(f"{self.place(name)} is empty")
        own = [line for line in given if line != BARE]
        return own or list(kept) or []

    def path(self, name: str) -> Path | None:
        value = self.text(name)
        if value is None:
            return None
        # An ini file's path is relative to the ini file, an option's to where it was typed.
        base = self._config.rootpath if self.place(name).startswith("infer_") else self._config.invocation_params.dir
        return base / Path(value).expanduser()

    def number(self, name: str, default: Any, *, least: int, most: int | None = None) -> Any:
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
        value, where = self._raw(name)
        text = str(value).lower()
        if text in ("true", "yes", "on", "1"):
            return True
        if value is None or text in ("false", "no", "off", "0"):
            return False
        raise OptionError(f"{where} takes true or false, not {value!r}")

    def choice(self, name: str, known: tuple[str, ...], default: str) -> str:
        value, where = self._raw(name)
        if value is not None and value not in known:
            raise OptionError(f"{where}: {alternatives('value', str(value), known)}")
        return default if value is None else str(value)

    def sampling(self, name: str) -> Sampling | None:
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
