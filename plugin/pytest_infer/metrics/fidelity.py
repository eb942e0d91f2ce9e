"""Metrics of fidelity: of what a model predicts by itself, and of how far that is from a reference."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Callable, Iterator, Mapping

from pytest_infer.records import Fidelity, Profile, PromptRecord, Quality, Reading, Scores, absent
from pytest_infer.records.scores import LEAST

LOGITS = "logits of the profile round"
BOTH = f"{LOGITS}, both sides"
EXPERTS = "router choices of the profile round, both sides"
_NO_REFERENCE = "no reference: --infer-replay RUN, or --infer-against REV"
_DIVERGENCES = ("kl", "kl_p99")
FOUND = 0.4
"""The least part of a mean KL that its lower bound was measured to find (docs/fidelity.md)."""
_OF_EXPERTS = ("experts_changed", "gate_shift")

OF_BOTH: Mapping[str, Callable[[Fidelity], float | None]] = {
    "kl": lambda found: found.kl_mean,
    "kl_p99": lambda found: found.kl_p99,
    "top1": lambda found: found.top1,
    "logprob_rms": lambda found: found.logprob_rms,
    "first_divergence": lambda found: found.length if found.split is None else found.split.position,
    "experts_changed": lambda found: found.experts_changed,
    "gate_shift": lambda found: found.gate_shift,
}
"""The metrics of a candidate and its reference, by key, and how they are read."""

OF_ONE = frozenset(("nll", "perplexity", "entropy", "margin"))
"""The metrics of what a model predicts by itself."""


def span(key: str, found: Fidelity) -> tuple[float, float] | None:
    """Return the least and the most that one of these metrics can be; None where it is not known.

    A lower bound of a mean KL found at least `FOUND` of it wherever both were known. Nothing tells what one of a
    percentile finds, so the most is not known; but a bound of 0, where all that is known of both is equal, counts as 0.
    Where nothing differs up to the end of what was compared, the first difference comes later, or never.
    """
    value = OF_BOTH[key](found)
    if value is None:
        return None
    if key == "first_divergence" and found.split is None:
        return (math.inf if found.positions == found.of else value), math.inf
    if found.exact or key not in _DIVERGENCES:
        return value, value
    return value, value / FOUND if key == "kl" or not value else math.inf


def reading(key: str, found: Fidelity) -> Reading:
    """Return one of these metrics, or why there is none."""
    value, source = OF_BOTH[key](found), EXPERTS if key in _OF_EXPERTS else BOTH
    if value is None:
        return absent(found.experts_absent or "not recorded on both sides", source)
    bound = key in _DIVERGENCES and not found.exact
    return Reading(value=value, source=source, quality=Quality.BOUND if bound else Quality.EXACT)


def of_both(key: str) -> Callable[[PromptRecord], Reading]:
    """Read one of these metrics of a record."""

    def read(record: PromptRecord) -> Reading:
        if record.fidelity is not None:
            return reading(key, record.fidelity)
        if record.reference is None:
            return absent(record.profile_absent or _NO_REFERENCE)
        return absent(record.reference.problem or record.reference.scores_absent or "the reference kept no scores")

    return read


def alone(read: Callable[[Scores], float | None]) -> Callable[[Profile], Reading]:
    """Read a figure of a side's own scores."""

    def value(profile: Profile) -> Reading:
        if profile.scores is None:
            return absent(profile.scores_absent or "no scores were kept")
        found = read(profile.scores)
        return absent("no position has finite logits", LOGITS) if found is None else Reading(value=found, source=LOGITS)

    return value


def nll(scores: Scores) -> float | None:
    """Return −mean ln p of the tokens of all sequences, nats."""
    known = [max(value, LEAST) for value in _floats(scores.chosen) if not math.isnan(value)]
    return -math.fsum(known) / len(known) if known else None


def entropy(scores: Scores) -> float | None:
    """Return the mean over positions of −Σ p ln p, nats: the tokens beyond the likeliest count as one."""
    found = [
        -math.fsum(math.exp(value) * value for value in (*top, rest) if value > -math.inf)
        for top, rest in _positions(scores)
    ]
    return statistics.fmean(found) if found else None


def margin(scores: Scores) -> float | None:
    """Return the least difference of log-probability between likeliest and second token over positions, nats."""
    return min((top[0] - max(top[1], LEAST) for top, _ in _positions(scores) if len(top) > 1), default=None)


def perplexity(profile: Profile) -> Reading:
    """Return the perplexity of the fixed text, or why there is none."""
    if profile.text is None:
        return absent(profile.text_absent or "no text: --infer-text FILE")
    source = f"forward passes over {profile.text.name}"
    try:
        return Reading(value=math.exp(profile.text.nll), source=source)
    except OverflowError:
        return absent(f"the text is at {profile.text.nll:.0f} nats a token, whose exp is beyond any number", source)


def _positions(scores: Scores) -> Iterator[tuple[array[float], float]]:
    """Yield the log-probabilities of the likeliest tokens and of the rest, position by position; none not finite."""
    top, width = _floats(scores.top), scores.width
    for number, rest in enumerate(_floats(scores.rest)):
        if not math.isnan(rest):
            yield top[number * width : (number + 1) * width], rest


def _floats(of: bytes) -> array[float]:
    return array("f", of)
