from __future__ import annotations

from pathlib import Path

from pytest_infer.measure.machine import probe


def tree(root: Path) -> Path:
    """Make four cores: own first level, second level in pairs, third for all."""
    for cpu in range(4):
        pair = f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}"
        levels = (
            ("1", "Data", str(cpu), "32K"),
            ("1", "Instruction", str(cpu), "64K"),
            ("2", "Unified", pair, "1024K"),
            ("3", "Unified", "0-3", "32M"),
        )
        for number, (level, kind, shared, size) in enumerate(levels):
            folder = root / f"devices/system/cpu/cpu{cpu}/cache/index{number}"
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in (("level", level), ("type", kind), ("shared_cpu_list", shared), ("size", size)):
                (folder / name).write_text(f"{text}\n")
    return root


def test_a_shared_cache_counts_once(tmp_path: Path) -> None:
    found = probe.cache_sizes(tree(tmp_path), {0, 1, 2, 3})
    assert found == {"L1d": 4 * 2**15, "L1i": 4 * 2**16, "L2": 2 * 2**20, "L3": 32 * 2**20}


def test_only_those_of_the_usable_cores_count(tmp_path: Path) -> None:
    assert probe.cache_sizes(tree(tmp_path), {0, 1}) == {"L1d": 2**16, "L1i": 2**17, "L2": 2**20, "L3": 2**25}


def test_a_machine_that_does_not_tell(tmp_path: Path) -> None:
    assert probe.cache_sizes(tmp_path, {0}) == {}
    (tree(tmp_path) / "devices/system/cpu/cpu0/cache/index3/size").write_text("large\n")
    assert set(probe.cache_sizes(tmp_path, {0})) == {"L1d", "L1i", "L2"}
