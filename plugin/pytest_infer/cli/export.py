"""`pytest-infer export`: stored runs as one flat table for pandas, Polars or DuckDB."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pytest_infer.analysis.compare import rules
from pytest_infer.analysis.compare.verdicts import Exit
from pytest_infer.analysis.history import table
from pytest_infer.analysis.suite import of_run
from pytest_infer.cli.shared import Storage, offered, open_history, refuse, say
from pytest_infer.errors import InferError, OptionError, StorageError
from pytest_infer.metrics import METRICS
from pytest_infer.report.formats import EXPORT, Format
from pytest_infer.report.history import tables
from pytest_infer.report.views import FlatTable
from pytest_infer.storage.files import publishing
from pytest_infer.storage.results import shown
from pytest_infer.storage.runs import Run


def export(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN…",
            help="Numbers, commits, branches, tags, paths, baseline:NAME, latest~1; default: the newest.",
        ),
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Every stored run.")] = False,
    form: Annotated[
        Format | None, offered(EXPORT, "csv, jsonl or parquet; default: what FILE ends with, else csv.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Instead of the standard output.")
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", help="A row a test and a column a metric.")] = False,
    suite: Annotated[
        bool, typer.Option("--suite", help="The suite's averages over its prompts, and their deviations.")
    ] = False,
    breakdown: Annotated[
        bool, typer.Option("--breakdown", help="What each part of a step took: a row a test, phase and role.")
    ] = False,
    rounds: Annotated[bool, typer.Option("--rounds", help="Every round's value instead of their median.")] = False,
    metric: Annotated[list[str] | None, typer.Option("--metric", metavar="NAME", help="Only this (repeat it).")] = None,
    keyword: Annotated[str | None, typer.Option("-k", metavar="TEXT", help="Only tests whose name holds this.")] = None,
    storage: Storage = None,
) -> None:
    """Write runs as one flat table: a row a run, test and metric, with the value in the metric's unit."""
    try:
        written_as = form or _by_suffix(file)
        if written_as is Format.PARQUET:
            tables.check_parquet()
            if file is None:
                raise OptionError("parquet is no text: name a file with -o")
        if every and runs:
            raise OptionError("--all takes every run: leave out the names, or --all")
        _check_one_table(suite=suite, breakdown=breakdown, wide=wide, rounds=rounds, metric=bool(metric))
        wanted = tuple(rules.metric_named(name) for name in metric) if metric else METRICS
        shape = table.Shape(wide=wide, rounds=rounds, keyword=keyword, metrics=wanted)
        history = open_history(storage)
        named = history.runs if every else map(history.select, runs or ("latest",))
        chosen = list({run.identity: run for run in named}.values())
        if every and not chosen:
            say(f"no run in {history.folder}: nothing to export")
            raise typer.Exit(Exit.NOTHING.value)
        made = _averaged if suite else _parts if breakdown else _table
        _write(made(chosen, shape), written_as, file)
    except InferError as error:
        refuse(error)


def _check_one_table(*, suite: bool, breakdown: bool, wide: bool, rounds: bool, metric: bool) -> None:
    if suite and (wide or rounds):
        raise OptionError("--suite is a table of its own: leave out --wide and --rounds")
    if breakdown and (suite or wide or rounds or metric):
        raise OptionError("--breakdown is a table of its own: leave out --suite, --wide, --rounds and --metric")


def _by_suffix(file: Path | None) -> Format:
    if file is None:
        return Format.CSV
    for form in EXPORT:
        if file.suffix == f".{form.value}":
            return form
    raise OptionError(f"{file}: csv, jsonl or parquet? say so with --format")


def _table(runs: Sequence[Run], shape: table.Shape) -> FlatTable:
    return FlatTable(columns=table.columns(runs, shape), rows=table.table(runs, shape))


def _averaged(runs: Sequence[Run], shape: table.Shape) -> FlatTable:
    """Return the averages that each run stored; of the chosen tests alone, and of older runs, they are worked out."""
    found = []
    for run in runs:
        try:
            stored = shown(run.path)
            kept = stored.averages if shape.keyword is None else ()
            rows = () if kept else run.rows
        except StorageError as error:
            say(f"left out: {error}")
            continue
        results = [r for r in stored.results if shape.keyword is None or shape.keyword in r.nodeid]
        # Of a test that failed no run stores the other side.
        against = {row.test: row.against.metrics for row in rows if row.against is not None}
        found.append((run, of_run(results, kept, against)))
    return FlatTable(columns=table.suite_columns(found), rows=table.suite_table(found, shape.metrics))


def _parts(runs: Sequence[Run], shape: table.Shape) -> FlatTable:
    """Return the parts of each step; tests whose steps were not taken apart have none."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        try:
            taken = {result.nodeid: result.breakdown for result in shown(run.path).results}
        except StorageError as error:
            say(f"left out: {error}")
            continue
        rows += table.parts_table(run, shape, taken)
    return FlatTable(columns=table.parts_columns(runs), rows=rows)


def _write(found: FlatTable, form: Format, file: Path | None) -> None:
    if file is None:
        sys.stdout.flush()
        EXPORT[form](found, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    try:
        with publishing(file) as stream:
            EXPORT[form](found, stream)
    except OSError as error:
        raise OptionError(f"{file} cannot be written: {error.strerror or error}") from error
