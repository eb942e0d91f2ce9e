"""What a rule of advice reads: the stored figures of one test, and what the rule says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pytest_infer.records import WarningKind

Block = Mapping[str, Any]
"""The block of a test's `total` row, as `storage.block.build` makes it and a run file holds it."""


class Severity(str, Enum):
    """How much it matters, the most serious first."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a rule found in one test. Without a suggestion it is a good sign; `weight` says how strong it is."""

    severity: Severity
    evidence: str
    suggestion: str | None = None
    weight: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceRule:
    """One rule, as docs/advice.md shows it. `warning` is the warning of a record that says the same."""

    key: str
    needs: str
    threshold: str
    what_to_try: str
    find: Callable[[Facts], Finding | None]
    warning: WarningKind | None = None


class Facts:
    """The figures of one test; everything that is not known is None."""

    def __init__(self, block: Block) -> None:
        self._block = block

    def figure(self, key: str) -> float | None:
        """Return the median of a metric."""
        return _number(_table(_table(self._block, "metrics"), key).get("value"))

    def rounds(self, key: str) -> tuple[float, ...]:
        """Return a metric's value of each timed round; nothing where there were not several."""
        found = _table(_table(self._block, "metrics"), key).get("rounds")
        return tuple(float(value) for value in found) if isinstance(found, list | tuple) else ()

    def model(self, key: str) -> Any:
        """Return what is told of the model."""
        return _table(self._block, "model").get(key)

    def machine(self, key: str) -> Any:
        """Return what is told of the machine."""
        return _table(self._block, "machine").get(key)

    def table(self, key: str) -> Mapping[str, Any]:
        """Return another part of the block; empty where there is none."""
        return _table(self._block, key)

    @property
    def prompt(self) -> str:
        """Return the prompt's name."""
        return str(_table(self._block, "prompt").get("name", "?"))

    @property
    def threads(self) -> int | None:
        """Return the threads that the engine uses."""
        found = self.model("threads")
        return found if isinstance(found, int) else None

    @property
    def usable_cores(self) -> float | None:
        """Return the cores that the process may use."""
        return _number(self.machine("usable_cores"))

    @property
    def on_cpu(self) -> bool:
        """Return whether the model runs on the processor, as far as is told."""
        return str(self.model("device") or "").startswith("cpu")

    def gemm_rate(self, dtype: str | None) -> float | None:
        """Return the FLOP/s that the machine was probed to reach in a dtype on the model's device."""
        probe = self.machine("probe")
        if not isinstance(probe, Mapping) or probe.get("device", "cpu") != (self.model("device") or "cpu"):
            return None
        rate = _number(_table(probe, "flops").get(dtype or ""))
        return rate or None

    def share_of_total(self, key: str) -> float | None:
        """Return a metric in seconds as a share of the round's total time."""
        part, whole = self.figure(key), self.figure("total_s")
        return None if part is None or not whole else part / whole


def _table(of: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = of.get(key)
    return found if isinstance(found, Mapping) else {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
