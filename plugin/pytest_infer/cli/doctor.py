"""`pytest-infer doctor`: what this machine is, what spoils measurements on it, and whether a model runs in it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pytest_infer import units
from pytest_infer.analysis import reached as reached_by
from pytest_infer.analysis.doctor import kept_probe, pitfalls, ranks, requirements
from pytest_infer.analysis.doctor.checkup import Checkup
from pytest_infer.analysis.doctor.ranks import Division
from pytest_infer.analysis.doctor.requirements import Fit, Requirements, Room
from pytest_infer.analysis.doctor.split import Described
from pytest_infer.analysis.doctor.weights import AUTO
from pytest_infer.cli.shared import Storage, offered, open_history, out, refuse, screen
from pytest_infer.engines.checkpoint import source
from pytest_infer.errors import InferError, OptionError
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.measure.machine import cards, description, host, probe
from pytest_infer.records import MachineInfo, MachineProbe
from pytest_infer.report.formats import DOCTOR, Format
from pytest_infer.storage import probes

_RESERVE = "1GiB"
_EXITS = {Fit.TOO_LARGE: 1, Fit.UNKNOWN: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """A machine as the options describe it."""

    ram: str | None
    vram: str | None
    bandwidth: str | None
    vram_bandwidth: str | None
    reserve: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    model: str
    revision: str | None
    context: int | None
    dtype: str
    ranks: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    needs: Requirements
    disk_free_bytes: int | None
    division: Division | None


def doctor(
    *,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A folder, a GGUF file, a bundled model, or a hub id.")
    ] = None,
    revision: Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a hub model.")] = None,
    context: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens in the KV cache; default: 4096, or the model's own.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="What must fit: auto, float32, bfloat16, float16, int8, int4.")
    ] = AUTO,
    ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of another machine, as 16GiB: what it has for a process.")
    ] = None,
    vram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of a GPU: the model is divided between both memories.")
    ] = None,
    bandwidth: Annotated[
        str | None, typer.Option(metavar="RATE", help="Of that main memory, as 50GB/s; default: as this one's probe.")
    ] = None,
    vram_bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="Of the GPU's memory, as 250GB/s.")] = None,
    reserve: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help=f"Left free of --vram: driver, buffers, activations; default: {_RESERVE}."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Predict rates of an engine that comes as near to its limit as this run did."),
    ] = None,
    tp: Annotated[
        int | None,
        typer.Option("--ranks", metavar="N", min=1, help="How many processes are to share the model."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--probe", help="Measure memory bandwidth and GEMM rates now: 2 s, and loads PyTorch.")
    ] = False,
    form: Annotated[Format, offered(DOCTOR)] = Format.TERMINAL,
    storage: Storage = None,
) -> None:
    """Check this machine, or one that is described, and whether a model fits it. Exit code 1 when it cannot fit."""
    described, now = description.describe(), host.describe()
    try:
        figures = _Figures(ram=ram, vram=vram, bandwidth=bandwidth, vram_bandwidth=vram_bandwidth, reserve=reserve)
        other = _described(figures, described)
        reached = None if like is None else reached_by.of_run(open_history(storage).select(like))
        asked = (
            None if model is None else _Asked(model=model, revision=revision, context=context, dtype=dtype, ranks=tp)
        )
        of_a_model = (other, reached, tp, revision, context, None if dtype == AUTO else dtype)
        if asked is None and any(given is not None for given in of_a_model):
            raise OptionError(
                "--ram, --vram, --bandwidth, --like, --ranks, --revision, --context and --dtype are about a model: "
                "name it with --model"
            )
        found = None if asked is None else _needs(asked, described, now)
    except InferError as error:
        refuse(error)
    made, note = _measured(described, now) if measure else _kept(described, now)
    there = cards.describe()
    checked = Checkup(
        machine=described,
        host=now,
        pitfalls=(*pitfalls.find(described, now), *pitfalls.of_cards(there)),
        cards=there,
        probe=made,
        probe_age_s=None if made is None else _age_s(made),
        probe_note=note,
        model=None if found is None else found.needs,
        disk_free_bytes=None if found is None else found.disk_free_bytes,
        described=other,
        reached=reached,
        division=None if found is None else found.division,
    )
    out(DOCTOR[form](checked, screen()))
    if found is not None and (verdict := checked.verdict(found.needs.chosen)) in _EXITS:
        raise typer.Exit(_EXITS[verdict])
    if checked.division is not None and checked.division.refused is not None:
        raise typer.Exit(1 if checked.division.possible else 2)


def _described(given: _Figures, here: MachineInfo) -> Described | None:
    """Return the machine that the options describe: without --ram this one, with a GPU or another bandwidth."""
    if given.vram is None and any(option is not None for option in (given.vram_bandwidth, given.reserve)):
        raise OptionError("--vram-bandwidth and --reserve are about a GPU: give its memory with --vram")
    if not any((given.ram, given.vram, given.bandwidth)):
        return None
    return Described(
        ram_bytes=here.memory_limit_bytes if given.ram is None else units.parse_size(given.ram, "--ram"),
        vram_bytes=0 if given.vram is None else units.parse_size(given.vram, "--vram"),
        reserve_bytes=units.parse_size(_RESERVE if given.reserve is None else given.reserve, "--reserve"),
        bandwidth=units.parse_bandwidth(given.bandwidth, "--bandwidth"),
        vram_bandwidth=units.parse_bandwidth(given.vram_bandwidth, "--vram-bandwidth"),
        here=given.ram is None,
    )


def _needs(asked: _Asked, described: MachineInfo, now: host.Host) -> _Found:
    """Return what a model needs, and what is free on the disk where its files lie or would lie."""
    held = source.find(asked.model, asked.revision)
    room = Room(limit_bytes=described.memory_limit_bytes, available_bytes=now.available_bytes)
    needed = requirements.of(held, room, context=asked.context, dtype=asked.dtype)
    try:
        free: int | None = shutil.disk_usage(held.folder or Path.home()).free
    except (OSError, RuntimeError):
        free = None
    division = None if asked.ranks is None else ranks.of(held.config, asked.ranks)
    return _Found(needs=needed, disk_free_bytes=free, division=division)


def _kept(described: MachineInfo, now: host.Host) -> tuple[MachineProbe | None, str | None]:
    """Return the probe that a run since the boot kept, with the threads that torch would start, else fewer or more.

    One that is in doubt is made again; what is returned beside it says so.
    """
    threads = pitfalls.torch_threads(described, now) or 1
    counts = (*range(threads, 0, -1), *range(threads + 1, (described.logical_cores or 1) + 1))
    found = next((found for n in counts if (found := probes.load(n)) is not None), None)
    why = None if found is None else kept_probe.doubt(found, _age_s(found), described.governor)
    if found is None or why is None:
        return found, None
    made = _steady(found.threads)
    if isinstance(made, Unavailable):
        return None, f"the kept probe is not used: {why}; no other in its place: {made.reason}"
    return probes.save(made), f"probed again, as the kept probe was in doubt: {why}"


def _measured(described: MachineInfo, now: host.Host) -> tuple[MachineProbe, str | None]:
    """Probe the machine with the threads that torch would start, and keep that for later.

    Where that is not what the kept probe said, it is made once more, and the better of both counts: other work only
    lowers a rate.
    """
    threads = pitfalls.torch_threads(described, now) or 1
    before, made = probes.load(threads), _steady(threads)
    if isinstance(made, Unavailable):
        refuse(f"no probe of the machine: {made.reason}")
    if before is None or not kept_probe.apart(before, made):
        return probes.save(made), None
    again = _steady(threads)
    both = [made] if isinstance(again, Unavailable) else [made, again]
    seen = " and ".join(units.bandwidth(one.read_bandwidth) for one in both)
    age = _age_s(before)
    when = "before" if age is None else f"{units.duration(age)} ago"
    note = (
        f"read {seen} now and {units.bandwidth(before.read_bandwidth)} {when}: what others leave of the bandwidth moves"
    )
    return probes.save(max(both, key=lambda one: one.read_bandwidth)), note


def _steady(threads: int) -> MachineProbe | Unavailable:
    return probe.steady(lambda: probe.measure(threads))[0]


def _age_s(made: MachineProbe) -> float | None:
    # Elsewhere the monotonic clock counts from the boot as well.
    up_s = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
    return kept_probe.age_s(made, time.time_ns(), up_s)
