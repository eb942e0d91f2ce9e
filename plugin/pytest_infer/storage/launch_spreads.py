"""How far launches of equal code lay apart in this machine's earlier A/B runs, kept per prompt, model and threads."""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec

from pytest_infer.records import PromptRecord, Turns
from pytest_infer.storage import cache_file

NAME = "launch-spreads.json"
RUNS = 10
"""The newest so many of a prompt are kept."""
PROMPTS = 500
MOST_DF = 30.0
"""So many degrees of freedom earlier runs tell together at most: the machine of today has its say."""


class RunSpread(msgspec.Struct, frozen=True, kw_only=True):
    """What one run told: by ratio (`first`, `step`, `steps`), a launch's variance (log-ratios squared) and its degrees
    of freedom."""

    at_ns: int
    spreads: dict[str, tuple[float, float]]


_Kept = dict[str, list[RunSpread]]


def key(record: PromptRecord, turns: Turns) -> str:
    """Return what a spread is valid for: machine and cores, torch, model, dtype, device, threads, prompt, what is
    swept, and whether passes were of parts of the text."""
    model, prompt = record.model, record.prompt
    of = (model.engine, model.source or model.name, model.dtype, model.device, f"{model.threads} threads")
    what = (prompt.content_sha256[:16], *(f"{axis}={value}" for axis, value in sorted(record.config.items())))
    if turns.tokens is not None:
        what = (*what, "parts of the text")
    return " | ".join((*cache_file.here(), *map(str, of), *what))


def earlier(of: str) -> dict[str, tuple[float, float]]:
    """Return what earlier runs of a key tell together, by ratio: mean variance and degrees of freedom; {} for none."""
    found: dict[str, tuple[float, float]] = {}
    runs = cache_file.read(NAME, _Kept).get(of, [])
    for name in {name for run in runs for name in run.spreads}:
        told = [run.spreads[name] for run in runs if name in run.spreads]
        df = sum(one[1] for one in told)
        if df > 0:
            found[name] = (sum(variance * each for variance, each in told) / df, min(df, MOST_DF))
    return found


def save(told: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
    """Keep what a run told, by key; a cache may be unwritable."""
    if not told:
        return
    kept = cache_file.read(NAME, _Kept)
    for of, spreads in told.items():
        run = RunSpread(at_ns=time.time_ns(), spreads=dict(spreads))
        kept[of] = [*kept.get(of, ()), run][-RUNS:]
    # A key without runs is of nobody's making: it sorts first, and goes first.
    newest = sorted(kept.items(), key=lambda item: max((run.at_ns for run in item[1]), default=0))
    cache_file.write(NAME, dict(newest[-PROMPTS:]))
