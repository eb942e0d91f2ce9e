"""Throttling events of a tree with two packages, and a round that they mark."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_infer.measure.counters.thermal import Throttling


def tree(root: Path, *packages: int) -> Path:
    """Make a machine with two processors a package, each of which repeats its package's count."""
    for cpu in range(2 * len(packages)):
        folder = root / f"devices/system/cpu/cpu{cpu}"
        for name in ("thermal_throttle", "topology"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "thermal_throttle/package_throttle_count").write_text(f"{packages[cpu // 2]}\n")
        (folder / "topology/physical_package_id").write_text(f"{cpu // 2}\n")
    return root


def test_events_are_counted_once_a_package(tmp_path: Path, proc) -> None:
    throttling = Throttling(tree(tmp_path, 100, 7), proc.root)
    before = throttling.read()
    tree(tmp_path, 102, 8)
    reading = throttling.readings(before, throttling.read())["thermal_throttles"]
    assert reading.value == 3
    throttling.close()


@pytest.mark.parametrize(("flags", "said"), [("fpu hypervisor", "virtual machine"), ("fpu", "does not count")])
def test_machines_that_do_not_tell(tmp_path: Path, proc, flags: str, said: str) -> None:
    proc.write("cpuinfo", f"flags : {flags}\n")
    throttling = Throttling(tmp_path, proc.root)
    reading = throttling.readings(throttling.read(), throttling.read())["thermal_throttles"]
    assert reading.value is None
    assert said in str(reading.reason)
