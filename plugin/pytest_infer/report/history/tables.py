"""A flat table as a file for pandas, Polars or DuckDB: CSV, JSON Lines, Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import IO, Any

from pytest_infer.analysis.history.table import CONFIG, MODEL, RUN, TEST, is_text
from pytest_infer.errors import OptionError
from pytest_infer.report.text import csv_lines

Rows = Iterable[Mapping[str, Any]]
_BATCH = 10_000
_BOOLEANS = ("dirty", "disturbed")
_WHOLE = ("threads", "n", "round", "against_n")
_NAMES = {*RUN, *MODEL.values(), *TEST, "metric", "unit", "better", "text", "quality", "phase", "role"}
_TEXTS = _NAMES - {"time", "tags", *_BOOLEANS, *_WHOLE}


def write_csv(columns: Sequence[str], rows: Rows, file: IO[bytes]) -> None:
    """Write UTF-8 with a heading; text is made harmless as `text.csv_cell` says."""
    for line in csv_lines(columns, rows):
        file.write(line.encode())


def write_jsonl(columns: Sequence[str], rows: Rows, file: IO[bytes]) -> None:
    """Write an object a line, verbatim; what is not ASCII is escaped, so that a terminal is safe of it too."""
    for row in rows:
        cells = {column: _plain(row.get(column)) for column in columns}
        file.write(json.dumps(cells, allow_nan=False).encode() + b"\n")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def check_parquet() -> None:
    """Raise OptionError unless Parquet can be written here."""
    try:
        import pyarrow.parquet  # noqa: F401, PLC0415 - an optional extra, and slow to load
    except ImportError:
        raise OptionError(
            "--format parquet needs pyarrow: pip install 'pytest-infer[parquet]', or take --format csv or jsonl"
        ) from None


def write_parquet(columns: Sequence[str], rows: Rows, file: IO[bytes]) -> None:
    """Write Parquet, verbatim, with a type for each column whatever it holds: times, lists of tags, floats, text."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    schema = pa.schema([(column, _type(column)) for column in columns])
    source = iter(rows)
    with pq.ParquetWriter(file, schema) as writer:
        while batch := [{**row, "tags": list(row.get("tags", ()))} for row in islice(source, _BATCH)]:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _type(column: str) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    if column == "time":
        return pa.timestamp("us", tz="UTC")
    if column == "tags":
        return pa.list_(pa.string())
    if column in _BOOLEANS:
        return pa.bool_()
    if column in _WHOLE:
        return pa.int64()
    text = column in _TEXTS or column.startswith(CONFIG) or is_text(column)
    return pa.string() if text else pa.float64()
