"""Expert usage of a suite put together: layers, experts, overlap, differences and what a trace adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from pytest_infer.analysis.experts import census as taking
from pytest_infer.analysis.experts import difference, overlap, traces, usage
from pytest_infer.analysis.experts.census import Census, Phase
from pytest_infer.analysis.experts.difference import UsageDifference
from pytest_infer.analysis.experts.overlap import Overlap, PromptGroup
from pytest_infer.analysis.experts.traces import Reuse, StepBytes, Together, Trace
from pytest_infer.analysis.experts.usage import Expert, Sample, SiteUsage
from pytest_infer.records import ExpertSite
from pytest_infer.storage.schema import Weights

BATCHES = (1, 4, 16)
_MOST_PAIRS = 5


class By(StrEnum):
    """What the suite is divided by."""

    PROMPT = "prompt"
    TAG = "tag"
    GROUP = "group"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptUsage:
    """The usage of one test: its census, its gate weights, and its trace, one array a site, where these were kept.

    `content` is what its text is told apart by, where it is told from others.
    """

    name: str
    census: Census
    content: str | None = None
    tags: tuple[str, ...] = ()
    group: str | None = None
    weights: Weights | None = None
    trace: tuple[Trace, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPair:
    """Two experts of one site that tokens choose together."""

    site: ExpertSite
    together: Together


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything that is shown of a suite's expert usage in one phase.

    `usages`, and `reuse` where there are traces, have an entry a site; `experts` are all of them, the hottest first.
    `across` is the share of the generated tokens' selections that the prompts' hot quarter serves. `steps` are the
    expert bytes of a decode step, for several batch sizes.
    """

    phase: Phase
    by: By
    prompts: tuple[str, ...]
    census: Census
    usages: tuple[SiteUsage, ...]
    experts: tuple[Expert, ...]
    sample: Sample
    overlap: Overlap
    differences: tuple[UsageDifference, ...]
    across: float | None
    steps: tuple[StepBytes, ...]
    reuse: tuple[Reuse | None, ...]
    pairs: tuple[ExpertPair, ...]

    @property
    def weightless(self) -> float:
        """Return the mean share of a layer's selections that need no weights."""
        return sum(used.weightless for used in self.usages) / len(self.usages)


def view(prompts: Sequence[PromptUsage], phase: Phase, by: By) -> View:
    """Return the view of at least one prompt; raise StorageError where the prompts are of different models."""
    merged = taking.merged([prompt.census for prompt in prompts])
    found = usage.of_census(merged, phase)
    table = overlap.suite([prompt.census for prompt in prompts], phase)
    groups = _groups(prompts, by)
    reuse, pairs = _traced(prompts, phase)
    steps = [traces.step_bytes(merged, Phase.DECODE, batch) for batch in BATCHES]
    return View(
        phase=phase,
        by=by,
        prompts=tuple(prompt.name for prompt in prompts),
        census=merged,
        usages=found,
        experts=tuple(usage.experts(found, _gates(prompts, phase))),
        sample=usage.sample(found),
        overlap=overlap.overlap(table, groups),
        # Two single prompts always differ: what they are about is no question of groups.
        differences=() if by is By.PROMPT else difference.between(table, groups),
        across=_across(merged),
        steps=tuple(step for step in steps if step is not None),
        reuse=reuse,
        pairs=pairs,
    )


def _gates(prompts: Sequence[PromptUsage], phase: Phase) -> list[list[float]] | None:
    """Return the sums of the gate weights of each site's slots; None where a prompt has none."""
    parts = [
        rows
        for prompt in prompts
        if prompt.weights is not None
        for name, rows in ((Phase.PREFILL, prompt.weights.prefill), (Phase.DECODE, prompt.weights.decode))
        if phase in (name, Phase.BOTH)
    ]
    if any(prompt.weights is None for prompt in prompts):
        return None
    return [np.sum(np.asarray(site), axis=0).tolist() for site in zip(*parts, strict=True)]


def _groups(prompts: Sequence[PromptUsage], by: By) -> list[PromptGroup]:
    if by is By.PROMPT:
        return [PromptGroup(name=prompt.name, members=(number,)) for number, prompt in enumerate(prompts)]
    members: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        for name in prompt.tags if by is By.TAG else (prompt.group,) if prompt.group else ():
            members.setdefault(name, []).append(number)
    return [PromptGroup(name=name, members=tuple(numbers)) for name, numbers in members.items()]


def _across(merged: Census) -> float | None:
    prefill, decode = (overlap.suite([merged], phase) for phase in (Phase.PREFILL, Phase.DECODE))
    if not prefill.table.any():
        return None
    return overlap.served(overlap.hot_by_budget(prefill, prefill.table[0]), decode.table[0])


def _traced(prompts: Sequence[PromptUsage], phase: Phase) -> tuple[tuple[Reuse | None, ...], tuple[ExpertPair, ...]]:
    """Return each site's reuse, averaged over the prompts by their tokens, and the pairs of all."""
    parts = [
        [traces.of_phase(rows, prompt.census.prefill_tokens, phase) for rows in prompt.trace]
        for prompt in prompts
        if prompt.trace is not None
    ]
    if not parts:
        return (), ()
    sites = prompts[0].census.sites
    reuse = tuple(_mean_reuse([part[n] for part in parts], site.slots) for n, site in enumerate(sites))
    every = [
        ExpertPair(site=site, together=pair)
        for n, site in enumerate(sites)
        for pair in traces.together(traces.joined([part[n] for part in parts]), site.slots)
    ]
    every.sort(key=lambda pair: (-pair.together.lift, pair.site.layer))
    return reuse, tuple(every[:_MOST_PAIRS])


def _mean_reuse(parts: Sequence[Trace], slots: int) -> Reuse | None:
    found = [(len(part) - 1, reuse) for part in parts if (reuse := traces.reuse(part, slots)) is not None]
    if not found:
        return None
    steps = sum(n for n, _ in found)
    return Reuse(
        measured=sum(n * r.measured for n, r in found) / steps,
        chance=sum(n * r.chance for n, r in found) / steps,
    )
