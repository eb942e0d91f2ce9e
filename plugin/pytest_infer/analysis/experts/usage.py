"""Expert usage of each layer and of the model: shares with intervals, skew beside its null, experts worth a name."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_infer.analysis.experts import census as taking
from pytest_infer.analysis.experts import naming, skew, uniform
from pytest_infer.analysis.experts.census import Census, Counts, Phase
from pytest_infer.analysis.experts.uniform import Expected
from pytest_infer.records import ExpertSite


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteUsage:
    """What one layer did in a phase.

    `counts` has a number for each slot; `figures` (see skew.FIGURES) are over the experts that have weights, `expected`
    what uniform routing of as many selections shows. `hot` and `cold` experts differ from the fair share beyond chance.
    `more_tokens` is how many more it takes to name a hot one: 0 when there is one, None when none stands out.
    """

    site: ExpertSite
    counts: Counts
    tokens: int
    figures: Mapping[str, float]
    expected: Mapping[str, Expected]
    hot: tuple[int, ...]
    cold: tuple[int, ...]
    more_tokens: int | None

    @property
    def selections(self) -> int:
        """Return the selections of all slots."""
        return int(self.counts.sum())

    @property
    def weightless(self) -> float:
        """Return the share of selections that went to slots without weights."""
        return float(self.counts[self.site.experts :].sum()) / self.selections if self.selections else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expert:
    """One expert's part: `share`, `low` and `high` (95 %) of its layer's selections, and `ratio` to the fair share.

    `gate` is its mean gate weight; None where weights were not recorded or it was never selected.
    """

    site: ExpertSite
    expert: int
    times: int
    share: float
    low: float
    high: float
    ratio: float
    hot: bool
    cold: bool
    gate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Whether there were tokens enough to name hot experts: in `unnamed` of `layers` none stands out for sure.

    `more_tokens` is the median of what those layers need beyond the tokens there are; None where none of them can say.
    """

    layers: int
    unnamed: int
    more_tokens: int | None

    @property
    def small(self) -> bool:
        """Return whether most layers have no expert that may be called hot."""
        return 2 * self.unnamed > self.layers


def of_site(site: ExpertSite, counts: Counts, tokens: int) -> SiteUsage:
    """Return the usage of one layer: `counts` of its slots over so many tokens.

    The null is over the selections of experts with weights, k at a time: without weightless slots, just the tokens.
    """
    experts = counts[: site.experts]
    selections = int(experts.sum())
    figures = {f.key: float(value) for f in skew.FIGURES if np.isfinite(value := f.of(experts))} if selections else {}
    hot, cold = naming.named(experts, tokens)
    return SiteUsage(
        site=site,
        counts=counts,
        tokens=tokens,
        figures=figures,
        expected=uniform.expected(site.experts, min(site.k, site.experts), round(selections / site.k)),
        hot=tuple(int(e) for e in np.flatnonzero(hot)),
        cold=tuple(int(e) for e in np.flatnonzero(cold)),
        more_tokens=0 if hot.any() else _more_tokens(experts, tokens),
    )


def _more_tokens(experts: Counts, tokens: int) -> int | None:
    if tokens < 1:
        return None
    hottest, fair = float(experts.max()) / tokens, float(experts.mean()) / tokens
    enough = naming.tokens_needed(hottest, fair, len(experts))
    return None if enough is None else max(1, enough - tokens)


def of_census(census: Census, phase: Phase) -> tuple[SiteUsage, ...]:
    """Return the usage of every layer in a phase."""
    tokens = taking.tokens(census, phase)
    rows = taking.counts(census, phase)
    return tuple(of_site(site, row, tokens) for site, row in zip(census.sites, rows, strict=True))


def model(usages: Sequence[SiteUsage]) -> dict[str, tuple[float, float | None]]:
    """Return each figure of skew and its null, averaged over the layers that have it."""
    found: dict[str, tuple[float, float | None]] = {}
    for figure in skew.FIGURES:
        values = [usage.figures[figure.key] for usage in usages if figure.key in usage.figures]
        nulls = [usage.expected[figure.key].mean for usage in usages if figure.key in usage.expected]
        if values:
            found[figure.key] = statistics.fmean(values), statistics.fmean(nulls) if nulls else None
    return found


def sample(usages: Sequence[SiteUsage]) -> Sample:
    """Return whether there were tokens enough to name hot experts, over all layers."""
    unnamed = [usage for usage in usages if not usage.hot]
    more = [usage.more_tokens for usage in unnamed if usage.more_tokens is not None]
    return Sample(
        layers=len(usages), unnamed=len(unnamed), more_tokens=round(statistics.median(more)) if more else None
    )


def experts(usages: Sequence[SiteUsage], gates: Sequence[Sequence[float]] | None = None) -> list[Expert]:
    """Return every expert with weights, the hottest first by its ratio to the fair share of its layer.

    The interval is Wilson's for the tokens that chose it, as a part of the layer's selections. `gates` are the sums of
    the gate weights of each layer's slots.
    """
    found: list[Expert] = []
    for number, usage in enumerate(usages):
        if not usage.selections:
            continue
        sums = gates[number] if gates is not None else None
        own = usage.counts[: usage.site.experts]
        per_token = usage.selections / max(1, usage.tokens)
        low, high = naming.wilson(own, usage.tokens)
        mean = float(own.mean())
        hot, cold = set(usage.hot), set(usage.cold)
        found += [
            Expert(
                site=usage.site,
                expert=e,
                times=times,
                share=times / usage.selections,
                low=float(low[e]) / per_token,
                high=float(high[e]) / per_token,
                ratio=times / mean if mean else 0.0,
                hot=e in hot,
                cold=e in cold,
                gate=float(sums[e]) / times if sums is not None and times else None,
            )
            for e, times in enumerate(own.tolist())
        ]
    return sorted(found, key=lambda x: (-x.ratio, x.site.layer, x.site.name, x.expert))


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Shares of selections, 0 to 1, that a part of a layer's experts serves: of the layers the mean and the ends."""

    part: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def coverage(usages: Sequence[SiteUsage]) -> Coverage | None:
    """Return the curve at every number of experts of the largest layer, linear between a layer's own numbers.

    None where no layer selected an expert with weights.
    """
    own = [usage.counts[: usage.site.experts] for usage in usages]
    own = [counts for counts in own if counts.sum()]
    if not own:
        return None
    part = np.linspace(0, 1, max(len(counts) for counts in own) + 1)
    table = np.stack(
        [np.interp(part, np.linspace(0, 1, len(c) + 1), np.concatenate([[0.0], skew.curve(c)])) for c in own]
    )
    return Coverage(
        part=tuple(part.tolist()),
        mean=tuple(table.mean(axis=0).tolist()),
        low=tuple(table.min(axis=0).tolist()),
        high=tuple(table.max(axis=0).tolist()),
    )
