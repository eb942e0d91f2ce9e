"""Levels of load, for a terminal: a line a level, and where the knee of each curve lies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.analysis import alike
from pytest_infer.metrics import by_key
from pytest_infer.metrics.load import PREFIX
from pytest_infer.report.compare.exports import escape
from pytest_infer.report.text import print_table, printable
from pytest_infer.units import column, percent, show

if TYPE_CHECKING:
    from pytest_infer.analysis.load.curve import Estimate, LoadCurve, Point

COLUMNS = (
    ("offered", "offered"),
    ("throughput", "output"),
    ("ttft_p50_s", "TTFT\np50"),
    ("ttft_p99_s", "TTFT\np99"),
    ("tpot_p50_s", "TPOT\np50"),
    ("latency_p50_s", "latency\np50"),
    ("latency_p99_s", "latency\np99"),
    ("misses", "misses"),
)
"""The figures of a line, without what their keys begin with, and their headings."""
SERVER = (
    ("cpu_s", "CPU"),
    ("peak_rss_bytes", "peak memory"),
    ("server_cached_tokens", "cached tokens"),
    ("server_kv_usage", "KV cache"),
    ("server_waiting", "requests queued before"),
)
"""What a curve's line says of the server, and its words for it."""
_WIDEST = 1000
"""An interval of which no more is said, as one of two repetitions may be, percent."""
_WIDE = 100
_LEFT_OUT = ("offered", "latency_p50_s")
"""What a narrow terminal does not show."""


def write(console: Console, curves: Sequence[LoadCurve]) -> None:
    """Write all levels, a line each, and what each curve says."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return
    shown = [(key, heading) for key, heading in COLUMNS if console.width >= _WIDE or key not in _LEFT_OUT]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("under load\n", no_wrap=True)
    cells = []
    for key, heading in shown:
        unit, figures = column([_value(point, key) for point in points], by_key(PREFIX + key).unit)
        first, _, second = heading.partition("\n")
        table.add_column(f"{first}\n{f'{second} ' if second else ''}{unit}", justify="right", no_wrap=True)
        cells.append(figures)
    title = titles(points)
    for number, point in enumerate(points):
        name = f"{title[point.test]}{' !' if point.marks else ''}"
        table.add_row(printable(name), *(figures[number] for figures in cells))
    print_table(console, table)
    for line in _said(curves):
        console.print(Text(printable(line)))


def titles(points: Iterable[Point]) -> dict[str, str]:
    """Return how a table's rows call each level, by its test: its name, or the test's own where several have that."""
    return alike.titles({point.test: point.level.name for point in points})


def _said(curves: Sequence[LoadCurve]) -> Iterator[str]:
    """Yield what each curve says, and of which test that is where there are several."""
    title = alike.titles({curve.test: "" for curve in curves})
    for curve in curves:
        of = f"{title[curve.test]}: " if title[curve.test] else ""
        yield from (f"{of}{line}" for line in lines(curve))


def markdown(curves: Sequence[LoadCurve]) -> Iterator[str]:
    """Yield the lines of a table of all levels, with the intervals of their figures, and what each curve says."""
    yield f"| under load | {' | '.join(by_key(PREFIX + key).label for key, _ in COLUMNS)} |"
    yield f"|---|{'---:|' * len(COLUMNS)}"
    points = [point for curve in curves for point in curve.points]
    title = titles(points)
    for point in points:
        cells = [f"{_shown(point, key)} {interval(point.figures.get(PREFIX + key))}".rstrip() for key, _ in COLUMNS]
        yield f"| {escape(title[point.test])}{' !' if point.marks else ''} | {' | '.join(cells)} |"
    for line in _said(curves):
        yield f"\n{escape(line)}"


def _shown(point: Point, key: str) -> str:
    return show(_value(point, key), by_key(PREFIX + key).unit)


def _value(point: Point, key: str) -> float | None:
    found = point.figures.get(PREFIX + key)
    return None if found is None else found.value


def lines(curve: LoadCurve) -> Iterator[str]:
    """Yield at which levels the sender was the bottleneck, and where the knee of a curve lies."""
    bound = [point.level.name for point in curve.points if point.client_bound]
    if bound:
        yield f"the sender was the bottleneck at {', '.join(bound)}: these say nothing of the server"
    server = [part for key, word in SERVER if (part := _range(curve, key, word)) is not None]
    if server:
        yield f"the server, a repetition: {', '.join(server)}"
    knee = curve.knee
    if knee is None:
        return
    where = knee.level.name
    if knee.alike:
        where += f", which cannot be told from {', '.join(level.name for level in knee.alike)}"
    end = " or above: no higher level tells of the server" if knee.last else " or below" if knee.first else ""
    yield f"knee at {where}{end} (greatest throughput / median latency)"


def _range(curve: LoadCurve, key: str, word: str) -> str | None:
    """Return a figure's smallest and largest value over the levels; None where no level has it."""
    found = [point.figures[key].value for point in curve.points if key in point.figures]
    if not found:
        return None
    ends = dict.fromkeys(show(end, by_key(key).unit) for end in (min(found), max(found)))
    return f"{word} {' to '.join(ends)}"


def interval(estimate: Estimate | None) -> str:
    """Return half of an interval as a share of its figure: `± 4 %`; nothing for one repetition."""
    if estimate is None or estimate.low is None or estimate.high is None or not estimate.value:
        return ""
    half = 50 * (estimate.high - estimate.low) / abs(estimate.value)
    return f"± {percent(half)}" if half <= _WIDEST else f"± over {_WIDEST} %"
