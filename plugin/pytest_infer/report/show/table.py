"""The table of a run: a row a prompt, each value with its spread, and what changed since the last run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from pytest_infer.analysis import alike
from pytest_infer.analysis.suite import averages
from pytest_infer.metrics import Summary, by_key, columns
from pytest_infer.metrics.metric import Column
from pytest_infer.metrics.result import Result
from pytest_infer.report.show.since import Cell
from pytest_infer.report.text import printable
from pytest_infer.units import NONE, column, show

NARROW = 64
"""Below so many columns a prompt takes several lines."""
_NAME = 24
"""So much of a prompt's name is shown before a column goes to a line of its own."""
_SHORTEST = 10
_MEAN = "mean"
_SEPARATOR = " · "


def brief() -> dict[str, Column]:
    """Return the columns that a terminal shows, by the keys of their metrics."""
    return {key: of for key, of in columns().items() if of.brief}


def titles(results: Iterable[Result]) -> dict[str, str]:
    """Return how a table's rows call each test, by its id: its prompt, or its own name where several have that."""
    return alike.titles({result.nodeid: result.prompt.name for result in results})


def write(console: Console, results: Sequence[Result], since: Mapping[str, Cell] | None, run: str = "") -> None:
    """Write the table; `since` is what changed in each test since a run that is called `run`, None without one."""
    if console.width < NARROW:
        _write_narrow(console, results, since)
        return
    name, *figures = _columns(results)
    experts = _Column("hottest\nexperts", [*(_experts(result) for result in results), ""], left=True)
    changed = _Column(f"since\n{run}", [*(_since(since, result).text for result in results), ""], left=True)
    behind: list[_Column] = []
    used = any(cell not in ("", NONE) for cell in experts.cells)
    beside = [*figures, *([experts] if used else []), *([] if since is None else [changed])]
    # What does not fit beside the figures stands below them: the change first, which is the longest.
    while len(beside) > len(figures) and _width([name, *beside]) > console.width:
        behind.insert(0, beside.pop())
    name.limit(max(_SHORTEST, console.width - _width(beside) - 1))
    shown = [name, *beside]
    console.print(Text("\n".join(_heads(shown)), style="bold"))
    for number, result in enumerate(results):
        style = _since(since, result).style
        line = Text(_row(shown, number))
        if changed in beside and (text := changed.cells[number]):
            line.stylize(style, len(line.plain) - len(text))
        console.print(line)
        for one in behind:
            below = Text(one.cells[number], style=style if one is changed else "")
            console.print(*(Text("  ").append_text(part) for part in below.wrap(console, console.width - 2)), sep="\n")
    if len(results) > 1:
        console.print(Text(_row(shown, len(results)), style="bold"))


def _since(since: Mapping[str, Cell] | None, result: Result) -> Cell:
    return (since or {}).get(result.nodeid, Cell("", ""))


def _experts(result: Result) -> str:
    return printable(show(result.figures["hottest_experts"].value, by_key("hottest_experts").unit))


@dataclass
class _Column:
    """A column: its heading in two lines, and a cell a row."""

    heading: str
    cells: list[str]
    left: bool = False

    @property
    def width(self) -> int:
        return max(map(cell_len, (*self.heading.split("\n"), *self.cells)))

    def limit(self, width: int) -> None:
        """Cut what is longer; a mark at the end stays."""
        for number, cell in enumerate(self.cells):
            if cell_len(cell) > width:
                mark = " !" if cell.endswith(" !") else ""
                self.cells[number] = _cut(cell.removesuffix(mark), width - len(mark)) + mark


def _cut(name: str, width: int) -> str:
    """Return a name cut to a width: a test's own in its middle, as either end may tell it from others."""
    tail = name if name.endswith("]") or "::" in name else ""
    while cell_len(tail) > (width - 1) // 2:
        tail = tail[1:]
    return f"{set_cell_size(name, width - 1 - cell_len(tail)).rstrip()}…{tail}"


def _width(shown: Sequence[_Column]) -> int:
    """Return what the columns take, of a long name what is shown of it."""
    return sum(min(one.width, _NAME) if one.heading == "prompt\n" else one.width for one in shown) + len(shown) - 1


def _columns(results: Sequence[Result]) -> Iterator[_Column]:
    title = titles(results)
    names = [printable(title[result.nodeid]) + (" !" if result.warnings else "") for result in results]
    yield _Column("prompt\n", [*names, _MEAN], left=True)
    yield _Column("tokens\nin+out", [*(tokens(result) for result in results), ""])
    suite = averages((result.figures for result in results), brief())
    for key, of in brief().items():
        values = [_number(result.figures[key].value) for result in results]
        unit, figures = column([*values, suite[key].mean if key in suite else None], by_key(key).unit)
        if of.scattered:
            figures = _beside(figures, [*(spread(result.figures[key]) for result in results), ""])
        yield _Column(f"{of.heading}\n{unit}", figures)


def _beside(figures: Sequence[str], spreads: Sequence[str]) -> list[str]:
    """Return figures with their spreads, aligned at the sign between them."""
    room = max(map(cell_len, spreads))
    return [f"{figure}{' ' if room else ''}{spread:<{room}}" for figure, spread in zip(figures, spreads, strict=True)]


def spread(figure: Summary) -> str:
    """Return the rounds' standard deviation as a share of their mean: `± 4 %`; nothing where there is one round."""
    if figure.stdev is None or not figure.mean:
        return ""
    percent = 100 * figure.stdev / abs(figure.mean)
    return f"± {percent:.0f} %" if percent >= 1 else f"± {percent:.1f} %"


def _heads(shown: Sequence[_Column]) -> Iterator[str]:
    for line in range(2):
        yield _aligned([(one, one.heading.split("\n")[line]) for one in shown])


def _row(shown: Sequence[_Column], number: int) -> str:
    return _aligned([(one, one.cells[number]) for one in shown])


def _aligned(cells: Sequence[tuple[_Column, str]]) -> str:
    parts = []
    for one, text in cells:
        padding = " " * (one.width - cell_len(text))
        parts.append(text + padding if one.left else padding + text)
    return " ".join(parts).rstrip()


def tokens(result: Result) -> str:
    """Return how many went in and came out: `7+60`; a dash for what a server does not tell."""
    known = (result.figures[key].value for key in ("prompt_tokens", "generated_tokens"))
    return "+".join(NONE if value is None else str(value) for value in known)


def _number(value: float | str | None) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _write_narrow(console: Console, results: Sequence[Result], since: Mapping[str, Cell] | None) -> None:
    title = titles(results)
    for result in results:
        hottest = _experts(result)
        head = f"{title[result.nodeid]}{' !' if result.warnings else ''}  {tokens(result)} tokens"
        console.print(Text(printable(head + (f"  {hottest}" if hottest != NONE else "")), style="bold"))
        _write_figures(console, {key: scattered(result.figures[key], key) for key in brief()})
        cell = _since(since, result)
        if cell.text:
            console.print(Text(f"  {cell.text}", style=cell.style))
    if len(results) > 1:
        console.print(Text(_MEAN, style="bold"))
        _write_figures(console, _means(results))


def mean_line(results: Sequence[Result]) -> str:
    """Return the means of the columns over the prompts in a line."""
    return _SEPARATOR.join(_named(_means(results)))


def _means(results: Sequence[Result]) -> dict[str, str]:
    suite = averages((result.figures for result in results), brief())
    return {key: show(suite[key].mean if key in suite else None, by_key(key).unit) for key in brief()}


def scattered(figure: Summary, key: str) -> str:
    """Return a figure of a column with its unit, and how much the rounds scatter where the column shows that."""
    scatter = spread(figure) if columns()[key].scattered else ""
    return f"{show(figure.value, by_key(key).unit)}{' ' if scatter else ''}{scatter}"


def _write_figures(console: Console, figures: Mapping[str, str]) -> None:
    for line in packed(_named(figures), console.width - 2):
        console.print(Text(f"  {line}"))


def _named(figures: Mapping[str, str]) -> Iterator[str]:
    """Yield the columns' values, each behind its heading unless it speaks for itself."""
    for key, of in brief().items():
        yield figures[key] if of.bare else f"{of.heading} {figures[key]}"


def packed(parts: Iterable[str], room: int) -> Iterator[str]:
    """Yield lines of whole parts, as many as there is room for, one at least."""
    line = ""
    for part in parts:
        joined = f"{line}{_SEPARATOR}{part}" if line else part
        if line and cell_len(joined) > room:
            yield line
            joined = part
        line = joined
    if line:
        yield line
