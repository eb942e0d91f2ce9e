"""What a rule of advice reads: the stored figures of one test, and what the rule says of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pytest_infer.engines.base import ADOPTED, OF_A_LOADED_MODEL, OF_THE_LOAD
from pytest_infer.measure.machine.probe import STEADY, WAITED
from pytest_infer.metrics import METRICS, Kind
from pytest_infer.records import WarningKind
from pytest_infer.storage.schema import Figure, Rounds, StoredBreakdown, StoredOutput, WholeBlock
from pytest_infer.units import Unit

_MOVED = {m.key for m in METRICS if m.kind is Kind.TIMED or m.unit in (Unit.SECONDS, Unit.CORES)} | {"cpu_utilization"}
"""Metrics that other processes move; what a round took of memory, tokens or the disk they do not."""
_FOLLOWED = {
    None: OF_A_LOADED_MODEL | OF_THE_LOAD,
    "transformers": OF_A_LOADED_MODEL | OF_THE_LOAD,
    "llamacpp": frozenset({"dtype", "threads"}),
}
"""Fields of EngineOptions that are worth suggesting, by the engine; what another one follows is not known."""
_OF_BUNDLED: dict[str | None, frozenset[str]] = {"llamacpp": frozenset({"dtype"})}
"""Those of them that an engine follows for a bundled model alone: a GGUF file has its own types."""
_OF_THE_PROBE = ("mbu", "mfu", "decode_ceiling")


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
    """One rule, as docs/advice.md shows it.

    `warning` is the warning of a record that says the same, `sign` the metric that a good sign is told of.
    """

    key: str
    needs: str
    threshold: str
    what_to_try: str
    find: Callable[[Facts], Finding | None]
    warning: WarningKind | None = None
    sign: str | None = None


class Facts:
    """The figures of one test; everything that is not known is None, and so is what only disturbed rounds say."""

    def __init__(self, block: WholeBlock) -> None:
        self.model, self.machine = block.model, block.machine
        self.output, self.counted = block.output or StoredOutput(), block.rounds or Rounds()
        self.breakdown = (block.breakdown or StoredBreakdown()).phases
        self._metrics = block.metrics or {}

    def figure(self, key: str) -> float | None:
        """Return the median of a metric over its calm rounds; none that is held against a probe that is in doubt."""
        found = self._metrics.get(key)
        if found is None or isinstance(found.value, str) or (key in _OF_THE_PROBE and self.doubts_probe):
            return None
        disturbed, timed = len(self.counted.numbers), self.counted.timed or len(found.rounds)
        # A single round has none beside it that would be better.
        if key not in _MOVED or not disturbed or timed < 2:
            return float(found.value)
        if len(found.rounds) < 2:
            return float(found.value) if disturbed < timed else None
        return statistics.median(calm) if (calm := self.calm(key)) else None

    def holds(self, key: str) -> bool:
        """Return whether the test has a metric, however far it can be trusted."""
        return key in self._metrics

    def disturbance(self, key: str) -> float | None:
        """Return the median of a metric that shows what disturbs, over all rounds."""
        found = self._metrics.get(key)
        return None if found is None or isinstance(found.value, str) else float(found.value)

    def rounds(self, key: str) -> tuple[float, ...]:
        """Return a metric's value of each timed round; nothing where there were not several."""
        found = self._metrics.get(key)
        return () if found is None else tuple(map(float, found.rounds))

    def calm(self, key: str) -> tuple[float, ...]:
        """Return a metric's value of each timed round that was not disturbed."""
        return tuple(value for n, value in enumerate(self.rounds(key)) if n not in self.counted.numbers)

    @property
    def doubts_probe(self) -> bool:
        """Whether the machine's probe was disturbed: it says so itself, or a round beat it (MBU or MFU above 1)."""
        probe = self.machine.probe
        shaken = probe is not None and ((probe.read_bandwidth_spread or 0) > STEADY or (probe.waited or 0) > WAITED)
        return shaken or any(max(self._numbers(key), default=0.0) > 1 for key in ("mbu", "mfu"))

    def _numbers(self, key: str) -> tuple[float, ...]:
        found: Figure | None = self._metrics.get(key)
        return () if found is None else (*found.numbers, *(() if isinstance(found.value, str) else (found.value,)))

    def follows(self, *options: str) -> bool:
        """Return whether the engine is known to follow all these options, fields of EngineOptions."""
        if self.model.source == ADOPTED:
            return OF_A_LOADED_MODEL.issuperset(options)
        followed = _FOLLOWED.get(self.model.engine, frozenset())
        if self.model.source is not None:
            followed -= _OF_BUNDLED.get(self.model.engine, frozenset())
        return followed.issuperset(options)

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
        if probe is None or (probe.device or "cpu") != (self.model.device or "cpu") or self.doubts_probe:
            return None
        return (probe.flops or {}).get(dtype or "") or None

    def share_of_total(self, key: str, *, disturbance: bool = False) -> float | None:
        """Return a metric in seconds as a share of the total time; of all rounds where it shows a disturbance."""
        read = self.disturbance if disturbance else self.figure
        part, whole = read(key), read("total_s")
        return None if part is None or not whole else part / whole
