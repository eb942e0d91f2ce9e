"""All that was found of a machine and of a model on it, and what follows from both."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pytest_infer.analysis.doctor import split
from pytest_infer.analysis.doctor.pitfalls import Pitfall
from pytest_infer.analysis.doctor.ranks import Division
from pytest_infer.analysis.doctor.requirements import Fit, Need, Requirements, cores_for_prefill
from pytest_infer.analysis.doctor.split import Described, Split
from pytest_infer.analysis.reached import Reached
from pytest_infer.measure.machine.cards import Card
from pytest_infer.measure.machine.host import Host
from pytest_infer.metrics import roofline
from pytest_infer.records import MachineInfo, MachineProbe


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """All that was found; without a model only the machine.

    `probe_age_s` is None where the clock was set since the probe; `probe_note` says why it was made again, or is none.
    `described` is a machine that is asked about in this one's place, and `reached` how near to its limit a run came.
    `division` says whether the ranks that are asked about can share the model.
    """

    machine: MachineInfo
    host: Host
    pitfalls: tuple[Pitfall, ...]
    probe: MachineProbe | None = None
    probe_age_s: float | None = None
    probe_note: str | None = None
    model: Requirements | None = None
    disk_free_bytes: int | None = None
    described: Described | None = None
    reached: Reached | None = None
    division: Division | None = None
    cards: tuple[Card, ...] = ()

    def ceiling(self, need: Need) -> float | None:
        """Return the most tokens per second that the measured bandwidth allows, None where either is not known."""
        if self.probe is None or not need.step_bytes:
            return None
        return roofline.ceiling(self.probe.read_bandwidth, need.step_bytes)

    def split(self, need: Need) -> Split | None:
        """Return how a model in one dtype is divided on the described machine; None without one."""
        if self.described is None:
            return None
        return split.of(need, replace(self.described, bandwidth=self.read_rate))

    @property
    def read_rate(self) -> float | None:
        """Return the bandwidth of the described main memory: as given, or as it was probed if it is this machine's."""
        if self.described is None or self.described.bandwidth is not None:
            return None if self.described is None else self.described.bandwidth
        return self.probe.read_bandwidth if self.described.here and self.probe is not None else None

    def likely(self, need: Need) -> tuple[float, float] | None:
        """Return between which rates an engine decodes that comes as near to the limit as the run did, tokens/s."""
        found = self.split(need)
        if found is None or found.ceiling is None or self.reached is None:
            return None
        return self.reached.low * found.ceiling, self.reached.high * found.ceiling

    def verdict(self, need: Need) -> Fit:
        """Return whether a model in one dtype fits: on the described machine, else on this one."""
        if self.described is None:
            return need.verdict
        found = self.split(need)
        return split.undivided(need, self.described) if found is None else found.verdict

    @property
    def fitting(self) -> list[str]:
        """Return the dtypes that fit, the most exact first."""
        needs = () if self.model is None else self.model.needs
        return [need.dtype for need in needs if self.verdict(need) not in (Fit.TOO_LARGE, Fit.UNKNOWN)]

    def cores(self, model: Requirements) -> int | None:
        """Return the cores for a good TTFT in the chosen dtype, None where no rate was measured for it."""
        flops = None if self.probe is None else self.probe.flops.get(model.chosen.dtype)
        if self.probe is None or flops is None or model.active_parameters is None:
            return None
        return cores_for_prefill(model.active_parameters, flops / self.probe.threads)
