"""Recorded /proc texts, and control-group trees made under tmp_path."""

from __future__ import annotations

from pathlib import Path

import pytest

STATUS = """\
Name:\tpython
Groups:\t0 1 2
VmPeak:\t  900000 kB
VmSize:\t  800000 kB
VmLck:\t       0 kB
VmPin:\t       0 kB
VmHWM:\t  307200 kB
VmRSS:\t  204800 kB
RssAnon:\t  102400 kB
RssFile:\t   51200 kB
RssShmem:\t   51200 kB
VmData:\t  100000 kB
VmStk:\t     132 kB
VmExe:\t      20 kB
VmLib:\t    1528 kB
VmPTE:\t      48 kB
VmSwap:\t    1024 kB
Threads:\t3
voluntary_ctxt_switches:\t11
"""
IO = """\
rchar: 6976
wchar: 20
syscr: 10
syscw: 2
read_bytes: 4096
write_bytes: 8192
cancelled_write_bytes: 0
"""
STAT = "cpu  100 10 50 9000 5 1 4 20 7 3\ncpu0 50 5 25 4500 2 0 2 10 3 1\nintr 1 2 3\n"
PRESSURE = """\
some avg10=0.06 avg60=0.65 avg300=0.59 total=8827004
full avg10=0.00 avg60=0.00 avg300=0.00 total=5
"""
MEMINFO = """\
MemTotal:       1000 kB
MemFree:         100 kB
MemAvailable:    400 kB
Buffers:          10 kB
Cached:          300 kB
"""


class FakeProc:
    """A folder like /proc, with the texts above; `write` and `remove` change it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        texts = {
            "self/status": STATUS,
            "self/io": IO,
            "self/schedstat": "5 7 1\n",
            "self/task/10/schedstat": "1000 2000 3\n",
            "self/task/11/schedstat": "1000 500 3\n",
            "self/cgroup": "",
            "self/mountinfo": "",
            "stat": STAT,
            "meminfo": MEMINFO,
            "pressure/cpu": PRESSURE,
            "pressure/memory": PRESSURE,
            "pressure/io": PRESSURE,
            "cpuinfo": "model name\t: Fast 1000\nflags\t\t: fpu hypervisor\n",
        }
        for name, text in texts.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def remove(self, name: str) -> None:
        (self.root / name).unlink()


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")


class FakeGroups:
    """A control-group mount under tmp_path, entered into a fake /proc/self; `join` enters another process."""

    def __init__(self, proc: FakeProc, root: Path) -> None:
        self._proc = proc
        self.root = root
        self._mounts = ""
        self._memberships = ""

    def mount(self, kind: str, controller: str, membership: str, *, root: str = "/") -> Path:
        """Mount a hierarchy with its part `root`, of which this process is in `membership`; returns the mount point."""
        point = self.root / (controller or "unified")
        point.mkdir(parents=True, exist_ok=True)
        options = f"rw,{controller}" if controller else "rw"
        self._mounts += f"31 23 0:28 {root} {point} rw,relatime shared:1 - {kind} {kind} {options}\n"
        self._memberships += f"3:{controller}:{membership}\n"
        self._proc.write("self/mountinfo", "23 1 254:0 / / rw - ext4 /dev/vda rw\n" + self._mounts)
        self._proc.write("self/cgroup", self._memberships)
        return point

    def join(self, pid: int, membership: str) -> None:
        """Let a process of one thread and without children be in a group."""
        self._proc.write(f"{pid}/cgroup", f"0::{membership}\n")
        self._proc.write(f"{pid}/status", STATUS)
        self._proc.write(f"{pid}/stat", f"{pid} (server) S 1{' 0' * 20}\n")
        self._proc.write(f"{pid}/task/{pid}/children", "")

    @staticmethod
    def limit(directory: Path, **files: str) -> None:
        """Write files of a group; `cpu_max` stands for `cpu.max`."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            controller, _, rest = name.partition("_")
            (directory / f"{controller}.{rest}").write_text(text)


@pytest.fixture
def groups(proc: FakeProc, tmp_path: Path) -> FakeGroups:
    return FakeGroups(proc, tmp_path / "cgroup")
