"""How far a probe of the machine that was kept can be believed: its age, and what is in doubt about it."""

from __future__ import annotations

from pytest_infer.measure.machine import probe
from pytest_infer.records import MachineProbe
from pytest_infer.units import duration

OLD_S = 24 * 3600.0
"""What other tenants leave of a host's bandwidth moves within minutes; a probe of another day says little of today."""
APART = 0.1
"""Two probes that differ by more than this share, and by more than their own spreads, do not agree."""
_NS = 1e9


def age_s(made: MachineProbe, now_ns: int, up_s: float) -> float | None:
    """Return the seconds since a probe of this boot, which was `up_s` seconds ago; None if the clock was set since."""
    age = (now_ns - made.at_ns) / _NS
    return age if 0 <= age <= up_s else None


def doubt(made: MachineProbe, age: float | None, governor: str | None) -> str | None:
    """Return why a probe should be made again, or None."""
    if (scatter := probe.unsteady(made)) is not None:
        return f"it was disturbed ({scatter})"
    if age is not None and age > OLD_S:
        return f"it is {duration(age)} old"
    if None not in (governor, made.governor) and governor != made.governor:
        return f"the frequency governor was {made.governor} then and is {governor} now"
    return None


def apart(one: MachineProbe, other: MachineProbe) -> bool:
    """Return whether two probes read the memory at rates that do not agree."""
    low, high = sorted((one.read_bandwidth, other.read_bandwidth))
    return high > low * (1 + max(APART, one.read_bandwidth_spread, other.read_bandwidth_spread))
