"""Every kernel file that is read, withheld one by one in every way that one can be: nothing dies, and each says why."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields

import pytest
from typer.testing import CliRunner

import denied
from pytest_infer.cli.main import app
from pytest_infer.measure.counters import memory
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.machine import description, host, probe
from pytest_infer.records import Counters, Reading

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these files are Linux's")

OF_RECORDS = {"swap_total_bytes": "swap", "swap_used_bytes": "swap"}


def counted() -> Counters:
    system = SystemCounters()
    try:
        return system.end(system.begin())
    finally:
        system.close()


def look():
    told = host.describe(sleep=lambda _: None)
    return counted(), description.describe(), told, (*memory.footprint(), probe.cache_sizes(), probe.boot())


@pytest.fixture(scope="module")
def read() -> list[str]:
    with denied.withheld() as files:
        look()
    assert {"/proc/stat", "/proc/meminfo", "/proc/self/status", "/proc/self/task/*/schedstat"} <= files.seen
    return sorted(files.seen)


def absent(record) -> set[str]:
    return {field.name for field in fields(record) if getattr(record, field.name) is None}


@pytest.mark.parametrize("how", denied.HOWS)
def test_no_file_takes_anything_down_and_what_it_held_is_absent_with_the_reason(read, how) -> None:
    counters, machine, now, _ = look()
    for path in read:
        with denied.withheld(path, how):
            fewer, described, told, others = look()
        readings = {f.name: getattr(fewer, f.name) for f in fields(Counters)}
        readings |= {str(place): other for place, other in enumerate(others) if isinstance(other, Reading)}
        unexplained = [n for n, r in readings.items() if isinstance(r, Reading) and r.value is None and not r.reason]
        assert not unexplained, (path, how)
        # A file of /sys that is not there, or that is empty, says that the system has no such thing.
        if how in ("missing", "empty", "zero") and path.startswith("/sys/"):
            continue
        reasons = {**(described.unread or {}), **told.unread}
        lost = (absent(described) - absent(machine)) | (absent(told) - absent(now))
        assert {OF_RECORDS.get(name, name) for name in lost - {"unread"}} <= reasons.keys(), (path, how)
    assert counters.wall_s > 0


@pytest.mark.parametrize("how", denied.HOWS)
def test_the_doctor_says_what_it_was_not_told(read, how, monkeypatch) -> None:
    monkeypatch.setattr(host, "WINDOW_S", 0.0)
    for path in read:
        with denied.withheld(path, how):
            done = CliRunner().invoke(app, ["doctor", "--format", "json"])
        assert done.exit_code == 0, (path, how, done.output)
        assert json.loads(done.stdout)["machine"]["usable_cores"] > 0


def test_no_limit_is_no_limit_of_nothing(monkeypatch) -> None:
    monkeypatch.setattr(host, "WINDOW_S", 0.0)
    with denied.withheld("/proc/meminfo", "denied"), denied.withheld("/sys/fs/cgroup/*", "denied"):
        done = CliRunner().invoke(app, ["doctor", "--model", "reference-moe"])
    assert done.exit_code == 2, done.output
    assert "whether it fits cannot be told" in done.output
    assert "permission denied: /proc/meminfo" in " ".join(done.output.split())


@pytest.mark.parametrize(("path", "how"), [("/proc/stat", "denied"), ("*", "denied"), ("*", "garbled"), ("*", "zero")])
def test_commands_start_without_their_system_telling_them_anything(tmp_path, path, how) -> None:
    for words in (["doctor"], ["history"], ["metrics"]):
        done = subprocess.run(
            [sys.executable, denied.__file__, path, how, "pytest_infer.cli.main:app", *words],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == (11 if words == ["history"] else 0), done.stderr
        if words == ["doctor"]:
            assert "not known in full" in done.stdout
            assert "/proc/stat" in done.stdout
