"""A stored run as the end of it showed it, for programs and pull requests: JSON and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_infer.analysis import alike
from pytest_infer.analysis.breakdown import memory
from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.analysis.sweep.axes import label
from pytest_infer.metrics import by_key, columns
from pytest_infer.metrics.result import Result
from pytest_infer.report import load
from pytest_infer.report.compare import headline
from pytest_infer.report.compare.exports import escape, flat, table
from pytest_infer.report.show import since as changes
from pytest_infer.report.show.table import scattered, tokens
from pytest_infer.report.sweep import exports as sweep
from pytest_infer.units import show

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.two_runs import Since
    from pytest_infer.records import SuiteAverages
    from pytest_infer.report.show.since import Cell


def as_json(of: RunSummary, *, run: str) -> str:
    """Return the tests with all figures, the suite's averages, and what a sweep says of one side or of both."""
    shown: dict[str, Any] = {
        "run": _name(run),
        "tests": [_test(result, failed=result.nodeid in of.failed) for result in of.results],
        "averages": of.averages,
        "unmeasured": of.unmeasured,
        "recommended": of.recommended,
        "curves": of.curves,
        "sides": of.sides,
        "load": of.load,
        "since": None if of.since is None else _since(of.since),
    }
    return msgspec.json.format(msgspec.json.encode(shown), indent=2).decode() + "\n"


def _name(path: str) -> str:
    """Return a path as JSON can hold it: names of files need not be UTF-8."""
    return path.encode(errors="backslashreplace").decode()


def _since(since: Since) -> dict[str, Any]:
    return {
        "run": _name(str(since.before.path)),
        "headline": headline.in_words(since.headline, since.judgements),
        "judgements": [flat(judgement) for judgement in since.judgements],
    }


def _test(result: Result, *, failed: bool) -> dict[str, Any]:
    figures = {key: figure.value for key, figure in result.figures.items() if figure.value is not None}
    followed = {} if result.fidelity is None else {"fidelity": result.fidelity}
    return {
        "test": result.nodeid,
        "prompt": result.prompt.name,
        "model": alike.named(result.model),
        "config": result.config,
        "failed": failed,
        "warnings": [warning.text for warning in result.warnings],
        "figures": figures,
        **followed,
        "breakdown": result.breakdown,
        "operators": _operators(result),
        "memory": memory.by_role(result),
    }


def _operators(result: Result) -> dict[str, Any] | None:
    found: dict[str, Any] | None = msgspec.to_builtins(result.operators)
    return None if found is None else {**found, "trace": result.trace}


def as_markdown(of: RunSummary, *, heading: str) -> str:
    """Return the table of the tests, the notes, and what a sweep on both sides says."""
    lines = [f"**{escape(heading)}**", "", *([*_tests(of), ""] if of.prompts else [])]
    lines += [*load.markdown(of.load), ""] if of.load else []
    lines += [escape(changes.line(of.since)), ""] if of.since is not None else []
    lines += [f"- {escape(note)}" for note in of.notes]
    text = "\n".join(lines).rstrip() + "\n"
    return text if of.sides is None else f"{text}\n{sweep.as_markdown(of.sides)}"


def _tests(of: RunSummary) -> Iterator[str]:
    """Yield a table of all tests, or where their models differ one a model, headed by what tells it from others."""
    own = {test.nodeid: " · ".join(words) for tests, words in alike.tables(of.prompts) for test in tests}
    averaged = alike.apart([(suite.config, suite.model) for suite in of.averages])
    for number, model in enumerate(dict.fromkeys(own.values())):
        yield from [""] if number else []
        yield from [f"**{escape(model)}**", ""] if model else []
        tests = [test for test in of.prompts if own[test.nodeid] == model]
        suites = [suite for suite, words in zip(of.averages, averaged, strict=True) if " · ".join(words) == model]
        yield from _table(tests, suites, {} if of.since is None else changes.cells(of.since))


def _table(tests: Sequence[Result], averages: Sequence[SuiteAverages], cells: Mapping[str, Cell]) -> list[str]:
    title = alike.titles({test.nodeid: f"{test.prompt.name} {label(test.config)}".rstrip() for test in tests})
    heads = ["prompt", "tokens", *(by_key(key).label for key in columns()), *(["since"] if cells else [])]
    rows = [
        [
            title[test.nodeid],
            tokens(test),
            *(scattered(test.figures[key], key) for key in columns()),
            *([cells[test.nodeid].text if test.nodeid in cells else ""] if cells else []),
        ]
        for test in tests
    ]
    more = [""] if cells else []
    for suite in averages:
        # One prompt is its own mean.
        if max((average.prompts for average in suite.metrics.values()), default=0) > 1:
            found = suite.metrics
            means = [show(found[key].mean if key in found else None, by_key(key).unit) for key in columns()]
            spreads = [show(found[key].stdev if key in found else None, by_key(key).unit) for key in columns()]
            rows += [
                [f"mean {label(suite.config)}".rstrip(), "", *means, *more],
                [f"sd between prompts {label(suite.config)}".rstrip(), "", *spreads, *more],
            ]
    return table(heads, rows)
