"""What changed since the last run, beside each prompt and over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.report.compare import headline, words
from pytest_infer.report.compare.terminal import STYLES
from pytest_infer.report.text import printable

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.two_runs import Since

_FIRST = ("tpot_s", "ttft_s", "peak_rss_bytes", "level_s_per_token", "level_ttft_p50_s")
"""What a prompt is told of where nothing is known to have moved."""
_LONGEST = 44
"""Characters of a reason in a row."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What changed in a prompt, and how it is written."""

    text: str
    style: str


def cells(since: Since) -> dict[str, Cell]:
    """Return what changed in each test: what is known to have, the worse first; else how well its decode is known."""
    found: dict[str, list[Judgement]] = {}
    for judgement in since.judgements:
        found.setdefault(judgement.test, []).append(judgement)
    return {test: _cell(judgements) for test, judgements in found.items()}


def _cell(judgements: Sequence[Judgement]) -> Cell:
    for verdict in (Verdict.REGRESSED, Verdict.IMPROVED):
        moved = [j for j in judgements if j.verdict is verdict and j.mid is not None]
        if moved:
            changes = [headline.moved(j, worse=verdict is Verdict.REGRESSED) for j in moved]
            return Cell("; ".join(changes), STYLES[verdict])
    told = {j.metric_key: j for j in judgements if j.mid is not None}
    first = next((told[key] for key in _FIRST if key in told), None)
    if first is not None:
        low, high = words.share(first.low, end=-1), words.share(first.high)
        interval = f" [{low.removesuffix(' %')}, {high.removesuffix(' %')}]" if first.p is not None else ""
        return Cell(f"{headline.subject(first)} {words.share(first.mid)}{interval}", "dim")
    if any(j.verdict is Verdict.NEW for j in judgements):
        return Cell("new", STYLES[Verdict.NEW])
    said = printable(next((j.reason for j in judgements if j.reason), ""))
    return Cell(f"not compared: {said if len(said) <= _LONGEST else f'{said[: _LONGEST - 1].rstrip()}…'}", "yellow")


def line(since: Since) -> str:
    """Return what it comes to over all prompts, and which run that is since."""
    said = headline.in_words(since.headline, since.judgements) or "nothing to compare"
    return printable(f"since {since.before.label}: {said}")
