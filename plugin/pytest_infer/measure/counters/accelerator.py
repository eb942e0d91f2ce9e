"""What torch has allocated on its accelerators, once a program has loaded torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from pytest_infer.measure.counters.kernel_files import Sample, Unavailable
from pytest_infer.records import Quality, Reading, absent

SOURCE = "torch max_memory_allocated, reset before it"
UNCACHED = "PYTORCH_NO_CUDA_MEMORY_CACHING"
"""With this variable torch allocates past what counts (CUDACachingAllocator): every peak would be 0."""
CONTEXT_BYTES = 2**29
"""About what a process takes of a card beside torch's allocations: its context, and the kernels that it loads."""


def loaded_torch() -> Any:
    """Return torch if something has imported it, else None: measuring must not pay the seconds of its import."""
    return sys.modules.get("torch")


def backends(torch: Any) -> list[Any]:
    """Return the parts of torch (`torch.cuda`, `torch.xpu`) that have devices and count their memory."""
    found = (getattr(torch, name, None) for name in ("cuda", "xpu"))
    return [b for b in found if b is not None and hasattr(b, "max_memory_allocated") and b.is_available()]


def names() -> tuple[str, ...]:
    """Return the accelerators' names as torch gives them; none before torch is loaded, or for one that cannot be used.

    Asking starts the driver, which fails for a device in exclusive use by another process.
    """
    torch = loaded_torch()
    if torch is None:
        return ()
    try:
        return tuple(str(b.get_device_name(n)) for b in backends(torch) for n in range(b.device_count()))
    except RuntimeError:
        return ()


def in_use() -> frozenset[str]:
    """Return the NVIDIA devices that hold memory of torch's, by UUID as NVML tells them; none where it is not known."""
    cuda = getattr(loaded_torch(), "cuda", None)
    try:
        if cuda is None or not cuda.is_initialized():
            return frozenset()
        held = [device for device in range(cuda.device_count()) if cuda.memory_reserved(device)]
        return frozenset(f"GPU-{cuda.get_device_properties(device).uuid}" for device in held)
    except (AttributeError, RuntimeError):  # a torch without UUIDs, or a driver that does not tell
        return frozenset()


@dataclass(frozen=True, slots=True)
class Share:
    """What this process holds of an accelerator's memory, and what is free there, bytes."""

    held: int
    free: int


def share() -> Share | None:
    """Return it for the accelerator with the least room for another process like this one; None where none is used."""
    torch = loaded_torch()
    found: list[Share] = []
    try:
        for backend in backends(torch) if torch is not None else ():
            used = range(backend.device_count()) if backend.is_initialized() else ()
            held = {device: int(backend.memory_reserved(device)) for device in used}
            # Asking what is free starts a device: only those that hold something are asked.
            found += [Share(n + CONTEXT_BYTES, int(backend.mem_get_info(d)[0])) for d, n in held.items() if n]
    except (AttributeError, RuntimeError):  # a backend or a driver that does not tell
        return None
    return min(found, key=lambda one: one.free / one.held, default=None)


class DeviceMemory:
    """The peak of torch's own allocations on all accelerators, exact (torch.cuda.memory).

    Torch keeps one peak per device. Each read notes it and resets it, so that nested windows each take the highest of
    the pieces that they span. Nothing is asked of a device that nothing uses yet: its driver would be started.
    """

    def __init__(self) -> None:
        self._torch: Any = None
        self._backends: list[Any] = []
        self._peaks: list[tuple[int, ...]] = []

    def read(self) -> Sample | Unavailable:
        """Note the peak of each device since the last read, and reset it."""
        if self._torch is None:
            self._torch = loaded_torch()
            if self._torch is None:
                return Unavailable("no accelerator: torch is not loaded")
            self._backends = backends(self._torch)
        if not self._backends:
            return Unavailable("torch has no accelerator that counts its memory")
        if os.environ.get(UNCACHED):
            return Unavailable(f"torch counts no memory with {UNCACHED}")
        try:
            self._peaks.append(tuple(peak for backend in self._backends for peak in _taken(backend)))
        except RuntimeError as error:
            return Unavailable(f"torch: {error}")
        return {"piece": len(self._peaks)}

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the highest peak between two reads.

        Those of several devices that were used are added, even if at different times: that is an estimate.
        """
        if isinstance(before, Unavailable):
            return {"device_peak_bytes": absent(before.reason, SOURCE)}
        if isinstance(after, Unavailable):
            return {"device_peak_bytes": absent(after.reason, SOURCE)}
        pieces = self._peaks[int(before["piece"]) : int(after["piece"])]
        used = [peak for peak in map(max, zip(*pieces, strict=True)) if peak]
        quality = Quality.ESTIMATED if len(used) > 1 else Quality.EXACT
        return {"device_peak_bytes": Reading(value=sum(used), source=SOURCE, quality=quality)}

    def close(self) -> None:
        """Forget what was noted."""
        self._peaks.clear()


def _taken(backend: Any) -> list[int]:
    """Return the peak of each device, and set it back to what is allocated now; 0 before torch has started any."""
    devices = range(backend.device_count())
    if not backend.is_initialized():
        return [0 for _ in devices]
    peaks = [int(backend.max_memory_allocated(device)) for device in devices]
    for device in devices:
        backend.reset_peak_memory_stats(device)
    return peaks
