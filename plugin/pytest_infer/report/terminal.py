"""The summary at the end of a run: a row a prompt, the suite's averages, and what to look at twice."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.analysis.suite import Average, averages
from pytest_infer.metrics import Summary, by_key, summarize
from pytest_infer.records import PromptRecord
from pytest_infer.units import NONE, Unit, show, significant

NARROW = 76
"""Below so many columns a prompt takes two lines."""

_AVERAGED = ("ttft_s", "itl_p50_s", "itl_p99_s", "decode_throughput", "peak_rss_bytes", "cpu_utilization")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the summary shows; `failed` names tests whose assertion failed after the measurement."""

    records: tuple[PromptRecord, ...]
    failed: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    disabled: bool = False


def write_summary(reporter: pytest.TerminalReporter, run: Run) -> None:
    """Write the summary to pytest's terminal; nothing with -q, and nothing if no test measures."""
    if reporter.verbosity < 0 or not (run.records or run.unmeasured or run.notes):
        return
    width = reporter._tw.fullwidth
    text = render(run, width=width, color=reporter._tw.hasmarkup, outputs=reporter.verbosity > 0)
    reporter.ensure_newline()
    reporter.section("inference", bold=True)
    reporter.write(text)


def render(run: Run, *, width: int, color: bool, outputs: bool = False) -> str:
    """Return the summary as text of at most `width` columns, with ANSI colours or without any escape."""
    console = Console(
        file=io.StringIO(), width=width, force_terminal=color, no_color=not color, highlight=False, emoji=False
    )
    if run.records:
        _write_head(console, run.records[0])
        rows = [(record, summarize(record)) for record in run.records]
        suite = averages((summary for _, summary in rows), _AVERAGED)
        (_write_narrow if width < NARROW else _write_wide)(console, rows, suite)
        for record in run.records if outputs else ():
            console.print(Text(f"{record.prompt.name}: {printable(record.output.text)}", style="dim"))
    _write_remarks(console, run)
    stream = console.file
    return stream.getvalue() if isinstance(stream, io.StringIO) else ""


def printable(text: str) -> str:
    """Return the text with control and formatting characters made visible: output may hold terminal escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _write_head(console: Console, record: PromptRecord) -> None:
    model, parts = record.model, [record.model.name]
    parts += [part for part in (model.dtype, model.device) if part]
    if model.parameters is not None:
        parts.append(f"{significant(model.parameters / 1e6)} M parameters")
    if model.threads is not None:
        parts.append(f"{model.threads} thread{'s' if model.threads > 1 else ''}")
    if model.experts_implementation is not None:
        parts.append(model.experts_implementation)
    if model.load_s is not None:
        parts.append(f"loaded in {show(model.load_s, Unit.SECONDS)}")
    parts.append(f"median of {len(record.rounds)} rounds")
    console.print(Text(" · ".join(parts), style="bold"))


def _value(summaries: Mapping[str, Summary], key: str) -> str:
    return show(summaries[key].value, by_key(key).unit)


def _tokens(summaries: Mapping[str, Summary]) -> str:
    return f"{summaries['prompt_tokens'].value}+{summaries['generated_tokens'].value}"


def _pair(low: str, high: str) -> str:
    """Return two values, the unit once where it is the same: "4.2/5.1 ms"."""
    number, _, unit = low.partition(" ")
    return f"{number}/{high}" if unit and high.endswith(f" {unit}") else f"{low}/{high}"


def _write_wide(
    console: Console, rows: list[tuple[PromptRecord, dict[str, Summary]]], suite: Mapping[str, Average]
) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("prompt", overflow="ellipsis", no_wrap=True)
    for heading in ("tokens", "TTFT", "ITL p50/p99", "tok/s", "peak", "CPU"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("hottest", no_wrap=True, overflow="ellipsis")
    for record, summary in rows:
        table.add_row(
            Text(record.prompt.name + (" !" if record.cautions else "")),
            _tokens(summary),
            _value(summary, "ttft_s"),
            _pair(_value(summary, "itl_p50_s"), _value(summary, "itl_p99_s")),
            _value(summary, "decode_throughput").removesuffix(" tok/s"),
            _value(summary, "peak_rss_bytes"),
            _value(summary, "cpu_utilization"),
            _value(summary, "hottest_experts"),
        )
    table.add_section()
    for name, figures in (("mean", _mean(suite)), ("± sd", _stdev(suite))):
        low, high = figures["itl_p50_s"], figures["itl_p99_s"]
        table.add_row(
            name, "", figures["ttft_s"], _pair(low, high), figures["decode_throughput"].removesuffix(" tok/s"),
            figures["peak_rss_bytes"], figures["cpu_utilization"], "", style="bold",
        )  # fmt: skip
    console.print(table)


def _write_narrow(
    console: Console, rows: list[tuple[PromptRecord, dict[str, Summary]]], suite: Mapping[str, Average]
) -> None:
    for record, summary in rows:
        hottest = _value(summary, "hottest_experts")
        head = f"{record.prompt.name}{' !' if record.cautions else ''}  {_tokens(summary)} tokens"
        console.print(Text(head + (f"  {hottest}" if hottest != NONE else ""), style="bold"))
        console.print(Text("  " + _line({key: _value(summary, key) for key in _AVERAGED})))
    console.print(Text("mean", style="bold"))
    console.print(Text("  " + _line(_mean(suite))))
    console.print(Text("± sd", style="bold"))
    console.print(Text("  " + _line(_stdev(suite))))


def _line(figures: Mapping[str, str]) -> str:
    itl = _pair(figures["itl_p50_s"], figures["itl_p99_s"])
    return (
        f"TTFT {figures['ttft_s']} · ITL {itl} · {figures['decode_throughput']} · "
        f"{figures['peak_rss_bytes']} · CPU {figures['cpu_utilization']}"
    )


def _mean(suite: Mapping[str, Average]) -> dict[str, str]:
    return {key: show(suite[key].mean if key in suite else None, by_key(key).unit) for key in _AVERAGED}


def _stdev(suite: Mapping[str, Average]) -> dict[str, str]:
    return {key: show(suite[key].stdev if key in suite else None, by_key(key).unit) for key in _AVERAGED}


def _write_remarks(console: Console, run: Run) -> None:
    for record in run.records:
        for caution in record.cautions:
            console.print(Text(f"! {record.prompt.name}: {caution.text}", style="yellow"))
    absent = {r.profile.experts_absent for r in run.records if r.profile and r.profile.experts_absent}
    for reason in sorted(absent):
        console.print(Text(f"no expert usage: {reason}", style="dim"))
    for nodeid in run.failed:
        console.print(Text(f"! {nodeid} failed after it was measured: its row is marked and no baseline", style="red"))
    if run.unmeasured and run.records:
        console.print(Text(f"not measured: {', '.join(run.unmeasured)}", style="yellow"))
    if run.disabled:
        console.print(
            Text(
                "benchmarks are disabled: each prompt ran once; nothing was recorded, nothing was gated", style="yellow"
            )
        )
    for note in run.notes:
        console.print(Text(note))
