"""What one side's tokens are to the other: the reference, and the exact divergence of two whole distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infer.measure import following
from pytest_infer.records import PromptRecord, Reference, Round
from pytest_infer.records.scores import LEAST

if TYPE_CHECKING:
    import numpy as np

_AT_ONCE = 2**22
"""So many numbers of a side are read at once: 16 MB."""
_OTHER_LIMITS = "the sides are asked for other numbers of tokens"


def of(
    name: str,
    tokens: Sequence[int],
    others: Sequence[int],
    *,
    follow: bool,
    vocabulary: int | None = None,
    asked: Sequence[int] = (),
) -> Reference:
    """Return the reference that the base's tokens are to both sides; `others` are those of this checkout.

    `follow` says whether both engines can follow, `vocabulary` how many ids this checkout's model knows, and `asked`
    how many tokens each side is to generate. What cannot be followed matters only if the tokens differ.
    """
    problem = following.unknown(tokens, vocabulary) if follow else following.CANNOT
    if len(set(asked)) > 1:
        problem = _OTHER_LIMITS
    same = tuple(tokens) == tuple(others)
    return Reference(name=name, tokens=tuple(tokens), free=tuple(tokens), problem=None if same else problem)


def traceable(one: Round) -> bool:
    """Return whether the choices of experts are kept token by token: their trace is small."""
    return one.trace.prompt_tokens + len(one.trace.token_ids) <= following.MOST_TRACED


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The two files that the sides write their distributions to, the base's first."""

    before: Path
    after: Path

    @classmethod
    def within(cls, folder: Path) -> Files:
        """Return those of a folder."""
        return cls(before=folder / "before.f32", after=folder / "after.f32")

    def remove(self) -> None:
        """Remove what is there of them."""
        for path in (self.before, self.after):
            path.unlink(missing_ok=True)


def compared(base: PromptRecord, ours: PromptRecord, files: Files | None) -> PromptRecord:
    """Return our record with all that its reference is compared by: the base's scores, experts, and the divergence.

    Without `files` the sides wrote none.
    """
    theirs, own = base.profile, ours.profile
    if ours.reference is None or theirs is None or own is None:
        return ours
    kl, why = (None, "the sides ran one after the other") if files is None else _divergence(base, ours, files)
    reference = replace(
        ours.reference,
        scores=theirs.scores,
        scores_absent=theirs.scores_absent,
        experts=theirs.experts,
        kl=kl,
        kl_absent=why,
        dtype=base.model.dtype,
    )
    return replace(ours, reference=reference, pieces={**base.pieces, **ours.pieces})


def _divergence(base: PromptRecord, ours: PromptRecord, files: Files) -> tuple[bytes | None, str | None]:
    theirs, own = (None if one.profile is None else one.profile.scores for one in (base, ours))
    if theirs is None or own is None or (ours.reference is not None and ours.reference.problem is not None):
        return None, "the sides have no scores of the same tokens"
    if theirs.vocabulary != own.vocabulary:
        return None, f"the vocabularies differ: {theirs.vocabulary} and {own.vocabulary} logits"
    size = 4 * own.positions * own.vocabulary
    if theirs.positions != own.positions or any(
        not path.exists() or path.stat().st_size != size for path in (files.before, files.after)
    ):
        return None, "whole distributions were not kept: too large, the disk is full, or the engine writes none"
    return kl(files, own.positions, own.vocabulary).astype("<f8").tobytes(), None


def kl(files: Files, positions: int, vocabulary: int) -> np.ndarray:
    """Return the Kullback-Leibler divergence of the second file's distributions from the first's, nats; float64.

    Sum over ids of p (log p - log q); an id that a side rules out counts as e^LEAST there. Both hold log-probabilities,
    float32: a row of them adds up to 1 to some 1e-7, a thousand times what another order of sums makes of the
    divergence, so each is divided by its sum.
    """
    import numpy as np  # noqa: PLC0415 - for runs that compare

    rows = max(1, _AT_ONCE // vocabulary)
    found = np.empty(positions)
    with files.before.open("rb") as before, files.after.open("rb") as after:
        for first in range(0, positions, rows):
            count = min(rows, positions - first) * vocabulary
            p, q = (
                _normalized(np.maximum(np.fromfile(file, np.float32, count).astype(np.float64), LEAST), vocabulary)
                for file in (before, after)
            )
            found[first : first + rows] = (np.exp(p) * (p - q)).sum(-1)
    # Rounding can leave a divergence of equal distributions a little below 0.
    return np.maximum(found, 0.0)


def _normalized(logprobs: np.ndarray, vocabulary: int) -> np.ndarray:
    import numpy as np  # noqa: PLC0415

    rows = logprobs.reshape(-1, vocabulary)
    found: np.ndarray = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    return found
