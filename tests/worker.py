"""A process that does what it is told, a line at a time, and answers with its own account; and what starts it."""

from __future__ import annotations

import json
import mmap
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

KEPT: list[object] = []
BUSY = "import time\nwhile time.process_time() < {}: pass\nprint(flush=True)\nimport sys; sys.stdin.read()"


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def child(seconds: float) -> subprocess.Popen[bytes]:
    """Start a child that burns and then waits for the end of its input."""
    program = [sys.executable, "-ISc", BUSY.format(seconds)]
    started = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    started.stdout.readline()
    return started


def end(process: subprocess.Popen[bytes]) -> None:
    process.communicate()


def spike(mib: int) -> None:
    with mmap.mmap(-1, mib * 2**20) as memory:
        memory.write(b"\1" * (mib * 2**20))


def mapped(path: str) -> None:
    with Path(path).open("rb") as file:
        KEPT.append(found := mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    sum(found[::4096])


def in_thread(seconds: float) -> None:
    thread = threading.Thread(target=burn, args=[seconds])
    thread.start()
    thread.join()


def nap(times: int) -> None:
    for _ in range(times):
        time.sleep(0.001)


def write(path: str) -> None:
    with Path(path).open("wb", buffering=0) as file:
        file.writelines(bytes(2**16) for _ in range(16))


DEEDS = {
    "nothing": lambda: None,
    "burn": lambda seconds: burn(float(seconds)),
    "thread": lambda seconds: in_thread(float(seconds)),
    "child": lambda seconds: KEPT.append(child(float(seconds))),
    "end": lambda: end(KEPT.pop()),
    "autoreap": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    "nap": lambda times: nap(int(times)),
    "keep": lambda mib: KEPT.append(bytearray(b"\1") * (int(mib) * 2**20)),
    "spike": lambda mib: spike(int(mib)),
    "map": mapped,
    "write": write,
}


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def answer() -> None:
    """Do what each line of the input says, and account for it."""
    for line in sys.stdin:
        deed, *how = line.split()
        DEEDS[deed](*how)
        own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        account = {
            "cpu": time.process_time(),
            "ended": ended.ru_utime + ended.ru_stime,
            "faults": own.ru_minflt + ended.ru_minflt,
            "hwm": status("VmHWM"),
            "rss": status("VmRSS"),
            "children": [p.pid for p in KEPT if isinstance(p, subprocess.Popen)],
        }
        sys.stdout.write(json.dumps(account) + "\n")
        sys.stdout.flush()


class Worker:
    """Starts the process; `account` is what it told last."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-IS", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.account: dict[str, Any] = {}
        self.do("nothing")

    @property
    def pid(self) -> int:
        return self.process.pid

    def do(self, what: str) -> dict[str, Any]:
        """Let it do something; return its account, and what the CPU times in it grew by."""
        before = self.account
        self.process.stdin.write(f"{what}\n")
        self.account = json.loads(self.process.stdout.readline())
        spent = {name: self.account[name] - before.get(name, 0) for name in ("cpu", "ended", "faults")}
        return self.account | spent

    def end(self) -> None:
        self.process.communicate()


if __name__ == "__main__":
    answer()
