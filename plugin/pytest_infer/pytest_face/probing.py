"""When a run probes the machine: before its first prompt and after its last, never beside a round."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec

from pytest_infer.measure.counters import memory
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.measure.machine import probe
from pytest_infer.records import MachineProbe, ModelInfo
from pytest_infer.storage import probes
from pytest_infer.units import bandwidth

MOVED = 0.1
"""A bandwidth that moved by more than this share, and more than its own spreads, is told."""


class Probing:
    """The probes of one run, one for each number of threads and device that its models use.

    Memory is read before and after each run, since what other tenants of the host leave of its bandwidth moves within
    minutes. Matrices are multiplied before each run; other work only lowers such a rate, so the best of all runs since
    the boot is the one that counts.
    """

    def __init__(self, note: Callable[[str], None], *, wanted: bool) -> None:
        self._note = note
        self._wanted = wanted
        self._before: dict[tuple[int, str], MachineProbe | None] = {}
        self._after: list[MachineProbe] = []

    def due(self, model: ModelInfo) -> bool:
        """Return whether `before` would probe: once for each threads and device, if the engine runs on torch here.

        Several devices have no bandwidth in common: a model that is split over them has no probe.
        """
        known = (model.threads, model.device or "cpu") in self._before
        possible = model.threads is not None and not model.split and "torch" in sys.modules
        return self._wanted and possible and not known

    def before(self, model: ModelInfo) -> MachineProbe | None:
        """Return the probe for a model's threads and device, made now if it is the first time."""
        device = model.device or "cpu"
        if self.due(model) and model.threads is not None:
            self._before[model.threads, device] = self._probe(model.threads, device, None)
        return None if model.threads is None else self._before.get((model.threads, device))

    def after(self) -> None:
        """Probe the memory again for every probe that there was, and tell what moved."""
        for (threads, device), before in self._before.items():
            after = None if before is None else self._probe(threads, device, before)
            if before is None or after is None:
                continue
            self._after.append(after)
            change = after.read_bandwidth / before.read_bandwidth - 1
            if abs(change) > max(MOVED, before.read_bandwidth_spread, after.read_bandwidth_spread):
                self._note(
                    f"! the memory's bandwidth {'fell' if change < 0 else 'rose'} from "
                    f"{bandwidth(before.read_bandwidth)} to {bandwidth(after.read_bandwidth)} during the run "
                    f"({threads} thread{'s' if threads > 1 else ''}): something else uses it; repeat the run"
                )

    def _probe(self, threads: int, device: str, known: MachineProbe | None) -> MachineProbe | None:
        made = probe.measure(threads, device, known.flops if known is not None else None)
        if isinstance(made, Unavailable):
            self._note(f"no probe of the machine: {made.reason}")
            return None
        memory.trim_heap()  # what the kernels took must not show in the peak of the first round
        return probes.save(made)

    def stored(self) -> dict[str, Any] | None:
        """Return the probes of the run for its file, or None."""
        before = [made for made in self._before.values() if made is not None]
        if not before:
            return None
        stored: dict[str, Any] = msgspec.to_builtins({"before": before, "after": self._after})
        return stored
