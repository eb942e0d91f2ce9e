"""The machine's probe in a process of its own, for engines that do not run on torch: it is never loaded for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.measure.machine import probe
from pytest_infer.records import MachineProbe

_PROGRAM = (sys.executable, "-m", "pytest_infer.measure.machine.apart")
_LIMIT_S = 120.0


def measure(
    threads: int, flops: Mapping[str, float] | None = None, program: Sequence[str] = _PROGRAM
) -> MachineProbe | Unavailable:
    """Probe the CPU as `probe.measure` does; some seconds more, in which torch is loaded."""
    asked = msgspec.json.encode({"threads": threads, "flops": flops})
    try:
        done = subprocess.run([*program], input=asked, capture_output=True, check=False, timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        return Unavailable(f"the process that probes was not done after {_LIMIT_S:g} s")
    try:
        return msgspec.json.decode(done.stdout, type=MachineProbe)
    except msgspec.MsgspecError:
        said = (done.stdout or done.stderr).decode(errors="replace").strip().splitlines()
        return Unavailable(said[-1] if said else f"the process that probes ended with {done.returncode}")


def main() -> None:
    """Probe as standard input asks, and print the probe as JSON, or why there is none."""
    asked: dict[str, Any] = msgspec.json.decode(sys.stdin.buffer.read())
    made = probe.measure(asked["threads"], "cpu", asked["flops"])
    sys.stdout.write(made.reason if isinstance(made, Unavailable) else msgspec.json.encode(made).decode())


if __name__ == "__main__":
    main()
