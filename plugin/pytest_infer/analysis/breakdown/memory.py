"""What each role of a model holds in memory: its weights, and the tensors that it allocates."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_infer.metrics.result import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMemory:
    """One role's memory, bytes; None where it is unknown.

    `parameter_bytes` are the stored bytes of its weights. `prefill_peak` and `decode_peak` are the most that tensors
    allocated within it held at one moment of the recorded steps: peaks of two roles come at different moments.
    """

    role: str
    parameter_bytes: int | None = None
    prefill_peak: int | None = None
    decode_peak: int | None = None

    @property
    def largest(self) -> int:
        """Return the largest of them."""
        return max(self.parameter_bytes or 0, self.prefill_peak or 0, self.decode_peak or 0)


def by_role(result: Result) -> tuple[RoleMemory, ...]:
    """Return the memory of each role of which any is known, the largest first."""
    work, operators = result.model.work, result.operators
    weights = {} if work is None else {role: own.parameter_bytes for role, own in work.roles.items()}
    phases = [None, None] if operators is None else [operators.prefill, operators.decode]
    prefill, decode = ({} if phase is None else phase.peaks for phase in phases)
    found = (
        RoleMemory(
            role=role,
            parameter_bytes=weights.get(role),
            prefill_peak=prefill.get(role),
            decode_peak=decode.get(role),
        )
        for role in dict.fromkeys((*weights, *prefill, *decode))
    )
    return tuple(sorted((one for one in found if one.largest), key=lambda one: -one.largest))
