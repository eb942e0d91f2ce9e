"""Every output format, and the one table that says which writer writes a command's view in which of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, TypeVar

from pytest_infer.metrics import Metric
from pytest_infer.records import LoadingRound

if TYPE_CHECKING:
    from pytest_infer.analysis.advice.evidence import AdviceRule
    from pytest_infer.analysis.compare.gate import Gated
    from pytest_infer.analysis.doctor.checkup import Checkup
    from pytest_infer.analysis.experts.source import UsageSource
    from pytest_infer.analysis.history.trends import Told
    from pytest_infer.report.compare.comment import CommentedRun
    from pytest_infer.report.compare.runs import ComparedRuns
    from pytest_infer.report.views import (
        AdvisedRun,
        FlatTable,
        GatedRun,
        ListedRuns,
        PlannedRun,
        ReportedRun,
        ShownRun,
        UsedExperts,
    )
    from pytest_infer.storage.runs import Run


class Format(StrEnum):
    """How a view is written, as `--format` takes it."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    JSON = "json"
    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"
    HTML = "html"
    GITHUB = "github"
    LLAMA_CPP = "llama.cpp"
    KTRANSFORMERS = "ktransformers"
    DEVICE_MAP = "device-map"
    EXPERTS = "experts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """Where a text is read: its columns, and whether it shows colours; `remark` tells a line that is not part of it."""

    width: int
    color: bool
    remark: Callable[[str], None]


_T = TypeVar("_T")
Writers = Mapping[Format, Callable[[_T, Screen], str]]
"""The formats of a view, in the order in which its command offers them, each with what writes it."""
_Writer = TypeVar("_Writer")


class _Formats(Mapping[Format, _Writer]):
    """The formats of a view; its writers are imported once they are looked at: each command needs those of its own."""

    def __init__(self, load: Callable[[], Mapping[Format, _Writer]]) -> None:
        self._load = load

    @cached_property
    def _writers(self) -> Mapping[Format, _Writer]:
        return self._load()

    def __getitem__(self, form: Format) -> _Writer:
        return self._writers[form]

    def __iter__(self) -> Iterator[Format]:
        return iter(self._writers)

    def __len__(self) -> int:
        return len(self._writers)


def _named(run: Run | UsageSource) -> str:
    return " · ".join(part for part in (run.label, run.model) if part)


# the table


def _compare() -> Writers[ComparedRuns]:
    from pytest_infer.report.compare import runs as comparison  # noqa: PLC0415

    return {
        Format.TERMINAL: lambda of, on: comparison.render(of, width=on.width, color=on.color),
        Format.MARKDOWN: lambda of, _: comparison.as_markdown(of),
        Format.JSON: lambda of, _: comparison.as_json(of),
        Format.CSV: lambda of, _: comparison.as_csv(of),
    }


COMPARE = _Formats(_compare)


def _gate() -> Writers[GatedRun]:
    from pytest_infer.report.compare import accepted  # noqa: PLC0415
    from pytest_infer.report.compare import exports as judgements  # noqa: PLC0415
    from pytest_infer.report.compare.terminal import render_judgements  # noqa: PLC0415

    def rows(gated: Gated) -> list[dict[str, Any]]:
        return [judgements.flat(judgement) for judgement in gated.judgements]

    return {
        Format.TERMINAL: lambda of, on: (
            render_judgements(
                of.gated.judgements,
                heading=of.heading,
                width=on.width,
                color=on.color,
                headline=of.said,
                suite=of.gated.suite,
            )
            + "".join(f"{line}\n" for line in (*judgements.ended(of.gated), *accepted.how(of.gated)))
        ),
        Format.MARKDOWN: lambda of, _: judgements.gate_as_markdown(
            of.gated, [*of.heading, *judgements.ended(of.gated)]
        ),
        Format.JSON: lambda of, _: judgements.as_json_rows(
            rows(of.gated),
            headline=of.said,
            result=of.gated.exit.word,
            accepted=accepted.as_rows(of.gated),
            suite=[judgements.flat_suite(change) for change in of.gated.suite],
        ),
        Format.CSV: lambda of, _: judgements.as_csv(rows(of.gated)),
    }


GATE = _Formats(_gate)


def _gate_on_github() -> Writers[GatedRun]:
    from pytest_infer.report.compare import exports as judgements  # noqa: PLC0415

    return {
        Format.GITHUB: lambda of, _: judgements.github_annotations(of.gated.judgements),
    }


GATE_ON_GITHUB = _Formats(_gate_on_github)


def _comment() -> Writers[CommentedRun]:
    from pytest_infer.report.compare import comment  # noqa: PLC0415

    return {Format.MARKDOWN: lambda of, _: comment.as_markdown(of)}


COMMENT = _Formats(_comment)


def _experts() -> Writers[UsedExperts]:
    from pytest_infer.report.experts import exports as usages  # noqa: PLC0415
    from pytest_infer.report.experts import terminal as usage  # noqa: PLC0415

    return {
        Format.TERMINAL: lambda of, on: usage.render(
            of.view, heading=_named(of.source), top=of.top, width=on.width, color=on.color
        ),
        Format.MARKDOWN: lambda of, _: usages.as_markdown(of.view, heading=_named(of.source), top=of.top),
        Format.JSON: lambda of, _: usages.as_json(of.view, run=str(of.source.path), model=of.source.model),
        Format.CSV: lambda of, _: usages.as_csv(of.view),
    }


EXPERTS = _Formats(_experts)


def _placement() -> Writers[PlannedRun]:
    from pytest_infer.report.placement import exports as placements  # noqa: PLC0415
    from pytest_infer.report.placement import terminal as placement  # noqa: PLC0415

    return {
        Format.TERMINAL: lambda of, on: placement.render(
            of.plan, f"{of.source.label} · {of.source.model or 'unknown model'}", width=on.width, color=on.color
        ),
        Format.JSON: lambda of, _: placements.as_json(of.plan, run=of.source.label, model=of.source.model),
        Format.LLAMA_CPP: lambda of, on: placements.llama_cpp(of.plan, on.remark),
        Format.KTRANSFORMERS: lambda of, on: placements.ktransformers(of.plan, of.file, on.remark),
        Format.DEVICE_MAP: lambda of, on: placements.device_map(of.plan, on.remark),
        Format.EXPERTS: lambda of, on: placements.expert_list(of.plan, on.remark),
    }


PLACEMENT = _Formats(_placement)
DENSE_ON_GPU = (Format.LLAMA_CPP, Format.KTRANSFORMERS, Format.DEVICE_MAP)
"""Formats of a placement for engines that put all weights outside the experts on the GPU."""


def _doctor() -> Writers[Checkup]:
    from pytest_infer.report import doctor  # noqa: PLC0415

    return {
        Format.TERMINAL: lambda of, on: doctor.render(of, width=on.width, color=on.color),
        Format.JSON: lambda of, _: doctor.as_json(of),
    }


DOCTOR = _Formats(_doctor)


def _loading() -> Writers[Sequence[LoadingRound]]:
    from pytest_infer.report import loading  # noqa: PLC0415

    return {
        Format.TERMINAL: lambda of, on: loading.render(of, width=on.width, color=on.color),
        Format.JSON: lambda of, _: loading.as_json(of),
    }


LOADING = _Formats(_loading)


def _advice() -> Writers[AdvisedRun]:
    from pytest_infer.report import advice  # noqa: PLC0415

    return {
        Format.TERMINAL: lambda of, on: advice.render(
            of.advice, heading=_named(of.run), width=on.width, color=on.color
        ),
        Format.JSON: lambda of, _: advice.as_json(of.advice, run=str(of.run.path)),
    }


ADVICE = _Formats(_advice)


def _advice_rules() -> Writers[Sequence[AdviceRule]]:
    from pytest_infer.report import advice  # noqa: PLC0415

    return {Format.MARKDOWN: lambda of, _: advice.rules_table(of)}


ADVICE_RULES = _Formats(_advice_rules)


def _show() -> Writers[ShownRun]:
    from pytest_infer.report.show import exports as shown  # noqa: PLC0415
    from pytest_infer.report.show import summary  # noqa: PLC0415
    from pytest_infer.report.text import printable  # noqa: PLC0415

    return {
        Format.TERMINAL: lambda of, on: (
            f"{printable(f'{of.run.label} · {of.run.time:%Y-%m-%d %H:%M} UTC')}\n"
            + summary.render(of.summary, width=on.width, color=on.color, verbose=of.verbose)
        ),
        Format.MARKDOWN: lambda of, _: shown.as_markdown(
            of.summary, heading=f"{_named(of.run)} · {of.run.time:%Y-%m-%d %H:%M} UTC"
        ),
        Format.JSON: lambda of, _: shown.as_json(of.summary, run=str(of.run.path)),
    }


SHOW = _Formats(_show)


def _history() -> Writers[ListedRuns]:
    from pytest_infer.report.history import terminal as history  # noqa: PLC0415

    return {
        Format.TERMINAL: lambda of, on: history.render_history(of.runs, of.names, width=on.width, color=on.color),
    }


HISTORY = _Formats(_history)


def _change_points() -> Writers[Told]:
    from pytest_infer.report.history import terminal as history  # noqa: PLC0415

    return {
        Format.TERMINAL: lambda of, on: history.render_shifts(of, width=on.width, color=on.color),
    }


CHANGE_POINTS = _Formats(_change_points)


def _metrics() -> Writers[Sequence[Metric]]:
    from pytest_infer.report import metrics  # noqa: PLC0415

    return {
        Format.TERMINAL: lambda of, on: metrics.render(of, width=on.width, color=on.color),
        Format.MARKDOWN: lambda of, _: metrics.as_markdown(of),
    }


METRICS = _Formats(_metrics)


def _html(of: ReportedRun, _on: Screen) -> str:
    # Imported late: nothing else needs templates.
    from pytest_infer.report.html import page  # noqa: PLC0415

    return page.render(of.run, of.runs, of.compared, of.repository)


REPORT: Writers[ReportedRun] = {Format.HTML: _html}


def _export() -> Mapping[Format, Callable[[FlatTable, IO[bytes]], None]]:
    from pytest_infer.report.history import tables  # noqa: PLC0415

    return {
        Format.CSV: lambda of, file: tables.write_csv(of.columns, of.rows, file),
        Format.JSONL: lambda of, file: tables.write_jsonl(of.columns, of.rows, file),
        Format.PARQUET: lambda of, file: tables.write_parquet(of.columns, of.rows, file),
    }


EXPORT = _Formats(_export)
"""Written as it goes: a table may be long."""

VIEWS: Mapping[str, Mapping[Format, Callable[..., Any]]] = {
    "show": SHOW,
    "compare": COMPARE,
    "gate": GATE,
    "gate --github": GATE_ON_GITHUB,
    "comment": COMMENT,
    "history": HISTORY,
    "history --change-points": CHANGE_POINTS,
    "advice": ADVICE,
    "advice --rules": ADVICE_RULES,
    "experts": EXPERTS,
    "placement": PLACEMENT,
    "doctor": DOCTOR,
    "loading": LOADING,
    "export": EXPORT,
    "report": REPORT,
    "metrics": METRICS,
}
"""Every view by its command. What a command offers as --format is what stands here."""
