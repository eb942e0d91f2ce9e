"""A plan of which experts to keep on the GPU, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from pytest_infer.report import reached as reached_as
from pytest_infer.report import text
from pytest_infer.report.experts.terminal import how_many
from pytest_infer.units import NONE, Unit, bandwidth, column, count, rate, show, significant, size

if TYPE_CHECKING:
    from pytest_infer.analysis.placement.heldout import HeldOut
    from pytest_infer.analysis.placement.planning import BudgetRow, PlacementPlan

_BAR, _SHORTEST = 16, 6
_COLUMNS = 74  # what the sweep takes without its bar
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_FREQUENCY, _RANDOM = "frequency", "random"
_ORDER = (_FREQUENCY, "per layer", "whole layers", "first layers", _RANDOM)


def render(plan: PlacementPlan, label: str, *, width: int, color: bool) -> str:
    """Return the plan in at most `width` columns: the budget asked for, a sweep of budgets, and what to know."""
    console = text.console(width, color=color)
    for number, line in enumerate(_heading(plan, label)):
        console.print(Text(line, style="" if number else "bold"))
    if plan.chosen is not None:
        text.print_table(console, _strategies(plan, plan.chosen))
        for line in _reading(plan, plan.chosen):
            console.print(Text(line))
    console.print(Text("by budget: % of expert reads from the GPU, placed by frequency", style="bold"))
    text.print_table(console, _sweep(plan, width), spare=("", _RANDOM, "first\nlayers", "LRU"))
    for line in _notes(plan):
        console.print(Text(line, style="dim"))
    return text.collected(console)


def _heading(plan: PlacementPlan, label: str) -> Iterator[str]:
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
        f"{count(len(plan.experts.bytes))} experts of {one} in {how_many(plan.census.sites)}: "
        f"{size(plan.experts.total)}{dense}; {text.printable(plan.sizes.source)}"
    )
    if plan.memory is None or plan.chosen is None:
        return
    memory = plan.memory
    taken = [(memory.dense, "other weights"), (memory.kv_cache, "KV cache"), (memory.reserve, "reserve")]
    less = "".join(f" − {size(number)} {name}" for number, name in taken if number)
    yield f"GPU memory {size(memory.total)}{less} = {size(memory.left)} for experts: {_held(plan, plan.chosen)}"


def _held(plan: PlacementPlan, row: BudgetRow) -> str:
    total = len(plan.experts.bytes)
    if plan.everything_fits:
        return f"all {count(total)} fit"
    return f"{count(row.held)} of {count(total)}"


def _strategies(plan: PlacementPlan, row: BudgetRow) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("expert reads from the GPU")
    for heading in ("in-sample", "held out", "range"):
        table.add_column(heading, justify="right")
    for name in _ORDER:
        held_out = row.held_out[name]
        table.add_row(_named(name), _percent(row.in_sample[name]), _percent(_mean(held_out)), _range(held_out))
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


def _reading(plan: PlacementPlan, row: BudgetRow) -> Iterator[str]:
    served = row.expected
    if served is None or plan.phase.value != "decode":
        return
    yield f"a token reads {size(served.cpu_bytes)} of experts on the CPU and {size(served.gpu_bytes)} on the GPU"
    if row.speed is not None and (said := _rates(row)):
        yield f"predicted decode, at most: {said}"
    likely, reached = plan.likely(), plan.reached
    if likely is not None and reached is not None:
        between = f"{significant(likely[0])} to {rate(likely[1])}"
        yield f"predicted decode, likely: {between}, in turns: {reached_as.words(reached)}"


def _rates(row: BudgetRow) -> str:
    """Return each predicted rate, and the range that the held-out shares leave."""
    names = {
        "in_turns": "CPU and GPU in turns",
        "at_once": "both at once within a layer",
        "streamed": "experts copied over PCIe",
    }
    told = []
    for key, name in names.items():
        value, *ends = (getattr(speed, key, None) for speed in (row.speed, row.slowest, row.fastest))
        if value is not None:
            low, high = (significant(end or value) for end in ends)
            told.append(f"{rate(value)} ({name}{'' if low == high else f', {low}–{high}'})")
    return ", ".join(told)


def _sweep(plan: PlacementPlan, width: int) -> Table:
    rows = plan.sweep
    fast = any(row.speed is not None and row.speed.in_turns is not None for row in rows)
    budget, budgets = column([row.budget for row in rows], Unit.BYTES)
    columns: list[tuple[str, list[str]]] = [
        (f"budget\n{budget}", budgets),
        ("experts", [count(row.held) for row in rows]),
        ("in-\nsample", [_bare(row.in_sample[_FREQUENCY]) for row in rows]),
        ("held\nout", [_bare(_mean(row.held_out[_FREQUENCY])) for row in rows]),
        ("range\n%", [_range(row.held_out[_FREQUENCY]).removesuffix(" %") for row in rows]),
        (_RANDOM, [_bare(row.likely(_RANDOM)) for row in rows]),
        ("first\nlayers", [_bare(row.likely("first layers")) for row in rows]),
    ]
    if plan.traced:
        columns.append(("LRU", [_bare(row.lru) for row in rows]))
    if plan.phase.value == "decode":
        unit, read = column([None if row.expected is None else row.expected.cpu_bytes for row in rows], Unit.BYTES)
        columns.append((f"CPU {unit}\na token", read))
    if fast:
        columns.append(("tok/s", [NONE if r.speed is None else show(r.speed.in_turns, Unit.RATIO) for r in rows]))
    columns.append(
        ("", [bar(row.likely(_FREQUENCY) or 0.0, max(_SHORTEST, min(_BAR, width - _COLUMNS))) for row in rows])
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for number, (heading, _) in enumerate(columns, start=1):
        table.add_column(heading, justify="right" if number < len(columns) else "left")
    for cells in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*cells)
    return table


def bar(share: float, width: int = _BAR) -> str:
    """Return a bar whose length is a share between 0 and 1 of so many columns, to an eighth of one."""
    full, part = divmod(round(share * width * 8), 8)
    return "█" * full + (_EIGHTHS[part] if part else "")


def _bare(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f} %"


def _mean(held_out: HeldOut | None) -> float | None:
    return None if held_out is None else held_out.mean


def _range(held_out: HeldOut | None) -> str:
    return NONE if held_out is None else f"{100 * held_out.low:.0f}–{100 * held_out.high:.0f} %"


def _notes(plan: PlacementPlan) -> Iterator[str]:
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
        yield "no LRU or LFU rates: they need a trace, which pytest bench --infer-experts=trace records (of no batch)"


def _about_speed(plan: PlacementPlan) -> Iterator[str]:
    bandwidths = plan.bandwidths
    rows = (*plan.sweep, *([] if plan.chosen is None else [plan.chosen]))
    rated = [row.speed is not None and row.speed.in_turns is not None for row in rows]
    lacking = [f"--{side}-bandwidth" for side in ("cpu", "gpu") if getattr(bandwidths, side) is None]
    if plan.sizes.read is None:
        yield "no tok/s: the size of the weights outside the experts is not known; name the model with --model"
    elif not all(rated) and lacking:
        where, which = " where experts are on both sides" if any(rated) else "", " and ".join(lacking)
        yield f"no tok/s{where}: give {which} (of memory, as 40GB/s); the run's probe did not measure it"
    if any(rated):
        side = "GPU" if plan.dense_on_gpu else "CPU"
        yield (
            f"tok/s: time = bytes / bandwidth, added over the layers, other weights on the {side}, batch size 1; "
            "KV cache reads and overheads are left out"
        )
        for side in bandwidths.probed:
            yield f"{side.upper()}: {bandwidth(getattr(bandwidths, side))}, probed before that run"
