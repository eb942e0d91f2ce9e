"""Metrics of expert usage in the table of metrics, derived from the counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pytest_infer.records import ExpertSite, ExpertUsage

PASSED = "passed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShare:
    """One expert's part of its site's selections; `share` is between 0 and 1."""

    site: ExpertSite
    expert: int
    selections: int
    share: float


def counts(usage: ExpertUsage) -> list[list[int]]:
    """Return selections per site and expert, prefill and decode together; shape (sites, slots)."""
    return [
        [p + d for p, d in zip(prefill, decode, strict=True)]
        for prefill, decode in zip(usage.prefill, usage.decode, strict=True)
    ]


def selections(usage: ExpertUsage) -> int:
    """Return all selections of all sites: MoE sites x tokens processed x top-k when the check passed."""
    return sum(map(sum, counts(usage)))


def _averaged(usage: ExpertUsage, metric: Callable[[list[int]], float]) -> float | None:
    """Return a metric of the experts with weights, averaged over the sites that selected any."""
    rows = [row[: site.experts] for site, row in zip(usage.sites, counts(usage), strict=True)]
    values = [metric(row) for row in rows if sum(row)]
    return sum(values) / len(values) if values else None


def imbalance(usage: ExpertUsage) -> float | None:
    """Return the load imbalance, max / mean selections of a site, averaged over the sites; 1 is perfectly even."""
    return _averaged(usage, lambda row: max(row) * len(row) / sum(row))


def entropy(usage: ExpertUsage) -> float | None:
    """Return −Σ p ln p / ln E (Shannon 1948), averaged over the sites; 1 is perfectly even, 0 one expert alone."""

    def of(row: list[int]) -> float:
        total = sum(row)
        nats = sum(n / total * math.log(total / n) for n in row if n)
        return nats / math.log(len(row)) if len(row) > 1 else 1.0

    return _averaged(usage, of)


def hot_quarter(usage: ExpertUsage) -> float | None:
    """Return the percentage of selections that a site's most used quarter of experts serves, averaged over the sites.

    A quarter is at least one expert, halves rounded up.
    """

    def of(row: list[int]) -> float:
        most = max(1, (len(row) + 2) // 4)
        return 100 * sum(sorted(row, reverse=True)[:most]) / sum(row)

    return _averaged(usage, of)


def hottest(usage: ExpertUsage, most: int) -> list[ExpertShare]:
    """Return the experts with weights that have the largest share of their own site's selections, largest first."""
    shares = [
        ExpertShare(site=site, expert=expert, selections=n, share=n / sum(row))
        for site, row in zip(usage.sites, counts(usage), strict=True)
        for expert, n in enumerate(row[: site.experts])
        if n
    ]
    return sorted(shares, key=lambda s: (-s.share, s.site.layer, s.expert))[:most]


def coldest(usage: ExpertUsage, most: int) -> list[ExpertShare]:
    """Return the experts with weights that have the smallest share of their site's selections, smallest first."""
    shares = [
        ExpertShare(site=site, expert=expert, selections=n, share=n / sum(row))
        for site, row in zip(usage.sites, counts(usage), strict=True)
        if sum(row)
        for expert, n in enumerate(row[: site.experts])
    ]
    return sorted(shares, key=lambda s: (s.share, s.site.layer, s.expert))[:most]


def worth(tokens: int, sequences: int, *, trace: bool) -> tuple[float, int, bool]:
    """Return what a test is worth among those of one text: tokens of a sequence, then few sequences, then a trace."""
    return tokens / sequences, -sequences, trace


def one_each(contents: Sequence[str], worths: Sequence[tuple[float, int, bool]]) -> list[int]:
    """Return the numbers of one of each content, in order: that of most worth, the first of equals.

    To count a text again is no further evidence.
    """
    best: dict[str, int] = {}
    for number in sorted(range(len(contents)), key=worths.__getitem__, reverse=True):
        best.setdefault(contents[number], number)
    return sorted(best.values())


def merged(usages: Sequence[ExpertUsage]) -> ExpertUsage | None:
    """Return the selections of several prompts together, without weights or traces; None where sites differ.

    Experts may differ in size, as by dtype: those of the first prompt's sites are kept.
    """
    if not usages or len({tuple(site.routing for site in usage.sites) for usage in usages}) > 1:
        return None

    def total(parts: Iterable[tuple[tuple[int, ...], ...]]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(map(sum, zip(*site, strict=True))) for site in zip(*parts, strict=True))

    return ExpertUsage(
        sites=usages[0].sites,
        prefill_tokens=sum(usage.prefill_tokens for usage in usages),
        decode_tokens=sum(usage.decode_tokens for usage in usages),
        prefill=total(usage.prefill for usage in usages),
        decode=total(usage.decode for usage in usages),
        check=PASSED if all(usage.check == PASSED for usage in usages) else "not all add up",
    )


def label(share: ExpertShare) -> str:
    """Return the short name of an expert: layer 2, expert 5 is `L2E5`."""
    return f"L{share.site.layer}E{share.expert}"
