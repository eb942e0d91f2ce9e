"""When a run probes the machine: before its first prompt and after its last, and between two that show it was wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from pytest_infer.measure.counters import memory
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.measure.machine import apart, probe
from pytest_infer.metrics import roofline
from pytest_infer.records import MachineProbe, ModelInfo, PromptRecord
from pytest_infer.storage import probes
from pytest_infer.units import bandwidth, flops

MOVED = 0.1
"""A bandwidth that moved by more than this share, and more than its own spreads, is told."""

Key = tuple[int, str]


@dataclass(slots=True)
class _Seen:
    """What rounds showed that the machine does at least; `memory` is of models that no cache holds."""

    read: float = 0.0
    memory: float = 0.0
    flops: dict[str, float] = field(default_factory=dict)

    def add(self, record: PromptRecord) -> None:
        read, multiplied = roofline.read_rate(record) or 0.0, roofline.multiply_rate(record) or 0.0
        self.read = max(self.read, read)
        if not roofline.fits_caches(record):
            self.memory = max(self.memory, read)
        dtype = record.model.dtype or ""
        self.flops[dtype] = max(self.flops.get(dtype, 0.0), multiplied)

    def beats(self, made: MachineProbe) -> bool:
        return self.read > made.read_bandwidth or bool(self.beaten_rates(made))

    def beaten_rates(self, made: MachineProbe) -> list[str]:
        return [dtype for dtype, seen in self.flops.items() if seen > made.flops.get(dtype, seen)]


class Probing:
    """The probes of one run, one for each number of threads and device that its models use.

    Memory is read before and after each run, since what other tenants of the host leave of its bandwidth moves within
    minutes. Matrices are multiplied before each run; other work only lowers such a rate, so the best of all runs since
    the boot is the one that counts. A probe that was disturbed, or that a round beats, is made again, at most twice,
    and is not used if that does not help.
    """

    def __init__(self, note: Callable[[str], None], *, wanted: bool) -> None:
        self._note = note
        self._wanted = wanted
        self._before: dict[Key, MachineProbe | None] = {}
        self._absent: dict[Key, str] = {}
        self._after: list[MachineProbe] = []
        self._discarded: list[MachineProbe] = []
        self._seen: dict[Key, _Seen] = {}
        self._repeats: dict[Key, int] = {}

    def due(self, model: ModelInfo) -> bool:
        """Return whether `before` would probe: once for each threads and device, if a limit could be told at all.

        It could for an engine that runs on torch here, or one on the CPU that tells its work. Several devices have no
        bandwidth in common: a model that is split over them has no probe.
        """
        known = (model.threads, model.device or "cpu") in self._before
        here = _torch_is_here() or (model.work is not None and (model.device or "cpu") == "cpu")
        possible = model.threads is not None and not model.split and here
        return self._wanted and possible and not known

    def before(self, model: ModelInfo) -> MachineProbe | None:
        """Return the probe for a model's threads and device, made now if it is the first time."""
        key = _key(model)
        if key is None:
            return None
        if self.due(model):
            made, disturbed = probe.steady(lambda: self._probe(key))
            self._discarded += disturbed
            if isinstance(made, Unavailable):
                self._give_up(key, made.reason)
            else:
                self._before[key] = made
        return self._before.get(key)

    def absent(self, model: ModelInfo) -> str | None:
        """Return why a model's machine has no probe that can be used, where one was tried."""
        return self._absent.get(_key(model) or (0, ""))

    def verify(self, record: PromptRecord) -> bool:
        """Return whether the probe that a record was made with has changed, because a round of it beat it.

        It is made again, at most twice a run; what then is still beaten is not used any more.
        """
        key = _key(record.model)
        made = None if key is None else self._before.get(key)
        if key is None or made is None or record.resumed:
            return False
        seen = self._seen.setdefault(key, _Seen())
        seen.add(record)
        first = made
        while seen.beats(made) and self._repeats.get(key, 0) < probe.REPEATS:
            self._repeats[key] = self._repeats.get(key, 0) + 1
            made = self._better(key, made)
        made = self._trusted(key, made, seen)
        self._before[key] = made
        return made != first

    def applied(self, record: PromptRecord) -> PromptRecord:
        """Return a record of this run with the probe that is used now."""
        key = _key(record.model)
        if key not in self._before or record.resumed:
            return record
        now, why = self._before[key], self.absent(record.model)
        if (record.machine.probe, record.machine.probe_absent) == (now, why):
            return record
        return replace(record, machine=replace(record.machine, probe=now, probe_absent=why))

    def after(self) -> None:
        """Probe the memory again for every probe that there was, and tell what moved."""
        for key, before in self._before.items():
            after = None if before is None else self._probe(key, before)
            if before is None or after is None:
                continue
            if isinstance(after, Unavailable):
                self._note(f"no probe of the machine after the run: {after.reason}")
                continue
            self._after.append(after)
            if probe.unsteady(after) is not None:
                continue
            change = after.read_bandwidth / before.read_bandwidth - 1
            if abs(change) > max(MOVED, before.read_bandwidth_spread, after.read_bandwidth_spread):
                threads = key[0]
                self._note(
                    f"! the memory's bandwidth {'fell' if change < 0 else 'rose'} from "
                    f"{bandwidth(before.read_bandwidth)} to {bandwidth(after.read_bandwidth)} during the run "
                    f"({threads} thread{'s' if threads > 1 else ''}): something else uses it; repeat the run"
                )

    def _better(self, key: Key, beaten: MachineProbe) -> MachineProbe:
        """Make a probe again that was beaten, and return the better of the two."""
        probes.forget(*key)
        again = self._probe(key)
        if isinstance(again, Unavailable):
            return beaten
        if probe.unsteady(again) is not None:
            self._discarded.append(again)
            return beaten
        worse, better = sorted((beaten, again), key=lambda made: made.read_bandwidth)
        self._discarded.append(worse)
        rates = {name: max(rate, worse.flops.get(name, 0.0)) for name, rate in better.flops.items()}
        return replace(better, flops=worse.flops | rates)

    def _trusted(self, key: Key, made: MachineProbe, seen: _Seen) -> MachineProbe | None:
        """Return what of a probe can be used: none of it, or not all its rates, where rounds still beat it."""
        if seen.memory > made.read_bandwidth:
            probes.forget(*key)
            self._discarded.append(made)
            told = f"a round read {bandwidth(seen.memory)}, and {1 + probe.REPEATS} probes at most"
            self._give_up(key, f"{told} {bandwidth(made.read_bandwidth)}: something else uses the machine")
            return None
        for dtype in seen.beaten_rates(made):
            probes.forget(*key)
            told = (
                f"a round did {flops(seen.flops[dtype])} in {dtype}, and the probes {flops(made.flops[dtype])} at most"
            )
            self._note(f"! no GEMM rate of the machine in {dtype}: {told}: something else uses the machine")
            made = replace(made, flops={name: rate for name, rate in made.flops.items() if name != dtype})
        return made

    def _give_up(self, key: Key, why: str) -> None:
        self._before[key] = None
        self._absent[key] = why

    def _probe(self, key: Key, known: MachineProbe | None = None) -> MachineProbe | Unavailable:
        flops = None if known is None else known.flops
        made = probe.measure(*key, flops) if _torch_is_here() else apart.measure(key[0], flops)
        if isinstance(made, Unavailable):
            return made
        memory.trim_heap()  # what the kernels took must not show in the peak of the first round
        return probes.save(made)

    def stored(self) -> dict[str, Any] | None:
        """Return the probes of the run for its file, those that were not used apart, or None."""
        before = [made for made in self._before.values() if made is not None]
        if not before and not self._discarded:
            return None
        kept = {"before": before, "after": self._after}
        stored: dict[str, Any] = msgspec.to_builtins(kept | ({"discarded": self._discarded} if self._discarded else {}))
        return stored


def _torch_is_here() -> bool:
    return "torch" in sys.modules


def _key(model: ModelInfo) -> Key | None:
    """Return what a model's probe is made for."""
    return None if model.threads is None else (model.threads, model.device or "cpu")
