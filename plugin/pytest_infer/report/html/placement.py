"""What a placement of experts on a GPU would serve, by the budget for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_infer.analysis.experts import recorded
from pytest_infer.errors import InferError
from pytest_infer.report.html.parts import Cell, Chart, ColumnHead, Item, Table, anchor, percent, points
from pytest_infer.storage.runs import Row
from pytest_infer.units import Unit, count, scale_of, significant

if TYPE_CHECKING:
    from pytest_infer.analysis.experts.census import Phase
    from pytest_infer.analysis.experts.suite import PromptUsage
    from pytest_infer.analysis.placement.planning import BudgetRow, PlacementPlan

_STRATEGIES = ("frequency", "whole layers", "first layers", "random")
_TITLE = "Placement"


def item(rows: Sequence[Row], prompts: Sequence[PromptUsage], phase: Phase) -> Item:
    """Return the curve of placements over budgets, or why there is none."""
    # Imported late: numpy is loaded where it is needed.
    from pytest_infer.analysis.experts import census  # noqa: PLC0415
    from pytest_infer.analysis.placement import planning, sizes  # noqa: PLC0415

    try:
        apart = recorded.sizes_apart(rows)
        held = sizes.of_run(
            census.sites_of([one.census for one in prompts]), rows[0].model.parameter_bytes, apart=apart
        )
        traces = [
            planning.Traced(traces=one.trace, prefill_tokens=one.census.prefill_tokens)
            for one in prompts
            if one.trace is not None
        ]
        plan = planning.plan([one.census for one in prompts], held, phase=phase, traces=traces)
    except InferError as error:
        return Item(title=_TITLE, text=(f"No placement: {error}",))
    return Item(charts=(_chart(plan),))


def _share(budget: BudgetRow, name: str) -> float | None:
    held_out = budget.held_out.get(name)
    return budget.in_sample.get(name) if held_out is None else held_out.mean


def _chart(plan: PlacementPlan) -> Chart:
    held_out = plan.sweep[0].held_out["frequency"] is not None
    names = [name for name in _STRATEGIES if any(_share(row, name) is not None for row in plan.sweep)]
    budgets = [row.budget for row in plan.sweep]
    unit, scale = scale_of([*budgets], Unit.BYTES)
    half = min(plan.sweep, key=lambda row: abs(row.budget - plan.experts.total / 2))
    how = "on prompts that it was not planned from" if held_out else "on the prompts that it was planned from"
    says = (
        f"Share of expert reads from the GPU by the memory for the {count(len(plan.experts.bytes))} experts, {how}: "
        f"half of the weights serve {percent(_share(half, 'frequency'))} %."
    )
    series = [
        {"name": name, "values": points([_share(r, name) for r in plan.sweep], 0.01), "look": _look(name)}
        for name in names
    ]
    lru = [row.lru for row in plan.sweep]
    if any(value is not None for value in lru):
        series.append({"name": "LRU cache of that size", "values": points(lru, 0.01), "look": "thin"})
    return Chart(
        key="placement",
        title="Placement: what a GPU that holds some experts serves",
        says=says,
        data={
            "kind": "lines",
            "x": {"name": "GPU memory for experts", "unit": unit, "values": points([*budgets], scale)},
            "y": {"name": "expert reads from the GPU", "unit": "%", "top": 100},
            "series": series,
        },
        table=_table(plan, names, unit, scale),
        define=(("placement", anchor("placement")),),
    )


def _look(name: str) -> str:
    return {"frequency": "strong", "random": "dashed"}.get(name, "")


def _table(plan: PlacementPlan, names: Sequence[str], unit: str, scale: float) -> Table:
    heads = (
        ColumnHead(text="budget", unit=unit, define=anchor("placement")),
        ColumnHead(text="experts held"),
        *(ColumnHead(text=name, unit="%", define=anchor("placement")) for name in names),
        ColumnHead(text="range of frequency", unit="%"),
        ColumnHead(text="LRU cache", unit="%"),
    )
    rows = []
    for row in plan.sweep:
        found = row.held_out["frequency"]
        rows.append(
            (
                Cell(text=significant(row.budget / scale)),
                Cell(text=count(row.held)),
                *(Cell(text=percent(_share(row, name))) for name in names),
                Cell(text="" if found is None else f"{percent(found.low)}–{percent(found.high)}"),
                Cell(text=percent(row.lru)),
            )
        )
    return Table(caption="Expert reads from the GPU by budget", heads=heads, rows=tuple(rows))
