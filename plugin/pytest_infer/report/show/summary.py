"""The summary at the end of a run: a row a prompt, the suite's averages, and what to look at twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.analysis.suite import averages
from pytest_infer.analysis.sweep.axes import label
from pytest_infer.metrics import Summary, by_key, columns, loads
from pytest_infer.metrics.metric import Column
from pytest_infer.metrics.result import Result
from pytest_infer.records import Average, CacheState, ModelInfo
from pytest_infer.report import advice
from pytest_infer.report.breakdown import operators
from pytest_infer.report.breakdown import terminal as breakdown
from pytest_infer.report.compare import terminal as comparison
from pytest_infer.report.compare import words
from pytest_infer.report.show import experts, remarks, roofline
from pytest_infer.report.sweep import curve, sides
from pytest_infer.report.sweep import terminal as sweep
from pytest_infer.report.text import collected, printable
from pytest_infer.report.text import console as new_console
from pytest_infer.units import NONE, Unit, column, show, significant

if TYPE_CHECKING:
    import pytest

    from pytest_infer.analysis.compare.noise import NamedFloor

NARROW = 64
"""Below so many columns a prompt takes two lines."""


def write_summary(reporter: pytest.TerminalReporter, run: RunSummary) -> None:
    """Write the summary to pytest's terminal, nothing if no test measures; with -q only what `quiet` says."""
    how: dict[str, Any] = {"width": reporter._tw.fullwidth, "color": reporter._tw.hasmarkup}
    if reporter.verbosity < 0:
        text = quiet(run, **how)
    elif run.results or run.unmeasured or run.notes or run.disabled or run.gated is not None or run.noise:
        text = render(run, **how, outputs=reporter.verbosity > 0)
    else:
        text = ""
    if text:
        reporter.ensure_newline()
        reporter.section("inference", bold=True)
        reporter.write(text)


def quiet(run: RunSummary, *, width: int, color: bool) -> str:
    """Return what is never left out: the lines that begin with "!", and what was judged with all notes about it."""
    console = new_console(width, color=color)
    remarks.write_alarms(console, run)
    _write_judged(console, run)
    return collected(console)


def render(run: RunSummary, *, width: int, color: bool, outputs: bool = False) -> str:
    """Return the summary as text of at most `width` columns, with ANSI colours or without any escape."""
    console = new_console(width, color=color)
    told = run.recommended is not None or bool(run.curves)
    if not told or outputs:
        for results in _configurations(run.results):
            _write_results(console, results, outputs=outputs)
    if run.recommended is not None:
        sweep.write(console, run.recommended)
    if run.sides is not None:
        sides.write(console, run.sides, drawn=outputs)
    for one in run.curves if run.sides is None or not run.sides.curves else ():
        curve.write(console, one)
    remarks.write(console, run)
    _write_advice(console, run)
    _write_judged(console, run)
    return collected(console)


def _write_judged(console: Console, run: RunSummary) -> None:
    if run.gated is not None:
        comparison.write_gate(console, run.gated)
    if run.noise:
        _write_noise(console, run.noise)


def _configurations(results: Sequence[Result]) -> Iterator[tuple[Result, ...]]:
    """Yield the results of each configuration; all of them at once where nothing is swept."""
    for wanted in dict.fromkeys(label(result.config) for result in results):
        yield tuple(result for result in results if label(result.config) == wanted)


def _write_results(console: Console, results: tuple[Result, ...], *, outputs: bool) -> None:
    if results[0].config:
        console.print(Text(printable(label(results[0].config)), style="bold"))
    _write_head(console, results[0])
    suite = averages((result.figures for result in results), columns())
    (_write_narrow if console.width < NARROW else _write_wide)(console, results, suite)
    for limit in (roofline.limit_line(results), roofline.memory_line(results)):
        if limit is not None:
            console.print(Text(limit))
    for line in (
        *breakdown.lines(results, width=console.width),
        *operators.lines(results, width=console.width),
    ):
        console.print(line)
    for line in experts.lines(results, width=console.width, drawn=outputs):
        console.print(line)
    for result in results if outputs else ():
        operators.write(console, result)
        console.print(Text(printable(f"{result.prompt.name}: {result.output}"), style="dim"))


def _write_head(console: Console, result: Result) -> None:
    model, parts = result.model, [result.model.name]
    parts += [part for part in (model.dtype, model.device) if part]
    if model.parameters is not None:
        parts.append(f"{significant(model.parameters / 1e6)} M parameters")
    if model.threads is not None:
        parts.append(f"{model.threads} thread{'s' if model.threads > 1 else ''}")
    if model.experts_implementation is not None:
        parts.append(model.experts_implementation)
    if model.load_s is not None:
        parts.append(f"loaded in {show(model.load_s, Unit.SECONDS)}{_cache(model)}")
    parts.append(f"median of {result.timed_rounds} rounds" if result.timed_rounds > 1 else "1 round")
    console.print(Text(printable(" · ".join(parts)), style="bold"))
    machine = roofline.machine_line(result.machine, model.dtype)
    if machine is not None:
        console.print(Text(printable(machine), style="dim"))


def _cache(model: ModelInfo) -> str:
    """Return from where the model's files came, as far as it is known."""
    state = None if model.load is None else loads.state(model.load.cached)
    if state is None or model.load is None:
        return ""
    if state is not CacheState.MIXED:
        return f" ({state.value})"
    return f" ({show(loads.cached_percent(model.load).value, Unit.PERCENT)} cached)"


def _value(summaries: Mapping[str, Summary], key: str) -> str:
    return show(summaries[key].value, by_key(key).unit)


def _tokens(summaries: Mapping[str, Summary]) -> str:
    return f"{summaries['prompt_tokens'].value}+{summaries['generated_tokens'].value}"


def _pair(low: str, high: str) -> str:
    """Return two figures, the unit once where it is the same: "4.2/5.1 ms"; one dash for none."""
    if low == high == NONE:
        return NONE
    number, _, unit = low.partition(" ")
    return f"{number}/{high}" if high.endswith(f" {unit}") else f"{low}/{high}"


def _number(value: float | str | None) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _write_wide(console: Console, results: Sequence[Result], suite: Mapping[str, Average]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("prompt\n", overflow="ellipsis", no_wrap=True)
    table.add_column("tokens\nin+out", justify="right", no_wrap=True)
    cells: list[list[str]] = []
    for key, shown in columns().items():
        average = suite.get(key)
        values = [_number(result.figures[key].value) for result in results]
        values += [average.mean, average.stdev] if average is not None else [None, None]
        unit, figures = column(values, by_key(key).unit)
        table.add_column(f"{shown.heading}\n{unit}", justify="right", no_wrap=True)
        cells.append(figures)
    table.add_column("hottest\nexperts", no_wrap=True, overflow="ellipsis")
    for number, result in enumerate(results):
        name = Text(printable(result.prompt.name))
        mark = " !" if result.warnings else ""
        name.truncate(max(10, console.width - 66) - len(mark), overflow="ellipsis")
        name.append(mark)
        figures = [figures[number] for figures in cells]
        table.add_row(name, _tokens(result.figures), *figures, printable(_value(result.figures, "hottest_experts")))
    table.add_section()
    for row, title in ((len(results), "mean"), (len(results) + 1, "± sd")):
        table.add_row(title, "", *(figures[row] for figures in cells), "", style="bold")
    console.print(table)


def _write_narrow(console: Console, results: Sequence[Result], suite: Mapping[str, Average]) -> None:
    for result in results:
        hottest = _value(result.figures, "hottest_experts")
        head = f"{result.prompt.name}{' !' if result.warnings else ''}  {_tokens(result.figures)} tokens"
        console.print(Text(printable(head + (f"  {hottest}" if hottest != NONE else "")), style="bold"))
        console.print(Text("  " + _line({key: _value(result.figures, key) for key in columns()})))
    console.print(Text("mean", style="bold"))
    console.print(Text("  " + _line(_mean(suite))))
    console.print(Text("± sd", style="bold"))
    console.print(Text("  " + _line(_stdev(suite))))


def _line(figures: Mapping[str, str]) -> str:
    """Return the columns in one line; those of one name stand together behind it."""
    return " · ".join(_joined(list(found), figures) for _, found in groupby(columns().items(), key=_first_word))


def _first_word(column: tuple[str, Column]) -> str:
    return column[1].heading.partition(" ")[0]


def _joined(found: Sequence[tuple[str, Column]], figures: Mapping[str, str]) -> str:
    values = reduce(_pair, (figures[key] for key, _ in found))
    return values if found[0][1].bare else f"{_first_word(found[0])} {values}"


def _mean(suite: Mapping[str, Average]) -> dict[str, str]:
    return {key: show(suite[key].mean if key in suite else None, by_key(key).unit) for key in columns()}


def _stdev(suite: Mapping[str, Average]) -> dict[str, str]:
    return {key: show(suite[key].stdev if key in suite else None, by_key(key).unit) for key in columns()}


def _write_advice(console: Console, run: RunSummary) -> None:
    if run.all_advice:
        advice.write(console, run.advice)
        return
    warnings = frozenset(warning.kind for result in run.results for warning in result.warnings)
    advice.write(console, advice.shortlist(run.advice, warnings))


_NOISE = {
    "pair": "spread: of a pair's ratio; offset: between two processes of the same code; N pairs: the smallest change "
    "that so many pairs of rounds find 19 times in 20",
    "launch": "spread: between launches, each two processes of the same code; offset: their mean; N launches: the "
    "smallest change that so many find 19 times in 20",
}


def _write_noise(console: Console, noise: tuple[NamedFloor, ...]) -> None:
    """Write what this machine can tell: the spread of equal code, and the changes that it lets through."""
    console.print(Text("noise floor: this checkout against itself", style="bold"))
    for of in dict.fromkeys(named.floor.of for named in noise):
        _write_floors(console, [named for named in noise if named.floor.of == of], of)


def _write_floors(console: Console, noise: list[NamedFloor], of: str) -> None:
    counts = sorted({n for named in noise for n in named.floor.detectable})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("prompt", overflow="fold")
    table.add_column("figure", no_wrap=True)
    many = "pairs" if of == "pair" else "launches"
    for heading in ("spread", "offset", *(f"{n} {many}" for n in counts)):
        table.add_column(heading, justify="right", no_wrap=True)
    for named in noise:
        found = [f"{100 * named.floor.detectable[n]:.1f} %" for n in counts]
        cells = (f"{100 * named.floor.spread:.1f} %", words.share(named.floor.bias), *found)
        table.add_row(printable(named.name), named.label, *cells)
    console.print(table)
    console.print(Text(_NOISE[of], style="dim"))
