"""What the overview says first: what got slower, by how much, how sure, why and since when, a card an event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_infer.analysis.compare.verdicts import Verdict
from pytest_infer.analysis.history.events import facts
from pytest_infer.report.history import events as in_words
from pytest_infer.report.html import compare
from pytest_infer.report.html.parts import Answer
from pytest_infer.storage.code import commit_address

if TYPE_CHECKING:
    from pytest_infer.analysis.history.events import Event
    from pytest_infer.metrics import Fact, Metric
    from pytest_infer.report.html.compare import Compared
    from pytest_infer.report.html.history import Known

_MOST = 3
"""So many lasting changes have a card of their own."""
_BAD = ("regressed", "missing")
_SLOWER = (Verdict.REGRESSED, Verdict.ACCEPTED)
"""What a comparison found that the history may know the commit of."""


def cards(compared: Sequence[Compared], found: Known, repository: str | None) -> list[dict[str, Any]]:
    """Return the cards, what is worse first.

    What a comparison found, and the history since which run, is one card; other lasting changes have their own, but
    for what was undone.
    """
    made: list[dict[str, Any]] = []
    told: list[Event] = []
    lasting = _lasting(found)
    for number, one in enumerate(compared, 1):
        between = [event for event in reversed(lasting) if _explains(event, one)]
        since = [line for event in between for line in _since(event, found, repository, named=len(between) > 1)]
        made.append(compare.card(one, number, since))
        told += between
    others = [event for event in lasting if event not in told]
    own = [_card(event, found, repository) for event in others[:_MOST]]
    if len(others) > _MOST:
        more = len(others) - _MOST
        own[-1]["answers"].append(Answer(name="also", text=f"{more} earlier lasting changes", link="history"))
    return sorted([*own, *made], key=_rank)


def lasting(found: Known) -> dict[str, Any] | None:
    """Return the card of the newest lasting change, of one for the worse where there is any."""
    event = min(_lasting(found), key=lambda event: event.worse is not True, default=None)
    return None if event is None else _card(event, found, None)


def _lasting(found: Known) -> list[Event]:
    return [event for event in reversed(found.events) if event.until is None]


def _rank(card: Mapping[str, Any]) -> int:
    """Return the place of a card: what is worse, then what else changed, then what did not or cannot be told."""
    return (
        0 if card["look"] in _BAD else 1 if card["look"] in ("accepted", "improved") or card["key"] == "history" else 2
    )


def _explains(event: Event, one: Compared) -> bool:
    """Return whether something became worse at the event, between both runs, that the comparison found worse."""
    if one.earlier is None or one.later is None or not one.earlier.time < event.run.time <= one.later.time:
        return False
    found = _each_fact((j.test, j.metric) for j in one.judgements if j.verdict in _SLOWER)
    return bool(found & _each_fact((s.test, s.metric) for moved in event.moved for s in moved.shifts if s.worse))


def _each_fact(figures: Iterable[tuple[str, Metric | None]]) -> set[tuple[str, Fact | str]]:
    return {(test, fact) for test, metric in figures if metric is not None for fact in facts(metric)}


def _card(event: Event, found: Known, repository: str | None) -> dict[str, Any]:
    changed = in_words.changes(event)
    look = "inconclusive" if event.worse is None else "regressed" if event.worse else "improved"
    return {
        "says": f"{changed[0]}, for {event.runs} runs now",
        "answers": [
            *_since(event, found, repository, named=False),
            *(Answer(name="also", text=line) for line in changed[1:]),
        ],
        "counts": [],
        "look": look,
        "table": None,
        "open": False,
        "more": 0,
        "key": "history",
    }


def _since(event: Event, found: Known, repository: str | None, *, named: bool) -> Iterator[Answer]:
    """Yield since when, why, and how sure; `named`: what changed then too, where there are several."""
    run = event.run
    parts = [
        found.messages.get(run.commit or ""),
        f"{run.time:%Y-%m-%d}",
        *(in_words.changes(event)[:1] if named else ()),
    ]
    address = commit_address(repository, run.commit)
    yield Answer(name="since", text=run.label, url=address, link="history", more=" · ".join(filter(None, parts)))
    for reason in in_words.reasons(event):
        yield Answer(name="why", text=reason, link="breakdown")
    yield Answer(name="how sure", text=in_words.certainty(event))
