"""The first section: verdicts if there are any, the suite in a table, where the time goes, what to look at twice."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pytest_infer.analysis.advice import Advice
from pytest_infer.metrics import by_key
from pytest_infer.report.html.parts import Cell, Chart, Head, Item, Section, Table, anchor, head, points, short
from pytest_infer.report.html.stored import Stored, Test
from pytest_infer.units import NONE, Unit, column, scale_of, seconds, show

COLUMNS = ("ttft_s", "itl_p50_s", "itl_p99_s", "decode_throughput", "peak_rss_bytes", "cpu_utilization")
"""The figures of the suite's table, as on the terminal."""
_PHASES = {"tokenize_s": "tokenise", "prefill_s": "prefill", "decode_s": "decode"}


def section(stored: Stored, advice: Sequence[Advice]) -> Section:
    """Return the overview of a run."""
    if not stored.tests:
        plain_rows = f": its {stored.plain} tests are pytest-benchmark's own" if stored.plain else ""
        return Section(key="overview", title="Overview", absent=f"no test was measured with `infer`{plain_rows}")
    tests = stored.tests
    items = [Item(title="The suite", tables=(suite(tests),))]
    times = _times(tests)
    if times is not None:
        items.append(Item(charts=(times,)))
    if (given := _cautions(tests)) is not None:
        items.append(Item(title="Look twice", tables=(given,)))
    items.append(
        Item(
            title="Advice",
            text=() if advice else ("No rule of today's saw its evidence in this run.",),
            tables=(_advice(advice),) if advice else (),
        )
    )
    missing = [f"{test} failed after it was measured: its row is kept apart." for test in stored.run.failed]
    missing += [f"{test} was not measured." for test in stored.run.unmeasured]
    if missing:
        items.append(Item(title="Not in this report", text=tuple(missing)))
    return Section(key="overview", title="Overview", items=tuple(items), extra={"tiles": _tiles(tests)})


def suite(tests: Sequence[Test]) -> Table:
    """Return the table of the suite: a row a prompt with the medians of its rounds, mean and deviation below."""
    columns: list[list[str]] = []
    heads = [
        Head(text="prompt", number=False),
        Head(text="tokens", unit="in + out", define=anchor("total_tokens")),
    ]
    for key in COLUMNS:
        values = [test.value(key) for test in tests]
        known = [value for value in values if value is not None]
        values += [statistics.fmean(known) if known else None, statistics.stdev(known) if len(known) > 1 else None]
        unit, figures = column(values, by_key(key).unit)
        heads.append(head(by_key(key), unit))
        columns.append(figures)
    heads.append(Head(text="hottest experts", define=anchor("hottest_experts"), number=False))
    rows = []
    for number, test in enumerate(tests):
        hottest = test.row.metrics.get("hottest_experts")
        notes = [_absent(test, key) for key in COLUMNS]
        rows.append(
            (
                Cell(text=test.title, link=test.key, note="look twice" if test.part("cautions") else None),
                Cell(text=f"{_whole(test, 'prompt_tokens')} + {_whole(test, 'generated_tokens')}"),
                *(Cell(text=figures[number], note=why) for figures, why in zip(columns, notes, strict=True)),
                Cell(text=NONE, note=_absent(test, "hottest_experts")) if hottest is None else Cell(text=str(hottest.value)),
            )
        )
    for row, title in ((len(tests), "mean"), (len(tests) + 1, "± sd")):
        rows.append((Cell(text=title), Cell(text=""), *(Cell(text=figures[row]) for figures in columns), Cell(text="")))
    return Table(caption="Median of the timed rounds, a row a prompt", heads=tuple(heads), rows=tuple(rows), foot=2)


def _whole(test: Test, key: str) -> str:
    return show(test.value(key), Unit.TOKENS)


def _absent(test: Test, key: str) -> str | None:
    return test.part("absent", key) if key not in test.row.metrics else None


def _tiles(tests: Sequence[Test]) -> list[tuple[Head, str, str]]:
    """Return the few figures that say most: (what, figure with unit, of what)."""
    found = []
    for key, how in (("decode_throughput", "mean"), ("ttft_s", "mean"), ("itl_p99_s", "mean"), ("peak_rss_bytes", "largest")):
        values = [value for test in tests if (value := test.value(key)) is not None]
        if values:
            value = max(values) if how == "largest" else statistics.fmean(values)
            of = f"{how} of {len(values)} prompts" if len(values) > 1 else "one prompt"
            found.append((head(by_key(key)), show(value, by_key(key).unit), of))
    return found


def _times(tests: Sequence[Test]) -> Chart | None:
    """Return where each prompt's time goes."""
    shown = [test for test in tests if test.value("total_s") is not None]
    if not shown:
        return None
    table = {key: [test.value(key) or 0.0 for test in shown] for key in _PHASES}
    unit, scale = scale_of([test.value("total_s") for test in shown], Unit.SECONDS)
    longest = max(shown, key=lambda test: test.value("total_s") or 0.0)
    return Chart(
        key="phases",
        title="Where the time goes",
        says=(
            f"Time of a round by phase, a bar a prompt, median of the rounds. The longest is {longest.title} with "
            f"{seconds(longest.value('total_s') or 0.0)}."
        ),
        data={
            "kind": "stacked",
            "unit": unit,
            "names": [test.title for test in shown],
            "series": [{"name": name, "values": points(table[key], scale)} for key, name in _PHASES.items()],
        },
        table=Table(
            caption=f"Phases in {unit}",
            heads=(Head(text="prompt", number=False), *(head(by_key(key), unit) for key in (*_PHASES, "total_s"))),
            rows=tuple(
                (Cell(text=test.title), *(Cell(text=short(test.value(key), scale)) for key in (*_PHASES, "total_s")))
                for test in shown
            ),
        ),
        define=tuple((name, anchor(key)) for key, name in _PHASES.items()),
    )


def _cautions(tests: Sequence[Test]) -> Table | None:
    rows = [
        (Cell(text=test.title, link=test.key), Cell(text=str(caution.get("kind", ""))), Cell(text=str(caution.get("text", ""))))
        for test in tests
        for caution in test.part("cautions") or ()
    ]
    if not rows:
        return None
    heads = tuple(Head(text=text, number=False) for text in ("prompt", "doubt", "figures, and what to do"))
    return Table(caption="Doubts about single prompts", heads=heads, rows=tuple(rows))


def _advice(advice: Sequence[Advice]) -> Table:
    rows = tuple(
        (
            Cell(text="good" if one.suggestion is None else one.severity.value, look=_look(one)),
            Cell(text=one.evidence),
            Cell(text=one.suggestion or NONE),
            Cell(text=_where(one)),
            Cell(text=one.rule),
        )
        for one in advice
    )
    heads = tuple(Head(text=t, number=False) for t in ("", "evidence", "what to try", "prompts", "rule"))
    return Table(caption="What the figures suggest, by today's rules", heads=heads, rows=rows)


def _look(one: Advice) -> str:
    return "pill good" if one.suggestion is None else f"pill {one.severity.value}"


def _where(one: Advice) -> str:
    if len(one.prompts) == one.tests:
        return "all" if one.tests > 1 else ", ".join(one.prompts)
    return ", ".join(one.prompts) if len(one.prompts) <= 3 else f"{len(one.prompts)} of {one.tests}"

