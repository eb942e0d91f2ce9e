"""Figures without noise: what must be the same, and output, which may differ as far as rounding explains it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_infer.analysis.compare import fingerprint
from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.metrics import Direction

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.comparison import RowPair, Wanted
    from pytest_infer.storage.runs import Row

OUTPUT = "output_sha256"
_FOLLOW = {
    "prompt_tokens": {"prompt_tokens", "workload"},
    "requested_tokens": {"limits", "workload"},
    "total_tokens": {"prompt_tokens", "workload", fingerprint.OUTPUT},
}
"""What is accepted together with such a difference; every other exact figure of a prompt follows from its output."""
_CLOSE = {
    True: (Verdict.UNCHANGED, None),
    False: (Verdict.REGRESSED, "further apart than rounding explains"),
    None: (Verdict.INCONCLUSIVE, "KL is a lower bound, too near to what rounding explains: --infer-against tells it"),
}
_COUNTS = ("generated_tokens", "total_tokens")
"""What is the same on both sides where one follows the other's tokens, whatever it generates itself."""


def judged(draft: Judgement, pair: RowPair, want: Wanted, allowed: Collection[str]) -> Judgement:
    """Return the judgement of a figure that has no noise; `draft` holds both values."""
    if want.metric.key == OUTPUT:
        return _of_same_work(_output(draft, want, pair, allowed), want, pair)
    if want.metric.key in _COUNTS:
        before, after = _free(pair.before, draft.before), _free(pair.after, draft.after)
        if before is None or after is None:
            verdict = None if want.rule is None else Verdict.INCOMPARABLE
            return replace(
                draft, verdict=verdict, reason="its rounds followed given tokens, and its own were not counted"
            )
        draft = replace(draft, before=before, after=after)
    return _same(draft, want, allowed)


def _free(row: Row, count: float | str | None) -> float | str | None:
    """Return a count of tokens as it would be if the rounds had followed none; None where that is not known."""
    followed = row.reference
    if followed is None or not followed.timed or not isinstance(count, int | float):
        return count
    return None if followed.free is None else count - followed.tokens + followed.free


def _same(draft: Judgement, want: Wanted, allowed: Collection[str]) -> Judgement:
    if draft.before == draft.after:
        return replace(draft, verdict=Verdict.UNCHANGED)
    if want.metric.direction is not Direction.EXACT and want.rule is None:
        return replace(draft, verdict=None)
    accepts = _FOLLOW.get(want.metric.key, {fingerprint.OUTPUT})
    if want.metric.direction is Direction.EXACT and not accepts.isdisjoint(allowed):
        return replace(draft, verdict=None, reason="differs, which --allow-different accepts")
    verdict = Verdict.INCOMPARABLE if want.rule is None else Verdict.REGRESSED
    return replace(draft, verdict=verdict, reason="differs, and must not")


def _output(draft: Judgement, want: Wanted, pair: RowPair, allowed: Collection[str]) -> Judgement:
    """Judge output, by how far it is from the other side's where that is known."""
    decided, near = _same(draft, want, allowed), pair.close
    if pair.after.fidelity is None:
        if not want.close or decided.verdict is not Verdict.REGRESSED:
            return decided
        why = f"differs, and how far is not known: {pair.unscored or 'no scores were kept'}"
        return replace(decided, verdict=Verdict.INCOMPARABLE, reason=why)
    same = draft.before == draft.after
    if not (same and near):
        decided = replace(decided, note=pair.told)
    if want.close and decided.verdict is not None:
        verdict, reason = _CLOSE[near]
        return replace(decided, verdict=verdict, reason=reason)
    return replace(decided, verdict=None, reason=None) if want.rule is None and near and not same else decided


def _of_same_work(decided: Judgement, want: Wanted, pair: RowPair) -> Judgement:
    """Return other output of another text, or that may but end elsewhere by other limits, as incomparable."""
    found = pair.after.fidelity
    # Of one text, a token that differs, or the distance that a rule asks for, is there whatever the limits are.
    told = found is not None and (found.split is not None or (want.close and pair.close is False))
    differ = None if told else fingerprint.other_work(pair.before, pair.after)
    if decided.verdict is not Verdict.REGRESSED or differ is None:
        return decided
    return replace(decided, verdict=Verdict.INCOMPARABLE, reason=differ)
