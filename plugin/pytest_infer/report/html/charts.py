"""The charts of one prompt from the arrays beside the run file, or the line that says why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_infer.report.html.parts import Cell, Chart, ColumnHead, Table, anchor, points, short
from pytest_infer.report.html.stored import Test
from pytest_infer.storage.schema import StoredTimeline
from pytest_infer.units import Unit, count, scale_of, seconds

if TYPE_CHECKING:
    from pytest_infer.analysis.series import Band

MOST_TOKENS = 2000
"""Above so many tokens neighbours are drawn as one."""
MOST_SAMPLES = 400
_TABLE = 24
"""Rows of a table that sums up a curve."""


def _stamps(test: Test, arrays: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = []
    while (key := f"{test.row.test}|{len(found)}|stamps_ns") in arrays:
        found.append(arrays[key])
    return found


def _absent(test: Test, arrays: Mapping[str, Any], why: str | None) -> str:
    if why is not None or not _stamps(test, arrays):
        return f"No latencies token by token: {why or 'the stamps of this test are not beside the run file'}."
    return f"No latencies token by token: {test.absent('itl_p50_s') or 'no round has two tokens'}."


def over_tokens(test: Test, arrays: Mapping[str, Any], why: str | None) -> Chart | str:
    """Return the gap before each token: the median of the rounds with their least and most."""
    from pytest_infer.analysis import series  # noqa: PLC0415 - numpy is loaded where it is needed

    rounds = _stamps(test, arrays)
    found = series.band(rounds, MOST_TOKENS)
    if found is None:
        return _absent(test, arrays, why)
    unit, scale = scale_of(found.median, Unit.SECONDS)
    # An engine may deliver several tokens at once: then gaps are between ticks, which are fewer.
    sizes = (arrays.get(f"{test.row.test}|{number}|tick_sizes", ()) for number in range(len(rounds)))
    what = "tick" if any(size > 1 for round_sizes in sizes for size in round_sizes) else "token"
    slowest = max(range(len(found.high)), key=found.high.__getitem__)
    wide = f", {found.width} {what}s a point" if found.width > 1 else ""
    first = found.position[slowest]
    last = min(first + found.width - 1, found.last)
    ends = f"{what} {count(first)}" if last == first else f"one of the {what}s {count(first)}–{count(last)}"
    return Chart(
        key=f"{test.key}-itl",
        title=f"Inter-token latency by {what}, {unit}",
        says=(
            f"Median of {len(rounds)} rounds with their least and most{wide}; the longest gap, "
            f"{seconds(found.high[slowest])}, ends at {ends}."
        ),
        data={
            "kind": "band",
            "x": {"name": what, "start": found.position[0], "step": found.width},
            "unit": unit,
            "median": points(found.median, scale, 3),
            "low": points(found.low, scale, 3),
            "high": points(found.high, scale, 3),
        },
        table=_stretches(found, what, unit, scale),
        define=(("ITL", anchor("itl")),),
    )


def _stretches(band: Band, what: str, unit: str, scale: float) -> Table:
    """Return the curve as a table: of each stretch of tokens the median, least and most gap."""
    rows = [
        (
            Cell(text=f"{one.first}–{one.last}" if one.last > one.first else str(one.first)),
            *(Cell(text=short(figure, scale)) for figure in (one.median, one.low, one.high)),
        )
        for one in band.stretches(_TABLE)
    ]
    return Table(
        caption=f"Gaps before the {what}s, {unit}",
        heads=(
            ColumnHead(text=f"{what}s", number=False),
            *(ColumnHead(text=t, unit=unit) for t in ("median", "least", "most")),
        ),
        rows=tuple(rows),
    )


def distribution(test: Test, arrays: Mapping[str, Any], why: str | None) -> Chart | str:
    """Return how the gaps of all rounds are distributed, with the percentiles of the table of metrics."""
    from pytest_infer.analysis import series  # noqa: PLC0415

    found = series.histogram(_stamps(test, arrays))
    if found is None:
        return _absent(test, arrays, why)
    unit, scale = scale_of([found.edges[len(found.edges) // 2]], Unit.SECONDS)
    marks = [
        {"name": name, "at": points([value], scale)[0]}
        for name in ("p50", "p90", "p99")
        if (value := test.value(f"itl_{name}_s")) is not None and value <= found.edges[-1]
    ]
    edges = points(found.edges, scale, 5)
    beyond = f"; {count(found.beyond)} longer gaps are not drawn" if found.beyond else ""
    told = ", ".join(f"{mark['name']} {mark['at']:.3g}" for mark in marks)
    told = f"; marked, of the rounds' percentiles the medians: {told} {unit}" if marks else ""
    rows = [
        (Cell(text=f"{short(a, scale, 4)}–{short(b, scale, 4)}"), Cell(text=count(n)))
        for a, b, n in zip(found.edges, found.edges[1:], found.counts, strict=False)
        if n
    ]
    rows += (
        [(Cell(text=f"> {short(found.edges[-1], scale, 4)}"), Cell(text=count(found.beyond)))] if found.beyond else []
    )
    return Chart(
        key=f"{test.key}-dist",
        title=f"Inter-token latency, distribution, {unit}",
        says=f"{count(sum(found.counts) + found.beyond)} gaps of all rounds{told}{beyond}.",
        data={"kind": "histogram", "unit": unit, "edges": edges, "counts": list(found.counts), "marks": marks},
        table=Table(
            caption=f"Gaps of all rounds by length, {unit}",
            heads=(ColumnHead(text="length", unit=unit, number=False), ColumnHead(text="gaps")),
            rows=tuple(rows),
        ),
        define=tuple((name, anchor(f"itl_{name}_s")) for name in ("p50", "p90", "p99")),
    )


def timeline(test: Test, arrays: Mapping[str, Any], why: str | None) -> list[Chart | str]:
    """Return memory and busy cores over the profile round."""
    from pytest_infer.analysis import series  # noqa: PLC0415

    def of(what: str) -> Any:
        return arrays.get(f"{test.row.test}|timeline|{what}")

    at = of("at_ns")
    told = test.block.timeline or StoredTimeline()
    if at is None:
        return [f"No timeline of the profile round: {told.absent or why or 'this run kept none'}."]
    marks = [
        {"name": name, "at": float(of(key)) / 1e9}
        for name, key in (("first token", "first_token_ns"), ("last token", "end_ns"))
        if of(key) is not None
    ]
    found: list[Chart | str] = []
    if (rss := of("rss_bytes")) is not None and len(rss):
        found.append(
            _curve(
                test,
                "memory",
                "Resident memory in the profile round",
                Unit.BYTES,
                series.peaks(at, rss, MOST_SAMPLES),
                marks,
                len(at),
            )
        )
    if (busy := of("core_busy_s")) is not None and len(busy) > 1:
        cores = series.rates(at, busy.sum(axis=1), MOST_SAMPLES // 4)
        found.append(_curve(test, "cores", "Busy cores in the profile round", Unit.CORES, cores, marks, len(at)))
    found += [f"No {name} in the timeline: {reason}." for name, reason in told.not_read.items()]
    return found


def _curve(
    test: Test, key: str, title: str, unit: Unit, curve: tuple[Sequence[float], Sequence[float]], marks: Any, taken: int
) -> Chart:
    at, values = curve
    name, scale = scale_of(values, unit)
    time, ticks = scale_of(at[len(at) // 2 :], Unit.SECONDS)
    step = -(-len(at) // _TABLE) if at else 1
    rows = [(Cell(text=short(at[n], ticks)), Cell(text=short(values[n], scale, 4))) for n in range(0, len(at), step)]
    interval = None if test.block.timeline is None else test.block.timeline.interval_s
    ends = " to ".join(short(end, scale, 4) for end in (min(values), max(values)))
    every = f", a sample every {seconds(interval)}" if interval is not None else ""
    return Chart(
        key=f"{test.key}-{key}",
        title=f"{title}, {name}",
        says=f"{count(taken)} samples{every}; {ends} {name}.",
        data={
            "kind": "curve",
            "unit": name,
            "time": time,
            "at": points(at, ticks, 5),
            "values": points(values, scale, 5),
            "marks": [{"name": mark["name"], "at": mark["at"] / ticks} for mark in marks],
        },
        table=Table(
            caption=f"{title}, every {step}. point",
            heads=(ColumnHead(text="time", unit=time), ColumnHead(text=key, unit=name)),
            rows=tuple(rows),
        ),
        define=(("memory", anchor("timeline")) if key == "memory" else ("busy cores", anchor("timeline")),),
    )
