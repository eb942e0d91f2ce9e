"""The census of expert selections that every figure, suite view and placement starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from pytest_infer.errors import StorageError
from pytest_infer.records import ExpertSite
from pytest_infer.storage.schema import Usage

Counts = npt.NDArray[np.int64]
"""Selections of one site, one number a slot."""


class Phase(StrEnum):
    """Which tokens count: those of the prompt, the generated ones, or all."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """Selections per site and slot with the tokens that made them; `prefill[i]` has `sites[i].slots` numbers."""

    sites: tuple[ExpertSite, ...]
    prefill: tuple[Counts, ...]
    decode: tuple[Counts, ...]
    prefill_tokens: int
    decode_tokens: int


def of(usage: Usage) -> Census | None:
    """Return the census of a stored test; None without any, StorageError where it contradicts itself."""
    if usage.counts is None or not usage.sites:
        return None
    prefill, decode = _arrays(usage.counts.prefill), _arrays(usage.counts.decode)
    if usage.tokens is None:
        raise StorageError("expert usage: counts, but not of how many tokens")
    if not len(usage.sites) == len(prefill) == len(decode):
        raise StorageError(f"expert usage: {len(usage.sites)} sites, but counts of {len(prefill)} and {len(decode)}")
    for site, a, b in zip(usage.sites, prefill, decode, strict=True):
        if not site.slots == len(a) == len(b):
            raise StorageError(f"expert usage: {site.name} has {site.slots} slots, but counts of {len(a)} and {len(b)}")
        if not (1 <= site.k <= site.slots and 1 <= site.experts <= site.slots):
            raise StorageError(
                f"expert usage: {site.name} selects {site.k} of {site.slots} slots, {site.experts} with weights"
            )
    return Census(
        sites=usage.sites,
        prefill=prefill,
        decode=decode,
        prefill_tokens=usage.tokens.prefill,
        decode_tokens=usage.tokens.decode,
    )


def _arrays(rows: Sequence[Sequence[int]]) -> tuple[Counts, ...]:
    return tuple(np.asarray(row, dtype=np.int64) for row in rows)


def merged(parts: Sequence[Census]) -> Census:
    """Return the sum of censuses of one model; raises StorageError as `sites_of` does."""
    return Census(
        sites=sites_of(parts),
        prefill=_sums([part.prefill for part in parts]),
        decode=_sums([part.decode for part in parts]),
        prefill_tokens=sum(part.prefill_tokens for part in parts),
        decode_tokens=sum(part.decode_tokens for part in parts),
    )


def sites_of(parts: Sequence[Census]) -> tuple[ExpertSite, ...]:
    """Return the sites of several censuses, without sizes where these differ, as between dtypes.

    Raises:
        StorageError: there is none, or they are of different models.
    """
    if not parts:
        raise StorageError("no expert usage to merge: none of the tests recorded it")
    first = parts[0]
    for other in parts[1:]:
        if [site.routing for site in other.sites] != [site.routing for site in first.sites]:
            raise StorageError(f"expert usage of different models cannot be merged: {_difference(first, other)}")
    return tuple(
        one
        if len({(site.expert_bytes, site.shared_bytes) for site in (one, *others)}) == 1
        else replace(one, expert_bytes=None, shared_bytes=None)
        for one, *others in zip(*(part.sites for part in parts), strict=True)
    )


def _sums(parts: Sequence[tuple[Counts, ...]]) -> tuple[Counts, ...]:
    return tuple(np.sum(site, axis=0, dtype=np.int64) for site in zip(*parts, strict=True))


def _difference(first: Census, other: Census) -> str:
    if len(first.sites) != len(other.sites):
        return f"{len(first.sites)} and {len(other.sites)} MoE layers"
    a, b = next((a, b) for a, b in zip(first.sites, other.sites, strict=True) if a.routing != b.routing)
    return " and ".join(f"{site.name} (top {site.k} of {_slots(site)})" for site in (a, b))


def _slots(site: ExpertSite) -> str:
    return f"{site.slots}" + (f", {site.experts} with weights" if site.experts != site.slots else "")


def counts(census: Census, phase: Phase) -> tuple[Counts, ...]:
    """Return the selections of a phase, one array of slots a site."""
    if phase is Phase.BOTH:
        return tuple(a + b for a, b in zip(census.prefill, census.decode, strict=True))
    return census.prefill if phase is Phase.PREFILL else census.decode


def tokens(census: Census, phase: Phase) -> int:
    """Return how many tokens of a phase went through each site."""
    prefill, decode = census.prefill_tokens, census.decode_tokens
    return {Phase.PREFILL: prefill, Phase.DECODE: decode, Phase.BOTH: prefill + decode}[phase]
