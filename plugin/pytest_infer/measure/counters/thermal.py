"""How often the processor slowed itself down because of its heat, where it counts that."""

from __future__ import annotations

from pathlib import Path

from pytest_infer.measure.counters.cpu import has_hypervisor_flag
from pytest_infer.measure.counters.kernel_files import KernelFile, Sample, Sources, Unavailable, difference
from pytest_infer.records import Reading


class Throttling:
    """The packages' counts of thermal throttling events since boot (x86; Intel SDM volume 3, thermal monitoring).

    Every processor of a package repeats the package's count, so one of each is read.
    """

    def __init__(self, sys_folder: Path = Path("/sys"), proc: Path = Path("/proc")) -> None:
        packages: dict[str, Path] = {}
        sources = Sources()
        for folder in sources.matching("folders", sys_folder / "devices/system/cpu", "cpu[0-9]*/thermal_throttle"):
            package = sources.text("package", folder.parent / "topology/physical_package_id") or ""
            packages.setdefault(package, folder / "package_throttle_count")
        self._files = [KernelFile(path, _parse, size=32) for path in packages.values()]
        self._reason = sources.unread.get("folders") or (
            "a virtual machine is not told how hot its processor is"
            if has_hypervisor_flag(proc)
            else "this processor does not count thermal throttling"
        )

    def read(self) -> Sample | Unavailable:
        """Return the events of all packages since boot."""
        if not self._files:
            return Unavailable(self._reason)
        events = 0
        for file in self._files:
            sample = file.read()
            if isinstance(sample, Unavailable):
                return sample
            events += int(sample["events"])
        return {"events": events}

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the events between two samples."""
        source = "/sys thermal_throttle package_throttle_count"
        return {"thermal_throttles": difference(before, after, "events", source)}

    def close(self) -> None:
        """Give the file descriptors back."""
        for file in self._files:
            file.close()


def _parse(text: bytes) -> Sample:
    return {"events": int(text)}
