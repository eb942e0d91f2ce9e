"""A sweep or a curve of two sides as Markdown, for a pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_infer.metrics import by_key
from pytest_infer.report.compare.exports import escape, table
from pytest_infer.report.sweep import sides as words
from pytest_infer.units import column

if TYPE_CHECKING:
    from pytest_infer.analysis.sweep.sides import CurveSides, SweptSides


def as_markdown(found: SweptSides) -> str:
    """Return each curve with both sides' times and fits, then the configurations."""
    lines: list[str] = []
    for one in found.curves:
        lines += [f"**{escape(f'by prompt length, {found.before} and {words.AFTER}: {words.title(one)}')}**", ""]
        lines += [f"- {escape(line)}" for line in words.sentences(one)]
        lines += ["", *_lengths(one), ""]
        if any(figure.coefficients for figure in one.figures):
            lines += [*_coefficients(one), "", escape(words.deviations(one)), ""]
    if found.configurations:
        lines += [f"**{escape(f'{words.AFTER} against {found.before}, by configuration')}**", ""]
        lines += [f"- {escape(line)}" for line in words.of_configurations(found.configurations)]
        keys = words.measured(found.configurations)
        heads = ["configuration", *(by_key(key).label for key in keys)]
        rows = [[one.label, *(words.cell(one.changes.get(key)) for key in keys)] for one in found.configurations]
        lines += ["", *table(heads, rows), ""]
    lines += [f"- {escape(line)}" for line in words.left_out(found)]
    return "\n".join(lines).rstrip() + "\n"


def _lengths(one: CurveSides) -> list[str]:
    heads, columns = ["prompt tokens"], [[str(point.tokens) for point in one.after.points]]
    for figure in one.figures:
        metric = by_key(figure.metric_key)
        times = [[getattr(p, figure.metric_key) for p in side.points] for side in (one.before, one.after)]
        unit, both = column([*times[0], *times[1]], metric.unit)
        heads += [f"{metric.label} before, {unit}", "after", "change"]
        changes = [words.change(j.mid, j.low, j.high) for j in figure.judgements]
        columns += [both[: len(times[0])], both[len(times[0]) :], changes]
    return table(heads, list(zip(*columns, strict=True)))


def _coefficients(one: CurveSides) -> list[str]:
    rows = [
        [
            f"{by_key(figure.metric_key).label} {coefficient.name}",
            words.each(coefficient.before),
            words.each(coefficient.after),
            words.coefficient_change(coefficient),
        ]
        for figure in one.figures
        for coefficient in figure.coefficients
    ]
    return table(["fit", "before", "after", "change"], rows)
