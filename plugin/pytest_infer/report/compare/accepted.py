"""What is said of accepted regressions beside the verdicts: which are of no use, and how to accept others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pytest_infer.analysis.compare.accepted import suggested
from pytest_infer.report.text import printable

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.accepted import Used
    from pytest_infer.analysis.compare.gate import Gated
    from pytest_infer.analysis.compare.verdicts import Judgement

HOW = "to accept it, in a commit message:"
_WHERE = "In a commit's message, or as an entry of `bench/accepted.toml`, with the reason in place of WHY:"


def lines(gated: Gated) -> list[str]:
    """Return what is accepted and is of no use."""
    return [printable(_line(one)) for one in gated.accepted if not one.times]


def how(gated: Gated) -> list[str]:
    """Return how to accept what the gate fails for; nothing in a bisection, which accepts nothing."""
    wanted = [] if gated.ending.bisect else suggested(gated.judgements)
    # A line each: they are to be copied.
    return [HOW, *(f"  {printable(line)}" for line in wanted)] if wanted else []


def how_as_markdown(judgements: Iterable[Judgement]) -> str:
    """Return the same below a comparison in Markdown, folded away."""
    wanted = suggested(judgements)
    if not wanted:
        return ""
    lines_ = ["<details><summary>how to accept it</summary>", "", _WHERE, "", "```text"]
    return "\n".join(["", *lines_, *map(printable, wanted), "```", "", "</details>", ""])


def _line(used: Used) -> str:
    written = used.accepted.written
    what = f"{written.text} ({written.where}: {written.reason})"
    if written.expired is not None:
        return f"no longer accepted: {what}: {written.expired}"
    return f"accepted, but nothing came to it: {what}"


def as_rows(gated: Gated) -> list[dict[str, str | int | None]]:
    """Return what was written down as rows of a table, with the number of verdicts that follow from each."""
    return [
        {
            "metric": one.accepted.written.metric,
            "prompt": one.accepted.written.prompt,
            "bound": one.accepted.written.bound,
            "reason": one.accepted.written.reason,
            "where": one.accepted.written.where,
            "expired": one.accepted.written.expired,
            "verdicts": one.times,
        }
        for one in gated.accepted
    ]
