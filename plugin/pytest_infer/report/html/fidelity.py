"""Fidelity: each text token by token with what both sides gave it, and how far apart they are along it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pytest_infer.metrics import by_key
from pytest_infer.report.html.parts import Cell, Chart, ColumnHead, Item, Section, Table, anchor, points, short
from pytest_infer.report.html.stored import StoredRun, Test
from pytest_infer.storage.runs import Run
from pytest_infer.units import Unit, show

if TYPE_CHECKING:
    from pytest_infer.analysis.fidelity.stored import Beside
    from pytest_infer.analysis.fidelity.tokens import Token
    from pytest_infer.records import Picked

_MOST = 400
"""So many tokens of a text are shown."""
_STEPS = (0.02, 0.2, 1.0)
"""From so many nats on, the shift of a token's log-probability has the next stronger colour."""
_SHOWN = 40


def section(stored: StoredRun, earlier: Run | None) -> Section:
    """Return each test beside that of an earlier run, or beside the reference that it followed itself."""
    from pytest_infer.analysis.fidelity.stored import Scored  # noqa: PLC0415 - numpy is loaded where it is needed

    scored = Scored()
    found: list[tuple[Test, Beside | str]] = []
    for test in stored.tests:
        before = None if earlier is None else earlier.row(test.row.test)
        lacks = earlier is not None and before is None
        found.append((test, "the earlier run does not have it" if lacks else scored.beside(test.row, before)))
    shown = [(test, beside) for test, beside in found if not isinstance(beside, str)]
    if not shown:
        why = next((beside for _, beside in found if isinstance(beside, str)), stored.nothing)
        return Section(key="fidelity", title="Fidelity", absent=why)
    name = "its reference" if earlier is None else earlier.label
    parts = [_part(test, beside) for test, beside in shown]
    return Section(
        key="fidelity",
        title="Fidelity",
        lead=f"each text as {name} generated it; colours say how much likelier or unlikelier its tokens were here",
        items=tuple(item for item, _ in parts),
        extra={"texts": [text for _, text in parts]},
    )


def _part(test: Test, beside: Beside) -> tuple[Item, dict[str, Any]]:
    tokens, split = beside.tokens[:_MOST], beside.fidelity.split
    at = None if split is None else split.position
    item = Item(
        title=test.title,
        key=f"fidelity-{test.name}",
        text=(f"output {beside.told}",),
        charts=(_chart(test, tokens, at, exact=beside.fidelity.exact),),
    )
    text = {
        "reference": beside.fidelity.reference,
        "tokens": [_token(number, token, split=number == at) for number, token in enumerate(tokens)],
        "split": None if split is None else _text(split.candidate),
        "more": len(beside.tokens) - len(tokens),
    }
    return item, text


def _token(number: int, token: Token, *, split: bool) -> dict[str, Any]:
    """Return a token as the template shows it: its text, its colour, and what is told of it."""
    shift = token.shift or 0.0
    strength = sum(abs(shift) >= step for step in _STEPS)
    look = f"{'up' if shift > 0 else 'down'}{strength}" if strength else ""
    return {
        "number": number + 1,
        "text": _text(token.reference),
        "look": " ".join(part for part in (look, "split" if split else "", "" if token.agree else "other") if part),
        "says": f"{short(token.reference.p)} → {short(token.candidate_p)}, KL {show(token.kl, Unit.NATS)}",
        "tops": [_top(token.top_reference), _top(token.top_candidate)],
    }


def _text(token: Picked) -> str:
    text = f"⟨{token.id}⟩" if token.text is None else token.text
    return f"{text[:_SHOWN]}…" if len(text) > _SHOWN else text


def _top(tokens: Iterable[Picked]) -> str:
    return ", ".join(f"{_text(token)!r} {short(token.p)}" for token in tokens)


def _chart(test: Test, tokens: Sequence[Token], split: int | None, *, exact: bool) -> Chart:
    kl = by_key("kl")
    marked = {} if split is None or split >= len(tokens) else {"mark": {"at": split + 1, "name": "parts here"}}
    return Chart(
        key=f"kl-{test.name}",
        title="KL along the text",
        says=f"{'Exact' if exact else 'A lower bound, from the 64 likeliest tokens'}, at each of {len(tokens)} tokens.",
        data={
            "kind": "lines",
            "x": {"name": "token", "unit": "", "values": list(range(1, len(tokens) + 1))},
            "y": {"name": kl.label, "unit": kl.unit.value},
            "series": [{"name": kl.label, "values": points([token.kl for token in tokens], 1), "look": "strong"}],
            **marked,
        },
        table=_table(tokens),
        define=((kl.label, anchor("kl")),),
    )


def _table(tokens: Sequence[Token]) -> Table:
    heads = (
        ColumnHead(text="token"),
        ColumnHead(text="text", number=False),
        ColumnHead(text="reference", unit="p"),
        ColumnHead(text="this", unit="p"),
        ColumnHead(text="KL", unit="nats", define=anchor("kl")),
        ColumnHead(text="likeliest of the reference", number=False),
        ColumnHead(text="likeliest here", number=False),
    )
    rows = tuple(
        (
            Cell(text=str(number)),
            Cell(text=repr(_text(token.reference))),
            Cell(text=short(token.reference.p)),
            Cell(text=short(token.candidate_p)),
            Cell(text=show(token.kl, Unit.NATS)),
            Cell(text=_top(token.top_reference)),
            Cell(text=_top(token.top_candidate)),
        )
        for number, token in enumerate(tokens, 1)
    )
    return Table(caption="Each token", heads=heads, rows=rows, quiet=True)
