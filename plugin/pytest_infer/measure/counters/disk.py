"""Bytes and operations that reached the device, and those that the process asked for."""

from __future__ import annotations

from pathlib import Path

from pytest_infer.measure.counters import cgroup
from pytest_infer.measure.counters.kernel_files import KernelFile, Sample, Unavailable, difference
from pytest_infer.records import Reading

_FIELDS = {
    "read_bytes": "read_bytes",
    "write_bytes": "write_bytes",
    "read_chars": "rchar",
    "write_chars": "wchar",
    "read_calls": "syscr",
    "write_calls": "syscw",
}
_COUNTS = tuple((name, field, f"/proc/self/io {field}, with waited-for children") for name, field in _FIELDS.items())
_OWN_CHARS, _OWN_CALLS = "own rchar", "own syscr"
_OWN = {"rchar": _OWN_CHARS, "syscr": _OWN_CALLS}


def parse_io(text: bytes) -> Sample:
    """Return the counts of /proc/<pid>/io by name (proc(5), filesystems/proc.rst), and what reading it will add."""
    sample: Sample = {name.decode(): int(count) for name, count in (line.split(b":") for line in text.splitlines())}
    # The kernel adds this very read once it is done: what follows must subtract it.
    sample[_OWN_CHARS], sample[_OWN_CALLS] = len(text), 1
    return sample


def parse_io_stat(text: bytes) -> Sample:
    """Return operations summed over the devices of a control group's `io.stat` (cgroup-v2.rst).

    A stacked device (dm, md) and the one below it are both counted, as both were operated.
    """
    fields = [field.split(b"=") for line in text.splitlines() for field in line.split()[1:]]
    return {
        "reads": sum(int(value) for name, value in fields if name == b"rios"),
        "writes": sum(int(value) for name, value in fields if name == b"wios"),
    }


class ProcessIo:
    """I/O of this process with all its threads, and of the children that it has waited for (/proc/self/io).

    `read_bytes` and `write_bytes` are physical: they include page faults of mapped files and leave out what the page
    cache served. `write_bytes` counts a page when it is dirtied, before it is written.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._file = KernelFile(proc / "self/io", parse_io)

    def read(self) -> Sample | Unavailable:
        """Return the file's counts since the process started."""
        return self._file.read()

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return bytes and calls between two samples."""
        if not isinstance(before, Unavailable):
            before = before | {name: before[name] + before[own] for name, own in _OWN.items() if name in before}
        return {name: difference(before, after, field, source) for name, field, source in _COUNTS}

    def close(self) -> None:
        """Give the file descriptor back."""
        self._file.close()


class GroupIo:
    """Device operations of a process's whole control group: the kernel counts none for a process."""

    def __init__(self, groups: cgroup.ControlGroups) -> None:
        self._file = KernelFile(groups.unified[0] / "io.stat", parse_io_stat) if groups.unified else None
        self._missing = Unavailable(groups.why or "no cgroup v2")

    def read(self) -> Sample | Unavailable:
        """Return the operations since the group was made."""
        sample = self._missing if self._file is None else self._file.read()
        if isinstance(sample, Unavailable):
            return Unavailable(f"the kernel counts device operations per control group only; {sample.reason}")
        return sample

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return device operations between two samples."""
        source = "io.stat, whole cgroup"
        return {
            "read_ops": difference(before, after, "reads", source),
            "write_ops": difference(before, after, "writes", source),
        }

    def close(self) -> None:
        """Give the file descriptor back."""
        if self._file is not None:
            self._file.close()
