"""The machine's probes, kept per boot, threads and software: for the doctor, and for the best GEMM rates of a boot."""

from __future__ import annotations

from dataclasses import replace

from pytest_infer.measure.counters import accelerator
from pytest_infer.measure.machine import probe
from pytest_infer.records import MachineProbe
from pytest_infer.storage import cache_file

NAME = "probes.json"
MOST = 32
"""The newest so many are kept."""
_Kept = dict[str, MachineProbe]


def key(threads: int, device: str = "cpu", *, boot: str | None = None) -> str:
    """Return what a probe is valid for: this boot of this machine, usable cores, torch's version, threads, device.

    Which card is cuda:0 is up to variables of the environment, so its name is part of it.
    """
    return " | ".join((*cache_file.here(boot or probe.boot()), f"{threads} threads", *_called(device)))


def _called(device: str) -> tuple[str, ...]:
    if device == "cpu":
        return (device,)
    number = device.partition(":")[2] or "0"
    names = accelerator.names()
    return (device, *names[int(number) : int(number) + 1]) if number.isdecimal() else (device,)


def load(threads: int, device: str = "cpu") -> MachineProbe | None:
    """Return the probe of this boot, if there has been one; a file that cannot be read counts as none."""
    return cache_file.read(NAME, _Kept).get(key(threads, device))


def save(made: MachineProbe) -> MachineProbe:
    """Keep a steady probe, and return it with the best GEMM rates of this boot; a cache may be unwritable.

    Other work only lowers a rate, so the highest that was seen is the nearest to what the machine can do.
    """
    kept, name = cache_file.read(NAME, _Kept), key(made.threads, made.device, boot=made.boot)
    before = kept.get(name)
    if before is not None:
        best = {dtype: max(made.flops.get(dtype, 0.0), rate) for dtype, rate in before.flops.items()}
        made = replace(made, flops=made.flops | best)
    if probe.unsteady(made) is None:
        newest = sorted({**kept, name: made}.items(), key=lambda item: item[1].at_ns)[-MOST:]
        cache_file.write(NAME, dict(newest))
    return made


def forget(threads: int, device: str = "cpu") -> None:
    """Throw the probe of this boot away: the machine was seen to do more."""
    kept = cache_file.read(NAME, _Kept)
    if kept.pop(key(threads, device), None) is not None:
        cache_file.write(NAME, kept)
