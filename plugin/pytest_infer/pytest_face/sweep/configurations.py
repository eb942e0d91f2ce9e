"""The configurations of a sweep: every combination of its values, each as the settings of a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import Any

from pytest_infer.analysis.sweep import axes
from pytest_infer.engines import models
from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.server import address
from pytest_infer.errors import OptionError, alternatives
from pytest_infer.pytest_face.settings import MOST_THREADS, Settings
from pytest_infer.pytest_face.sweep.lengths import whole
from pytest_infer.records import CurvePoint

MOST = 1000
"""More combinations than this are a typing error."""
PROMPT_TOKENS = "prompt-tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What a test is measured with. `values` are what is swept, by axis; `impossible` says why it cannot be run."""

    settings: Settings
    values: Mapping[str, str] = field(default_factory=dict)
    impossible: str | None = None
    curve: CurvePoint | None = None
    number: int = 0
    """Its place among those of a test."""

    @property
    def id(self) -> str:
        """Return its part of a test's id."""
        return axes.id_of(self.values)

    @property
    def label(self) -> str:
        """Return it for people."""
        return axes.label(self.values)


def of(settings: Settings) -> tuple[Configuration, ...]:
    """Return the configurations that the options name, at least one; raise OptionError for a value that is wrong."""
    if prod(len(values) for _, values in settings.sweep) > MOST:
        raise OptionError(f"--infer-sweep: more than {MOST} combinations")
    for axis, values in settings.sweep:
        # Each by itself first: a wrong value is told as such, and not as a combination.
        for value in values:
            _applied(settings, axis, value)
        names = [_shown(axis, value) for value in values]
        if len(set(names)) < len(names):
            raise OptionError(f"--infer-sweep: two values of {axis} are named {_twice(names)!r} in results")
    names = [axis for axis, _ in settings.sweep]
    combinations = product(*(values for _, values in settings.sweep))
    return tuple(_configuration(settings, dict(zip(names, values, strict=True))) for values in combinations)


def load_of(settings: Settings, base: Settings) -> EngineOptions:
    """Return what a model is loaded with: equal for configurations that one loaded model can run."""
    own = base.engine_options
    return replace(settings.engine_options, threads=own.threads, use_cache=own.use_cache)


def of_engine(axis: str) -> bool:
    """Return whether an axis is an option of the engine."""
    return _FIELDS[axis][0] in EngineOptions.__dataclass_fields__


def models_of(settings: Settings) -> dict[str, str]:
    """Return the swept models, as they were given, by how results name them."""
    return {models.display_name(value): value for axis, values in settings.sweep if axis == "model" for value in values}


def at_length(configuration: Configuration, tokens: int) -> Configuration:
    """Return a configuration at one point of a curve: prompts of so many tokens, and every token that is allowed."""
    return replace(
        configuration,
        values={**configuration.values, PROMPT_TOKENS: str(tokens)},
        settings=replace(configuration.settings, prompt_tokens=tokens, ignore_eos=True),
        curve=CurvePoint(axis="prompt_tokens", value=tokens),
    )


def _configuration(settings: Settings, values: Mapping[str, str]) -> Configuration:
    base = settings
    for axis, value in values.items():
        settings = _applied(settings, axis, value)
    options, impossible = settings.engine_options, None
    if options.compile and not options.use_cache:
        impossible = "compile needs the KV cache"
    swept_lengths = PROMPT_TOKENS in values and base.curve is None
    return Configuration(
        settings=settings,
        values={axis: _shown(axis, value) for axis, value in values.items()},
        impossible=impossible,
        curve=CurvePoint(axis="prompt_tokens", value=int(values[PROMPT_TOKENS])) if swept_lengths else None,
    )


def _applied(settings: Settings, axis: str, value: str) -> Settings:
    if not value.isprintable():
        raise OptionError(f"--infer-sweep: {axis} takes printable text, not {value!r}")
    name, parse = _FIELDS[axis]
    if name == "server":
        server = settings.engine_options.server
        if server is None or server.command is None:
            raise OptionError(f"--infer-sweep: {axis} are of a server that is started: --infer-serve '… {{flags}}'")
        address.check_command(value, f"--infer-sweep: {axis}")
        flagged = replace(server, flags=value)
        return replace(settings, engine_options=replace(settings.engine_options, server=flagged))
    parsed = {name: parse(axis, value)}
    if of_engine(axis):
        return replace(settings, engine_options=replace(settings.engine_options, **parsed))
    return replace(settings, **parsed)


def _text(_axis: str, value: str) -> str:
    return value


def _on(axis: str, value: str) -> bool:
    if value not in ("on", "off"):
        raise OptionError(f"--infer-sweep: {axis}: {alternatives('value', value, ('on', 'off'))}")
    return value == "on"


def _whole(axis: str, value: str) -> int:
    number = whole(value)
    if number is None:
        raise OptionError(f"--infer-sweep: {axis} takes whole numbers of 1 or more, not {value!r}")
    if axis == "threads" and number > MOST_THREADS:
        raise OptionError(f"--infer-sweep: {axis} must be {MOST_THREADS} or less, not {value}")
    return number


_FIELDS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "model": ("model", _text),
    "dtype": ("dtype", _text),
    "quantization": ("quantization", _text),
    "experts": ("experts_implementation", _text),
    "attention": ("attention", _text),
    "compile": ("compile", _on),
    "engine-args": ("engine_args", _text),
    "serve-flags": ("server", _text),
    "cache": ("use_cache", _on),
    "threads": ("threads", _whole),
    "batch": ("batch", _whole),
    PROMPT_TOKENS: ("prompt_tokens", _whole),
    "max-new-tokens": ("max_new_tokens", _whole),
}
"""The field of the engine's options or of the settings that an axis sets, and how its values are read."""


def _shown(axis: str, value: str) -> str:
    """Return how results name a value: as it was given, but for the path of a folder, which is the user's own."""
    return models.display_name(value) if axis == "model" else value


def _twice(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
