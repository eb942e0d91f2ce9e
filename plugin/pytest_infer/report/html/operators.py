"""What torch's profiler recorded: each test's largest operators, memory by role, and the traces beside the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pytest_infer.analysis.breakdown import memory
from pytest_infer.metrics.breakdown import DECODE, PREFILL
from pytest_infer.metrics.result import Result
from pytest_infer.records import Operators, PhaseOperators
from pytest_infer.report.html.parts import Cell, ColumnHead, Item, Table, anchor, percent, short
from pytest_infer.units import NONE, Unit, scale_of, significant, size


def items(tests: Iterable[tuple[str, Result]]) -> Iterator[Item]:
    """Yield the traces with why one is missing, and each test's tables; nothing where no operators were asked for."""
    found = [(title, result, result.operators) for title, result in tests if result.operators is not None]
    if not found:
        return
    traces = [f"Trace of {title}, for ui.perfetto.dev: {result.trace}" for title, result, _ in found if result.trace]
    yield Item(title="Operators", text=(*traces, *(line for title, _, told in found for line in _absent(title, told))))
    for title, result, told in found:
        phases = {DECODE: told.decode, PREFILL: told.prefill}
        tables = [_operators(name, phase) for name, phase in phases.items() if phase is not None]
        tables += _memory(result, told)
        if tables:
            yield Item(title=f"Operators and memory of {title}", tables=tuple(tables), folded=True)


def _absent(title: str, told: Operators) -> Iterator[str]:
    reasons = {
        "no operators": told.absent,
        "no operators of the prefill": told.prefill_absent,
        "no activations": told.peaks_absent,
        "no trace": told.trace_absent,
    }
    yield from (f"{title}: {what}: {why}." for what, why in reasons.items() if why)


def _operators(name: str, phase: PhaseOperators) -> Table:
    unit, scale = scale_of([one.self_s for one in phase.operators], Unit.SECONDS)
    device = phase.device_s is not None
    steps = f"mean of {phase.steps} steps" if phase.steps > 1 else "1 step"
    rows = tuple(
        (
            Cell(text=one.name.removeprefix("aten::")),
            Cell(text=one.role),
            Cell(text=significant(one.calls)),
            Cell(text=short(one.self_s, scale)),
            Cell(text=percent(one.self_s / phase.self_s if phase.self_s else None)),
            *([Cell(text=short(one.device_s, scale))] if device else []),
            Cell(text=one.shapes),
        )
        for one in phase.operators
    )
    heads = (
        ColumnHead(text="operator", number=False),
        ColumnHead(text="role", number=False, define=anchor("self-time")),
        ColumnHead(text="calls"),
        ColumnHead(text="self time", unit=unit),
        ColumnHead(text="share", unit="%"),
        *([ColumnHead(text="on the device", unit=unit)] if device else []),
        ColumnHead(text="shapes", number=False),
    )
    return Table(caption=f"The largest operators, {name}, {steps}, with what recording costs", heads=heads, rows=rows)


def _memory(result: Result, told: Operators) -> list[Table]:
    """Return the table of memory by role; nothing where none is known."""
    known = memory.by_role(result)
    phases = (told.prefill, told.decode)
    heads = [ColumnHead(text="role", number=False), ColumnHead(text="weights")]
    heads += [ColumnHead(text=f"most in {name}") for name in (PREFILL, DECODE)]
    rows = [
        (Cell(text=one.role), *map(_bytes, (one.parameter_bytes, one.prefill_peak, one.decode_peak))) for one in known
    ]
    together = [
        sum(one.parameter_bytes or 0 for one in known),
        *(None if one is None else one.peak_bytes for one in phases),
    ]
    total = (Cell(text="together, at one moment"), *map(_bytes, together))
    table = Table(caption="Memory by role", heads=tuple(heads), rows=(*rows, total), foot=1)
    return [table] if known else []


def _bytes(value: int | None) -> Cell:
    return Cell(text=size(value), sort=value) if value else Cell(text=NONE)
