"""What `pytest-infer doctor` found: the machine, its pitfalls, and a model's needs, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.analysis.doctor.checkup import Checkup
from pytest_infer.analysis.doctor.ranks import Division
from pytest_infer.analysis.doctor.requirements import (
    GOOD_RATE,
    RUNTIME_BYTES,
    USABLE_RATE,
    Fit,
    Need,
    Requirements,
)
from pytest_infer.analysis.doctor.split import Described
from pytest_infer.measure.machine.cards import Card
from pytest_infer.records import MachineProbe
from pytest_infer.report import reached, surroundings, text
from pytest_infer.report.text import printable
from pytest_infer.units import NONE, bandwidth, duration, percent, rate, significant, size

_STYLES = {Fit.FITS: "green", Fit.TIGHT: "yellow", Fit.NOT_NOW: "yellow", Fit.UNKNOWN: "yellow", Fit.TOO_LARGE: "red"}
_NOT = {Fit.UNKNOWN: "is not known to fit"}
JUST_NOW_S = 10
NO_PROBE = "memory bandwidth was not measured since this machine started: --probe or any `pytest bench` measures it"


def as_json(found: Checkup) -> str:
    """Return everything as JSON; unknown figures are left out."""
    built: dict[str, Any] = {
        "machine": msgspec.to_builtins(found.machine),
        "host": msgspec.to_builtins(found.host),
        "cards": msgspec.to_builtins(found.cards) or None,
        "pitfalls": msgspec.to_builtins(found.pitfalls),
        "probe": None if found.probe is None else msgspec.to_builtins(found.probe),
        "probe_age_s": found.probe_age_s,
        "probe_note": found.probe_note,
        "described": None if found.described is None else msgspec.to_builtins(found.described),
        "reached": None if found.reached is None else msgspec.to_builtins(found.reached),
        "division": None if found.division is None else msgspec.to_builtins(found.division),
    }
    if found.model is not None:
        model = msgspec.to_builtins(found.model)
        for need, row in zip(found.model.needs, model["needs"], strict=True):
            row["verdict"] = found.verdict(need).value
            row["decode_ceiling"] = None if found.described is not None else found.ceiling(need)
            row["split"] = None if (split := found.split(need)) is None else msgspec.to_builtins(split)
            row["decode_likely"] = found.likely(need)
            row["bandwidth_minimum"] = None if need.step_bytes is None else USABLE_RATE * need.step_bytes
            row["bandwidth_recommended"] = None if need.step_bytes is None else GOOD_RATE * need.step_bytes
        model["chosen"] = found.model.chosen.dtype
        model["fitting"] = found.fitting
        model["cores_recommended"] = None if found.described is not None else found.cores(found.model)
        model["disk_free_bytes"] = found.disk_free_bytes
        built["model"] = model
    return json.dumps(_known(built), indent=1, allow_nan=False) + "\n"


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(inner) for key, inner in value.items() if inner is not None}
    return [_known(inner) for inner in value] if isinstance(value, list | tuple) else value


def render(found: Checkup, *, width: int, color: bool) -> str:
    """Return everything as text for a terminal."""
    console = text.console(width, color=color)
    if found.described is not None and found.model is not None:
        _write_described(console, found, found.described, found.model)
        _write_division(console, found.division)
        return text.collected(console)
    _write_machine(console, found)
    for pitfall in found.pitfalls:
        console.print(Text(printable(f"! {pitfall.evidence}"), style="yellow"))
        console.print(Text(printable(f"  → {pitfall.suggestion}")))
    if not found.pitfalls:
        console.print(Text("no pitfalls found", style="green"))
    if found.model is not None:
        console.print()
        _write_model(console, found, found.model)
        _write_division(console, found.division)
    return text.collected(console)


def _write_division(console: Console, division: Division | None) -> None:
    """Write whether the ranks that are asked about can share the model."""
    if division is None:
        return
    if division.refused is None:
        each = f"{division.ranks} ranks can share it: each gets as many whole heads"
        console.print(Text(each, style="green"))
        return
    numbers = [str(n) for n in division.possible if n > 1]
    other = f"; {' or '.join(numbers)} can" if numbers else "; one can hold it" if division.possible else ""
    console.print(Text(printable(f"{division.refused}{other}"), style="red"))


def _write_machine(console: Console, found: Checkup) -> None:
    machine, host = found.machine, found.host
    console.print(Text(printable(machine.cpu or "unknown processor"), style="bold"))
    limit, free = machine.memory_limit_bytes, host.available_bytes
    parts = [
        f"{significant(machine.usable_cores)} usable cores of {machine.logical_cores or NONE}",
        f"{NONE if limit is None else size(limit)} memory, {NONE if free is None else size(free)} available",
        f"{machine.system} {machine.kernel}",
    ]
    if found.probe is not None:
        parts.append(_probed(found.probe, found.probe_age_s))
    console.print(Text(printable(" · ".join(parts))))
    for card in found.cards:
        console.print(Text(printable(_card(card))))
    unusual = surroundings.line(machine.environment, machine.scheduling)
    if unusual is not None:
        console.print(Text(printable(unusual)))
    unread = surroundings.unread({**(machine.unread or {}), **host.unread})
    if unread is not None:
        console.print(Text(printable(unread), style="yellow"))
    if found.probe_note is not None:
        console.print(Text(printable(found.probe_note)))
    elif found.probe is None:
        console.print(Text(NO_PROBE, style="dim"))


def _card(card: Card) -> str:
    parts = [card.name]
    if card.memory_bytes is not None and card.free_bytes is not None:
        parts.append(f"{size(card.memory_bytes)} memory, {size(card.free_bytes)} free")
    parts += [] if card.driver is None else [f"driver {card.driver}"]
    parts += [] if card.power_limit_w is None else [f"up to {card.power_limit_w:g} W"]
    return " · ".join(parts)


def _write_described(console: Console, found: Checkup, machine: Described, model: Requirements) -> None:
    """Write what a model needs of a machine that is described, and how it is divided there."""
    console.print(Text(_machine_told(machine, found.read_rate), style="bold"))
    _write_name(console, model)
    split = found.split(model.chosen)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("dtype", no_wrap=True)
    moved = "layers" if split is not None and not split.experts else "experts"
    memories = ("VRAM", "RAM", f"{moved}\non the GPU") if machine.vram_bytes else ("RAM",)
    rates = ("tok/s\nat most", *(("tok/s\nlikely",) if found.reached else ()))
    for heading in ("weights", "KV cache", *memories, *rates):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for need in model.needs:
        table.add_row(*_split_cells(found, machine, need), _verdict(found.verdict(need)))
    text.print_table(console, table, spare=("KV cache",))
    for line in _about_split(found, machine, model):
        console.print(Text(printable(line), style="dim"))
    chosen = found.verdict(model.chosen)
    would = f"; {', '.join(found.fitting) or 'no dtype here'} would"
    said = "fits" if chosen in (Fit.FITS, Fit.TIGHT) else f"{_NOT.get(chosen, 'does not fit')}{would}"
    console.print(Text(printable(f"{model.name} in {model.chosen.dtype} {said}"), style=_STYLES[chosen]))


def _machine_told(machine: Described, read: float | None) -> str:
    def memory(held: int | None, what: str, at: float | None) -> str:
        return f"{NONE if held is None else size(held)} of {what}" + ("" if at is None else f" read at {bandwidth(at)}")

    told = f"{'this machine' if machine.here else 'a machine'} with {memory(machine.ram_bytes, 'RAM', read)}"
    if machine.vram_bytes:
        told += f" and {memory(machine.vram_bytes, 'VRAM', machine.vram_bandwidth)}"
        told += f", {size(machine.reserve_bytes)} of it left free"
    return told


def _split_cells(found: Checkup, machine: Described, need: Need) -> tuple[str, ...]:
    split, likely = found.split(need), found.likely(need)
    memories = [NONE] * (3 if machine.vram_bytes else 1)
    if split is not None:
        divided = f"{split.on_gpu} of {split.units}"
        of_both = [size(split.gpu_bytes), size(split.ram_bytes), divided]
        memories = of_both if machine.vram_bytes else of_both[1:2]
    cells = [
        printable(need.dtype),
        size(need.weights_bytes),
        NONE if need.kv_bytes is None else size(need.kv_bytes),
        *memories,
        NONE if split is None or split.ceiling is None else significant(split.ceiling),
    ]
    if found.reached is not None:
        cells.append(NONE if likely is None else "–".join(map(significant, likely)))
    return tuple(cells)


def _about_split(found: Checkup, machine: Described, model: Requirements) -> Iterator[str]:
    split = found.split(model.chosen)
    yield f"KV cache at {model.context} tokens: {model.kv.how}; RAM has {size(RUNTIME_BYTES)} for the runtime"
    if split is None:
        yield "what can be moved to a GPU is not known: neither headers nor config tell the model's shapes"
        return
    if machine.vram_bytes and not split.gpu_bytes:
        yield "the VRAM does not hold what every token reads (all but the experts, or the layers, and the KV cache)"
    if split.experts and 0 < split.on_gpu < split.units:
        yield (
            "experts on the GPU are taken as selected no more often than others: with a census of your prompts, "
            "`pytest-infer placement` chooses them, and says what that serves"
        )
    lacking = ["--bandwidth"] if found.read_rate is None else []
    lacking += ["--vram-bandwidth"] if machine.vram_bytes and machine.vram_bandwidth is None else []
    if split.ceiling is not None:
        yield "at most: all bytes that a token reads at these bandwidths, one memory after the other, and nothing else"
    elif lacking and model.chosen.step_bytes is not None:
        yield f"no tok/s: give {' and '.join(lacking)}, as they are measured (STREAM, nvbandwidth)"
    if found.reached is not None:
        yield f"likely: as {reached.words(found.reached)}"


def _verdict(fit: Fit) -> Text:
    return Text(fit.value, style=_STYLES[fit])


def _probed(probe: MachineProbe, age_s: float | None) -> str:
    """Return what was measured, how far its reads spread, and how old that is."""
    threads = f"{probe.threads} thread{'s' if probe.threads > 1 else ''}"
    # Within the time that a probe takes it is of now.
    when = ", the clock was set since" if age_s is None else "" if age_s < JUST_NOW_S else f", {duration(age_s)} ago"
    return f"{bandwidth(probe.read_bandwidth)} ± {percent(100 * probe.read_bandwidth_spread)} with {threads}{when}"


def _write_name(console: Console, model: Requirements) -> None:
    parts = [model.name, f"from {model.source}"]
    for count, what in ((model.parameters, "parameters"), (model.active_parameters, "active a token")):
        if count is not None:
            scaled = f"{significant(count / 1e9)} B" if count >= 1e9 else f"{significant(count / 1e6)} M"
            parts.append(f"{scaled} {what}")
    console.print(Text(printable(" · ".join(parts)), style="bold"))


def _write_model(console: Console, found: Checkup, model: Requirements) -> None:
    _write_name(console, model)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("dtype", no_wrap=True)
    for heading in ("weights", "KV cache", "min RAM", "recommended", "5 tok/s takes", "15 tok/s", "ceiling here"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for need in model.needs:
        table.add_row(*_cells(found, need), _verdict(need.verdict))
    text.print_table(console, table, spare=("15 tok/s", "5 tok/s takes", "KV cache"))
    for line in _remarks(found, model):
        console.print(Text(printable(line), style="dim"))
    console.print(Text(printable(_conclusion(found, model)), style=_STYLES[model.chosen.verdict]))


def _cells(found: Checkup, need: Need) -> tuple[str, ...]:
    ceiling, step = found.ceiling(need), need.step_bytes
    return (
        printable(need.dtype),
        size(need.weights_bytes),
        NONE if need.kv_bytes is None else size(need.kv_bytes),
        size(need.minimum_bytes),
        size(need.recommended_bytes),
        NONE if step is None else bandwidth(USABLE_RATE * step),
        NONE if step is None else bandwidth(GOOD_RATE * step),
        NONE if ceiling is None else rate(ceiling),
    )


def _remarks(found: Checkup, model: Requirements) -> list[str]:
    longest = f" of at most {model.longest_context}" if model.longest_context is not None else ""
    lines = [
        f"KV cache at {model.context} tokens{longest}: {model.kv.how}",
        f"min RAM = weights + KV cache + {size(RUNTIME_BYTES)} for Python and PyTorch; recommended leaves a fifth free",
    ]
    if any(need.dtype in {"int8", "int4"} for need in model.needs):
        lines.append("int8, int4: matrices in blocks of 32 weights with a float16 scale (ggml's Q8_0, Q4_0)")
    if model.longest_context is not None and model.context > model.longest_context:
        lines.append(f"the model was made for {model.longest_context} tokens, not {model.context}")
    cores = found.cores(model)
    if cores is not None:
        lines.append(
            f"cores: at least 1; {cores} for a first token within 2 s of a 512-token prompt, at the rate measured here"
        )
    if model.stored_bytes is not None:
        free = "" if found.disk_free_bytes is None else f", {size(found.disk_free_bytes)} free there"
        lines.append(f"disk: {size(model.stored_bytes)}{free}")
    return lines


def _conclusion(found: Checkup, model: Requirements) -> str:
    chosen, limit = model.chosen, found.machine.memory_limit_bytes
    needs = f"{model.name} in {chosen.dtype} takes {size(chosen.minimum_bytes)}"
    if chosen.kv_bytes is None:
        needs += " without its KV cache, whose size is not known"
    if chosen.verdict is Fit.UNKNOWN or limit is None:
        return f"{needs}; whether it fits cannot be told, as this system does not tell its memory"
    if chosen.verdict is Fit.TOO_LARGE:
        others = ", ".join(found.fitting)
        return f"{needs} and does not fit {size(limit)}; " + (f"{others} would" if others else "no dtype here would")
    if chosen.verdict is Fit.NOT_NOW:
        free = size(found.host.available_bytes or 0)
        return f"{needs} and {free} are free now of {size(limit)}: end what holds the rest"
    if chosen.verdict is Fit.TIGHT:
        return f"{needs}, more than four fifths of {size(limit)}: a longer context may not fit"
    return f"{needs} and fits {size(limit)}"
