"""RAPL from trees as two kinds of machines have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_infer.measure.counters import kernel_files
from pytest_infer.measure.counters.energy import Rapl

RANGE = 262_143_328_850


def server(root: Path, first: int, second: int, memory: int) -> Path:
    """Two packages, memory beside the second, cores within the first, the platform around all, and mmio's copy."""
    made = {
        "intel-rapl:0": ("package-0", first),
        "intel-rapl:0:0": ("core", 777),
        "intel-rapl:1": ("package-1", second),
        "intel-rapl:1:0": ("dram", memory),
        "intel-rapl:2": ("psys", first * 9),
        "intel-rapl-mmio:0": ("package-0", first),
    }
    for place, (name, uj) in made.items():
        folder = root / "class/powercap" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{uj}\n")
        (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return root


def test_packages_and_memory_are_added_once(tmp_path: Path, proc) -> None:
    rapl = Rapl(server(tmp_path, 1_000_000, 5_000_000, 300), proc.root)
    before = rapl.read()
    server(tmp_path, 3_500_000, 6_000_000, 500_300)
    reading = rapl.readings(before, rapl.read())["energy_j"]
    assert reading.value == pytest.approx(2.5 + 1.0 + 0.5)
    rapl.close()


def test_a_counter_that_starts_again(tmp_path: Path, proc) -> None:
    rapl = Rapl(server(tmp_path, RANGE - 2_000_000, 0, 0), proc.root)
    before = rapl.read()
    server(tmp_path, 1_000_000, 0, 0)
    assert rapl.readings(before, rapl.read())["energy_j"].value == pytest.approx(3.0)
    rapl.close()


def test_no_energy_is_no_joules_and_not_absent(tmp_path: Path, proc) -> None:
    rapl = Rapl(server(tmp_path, 5, 5, 5), proc.root)
    assert rapl.readings(rapl.read(), rapl.read())["energy_j"].value == 0
    rapl.close()


def test_only_root_may_read_it(tmp_path: Path, proc, monkeypatch: pytest.MonkeyPatch) -> None:
    server(tmp_path, 1, 1, 1)

    def refuse(path: object, *_: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(kernel_files.os, "open", refuse)
    rapl = Rapl(tmp_path, proc.root)
    reading = rapl.readings(rapl.read(), rapl.read())["energy_j"]
    assert reading.value is None
    assert "permission denied" in str(reading.reason)
    assert "root reads it" in str(reading.reason)


@pytest.mark.parametrize(("flags", "said"), [("fpu hypervisor", "virtual machine"), ("fpu", "offers no RAPL")])
def test_machines_without_it(tmp_path: Path, proc, flags: str, said: str) -> None:
    proc.write("cpuinfo", f"flags : {flags}\n")
    rapl = Rapl(tmp_path, proc.root)
    reading = rapl.readings(rapl.read(), rapl.read())["energy_j"]
    assert reading.value is None
    assert said in str(reading.reason)


def test_a_broken_tree_is_a_reason(tmp_path: Path, proc) -> None:
    server(tmp_path, 1, 1, 1)
    (tmp_path / "class/powercap/intel-rapl:0/max_energy_range_uj").write_text("none\n")
    rapl = Rapl(tmp_path, proc.root)
    assert "not in the expected form" in str(rapl.readings(rapl.read(), rapl.read())["energy_j"].reason)
