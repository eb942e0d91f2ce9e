"""All that was found of a machine and of a model on it, and what follows from both."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_infer.analysis.doctor.pitfalls import Pitfall
from pytest_infer.analysis.doctor.requirements import Need, Requirements, cores_for_prefill
from pytest_infer.measure.machine.host import Host
from pytest_infer.metrics import roofline
from pytest_infer.records import MachineInfo, MachineProbe


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """All that was found; without a model only the machine.

    `probe_age_s` is None where the clock was set since the probe; `probe_note` says why it was made again, or is none.
    """

    machine: MachineInfo
    host: Host
    pitfalls: tuple[Pitfall, ...]
    probe: MachineProbe | None = None
    probe_age_s: float | None = None
    probe_note: str | None = None
    model: Requirements | None = None
    disk_free_bytes: int | None = None

    def ceiling(self, need: Need) -> float | None:
        """Return the most tokens per second that the measured bandwidth allows, None where either is not known."""
        if self.probe is None or not need.step_bytes:
            return None
        return roofline.ceiling(self.probe.read_bandwidth, need.step_bytes)

    def cores(self, model: Requirements) -> int | None:
        """Return the cores for a good TTFT in the chosen dtype, None where no rate was measured for it."""
        flops = None if self.probe is None else self.probe.flops.get(model.chosen.dtype)
        if self.probe is None or flops is None or model.active_parameters is None:
            return None
        return cores_for_prefill(model.active_parameters, flops / self.probe.threads)
