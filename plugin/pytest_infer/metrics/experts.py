"""Figures of expert usage that the table of metrics shows, derived from the counts."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_infer.records import ExpertSite, ExpertUsage


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


def imbalance(usage: ExpertUsage) -> float | None:
    """Return the load imbalance, max / mean selections of a site, averaged over the sites; 1 is perfectly even."""
    loads = [max(row) * len(row) / sum(row) for row in counts(usage) if sum(row)]
    return sum(loads) / len(loads) if loads else None


def hottest(usage: ExpertUsage, most: int) -> list[ExpertShare]:
    """Return the experts with the largest share of their own site's selections, largest first."""
    shares = [
        ExpertShare(site=site, expert=expert, selections=n, share=n / sum(row))
        for site, row in zip(usage.sites, counts(usage), strict=True)
        for expert, n in enumerate(row)
        if n
    ]
    return sorted(shares, key=lambda s: (-s.share, s.site.layer, s.expert))[:most]


def label(share: ExpertShare) -> str:
    """Return the short name of an expert: layer 2, expert 5 is `L2E5`."""
    return f"L{share.site.layer}E{share.expert}"
