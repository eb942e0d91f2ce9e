"""Logits that are no numbers, counted in the profile round: a model with broken weights generates all the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytest_infer import untrusted
from pytest_infer.records import Reading, absent

SOURCE = "forward hook on the model"


class Logits:
    """What a hook saw of the logits of one generation."""

    def __init__(self, problem: str | None = None) -> None:
        self._problem = problem
        self._finite: list[Any] = []

    def see(self, _module: object, _given: object, output: Any) -> None:
        """Look at the logits of the last position, on their device: the largest is NaN where any is.

        It is also infinite where one is +∞ or where all are −∞. Some models give ids that must not be chosen −∞: that
        is no fault.
        """
        try:
            output = output[0] if isinstance(output, tuple) else output
            logits = output if hasattr(output, "amax") else output.logits
            self._finite.append(logits[:, -1].amax(-1).isfinite().all())
        # An instrument that fails marks the record, whatever a module returns.
        except Exception as error:  # noqa: BLE001
            self._problem = untrusted.failure(error)

    def reading(self) -> Reading:
        """Return how many forward passes gave logits that hold NaN or +∞, or nothing finite."""
        if self._problem is not None:
            return absent(self._problem, SOURCE)
        if not self._finite:
            return absent("no forward pass of the model was seen", SOURCE)
        return Reading(value=sum(not bool(finite) for finite in self._finite), source=SOURCE)

    @property
    def passes(self) -> int:
        """Return how many forward passes were seen."""
        return len(self._finite)


@contextmanager
def watching(module: object | None, why: str) -> Iterator[Logits]:
    """Watch what a torch module returns; `why` says why there is none."""
    hook = getattr(module, "register_forward_hook", None)
    if hook is None:
        yield Logits(why if module is None else "the engine's module takes no hook")
        return
    seen = Logits()
    try:
        handle = hook(seen.see)
    except Exception as error:  # noqa: BLE001 - a module that takes no hooks after all
        yield Logits(untrusted.failure(error))
        return
    try:
        yield seen
    finally:
        handle.remove()
