"""What can be swept: the axes, the options that they stand for, and how a configuration is written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_infer.analysis import alike
from pytest_infer.engines.base import dtype_named

if TYPE_CHECKING:
    from pytest_infer.storage.runs import Row

_DTYPE = re.compile(r"\bdtype=([\w.]+)")
_WHOLE = "whole numbers"
FEWEST_WORKLOADS = 3
"""From so many prompts on, how their ratios differ from each other counts as an error of a comparison too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One thing that a sweep varies, and the option that sets it for a run.

    `reload`: another value needs the model loaded anew. `workload`: it changes what is asked of the model and not how
    it runs, so configurations are compared at the same value and none of them is recommended.
    `flag`: the value for which `option` is written, alone; the other value is the option left out.
    """

    name: str
    option: str
    values: str
    reload: bool = True
    workload: bool = False
    flag: str | None = None

    def written(self, value: str) -> str:
        """Return how the value is given on the command line; nothing where it is what happens without an option."""
        if self.flag is None:
            # A word that begins with a dash would be taken for an option.
            return f"{self.option}{'=' if value.startswith('-') else ' '}{shlex.quote(value)}"
        return self.option if value == self.flag else ""


AXES = {
    axis.name: axis
    for axis in (
        Axis(name="model", option="--infer-model", values="hub ids, folders, bundled models"),
        Axis(name="dtype", option="--infer-dtype", values="auto, float32, bfloat16, float16"),
        Axis(name="quantization", option="--infer-quantization", values="none, int8-dynamic, int8, int4"),
        Axis(name="experts", option="--infer-experts-implementation", values="eager, grouped_mm, batched_mm, …"),
        Axis(name="attention", option="--infer-attention", values="eager, sdpa, …"),
        Axis(name="compile", option="--infer-compile", values="on, off", flag="on"),
        Axis(name="engine-args", option="--infer-engine-args", values="arguments of the engine's own tool"),
        Axis(name="serve-flags", option="--infer-serve-flags", values="flags of a server that is started"),
        Axis(name="cache", option="--infer-no-cache", values="on, off", reload=False, flag="off"),
        Axis(name="threads", option="--infer-threads", values=_WHOLE, reload=False),
        Axis(name="batch", option="--infer-batch", values=_WHOLE, reload=False),
        Axis(name="prompt-tokens", option="--infer-prompt-tokens", values=_WHOLE, reload=False, workload=True),
        Axis(name="max-new-tokens", option="--infer-max-new-tokens", values=_WHOLE, reload=False, workload=True),
    )
}


def named(axis: str, value: str) -> str:
    """Return the one name of a value of an axis: that of a dtype for all that it may be called, no number's zeros."""
    if AXES[axis].values == _WHOLE:
        return value.lstrip("0") or value
    return dtype_named(value) if axis == "dtype" and value else value


def meant(pattern: str) -> str:
    """Return a pattern for names of tests with each dtype in it by its one name."""
    return _DTYPE.sub(lambda found: f"dtype={dtype_named(found[1])}", pattern)


def id_of(config: Mapping[str, str]) -> str:
    """Return how a configuration stands in a test's id: `threads=2-dtype=bfloat16`."""
    return "-".join(f"{axis}={value}" for axis, value in config.items())


def names(prompt: str, config: Mapping[str, str]) -> tuple[str, ...]:
    """Return what a prompt goes by in a rule: its name, and that with the configuration: `story-threads=2`."""
    return (prompt, f"{prompt}-{id_of(config)}") if config else (prompt,)


def without(test: str, config: Mapping[str, str]) -> str:
    """Return a test's id without its configuration; pytest may have escaped there what is not ASCII."""
    part = id_of(config)
    for written in (part, part.encode("unicode_escape").decode("ascii")) if part else ():
        before, _, after = test.rpartition(written)
        if "[" in before:  # a folder may be called alike
            return before.removesuffix("-") + after
    return test


def label(config: Mapping[str, str]) -> str:
    """Return a configuration for people: `threads=2 dtype=bfloat16`."""
    return " ".join(f"{axis}={value}" for axis, value in config.items())


def titles(rows: Sequence[Row]) -> dict[str, str]:
    """Return how people call each test, by its id: prompt and configuration, or its own name if others share these."""
    return alike.titles({row.test: row.title for row in rows})


def options(config: Mapping[str, str]) -> str:
    """Return the options that set a configuration for a run; an axis of a later version is left out."""
    written = (AXES[axis].written(value) for axis, value in config.items() if axis in AXES)
    return " ".join(part for part in written if part)


def choices(config: Mapping[str, str]) -> dict[str, str]:
    """Return what of a configuration says how the model runs."""
    return {axis: value for axis, value in config.items() if axis not in AXES or not AXES[axis].workload}


def loaded(config: Mapping[str, str]) -> dict[str, str]:
    """Return what of a configuration the model is loaded with."""
    return {axis: value for axis, value in config.items() if axis not in AXES or AXES[axis].reload}


def workload(config: Mapping[str, str]) -> dict[str, str]:
    """Return what of a configuration says what is asked of the model."""
    return {axis: value for axis, value in config.items() if axis in AXES and AXES[axis].workload}
