"""The machine's probes, kept per boot, threads and software: for the doctor, and for the best GEMM rates of a boot."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from pytest_infer.engines.bundled import cache
from pytest_infer.errors import ModelError
from pytest_infer.measure.counters.cpu import cores
from pytest_infer.measure.machine import probe
from pytest_infer.records import MachineProbe
from pytest_infer.storage import files

NAME = "probes.json"
MOST = 32
"""The newest so many are kept."""


def key(threads: int, device: str = "cpu", *, boot: str | None = None) -> str:
    """Return what a probe is valid for: this boot of this machine, usable cores, torch's version, threads, device."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "none"
    where = (platform.node(), boot or probe.boot(), f"{cores().usable:g} cores", f"torch {torch}")
    return " | ".join((*where, f"{threads} threads", device))


def load(threads: int, device: str = "cpu") -> MachineProbe | None:
    """Return the probe of this boot, if there has been one; a file that cannot be read counts as none."""
    return _read(path()).get(key(threads, device))


def save(made: MachineProbe) -> MachineProbe:
    """Keep a steady probe, and return it with the best GEMM rates of this boot; a cache may be unwritable.

    Other work only lowers a rate, so the highest that was seen is the nearest to what the machine can do.
    """
    place = path()
    before = _read(place).get(key(made.threads, made.device, boot=made.boot))
    if before is not None:
        best = {name: max(made.flops.get(name, 0.0), rate) for name, rate in before.flops.items()}
        made = replace(made, flops=made.flops | best)
    if place is not None and probe.unsteady(made) is None:
        _write(place, made)
    return made


def forget(threads: int, device: str = "cpu") -> None:
    """Throw the probe of this boot away: the machine was seen to do more."""
    place, name = path(), key(threads, device)
    kept = dict(_read(place))
    if place is not None and kept.pop(name, None) is not None:
        _replace(place, kept)


def _write(place: Path, made: MachineProbe) -> None:
    kept = {**_read(place), key(made.threads, made.device, boot=made.boot): made}
    _replace(place, dict(sorted(kept.items(), key=lambda item: item[1].at_ns)[-MOST:]))


def _replace(place: Path, kept: Mapping[str, MachineProbe]) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(place) as file:
            file.write(msgspec.json.format(msgspec.json.encode(kept)))
    except OSError:
        return


def path() -> Path | None:
    """Return the file that holds the probes, or None where there is no cache folder."""
    try:
        return cache.root() / NAME
    except ModelError:
        return None


def _read(place: Path | None) -> Mapping[str, MachineProbe]:
    try:
        content = b"{}" if place is None else place.read_bytes()
        return msgspec.json.decode(content, type=dict[str, MachineProbe])
    except (OSError, msgspec.MsgspecError):
        return {}
