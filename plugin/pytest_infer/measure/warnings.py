"""Warnings about a record, found in its own rounds, each with what to do about it."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Sequence

from pytest_infer.measure import served
from pytest_infer.metrics import timing
from pytest_infer.records import MeasurementWarning, Output, Profile, Round, WarningKind
from pytest_infer.units import hertz

COLD = 1.5
"""A first timed round this many times slower than the median of the others shows that the warm-up was too short."""

FREQUENCY = 0.1
"""Rounds whose cores ran at frequencies further apart than this share of the highest did not run alike."""


CLIENT = 0.5
"""A client that used more of a core than this over a round, which a server answered, may have delayed what it saw."""


def hash_ids(token_ids: Sequence[int]) -> str:
    """Return the SHA-256 of the ids written in decimal with commas between them."""
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()


def hash_said(said: Sequence[int] | str) -> str:
    """Return the SHA-256 of generated ids, or of the text where there are none."""
    return hashlib.sha256(said.encode()).hexdigest() if isinstance(said, str) else hash_ids(said)


def first_difference(rounds: Sequence[Round]) -> tuple[int, int] | None:
    """Return (round, position) of the first token that differs from round 0, or None when all rounds are equal.

    Positions are characters where only texts are known.
    """
    reference = rounds[0].trace.said
    for number, r in enumerate(rounds[1:], 1):
        ids = r.trace.said
        if ids != reference:
            pairs = enumerate(zip(ids, reference, strict=False))
            return number, next((n for n, (a, b) in pairs if a != b), min(len(ids), len(reference)))
    return None


def find(
    rounds: Sequence[Round], profile: Profile | None, output: Output, repeated: Sequence[Round] = ()
) -> tuple[MeasurementWarning, ...]:
    """Return the warnings of one prompt, most serious first."""
    return tuple(_warnings(rounds, profile, output, repeated))


def _warnings(
    rounds: Sequence[Round], profile: Profile | None, output: Output, repeated: Sequence[Round]
) -> Iterable[MeasurementWarning]:
    if output.first_difference is not None:
        number, position = output.first_difference
        what = "token" if output.by is None else "character"
        yield MeasurementWarning(
            kind=WarningKind.OUTPUT_DIFFERS,
            text=f"round {number + 1} differs from round 1 at generated {what} {position + 1}: "
            "timings are of different work; set one thread, a seed, or a deterministic kernel",
        )
    yield from served.find(rounds, output)
    if profile is not None and profile.nonfinite_logits.value:
        yield MeasurementWarning(
            kind=WarningKind.NOT_FINITE,
            text=f"{profile.nonfinite_logits.value} of {profile.passes} forward passes gave logits that are NaN or "
            "infinite: what was generated means nothing; look for broken weights, or try another dtype "
            "(float16 overflows: --infer-dtype bfloat16)",
        )
    if profile is not None and not profile.tokens_equal:
        yield MeasurementWarning(
            kind=WarningKind.PROFILE_DIFFERS,
            text="the profile round generated other tokens than the timed rounds: "
            "its expert usage and memory growth are those of another output",
        )
    if profile is not None and profile.experts is not None and profile.experts.check != "passed":
        yield MeasurementWarning(
            kind=WarningKind.EXPERTS_DO_NOT_ADD_UP, text=f"do not use the expert counts: {profile.experts.check}"
        )
    if profile is not None and profile.experts is not None and profile.experts.note is not None:
        yield MeasurementWarning(kind=WarningKind.EXPERTS_UNCHECKED, text=profile.experts.note)
    cold = _cold_first_round(rounds)
    if cold is not None:
        yield MeasurementWarning(
            kind=WarningKind.COLD_FIRST_ROUND,
            text=f"the first timed round took {cold:.1f}× the others: raise --infer-warmup",
        )
    slowest = _frequencies(rounds)
    if slowest is not None:
        yield MeasurementWarning(
            kind=WarningKind.FREQUENCY,
            text=f"the cores ran at {hertz(slowest[0])} in one round and at {hertz(slowest[1])} in another: "
            "let the machine cool, or fix its frequency (governor, turbo)",
        )
    busy = _client(rounds)
    if busy is not None:
        yield MeasurementWarning(
            kind=WarningKind.CLIENT_BUSY,
            text=f"the client used {100 * busy:.0f} % of a core while it waited for the server: it may be what limits "
            "the times (a plugin that watches the process, TLS, texts that must be split into tokens)",
        )
    disturbed = _disturbed(rounds, repeated)
    if disturbed is not None:
        yield MeasurementWarning(kind=WarningKind.DISTURBED, text=disturbed)


def _disturbed(rounds: Sequence[Round], repeated: Sequence[Round]) -> str | None:
    doubtful = [number for number, r in enumerate(rounds, 1) if r.disturbed]
    # Of a pair both are repeated, and only one of them need have been disturbed.
    again = f"{len(repeated)} round{'s were' if len(repeated) > 1 else ' was'} disturbed and measured again"
    if doubtful:
        before = f"{again}; still " if repeated else ""
        return (
            f"{before}{len(doubtful)} of {len(rounds)} rounds were disturbed (round {doubtful[0]}: "
            f"{'; '.join(rounds[doubtful[0] - 1].disturbed)}): stop what else runs, or trust medians only"
        )
    return again if repeated else None


def _cold_first_round(rounds: Sequence[Round]) -> float | None:
    totals = [total for r in rounds if (total := timing.total_s(r.trace)) is not None]
    if len(totals) < 3 or len(rounds) != len(totals):
        return None
    usual = statistics.median(totals[1:])
    # A clock that stands still tells nothing; whoever gates it says so.
    ratio = totals[0] / usual if usual else 0.0
    return ratio if ratio >= COLD else None


def _client(rounds: Sequence[Round]) -> float | None:
    """Return the cores that the client used in a typical round, if they are many."""
    used = [cpu / r.counters.wall_s for r in rounds if (cpu := r.counters.client_cpu_s.value) is not None]
    typical = statistics.median(used) if used else 0.0
    return typical if typical > CLIENT else None


def _frequencies(rounds: Sequence[Round]) -> tuple[float, float] | None:
    """Return the lowest and the highest frequency of the rounds, Hz, if they are far apart."""
    frequencies = [value for r in rounds if (value := r.counters.frequency_hz.value) is not None]
    if len(frequencies) < 2 or min(frequencies) >= (1 - FREQUENCY) * max(frequencies):
        return None
    return min(frequencies), max(frequencies)
