"""`pytest-infer doctor`: what this machine is, what spoils measurements on it, and whether a model runs in it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pytest_infer import units, untrusted
from pytest_infer.analysis import reached as reached_by
from pytest_infer.analysis.doctor import kept_probe, pitfalls, ranks, requirements
from pytest_infer.analysis.doctor.checkup import Checkup
from pytest_infer.analysis.doctor.requirements import Fit, Room
from pytest_infer.analysis.doctor.split import RESERVE_BYTES, Described
from pytest_infer.analysis.doctor.weights import AUTO
from pytest_infer.cli.shared import Storage, offered, open_history, out, refuse, screen
from pytest_infer.engines.checkpoint import source
from pytest_infer.errors import InferError, OptionError
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.measure.machine import cards, description, host, probe
from pytest_infer.records import MachineInfo, MachineProbe
from pytest_infer.report.formats import DOCTOR, Format
from pytest_infer.storage import probes

_EXITS = {Fit.TOO_LARGE: 1, Fit.UNKNOWN: 2}


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
        typer.Option(metavar="SIZE", help="Left free of --vram: driver, buffers, activations; default: 1GiB."),
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
    needs, division, free = None, None, None
    try:
        machine = (ram, vram, bandwidth)
        _refuse_alone(
            (vram_bandwidth, reserve),
            (vram,),
            "--vram-bandwidth and --reserve are about a GPU: give its memory with --vram",
        )
        _refuse_alone(
            (*machine, like, tp, revision, context, None if dtype == AUTO else dtype),
            (model,),
            "--ram, --vram, --bandwidth, --like, --ranks, --revision, --context and --dtype are about a model: "
            "name it with --model",
        )
        _refuse_alone((like,), machine, "--like is about a described machine: with --ram, --vram or --bandwidth")
        other = _described(described, *machine, vram_bandwidth, reserve)
        reached = None if like is None else reached_by.of_run(open_history(storage).select(like))
        if model is not None:
            held = source.find(model, revision)
            room = Room(limit_bytes=described.memory_limit_bytes, available_bytes=now.available_bytes)
            needs = requirements.of(held, room, context=context, dtype=dtype)
            division = None if tp is None else ranks.of(held.config, tp)
            free = _disk_free(held.folder)
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
        model=needs,
        disk_free_bytes=free,
        described=other,
        reached=reached,
        division=division,
    )
    out(DOCTOR[form](checked, screen()))
    if needs is not None and (verdict := checked.verdict(needs.chosen)) in _EXITS:
        raise typer.Exit(_EXITS[verdict])
    if division is not None and division.refused is not None:
        raise typer.Exit(1 if division.possible else 2)


def _refuse_alone(options: Sequence[object], others: Sequence[object], why: str) -> None:
    """Raise OptionError where one of some options is given, and none of those that it is about."""
    if any(given is not None for given in options) and not any(given is not None for given in others):
        raise OptionError(why)


def _described(
    here: MachineInfo,
    ram: str | None,
    vram: str | None,
    bandwidth: str | None,
    vram_bandwidth: str | None,
    reserve: str | None,
) -> Described | None:
    """Return the machine that the options describe: without --ram this one, with a GPU or another bandwidth."""
    if ram is None and vram is None and bandwidth is None:
        return None
    return Described(
        ram_bytes=here.memory_limit_bytes if ram is None else units.parse_size(ram, "--ram"),
        vram_bytes=0 if vram is None else units.parse_size(vram, "--vram"),
        reserve_bytes=RESERVE_BYTES if reserve is None else units.parse_size(reserve, "--reserve"),
        bandwidth=units.parse_bandwidth(bandwidth, "--bandwidth"),
        vram_bandwidth=units.parse_bandwidth(vram_bandwidth, "--vram-bandwidth"),
        here=ram is None,
    )


def _disk_free(folder: Path | None) -> int | None:
    """Return what is free on the disk where a model's files lie, or would lie: in the hub's cache."""
    if folder is None:
        # Imported late: only a model from the hub needs it.
        from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415

        folder = Path(HF_HUB_CACHE).absolute()
    try:
        return shutil.disk_usage(next(place for place in (folder, *folder.parents) if untrusted.exists(place))).free
    except OSError:
        return None


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
