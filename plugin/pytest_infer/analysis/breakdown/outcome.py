"""What a comparison says of a step's parts: which roles carry its change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChange:
    """One role's change of self time a step, seconds; the 99 % interval of after − before is [low_s, high_s].

    `named`: the whole's change is this role's, or part of it. `layers` says in which layers, where it is not in all.
    """

    role: str
    before_s: float
    after_s: float
    low_s: float
    high_s: float
    named: bool
    layers: str = ""

    @property
    def change_s(self) -> float:
        """Return after − before."""
        return self.after_s - self.before_s


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChange:
    """The change of a typical step of a phase, seconds, and of its roles, the largest first; theirs add up to it.

    `moved`: the interval of the whole excludes 0. `everywhere`: it did, and no role carries it, for all changed alike.
    """

    phase: str
    before_s: float
    after_s: float
    low_s: float
    high_s: float
    roles: tuple[RoleChange, ...]
    everywhere: bool = False

    @property
    def change_s(self) -> float:
        """Return after − before."""
        return self.after_s - self.before_s

    @property
    def moved(self) -> bool:
        """Return whether the interval excludes 0."""
        return self.low_s > 0 or self.high_s < 0

    @property
    def named(self) -> tuple[RoleChange, ...]:
        """Return the roles that carry the change."""
        return tuple(one for one in self.roles if one.named)
