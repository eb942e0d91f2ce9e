"""What a rule of advice reads: the stored figures of one test, and what the rule says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pytest_infer.records import WarningKind
from pytest_infer.storage.schema import Rounds, StoredOutput, WholeBlock


class Severity(StrEnum):
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

    def __init__(self, block: WholeBlock) -> None:
        self.model, self.machine = block.model, block.machine
        self.output, self.counted = block.output or StoredOutput(), block.rounds or Rounds()
        self.prompt = block.prompt.name or "?"
        self._metrics = block.metrics or {}

    def figure(self, key: str) -> float | None:
        """Return the median of a metric; none that is held against a probe that the test beat."""
        found = self._metrics.get(key)
        value = None if found is None or isinstance(found.value, str) else float(found.value)
        if key == "decode_ceiling":
            return value if (self.figure("mbu") is not None or "mbu" not in self._metrics) else None
        return None if value is not None and key in ("mbu", "mfu") and value > 1 else value

    def rounds(self, key: str) -> tuple[float, ...]:
        """Return a metric's value of each timed round; nothing where there were not several."""
        found = self._metrics.get(key)
        return () if found is None else tuple(map(float, found.rounds))

    @property
    def threads(self) -> int | None:
        """Return the threads that the engine uses."""
        return self.model.threads

    @property
    def usable_cores(self) -> float | None:
        """Return the cores that the process may use."""
        return self.machine.usable_cores

    @property
    def on_cpu(self) -> bool:
        """Return whether the model runs on the processor, as far as is told."""
        return (self.model.device or "").startswith("cpu")

    def gemm_rate(self, dtype: str | None) -> float | None:
        """Return the FLOP/s that the machine was probed to reach in a dtype on the model's device."""
        probe = self.machine.probe
        if probe is None or (probe.device or "cpu") != (self.model.device or "cpu"):
            return None
        return (probe.flops or {}).get(dtype or "") or None

    def share_of_total(self, key: str) -> float | None:
        """Return a metric in seconds as a share of the round's total time."""
        part, whole = self.figure(key), self.figure("total_s")
        return None if part is None or not whole else part / whole
