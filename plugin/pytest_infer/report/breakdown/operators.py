"""What torch's profiler recorded: a line of the largest operators, the traces' names, and the tables of a test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.analysis.breakdown import memory
from pytest_infer.metrics.breakdown import DECODE, PREFILL
from pytest_infer.metrics.result import Result
from pytest_infer.records import Operators, PhaseOperators
from pytest_infer.report.breakdown.terminal import percent
from pytest_infer.report.text import print_table, printable
from pytest_infer.units import NONE, Unit, show, significant, size

_LEAST, _NAMED, _ROWS = 2, 3, 10
"""So many operators are named in a line, traces by name, and rows shown of a table."""
_SMALL = 0.0005
_HEADS = ("role", "operator", "shapes", "calls", "self time")


def lines(results: Sequence[Result], *, width: int) -> Iterator[Text]:
    """Yield the largest operators of a decode step, or of the prefill without one, and the names of the traces."""
    found = [result.operators for result in results if result.operators is not None]
    for phase, named in (([one.decode for one in found], DECODE), ([one.prefill for one in found], PREFILL)):
        recorded = [one for one in phase if one is not None]
        if recorded:
            yield Text(printable(_line(recorded, named, width)))
            break
    names = [result.trace for result in results if result.trace is not None]
    if names:
        more = f", {len(names)} of them" if len(names) > _NAMED else ""
        yield Text(f"traces beside the run{more}, for ui.perfetto.dev:", style="dim")
    for name in names[:_NAMED]:
        yield Text(f"  {printable(name)}")
    reasons = dict.fromkeys(f"no operators: {one.absent}" for one in found if one.absent)
    reasons |= dict.fromkeys(
        f"no operators of the prefill: {one.prefill_absent}" for one in found if one.prefill_absent
    )
    reasons |= dict.fromkeys(f"no trace: {one.trace_absent}" for one in found if one.trace_absent)
    for reason in reasons:
        yield Text(printable(reason), style="dim")


def _line(recorded: Sequence[PhaseOperators], phase: str, width: int) -> str:
    """Return as many operators as one line holds, whatever their shapes, the largest first."""
    took: Counter[str] = Counter()
    for one in recorded:
        for row in one.operators:
            took[f"{row.name.removeprefix('aten::')} in {row.role}"] += _time(row.self_s, row.device_s)  # type: ignore[assignment]
    whole = sum(_time(one.self_s, one.device_s) for one in recorded) or 1.0
    steps = (
        f"{recorded[0].steps} decode step{'s' if recorded[0].steps > 1 else ''}" if phase == DECODE else "the prefill"
    )
    line, left = f"operators of {steps}, profiled: ", 1.0
    for number, (name, seconds) in enumerate(took.most_common()):
        part = f"{', ' if number else ''}{name} {percent(seconds / whole)}"
        if number >= _LEAST and len(line + part + ", others 99 %") > width:
            break
        line, left = line + part, left - seconds / whole
    return f"{line}, others {percent(left)}" if left >= _SMALL else line


def _time(host: float, device: float | None) -> float:
    return host if device is None else device


def write(console: Console, result: Result, title: str) -> None:
    """Write the tables of a test, under its title: the largest operators of each phase, and the memory of each role."""
    operators = result.operators
    phases = {} if operators is None else {PREFILL: operators.prefill, DECODE: operators.decode}
    for name, phase in phases.items():
        if phase is not None:
            steps = f"mean of {phase.steps} steps" if phase.steps > 1 else "1 step"
            _title(console, f"{title}: operators, {name}, {steps}")
            console.print(_operators(phase))
    rows = memory.by_role(result)
    if rows:
        cache = result.figures["kv_cache_bytes"].value
        kept = f"; KV cache at the end {size(cache)}" if isinstance(cache, int | float) else ""
        _title(console, f"{title}: memory by role{kept}")
        print_table(console, _memory(operators, rows))
    if operators is not None and operators.peaks_absent:
        console.print(Text(printable(f"no activations: {operators.peaks_absent}"), style="dim"))


def _title(console: Console, title: str) -> None:
    # Not the table's own, which is wrapped where the table ends.
    console.print(Text(printable(title), style="dim"))


def _operators(phase: PhaseOperators) -> Table:
    device = phase.device_s is not None
    table = _table((*_HEADS, "on the device") if device else _HEADS, left=3)
    for row in phase.operators[:_ROWS]:
        share = f" {percent(row.self_s / phase.self_s if phase.self_s else 0.0)}"
        name = row.name.removeprefix("aten::")
        cells = [row.role, name, row.shapes, significant(row.calls), f"{show(row.self_s, Unit.SECONDS)}{share}"]
        table.add_row(*map(printable, cells), *([show(row.device_s, Unit.SECONDS)] if device else []))
    return table


def _memory(operators: Operators | None, rows: Sequence[memory.RoleMemory]) -> Table:
    phases = None if operators is None else (operators.prefill, operators.decode)
    recorded = phases is not None and any(phase is not None and phase.peaks for phase in phases)
    heads = ("role", "weights", *(("most in prefill", "most in decode") if recorded else ()))
    table = _table(heads, left=1)
    for row in rows:
        peaks = [row.prefill_peak, row.decode_peak] if recorded else []
        if row.parameter_bytes or any(peaks):
            table.add_row(printable(row.role), *(NONE if not n else size(n) for n in (row.parameter_bytes, *peaks)))
    if recorded and phases is not None:
        whole = [None if phase is None else phase.peak_bytes for phase in phases]
        own = sum(row.parameter_bytes or 0 for row in rows)
        table.add_row("together, at one moment", size(own), *(NONE if not n else size(n) for n in whole))
    return table


def _table(heads: Sequence[str], *, left: int) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < left else "right", overflow="fold", no_wrap=number >= left)
    return table
