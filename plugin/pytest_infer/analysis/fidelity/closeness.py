"""Whether two sides are as near as another order of the same sums brings them, and how a difference reads."""

from __future__ import annotations

from typing import Protocol

from pytest_infer.metrics.fidelity import FOUND
from pytest_infer.records import Fidelity, Picked
from pytest_infer.units import NONE, nats, plural, significant

BOUNDS = {"float64": 1e-9, "float32": 1e-9, "float16": 5e-4, "bfloat16": 5e-3}
"""Up to which mean KL, nats, another order of the same sums explains a difference, by the dtype of the weights.

Chosen from measurements between what rounding did and what planted faults did (docs/fidelity.md,
`benchmarks/fidelity_pairs.py`).
"""

_OTHER = 0.2
"""From so many nats on, two sides predict the text as other models do."""
_LONGEST = 24


class _Computed(Protocol):
    @property
    def dtype(self) -> str | None: ...


def bound(*models: _Computed) -> float:
    """Return the bound for the coarsest of the models' dtypes; float32's where none is known."""
    return max((BOUNDS[one.dtype] for one in models if one.dtype in BOUNDS), default=BOUNDS["float32"])


class Apart(Protocol):
    """How far two sides are apart."""

    @property
    def kl_mean(self) -> float:
        """Return the mean of KL(reference ‖ candidate), nats."""

    @property
    def exact(self) -> bool:
        """Return whether that is known; else it is a lower bound."""


def close(found: Apart, most: float) -> bool | None:
    """Return whether a difference is within that bound; None where only a lower bound of it is, and not far enough."""
    if found.exact or found.kl_mean > most:
        return found.kl_mean <= most
    return True if found.kl_mean / FOUND <= most else None


def told(found: Fidelity, most: float, *, same: bool, lengths: tuple[int, int] | None = None) -> str:
    """Return a difference for people, to be read after "output"; `same`: both sides generated the same tokens.

    `lengths` are the numbers of tokens of both sides, where these are their own and not the same.

    `differs from token 37 (' the' 0.41 → ' a' 0.40): KL 2.0e-6, top-1 99.8 %: arithmetic`
    """
    where = "has the same tokens" if same else "differs"
    part = "" if found.positions == found.of else f" over {found.positions} of {found.of} tokens"
    if found.split is not None and not same:
        split = found.split
        where = f"differs from token {split.position + 1} ({_picked(split.reference)} → {_picked(split.candidate)})"
    elif lengths is not None and found.length == min(lengths) and found.positions <= found.length:
        # Of several sequences only the first is known to be the same.
        where, part = f"has {plural(lengths[1], 'token')}, not {lengths[0]}, the same as far as both go", ""
    return f"{where}{', but' if same else ':'} {size(found)}{part}: {kind(found, most)}"


def size(found: Fidelity) -> str:
    """Return how large a difference is: `KL 2.1e-6, top-1 99.8 %`; of a lower bound `KL ≥ 2.1e-6`."""
    return f"KL {'' if found.exact else '≥ '}{nats(found.kl_mean)}, top-1 {significant(found.top1)} %"


def kind(found: Apart, most: float) -> str:
    """Return what a difference is like: arithmetic, another model, neither, or not known."""
    near = close(found, most)
    if near is not False:
        return "arithmetic" if near else "perhaps more than arithmetic"
    return "another model" if found.kl_mean >= _OTHER else "more than arithmetic"


def _picked(token: Picked) -> str:
    text = f"id {token.id}" if token.text is None else repr(token.text[:_LONGEST])
    return f"{text} {NONE if token.p is None else significant(token.p, 2)}"
