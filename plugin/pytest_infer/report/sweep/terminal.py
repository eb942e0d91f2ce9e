"""What a sweep found, for a terminal: a row a configuration, the best of each, and the options to use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.analysis.sweep.axes import FEWEST_WORKLOADS
from pytest_infer.metrics import Direction, by_key
from pytest_infer.report.text import printable
from pytest_infer.units import NONE, Unit, column, nats, show, significant

if TYPE_CHECKING:
    from pytest_infer.analysis.sweep.ratios import Ratio
    from pytest_infer.analysis.sweep.recommend import ConfigurationSummary, Goal, Recommendation

WIDE = 110
"""From so many columns on, the table holds the intervals too."""
_BESIDE = 16
"""What the columns of fidelity take."""
MOST_NAMED = 3
"""Of more configurations that cannot be told from the best, two are named and the others counted."""
_TITLES = {
    "decode_throughput": "best decode",
    "total_decode_throughput": "best decode, all sequences",
    "ttft_s": "best TTFT",
    "peak_rss_bytes": "least memory",
}


_NOUNS = {
    "decode_throughput": "decode",
    "total_decode_throughput": "decode",
    "ttft_s": "TTFT",
    "peak_rss_bytes": "memory",
}


def write(console: Console, found: Recommendation) -> None:
    """Write the table of configurations, the best of each, and how to use it."""
    _write_table(console, found)
    first = printable(found.configurations[0].label)
    note = f"×: by {first}, geometric mean over prompts"
    front = [configuration for configuration in found.configurations if configuration.pareto]
    note += f" · *: Pareto set of {len(front)}" if front else ""
    note += _whose(found)
    console.print(Text(note, style="dim"))
    for goal in found.goals:
        console.print(Text(sentence(found, goal), style="bold"))
    for said in traded(found):
        console.print(Text(said))
    if (line := drift(found)) is not None:
        console.print(Text(line, style="dim"))
    if found.left_out:
        names = ", ".join(map(printable, found.left_out))
        console.print(Text(f"not compared, no measured prompt in common with {first}: {names}", style="yellow"))
    if (line := advised(found)) is not None:
        console.print(Text(printable(line)))


def _whose(found: Recommendation) -> str:
    """Return from which configurations the distances are; nothing where there are none."""
    told = [c.distance for c in found.configurations if c.distance and c.distance.kl]
    references = [printable(name) for name in dict.fromkeys(distance.reference for distance in told)]
    if any(len(distance.followed) > 1 for distance in told):
        whose = "in each prompt from the configuration of its model that was measured first"
    else:
        whose = f"{'each from the one of its model: ' if len(references) > 1 else 'from '}{', '.join(references)}"
    return f" · KL: {whose}, on its tokens" if told else ""


def advised(found: Recommendation) -> str | None:
    """Return the options to use, or what to keep; None where nothing was found."""
    if not found.goals:
        return None
    metric, best = found.goals[0].metric, found.configurations[found.goals[0].best]
    if found.undecided:
        return f"no difference found in {_NOUNS[metric]}: keep {found.configurations[0].label}"
    return f"use the {_TITLES[metric]}: {found.options or f'{best.label}, which needs no option'}"


def fidelity(found: Recommendation) -> list[tuple[str, str]] | None:
    """Return each configuration's KL and top-1 agreement as a table has them; None where no distance is known."""
    if not any(configuration.distance for configuration in found.configurations):
        return None
    return [
        (NONE, NONE)
        if (distance := configuration.distance) is None
        else (f"{'' if distance.exact else '≥'}{nats(distance.kl)}", significant(distance.top1))
        for configuration in found.configurations
    ]


def traded(found: Recommendation) -> Iterator[str]:
    """Yield, for each configuration that no other beats, what it gains and what of its reference's output it loses."""
    for configuration in found.configurations[1:]:
        distance = configuration.distance
        if distance is None or not configuration.pareto:
            continue
        said = [
            f"{significant(ratio.value)}× {_NOUNS[goal.metric]}"
            for goal in found.goals
            if goal.metric in configuration.figures and (ratio := configuration.figures[goal.metric].ratio) is not None
        ]
        said.append(f"KL {'' if distance.exact else '≥ '}{nats(distance.kl)}, top-1 {significant(distance.top1)} %")
        yield f"{printable(configuration.label)}: {', '.join(said)}"


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
    return shown if low is None or high is None or low == high else f"{shown} [{significant(low)}, {significant(high)}]"


def _write_table(console: Console, found: Recommendation) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("configuration\n", overflow="fold")
    counts = {configuration.workloads for configuration in found.configurations}
    if len(counts) > 1:
        table.add_column("prompts\n", justify="right", no_wrap=True)
    columns: list[list[str]] = []
    distances = fidelity(found)
    for goal in found.goals:
        metric = by_key(goal.metric)
        figures = [configuration.figures.get(goal.metric) for configuration in found.configurations]
        unit, values = column([None if figure is None else figure.value for figure in figures], metric.unit)
        table.add_column(f"{metric.label}\n{unit}", justify="right", no_wrap=True)
        table.add_column("\n×", justify="right", no_wrap=True)
        ratios = [None if figure is None else figure.ratio for figure in figures]
        wide = console.width >= WIDE + (_BESIDE if distances is not None else 0)
        columns += [values, ["" if r is None else _ratio(r, wide=wide and n > 0) for n, r in enumerate(ratios)]]
    if distances is not None:
        for heading, unit in (("KL", "nats"), ("top-1", "%")):
            table.add_column(f"{heading}\n{unit}", justify="right", no_wrap=True)
        columns += [[one[0] for one in distances], [one[1] for one in distances]]
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
