"""The charts of one prompt from the arrays beside the run file, or the line that says why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_infer.report.html.parts import Cell, Chart, ColumnHead, Table, anchor, points, short, unique
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


def _stamps(test: Test, arrays: Mapping[str, Any], side: str = "") -> list[Any]:
    found: list[Any] = []
    while (key := f"{test.row.test}|{side}{len(found)}|stamps_ns") in arrays:
        found.append(arrays[key])
    return found


def _other(test: Test, arrays: Mapping[str, Any], given: Other | None) -> tuple[tuple[str, str], list[Any]]:
    """Return the stamps of the other side, and what both sides are called: an earlier run's, or of the run's own."""
    if given is not None and (stamps := _stamps(test, given.arrays)):
        return given.names, stamps
    against = test.block.against
    names = ("the other side" if against is None or against.rev is None else against.rev, "this checkout")
    return names, _stamps(test, arrays, "before|")


def _absent(test: Test, arrays: Mapping[str, Any], why: str | None) -> str:
    if why is not None or not _stamps(test, arrays):
        return f"No latencies token by token: {why or 'the stamps of this test are not beside the run file'}."
    return f"No latencies token by token: {test.absent('itl_p50_s') or 'no round has two tokens'}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """The other side of a comparison: what both are called, and the arrays beside the other's file."""

    names: tuple[str, str]
    arrays: Mapping[str, Any]


def over_tokens(test: Test, arrays: Mapping[str, Any], why: str | None, other: Other | None = None) -> Chart | str:
    """Return the gap before each token: the median of the rounds with their least and most, of both sides."""
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
    names, stamps = _other(test, arrays, other)
    before = series.band(stamps, MOST_TOKENS)
    against = f" {names[1].capitalize()} over {names[0]}, which is dashed." if before is not None else ""
    both = {} if before is None else {"name": names[1], "before": _band(before, what, scale, names[0])}
    return Chart(
        key=f"{test.key}-itl",
        title=f"Inter-token latency by {what}, {unit}",
        says=(
            f"Median of {len(rounds)} rounds with their least and most{wide}; the longest gap, "
            f"{seconds(found.high[slowest])}, ends at {ends}.{against}"
        ),
        data={
            "kind": "band",
            "unit": unit,
            **_band(found, what, scale),
            **both,
        },
        table=_stretches(found, what, unit, scale, before),
        define=(("ITL", anchor("itl")),),
    )


def _band(found: Band, what: str, scale: float, name: str | None = None) -> dict[str, Any]:
    return {
        "x": {"name": what, "start": found.position[0], "step": found.width},
        "median": points(found.median, scale, 3),
        "low": points(found.low, scale, 3),
        "high": points(found.high, scale, 3),
        **({} if name is None else {"name": name}),
    }


def _stretches(band: Band, what: str, unit: str, scale: float, before: Band | None) -> Table:
    """Return the curve as a table: of each stretch of tokens the median, least and most gap, and the other's median."""
    rows = [
        (
            Cell(text=f"{one.first}–{one.last}" if one.last > one.first else str(one.first)),
            *(Cell(text=short(figure, scale)) for figure in (one.median, one.low, one.high)),
            *([Cell(text=short(before.between(one.first, one.last), scale))] if before is not None else []),
        )
        for one in band.stretches(_TABLE)
    ]
    columns = ("median", "least", "most", *(["median of the other side"] if before is not None else []))
    return Table(
        caption=f"Gaps before the {what}s, {unit}",
        heads=(
            ColumnHead(text=f"{what}s", number=False),
            *(ColumnHead(text=text, unit=unit) for text in columns),
        ),
        rows=tuple(rows),
    )


def distribution(test: Test, arrays: Mapping[str, Any], why: str | None, other: Other | None = None) -> Chart | str:
    """Return how the gaps of all rounds are distributed, on both sides, and the percentiles of the table of metrics."""
    from pytest_infer.analysis import series  # noqa: PLC0415

    names, stamps = _other(test, arrays, other)
    found = series.histogram(_stamps(test, arrays), before=stamps)
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
    against = f" In shares of each side's gaps: {names[1]} over {names[0]}, the line." if found.before else ""
    sides = zip(found.counts, found.before, strict=True) if found.before else [(n,) for n in found.counts]
    rows = [
        (Cell(text=f"{short(a, scale, 4)}–{short(b, scale, 4)}"), *(Cell(text=count(n)) for n in both))
        for a, b, both in zip(found.edges, found.edges[1:], sides, strict=False)
        if any(both)
    ]
    if found.beyond:
        last = f"> {short(found.edges[-1], scale, 4)}", count(found.beyond), *(["–"] if found.before else [])
        rows.append(tuple(Cell(text=text) for text in last))
    both_sides = {"before": list(found.before), "names": list(names)} if found.before else {}
    return Chart(
        key=f"{test.key}-dist",
        title=f"Inter-token latency, distribution, {unit}",
        says=f"{count(sum(found.counts) + found.beyond)} gaps of all rounds{told}{beyond}.{against}",
        data={
            "kind": "histogram",
            "unit": unit,
            "edges": edges,
            "counts": list(found.counts),
            "marks": marks,
            **both_sides,
        },
        table=Table(
            caption=f"Gaps of all rounds by length, {unit}",
            heads=(
                ColumnHead(text="length", unit=unit, number=False),
                ColumnHead(text="gaps"),
                *([ColumnHead(text="gaps of the other side")] if found.before else []),
            ),
            rows=tuple(rows),
        ),
        define=tuple((name, anchor(f"itl_{name}_s")) for name in ("p50", "p90", "p99")),
    )


def memory(test: Test, arrays: Mapping[str, Any], why: str | None) -> list[Chart | str]:
    """Return the memory over the profile round, and why anything of its timeline is not known."""
    from pytest_infer.analysis import series  # noqa: PLC0415

    at, rss = _timeline(test, arrays, "at_ns"), _timeline(test, arrays, "rss_bytes")
    told = test.block.timeline or StoredTimeline()
    if at is None:
        return [f"No timeline of the profile round: {told.absent or why or 'this run kept none'}."]
    found: list[Chart | str] = []
    if rss is not None and len(rss):
        values, unit, scale, time, ticks = _scaled(series.peaks(at, rss, MOST_SAMPLES), Unit.BYTES)
        interval = None if test.block.timeline is None else test.block.timeline.interval_s
        ends = " to ".join(short(end, scale, 4) for end in (min(values[1]), max(values[1])))
        every = f", a sample every {seconds(interval)}" if interval is not None else ""
        title = f"Resident memory in the profile round, {unit}"
        made = Chart(
            key=f"{test.key}-memory",
            title=title,
            says=f"{count(len(at))} samples{every}; {ends} {unit}.",
            data={"kind": "curve", "unit": unit, **_drawn(test, arrays, values, scale, time, ticks)},
            table=_samples(title, [(test.title, values, scale, ticks)], time, "memory", unit),
            define=(("memory", anchor("timeline")),),
        )
        found.append(made)
    found += [f"No {name} in the timeline: {reason}." for name, reason in told.not_read.items()]
    return found


def cores(tests: Sequence[Test], arrays: Mapping[str, Any]) -> Chart | None:
    """Return how many cores of the machine were busy over each prompt's profile round, whoever kept them so."""
    from pytest_infer.analysis import series  # noqa: PLC0415

    found = []
    for test in tests:
        at, busy = _timeline(test, arrays, "at_ns"), _timeline(test, arrays, "core_busy_s")
        if at is not None and busy is not None and len(busy) > 1:
            curve = series.rates(at, busy.sum(axis=1), MOST_SAMPLES // 4)
            found.append((test, _scaled(curve, Unit.CORES)))
    if not found:
        return None
    most = max(max(values[1]) for _, (values, *_) in found)
    title = "Busy cores of the machine during profile rounds"
    names = unique([test.title for test, _ in found])
    choices = [
        {"name": name, **_drawn(test, arrays, values, scale, time, ticks)}
        for name, (test, (values, _, scale, time, ticks)) in zip(names, found, strict=True)
    ]
    return Chart(
        key="cores",
        title=title,
        says=f"All that ran on the machine while a prompt was profiled, not this process alone; {most:.3g} at most.",
        data={"kind": "curve", "unit": "cores", "choices": choices},
        table=_samples(title, [(t.title, v, s, 1.0) for t, (v, _, s, _, _) in found], "s", "cores", "cores"),
        define=(("busy cores", anchor("timeline")),),
    )


Curve = tuple[Sequence[float], Sequence[float]]


def _timeline(test: Test, arrays: Mapping[str, Any], what: str) -> Any:
    return arrays.get(f"{test.row.test}|timeline|{what}")


def _scaled(curve: Curve, unit: Unit) -> tuple[Curve, str, float, str, float]:
    """Return a curve with the unit and scale of its values, and those of its times."""
    at, values = curve
    return curve, *scale_of(values, unit), *scale_of(at[len(at) // 2 :], Unit.SECONDS)


def _drawn(
    test: Test, arrays: Mapping[str, Any], curve: Curve, scale: float, time: str, ticks: float
) -> dict[str, Any]:
    marks = [
        {"name": name, "at": float(told) / 1e9 / ticks}
        for name, key in (("first token", "first_token_ns"), ("last token", "end_ns"))
        if (told := _timeline(test, arrays, key)) is not None
    ]
    at, values = points(curve[0], ticks, 5), points(curve[1], scale, 5)
    return {"time": time, "at": at, "values": values, "marks": marks}


def _samples(title: str, curves: Sequence[tuple[str, Curve, float, float]], time: str, what: str, unit: str) -> Table:
    """Return some points of curves as a table: of several, the prompt beside each."""
    several = len(curves) > 1
    rows = []
    for name, (at, values), scale, ticks in curves:
        step = -(-len(at) // _TABLE) if at else 1
        for n in range(0, len(at), step):
            figures = Cell(text=short(at[n], ticks)), Cell(text=short(values[n], scale, 4))
            rows.append((Cell(text=name), *figures) if several else figures)
    heads = (ColumnHead(text="time", unit=time), ColumnHead(text=what, unit=unit))
    names = (ColumnHead(text="prompt", number=False),) if several else ()
    return Table(caption=f"{title}, some points of each curve", heads=(*names, *heads), rows=tuple(rows))
