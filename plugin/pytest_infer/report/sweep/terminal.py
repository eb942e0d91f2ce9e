"""What a sweep found, for a terminal: a row a configuration, the best of each, and the options to use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.analysis.sweep.axes import FEWEST_WORKLOADS
from pytest_infer.metrics import Direction, by_key
from pytest_infer.report.text import printable
from pytest_infer.units import Unit, column, show, significant

if TYPE_CHECKING:
    from pytest_infer.analysis.sweep.ratios import Ratio
    from pytest_infer.analysis.sweep.recommend import ConfigurationSummary, Goal, Recommendation

WIDE = 110
"""From so many columns on, the table holds the intervals too."""
MOST_NAMED = 3
"""Of more configurations that cannot be told from the best, two are named and the others counted."""
_TITLES = {
    "decode_throughput": "best decode",
    "total_decode_throughput": "best decode, all sequences",
    "ttft_s": "best TTFT",
    "peak_rss_bytes": "least memory",
}


def write(console: Console, found: Recommendation) -> None:
    """Write the table of configurations, the best of each, and how to use it."""
    _write_table(console, found)
    first = printable(found.configurations[0].label)
    note = f"×: by {first}, geometric mean over prompts"
    front = [configuration for configuration in found.configurations if configuration.pareto]
    note += f" · *: Pareto set of {len(front)}" if front else ""
    console.print(Text(note, style="dim"))
    for goal in found.goals:
        console.print(Text(sentence(found, goal), style="bold"))
    if (line := drift(found)) is not None:
        console.print(Text(line, style="dim"))
    if found.left_out:
        names = ", ".join(map(printable, found.left_out))
        console.print(Text(f"not compared, no measured prompt in common with {first}: {names}", style="yellow"))
    if found.options:
        console.print(Text(f"use the best decode: {printable(found.options)}"))


def drift(found: Recommendation) -> str | None:
    """Return how far the machine drifted, and which intervals do not hold that; None where all do."""
    few = min(configuration.workloads for configuration in found.configurations) < FEWEST_WORKLOADS
    within = f"with fewer than {FEWEST_WORKLOADS} prompts no interval within a load holds drift" if few else None
    if found.loads < 2:
        return within
    metric = next((goal.metric for goal in found.goals if goal.metric in found.drift), None)
    if metric is None:
        between = "drift between loads was not measured: no interval holds it"
    else:
        ratios = found.drift[metric]
        ends = dict.fromkeys(f"{100 * (ratio - 1):+.1f} %" for ratio in (min(ratios), max(ratios)))
        whose = "each load" if len(ratios) >= found.loads else f"{len(ratios)} of {found.loads} loads"
        between = (
            f"drift: the first test of {whose}, again after its last: {by_key(metric).label} {' to '.join(ends)}; "
            "intervals between loads hold it"
        )
    return f"{between}; {within}" if within else between


def interval(ratio: Ratio, *, invert: bool = False) -> str:
    """Return a ratio with its interval: `1.31× [1.28, 1.34]`; inverted, how often the other is in it."""
    value, low, high = ratio.value, ratio.low, ratio.high
    if invert:
        value, low, high = 1 / value, 1 / high if high else None, 1 / low if low else None
    shown = f"{significant(value)}×"
    return shown if low is None or high is None else f"{shown} [{significant(low)}, {significant(high)}]"


def _write_table(console: Console, found: Recommendation) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("configuration\n", overflow="fold")
    counts = {configuration.workloads for configuration in found.configurations}
    if len(counts) > 1:
        table.add_column("prompts\n", justify="right", no_wrap=True)
    columns: list[list[str]] = []
    for goal in found.goals:
        metric = by_key(goal.metric)
        figures = [configuration.figures.get(goal.metric) for configuration in found.configurations]
        unit, values = column([None if figure is None else figure.value for figure in figures], metric.unit)
        table.add_column(f"{metric.label}\n{unit}", justify="right", no_wrap=True)
        table.add_column("\n×", justify="right", no_wrap=True)
        ratios = [None if figure is None else figure.ratio for figure in figures]
        wide = console.width >= WIDE
        columns += [values, ["" if r is None else _ratio(r, wide=wide and n > 0) for n, r in enumerate(ratios)]]
    for number, configuration in enumerate(found.configurations):
        name = _name(configuration, best=any(goal.best == number for goal in found.goals))
        prompts = [str(configuration.workloads)] if len(counts) > 1 else []
        table.add_row(name, *prompts, *(values[number] for values in columns))
    console.print(table)


def _ratio(ratio: Ratio, *, wide: bool) -> str:
    return interval(ratio).replace("×", "") if wide else significant(ratio.value)


def _name(configuration: ConfigurationSummary, *, best: bool) -> Text:
    mark = " *" if configuration.pareto else ""
    return Text(printable(configuration.label) + mark, style="bold" if best else "")


def sentence(found: Recommendation, goal: Goal) -> str:
    """Return which configuration is best by a goal, and how it compares with the first, for people."""
    best, first = found.configurations[goal.best], found.configurations[0]
    figure, metric = best.figures[goal.metric], by_key(goal.metric)
    line = f"{_TITLES[goal.metric]}: {printable(best.label)}, {show(figure.value, metric.unit)}"
    if goal.best and figure.ratio is not None:
        against = printable(first.label)
        if metric.unit is Unit.BYTES:
            line += f", {interval(figure.ratio)} the memory of {against}"
        else:
            faster = interval(figure.ratio, invert=metric.direction is Direction.LOWER)
            line += f", {faster} as fast as {against}"
    if goal.ties:
        ties = [printable(found.configurations[number].label) for number in goal.ties]
        if len(ties) > MOST_NAMED:
            ties[MOST_NAMED - 1 :] = [f"{len(ties) - MOST_NAMED + 1} others"]
        line += f"; not distinct from {', '.join(ties)}"
    return line
