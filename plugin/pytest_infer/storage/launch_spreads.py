"""How far launches of equal code lay apart in this machine's earlier A/B runs, kept per prompt, model and threads."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pytest_infer.engines.bundled import cache
from pytest_infer.errors import ModelError
from pytest_infer.measure.counters.cpu import cores
from pytest_infer.records import PromptRecord
from pytest_infer.storage import files

NAME = "launch-spreads.json"
RUNS = 10
"""The newest so many of a prompt are kept."""
PROMPTS = 500
MOST_DF = 30.0
"""So many degrees of freedom earlier runs tell together at most: the machine of today has its say."""


class RunSpread(msgspec.Struct, frozen=True, kw_only=True):
    """What one run told: by ratio (`first`, `step`), a launch's variance (log-ratios squared) and its degrees of
    freedom."""

    at_ns: int
    spreads: dict[str, tuple[float, float]]


def key(record: PromptRecord) -> str:
    """Return what a spread is valid for: machine and cores, torch, model, dtype, device, threads, prompt, what is
    swept."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "none"
    model, prompt = record.model, record.prompt
    where = (platform.node(), f"{cores().usable:g} cores", f"torch {torch}")
    of = (model.engine, model.source or model.name, model.dtype, model.device, f"{model.threads} threads")
    what = (prompt.content_sha256[:16], *(f"{axis}={value}" for axis, value in sorted(record.config.items())))
    return " | ".join((*where, *map(str, of), *what))


def earlier(of: str) -> dict[str, tuple[float, float]]:
    """Return what earlier runs of a key tell together, by ratio: mean variance and degrees of freedom; {} for none."""
    found: dict[str, tuple[float, float]] = {}
    runs = _read(path()).get(of, ())
    for name in {name for run in runs for name in run.spreads}:
        told = [run.spreads[name] for run in runs if name in run.spreads]
        df = sum(one[1] for one in told)
        if df > 0:
            found[name] = (sum(variance * each for variance, each in told) / df, min(df, MOST_DF))
    return found


def save(told: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
    """Keep what a run told, by key; a cache may be unwritable."""
    place = path()
    if place is None or not told:
        return
    kept = _read(place)
    for of, spreads in told.items():
        run = RunSpread(at_ns=time.time_ns(), spreads=dict(spreads))
        kept[of] = [*kept.get(of, ()), run][-RUNS:]
    newest = dict(sorted(kept.items(), key=lambda item: item[1][-1].at_ns)[-PROMPTS:])
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(place) as file:
            file.write(msgspec.json.format(msgspec.json.encode(newest)))
    except OSError:
        return


def path() -> Path | None:
    """Return the file that holds them, or None where there is no cache folder."""
    try:
        return cache.root() / NAME
    except ModelError:
        return None


def _read(place: Path | None) -> dict[str, list[RunSpread]]:
    try:
        content = b"{}" if place is None else place.read_bytes()
        found = msgspec.json.decode(content, type=dict[str, list[RunSpread]])
    except (OSError, msgspec.MsgspecError):
        return {}
    return {name: runs for name, runs in found.items() if runs}
