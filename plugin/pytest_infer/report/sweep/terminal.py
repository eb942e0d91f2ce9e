"""What a sweep found, for a terminal: a row a configuration, the best of each, and the options to use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.analysis.sweep.axes import FEWEST_WORKLOADS
from pytest_infer.metrics import Direction, by_key
from pytest_infer.report.show.table import packed
from pytest_infer.report.text import printable
from pytest_infer.units import NONE, Unit, column, nats, show, significant

if TYPE_CHECKING:
    from pytest_infer.analysis.sweep.ratios import Ratio
    from pytest_infer.analysis.sweep.recommend import ConfigurationSummary, Goal, Recommendation

WIDE = 110
"""From so many columns on, the table holds the intervals too."""
_BESIDE = 16
"""What the columns of fidelity take."""
_GAP, _SHORTEST = 2, 12
"""Columns between columns, and of the shortest name of a configuration that stands in a row."""
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
    if (line := pooled(found)) is not None:
        console.print(Text(printable(line), style="yellow"))
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


def pooled(found: Recommendation) -> str | None:
    """Return of which models together this is said; None where each configuration has one."""
    if not found.models:
        return None
    return f"of {len(found.models)} models together ({', '.join(found.models)}): -k takes the tests of one"


def interval(ratio: Ratio, *, invert: bool = False) -> str:
    """Return a ratio with its interval: `1.31× [1.28, 1.34]`; inverted, how often the other is in it."""
    value, low, high = ratio.value, ratio.low, ratio.high
    if invert:
        value, low, high = 1 / value, 1 / high if high else None, 1 / low if low else None
    shown = f"{significant(value)}×"
    return shown if low is None or high is None or low == high else f"{shown} [{significant(low)}, {significant(high)}]"


def _write_table(console: Console, found: Recommendation) -> None:
    counts = [configuration.workloads for configuration in found.configurations]
    names = [_name(one, best=any(goal.best == n for goal in found.goals)) for n, one in enumerate(found.configurations)]
    columns = [("prompts", "", [str(count) for count in counts])] if len(set(counts)) > 1 else []
    distances = fidelity(found)
    for goal in found.goals:
        metric = by_key(goal.metric)
        figures = [configuration.figures.get(goal.metric) for configuration in found.configurations]
        unit, values = column([None if figure is None else figure.value for figure in figures], metric.unit)
        ratios = [None if figure is None else figure.ratio for figure in figures]
        wide = console.width >= WIDE + (_BESIDE if distances is not None else 0)
        of_first = ["" if r is None else _ratio(r, wide=wide and n > 0) for n, r in enumerate(ratios)]
        columns += [(metric.label, unit, values), ("", "×", of_first)]
    if distances is not None:
        kl, top1 = (list(cells) for cells in zip(*distances, strict=True))
        columns += [("KL", "nats", kl), ("top-1", "%", top1)]
    widths = [max(map(cell_len, (label, unit, *cells))) + _GAP for label, unit, cells in columns]
    if console.width < sum(widths) + _SHORTEST:
        _write_narrow(console, names, columns)
        return
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    table.add_column("configuration\n", overflow="fold")
    for label, unit, _ in columns:
        table.add_column(f"{label}\n{unit}", justify="right", no_wrap=True)
    for number, name in enumerate(names):
        table.add_row(name, *(cells[number] for _, _, cells in columns))
    console.print(table)


def _write_narrow(console: Console, names: Sequence[Text], columns: Sequence[tuple[str, str, list[str]]]) -> None:
    """Write a configuration in several lines, where a row has no room for its name."""
    for number, name in enumerate(names):
        console.print(name)
        parts: list[str] = []
        for label, unit, cells in columns:
            if label:
                parts.append(" ".join(part for part in (label, cells[number], unit) if part))
            elif cells[number]:
                parts[-1] += f" ({cells[number]}{unit})"
        for line in packed(parts, console.width - 2):
            console.print(Text(f"  {line}"))


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
