"""A plan of which experts to keep on the GPU, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from pytest_infer.report import text
from pytest_infer.units import NONE, count, rate, significant, size

if TYPE_CHECKING:
    from pytest_infer.analysis.heldout import HeldOut
    from pytest_infer.analysis.planning import Plan, Row
    from pytest_infer.analysis.speed import Speed

_BAR = 16
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_FREQUENCY, _RANDOM = "frequency", "random"
_ORDER = (_FREQUENCY, "per layer", "whole layers", "first layers", _RANDOM)


def render(plan: Plan, label: str, *, width: int, color: bool) -> str:
    """Return the plan in at most `width` columns: the budget asked for, a sweep of budgets, and what to know."""
    console = text.console(width, color=color)
    for number, line in enumerate(_heading(plan, label)):
        console.print(Text(line, style="" if number else "bold"))
    if plan.chosen is not None:
        console.print(_strategies(plan, plan.chosen))
        for line in _reading(plan, plan.chosen):
            console.print(Text(line))
    console.print(Text("by budget: share of expert reads from the GPU, placed by frequency", style="bold"))
    console.print(_sweep(plan))
    for line in _notes(plan):
        console.print(Text(line, style="dim"))
    return text.collected(console)


def _heading(plan: Plan, label: str) -> Iterator[str]:
    tokens = {
        "prefill": plan.census.prefill_tokens,
        "decode": plan.census.decode_tokens,
        "both": plan.census.prefill_tokens + plan.census.decode_tokens,
    }[plan.phase.value]
    phase = "prefill and decode" if plan.phase.value == "both" else plan.phase.value
    prompts = "1 prompt" if plan.prompts == 1 else f"{plan.prompts} prompts"
    yield text.printable(f"placement of {label} · {phase} of {prompts}, {count(tokens)} tokens")
    sizes = sorted(set(plan.sizes.experts))
    one = size(sizes[0]) if len(sizes) == 1 else f"{size(sizes[0])} to {size(sizes[-1])}"
    dense = "" if plan.sizes.dense is None else f", {size(plan.sizes.dense)} of other weights"
    yield (
        f"{count(len(plan.experts.bytes))} experts of {one} in {len(plan.census.sites)} layers: "
        f"{size(plan.experts.total)}{dense}; {text.printable(plan.sizes.source)}"
    )
    if plan.memory is None or plan.chosen is None:
        return
    memory = plan.memory
    taken = [(memory.dense, "other weights"), (memory.kv_cache, "KV cache"), (memory.reserve, "reserve")]
    less = "".join(f" − {size(number)} {name}" for number, name in taken if number)
    yield f"GPU memory {size(memory.total)}{less} = {size(memory.left)} for experts: {_held(plan, plan.chosen)}"


def _held(plan: Plan, row: Row) -> str:
    total = len(plan.experts.bytes)
    if plan.everything_fits:
        return f"all {count(total)} fit, nothing is left on the CPU"
    return f"{count(row.held)} of {count(total)}"


def _strategies(plan: Plan, row: Row) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("expert reads from the GPU")
    for heading in ("in-sample", "held out", "range"):
        table.add_column(heading, justify="right")
    for name in _ORDER:
        held_out = row.held_out[name]
        mean = NONE if held_out is None else _percent(held_out.mean)
        table.add_row(_named(name), _percent(row.in_sample[name]), mean, _range(held_out))
    if plan.traced:
        slots = f"{row.slots} slots a layer"
        table.add_row(f"LRU cache, {slots}", "", _percent(row.lru), "")
        table.add_row(f"LFU cache, {slots}", "", _percent(row.lfu), "")
    return table


def _named(name: str) -> str:
    return {
        _FREQUENCY: "frequency, over all layers",
        "per layer": "frequency, the same in each layer",
        "whole layers": "whole layers only",
        "first layers": "first layers, no measurement",
        _RANDOM: "random (range: 2 sd of draws)",
    }[name]


def _reading(plan: Plan, row: Row) -> Iterator[str]:
    served = row.expected
    if served is None or plan.phase.value != "decode":
        return
    yield f"a token reads {size(served.cpu_bytes)} of experts on the CPU and {size(served.gpu_bytes)} on the GPU"
    if row.speed is not None and (said := _rates(row.speed)):
        yield f"predicted decode, at most: {said}"


def _rates(speed: Speed) -> str:
    known = [
        (speed.in_turns, "CPU and GPU in turns"),
        (speed.at_once, "both at once within a layer"),
        (speed.streamed, "experts copied over PCIe"),
    ]
    return ", ".join(f"{rate(value)} ({name})" for value, name in known if value is not None)


def _sweep(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    speeds = [row.speed.in_turns for row in plan.sweep if row.speed is not None]
    fast = bool(speeds) and any(value is not None for value in speeds)
    headings = ["budget", "experts", "in-sample", "held out", "range", _RANDOM, "first layers"]
    headings += ["LRU"] if plan.traced else []
    headings += ["CPU/token"] if plan.phase.value == "decode" else []
    headings += ["tok/s"] if fast else []
    for heading in headings:
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in plan.sweep:
        held_out, drawn, first = (row.held_out[name] for name in (_FREQUENCY, _RANDOM, "first layers"))
        share = row.in_sample[_FREQUENCY] if held_out is None else held_out.mean
        cells = [
            size(row.budget),
            count(row.held),
            _percent(row.in_sample[_FREQUENCY]),
            _mean(held_out),
            _range(held_out),
            _percent(row.in_sample[_RANDOM]) if drawn is None else _percent(drawn.mean),
            _percent(row.in_sample["first layers"]) if first is None else _percent(first.mean),
        ]
        cells += [_percent(row.lru)] if plan.traced else []
        if plan.phase.value == "decode":
            cells.append(NONE if row.expected is None else size(row.expected.cpu_bytes))
        if fast:
            value = None if row.speed is None else row.speed.in_turns
            cells.append(NONE if value is None else significant(value))
        table.add_row(*cells, bar(share or 0.0))
    return table


def bar(share: float) -> str:
    """Return a bar whose length is a share between 0 and 1, to an eighth of a column."""
    eighths = round(share * _BAR * 8)
    full, part = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[part] if part else "")


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f} %"


def _mean(held_out: HeldOut | None) -> str:
    return NONE if held_out is None else _percent(held_out.mean)


def _range(held_out: HeldOut | None) -> str:
    return NONE if held_out is None else f"{100 * held_out.low:.0f}–{100 * held_out.high:.0f} %"


def _notes(plan: Plan) -> Iterator[str]:
    row = plan.chosen if plan.chosen is not None else plan.sweep[0]
    held_out = row.held_out[_FREQUENCY]
    if held_out is None:
        yield (
            f"held out: needs two prompts that select experts in this phase, the run has {plan.prompts}; in-sample "
            "shares are those of the prompts planned from, and flatter"
        )
    else:
        yield (
            f"held out: placed on one half of the prompts, scored on the other, mean and range of {held_out.scores}; "
            "expect this of other prompts, not the in-sample share"
        )
    if not plan.experts.equal and plan.chosen is not None and plan.chosen.bound is not None:
        best = plan.chosen.in_sample[_FREQUENCY] or 0.0
        yield (
            f"experts differ in size, so greedy placement need not be best: at most {_percent(plan.chosen.bound)} is "
            f"possible in-sample, {100 * (plan.chosen.bound - best):.2f} points more"
        )
    if plan.phase.value == "decode":
        yield from _about_speed(plan)
    else:
        yield "prefill reads an expert once for many tokens: its bytes and speed are not predicted"
    if not plan.traced:
        yield "no LRU or LFU rates: they need a trace, which pytest bench --infer-experts=trace records"


def _about_speed(plan: Plan) -> Iterator[str]:
    bandwidths = plan.bandwidths
    if bandwidths.cpu is None or bandwidths.gpu is None:
        yield "no tok/s: give --cpu-bandwidth and --gpu-bandwidth (of memory, as 40GB/s); nothing measures them yet"
    elif plan.sizes.read is None:
        yield "no tok/s: the size of the weights outside the experts is not known; name the model with --model"
    else:
        side = "GPU" if plan.dense_on_gpu else "CPU"
        yield (
            f"tok/s: time = bytes / bandwidth, added over the layers, other weights on the {side}, batch size 1; "
            "KV cache reads and overheads are left out"
        )
