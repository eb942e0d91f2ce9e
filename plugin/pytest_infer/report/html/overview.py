"""The first section: verdicts if there are any, the suite in a table, where the time goes, what to look at twice."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_infer.analysis import alike
from pytest_infer.analysis.advice.advice import Advice
from pytest_infer.analysis.suite import average
from pytest_infer.metrics import by_key, columns
from pytest_infer.report.html.parts import (
    Cell,
    Chart,
    ColumnHead,
    Item,
    Note,
    Section,
    Table,
    anchor,
    head,
    points,
    short,
)
from pytest_infer.report.html.stored import StoredRun, Test
from pytest_infer.units import NONE, Unit, column, scale_of, seconds, show

_PHASES = {"tokenize_s": "tokenise", "prefill_s": "prefill", "decode_s": "decode"}


def section(stored: StoredRun, advice: Sequence[Advice]) -> Section:
    """Return the overview of a run."""
    missing = [f"{test} failed after it was measured: its row is kept apart." for test in stored.run.broken]
    missing += [f"{test} was not measured." for test in stored.run.lost]
    left_out = [Item(title="Not in this report", text=tuple(missing))] if missing else []
    tests = stored.tests
    if not tests:
        of = "; its other" if stored.run.failed or stored.levels else ": its"
        plain_rows = f"{of} {stored.plain} tests are pytest-benchmark's own" if stored.plain else ""
        return Section(key="overview", title="Overview", absent=f"{stored.nothing}{plain_rows}", items=tuple(left_out))
    swept = any(test.row.config for test in tests)
    # Over the configurations of a sweep, and over several models, a mean would say nothing.
    found = [(tests, [])] if swept else alike.tables(tests)
    tables = tuple(suite(of, summed=not swept, model=words) for of, words in found)
    items = [Item(title="The suite", tables=tables, folded=swept)]
    times = None if swept else _times(tests)
    if times is not None:
        items.append(Item(charts=(times,)))
    nothing = () if advice else ("No rule of today's saw its evidence in this run.",)
    items.append(Item(title="Advice", text=nothing, notes=tuple(map(_advice, advice))))
    if doubts := _warnings(tests):
        items.append(Item(title="Look twice", notes=doubts))
    extra = {"tiles": [] if swept or len(tables) > 1 else _tiles(tests)}
    return Section(key="overview", title="Overview", items=(*items, *left_out), extra=extra)


def suite(tests: Sequence[Test], *, summed: bool, model: Sequence[str] = ()) -> Table:
    """Return the table of the suite: a row a prompt with the medians of its rounds; `summed`: mean and deviation below.

    `model` is what tells the tests' model from others of the run.
    """
    shown = columns()
    cells: list[list[str]] = []
    heads = [
        ColumnHead(text="prompt", number=False),
        ColumnHead(text="tokens", unit="in + out", define=anchor("total_tokens")),
    ]
    for key in shown:
        values = [test.value(key) for test in tests]
        of = average(values)
        values += [None, None] if of is None else [of.mean, of.stdev]
        unit, figures = column(values, by_key(key).unit)
        heads.append(head(by_key(key), unit))
        cells.append(figures)
    heads.append(ColumnHead(text="hottest experts", define=anchor("hottest_experts"), number=False))
    rows = []
    for number, test in enumerate(tests):
        hottest = test.row.metrics.get("hottest_experts")
        notes = [_absent(test, key) for key in shown]
        rows.append(
            (
                Cell(text=test.title, link=test.key, note="look twice" if test.warnings else None),
                Cell(text=f"{_whole(test, 'prompt_tokens')} + {_whole(test, 'generated_tokens')}"),
                *(Cell(text=figures[number], note=why) for figures, why in zip(cells, notes, strict=True)),
                Cell(text=NONE, note=_absent(test, "hottest_experts"))
                if hottest is None
                else Cell(text=str(hottest.value)),
            )
        )
    for row, title in ((len(tests), "mean"), (len(tests) + 1, "± sd")) if summed else ():
        rows.append((Cell(text=title), Cell(text=""), *(Cell(text=figures[row]) for figures in cells), Cell(text="")))
    return Table(
        caption=f"{' · '.join((*model, 'median' if model else 'Median'))} of the timed rounds, a row a prompt",
        heads=tuple(heads),
        rows=tuple(rows),
        foot=2 if summed else 0,
    )


def _whole(test: Test, key: str) -> str:
    return show(test.value(key), Unit.TOKENS)


def _absent(test: Test, key: str) -> str | None:
    return test.absent(key) if key not in test.row.metrics else None


def _tiles(tests: Sequence[Test]) -> list[tuple[ColumnHead, str, str]]:
    """Return the few figures that say most: (what, figure with unit, of what)."""
    found = []
    for key, how in (
        ("decode_throughput", "mean"),
        ("ttft_s", "mean"),
        ("itl_p99_s", "mean"),
        ("peak_rss_bytes", "largest"),
    ):
        values = [test.value(key) for test in tests]
        if (whole := average(values)) is not None:
            value = max(value for value in values if value is not None) if how == "largest" else whole.mean
            of = f"{how} of {whole.prompts} prompts" if whole.prompts > 1 else "one prompt"
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
        title=f"Where the time goes, {unit}",
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
            heads=(
                ColumnHead(text="prompt", number=False),
                *(head(by_key(key), unit) for key in (*_PHASES, "total_s")),
            ),
            rows=tuple(
                (Cell(text=test.title), *(Cell(text=short(test.value(key), scale)) for key in (*_PHASES, "total_s")))
                for test in shown
            ),
        ),
        define=tuple((name, anchor(key)) for key, name in _PHASES.items()),
    )


def _warnings(tests: Sequence[Test]) -> tuple[Note, ...]:
    """Return one note for each kind of doubt: the figures of the first prompt that has it, and all prompts' names."""
    kinds: dict[str, list[tuple[Test, str]]] = {}
    for test in tests:
        for warning in test.warnings:
            kinds.setdefault(warning.kind, []).append((test, warning.text))
    return tuple(
        Note(
            mark="look twice",
            look="warning",
            text=f"{kind}. {found[0][0].title}: {found[0][1]}",
            about=_named([test.title for test, _ in found], len(tests)),
        )
        for kind, found in kinds.items()
    )


def _advice(one: Advice) -> Note:
    good = one.suggestion is None
    return Note(
        mark="good" if good else one.severity.value,
        look="good" if good else one.severity.value,
        text=one.evidence,
        do=one.suggestion,
        about=f"{_named(one.prompts, one.tests)} · {one.rule}",
    )


def _named(names: Sequence[str], of: int) -> str:
    if len(names) == of > 1:
        return "all prompts"
    return ", ".join(names) if len(names) <= 6 else f"{len(names)} of {of} prompts"
