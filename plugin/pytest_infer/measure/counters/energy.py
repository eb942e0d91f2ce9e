"""The energy of the processor packages, where the kernel allows reading it (RAPL through powercap)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_infer.measure.counters.cpu import has_hypervisor_flag
from pytest_infer.measure.counters.kernel_files import KernelFile, Sample, Sources, Unavailable
from pytest_infer.records import Reading, absent

SOURCE = "/sys/class/powercap intel-rapl energy_uj"
_UJ = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class _Zone:
    """One counter of microjoules, which wraps to 0 beyond `range_uj`."""

    place: str
    file: KernelFile
    range_uj: int


class Rapl:
    """Energy of all packages and of the memory beside them (Documentation/power/powercap/powercap.rst; AMD's too).

    A package's zone holds its cores and graphics; its zone dram is beside it. The platform's zone (psys) holds the
    packages once more, and so do the zones of intel-rapl-mmio: neither is added. A counter may wrap once in a window
    (the range lasts tens of minutes at full load), which shows as a decrease.
    """

    def __init__(self, sys_folder: Path = Path("/sys"), proc: Path = Path("/proc")) -> None:
        self._zones: tuple[_Zone, ...] = ()
        virtual = "a virtual machine has no RAPL" if has_hypervisor_flag(proc) else "this kernel offers no RAPL"
        self._unavailable = Unavailable(virtual)
        sources, folder = Sources(), sys_folder / "class/powercap"
        found = sources.matching("zones", folder, "intel-rapl:*")
        zones = sources.ask("zones", lambda: tuple(_zone(zone) for zone in found if _added(zone)), str(folder))
        self._zones = zones or ()
        if sources.unread:
            self._unavailable = Unavailable(sources.unread["zones"])

    def read(self) -> Sample | Unavailable:
        """Return each zone's counter in microjoules; one that cannot be read leaves the sum unknown."""
        sample: Sample = {}
        for zone in self._zones:
            value = zone.file.read()
            if isinstance(value, Unavailable):
                # Kernels allow only root to read it, because it leaks secrets (CVE-2020-8694).
                return Unavailable(f"{value.reason} (root reads it)" if "denied" in value.reason else value.reason)
            sample[zone.place] = value["uj"]
        return sample or self._unavailable

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the joules between two samples."""
        if isinstance(before, Unavailable):
            return {"energy_j": absent(before.reason, SOURCE)}
        if isinstance(after, Unavailable):
            return {"energy_j": absent(after.reason, SOURCE)}
        used_uj = [(after[zone.place] - before[zone.place], zone.range_uj) for zone in self._zones]
        joules = sum(used if used >= 0 else used + range_uj for used, range_uj in used_uj) / _UJ
        return {"energy_j": Reading(value=joules, source=SOURCE)}

    def close(self) -> None:
        """Give the file descriptors back."""
        for zone in self._zones:
            zone.file.close()


def _added(zone: Path) -> bool:
    """Return whether a zone's energy is not part of another zone's."""
    name = (zone / "name").read_text().strip()
    return name.startswith("package") or name == "dram"


def _zone(zone: Path) -> _Zone:
    return _Zone(
        place=zone.name,
        file=KernelFile(zone / "energy_uj", _parse, size=32),
        range_uj=int((zone / "max_energy_range_uj").read_text()),
    )


def _parse(text: bytes) -> Sample:
    return {"uj": int(text)}
