"""A limit that a control group sets is seen by cores and memory: the test makes a group and puts a process into it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_infer.measure.counters import cgroup

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's"),
]
GIB = 2**30
PROGRAM = """
import json, sys
sys.stdin.readline()  # until this process is in the group
from pytest_infer.measure.machine import description, host
seen = description.describe()
print(json.dumps([seen.quota_cores, seen.usable_cores, seen.affinity_cores, seen.memory_limit_bytes,
                  host.available_bytes()]))
"""


def place_for(controller):
    """Return the folder in which a group may be made for a controller, and the hierarchy's version; else skip.

    Only at the root of the hierarchy as it is seen here: any other group has a manager (systemd, a container's), and
    cgroups have a single writer.
    """
    proc = Path("/proc/self")
    memberships = cgroup.parse_memberships((proc / "cgroup").read_text())
    mounts = cgroup.parse_mounts((proc / "mountinfo").read_text())
    for name, version in ((cgroup.UNIFIED, 2), (controller, 1)):
        if name not in memberships or name not in mounts:
            continue
        root, folder = mounts[name][0], Path(mounts[name][1])
        if version == 2 and controller not in (folder / "cgroup.controllers").read_text().split():
            continue
        if memberships[name] != "/" or root != "/":
            pytest.skip(f"this process's {controller} group {memberships[name]} belongs to whoever made it")
        return folder, version
    pytest.skip(f"no hierarchy has the controller {controller}")


@pytest.fixture
def limited():
    """Return a function: the limits that a process in a group with this setting sees."""
    made = []

    def run(controller, settings):
        folder, version = place_for(controller)
        group = folder / f"pytest-infer-test-{os.getpid()}"
        try:
            if version == 2:
                (folder / "cgroup.subtree_control").write_text(f"+{controller}")
            group.mkdir()
            made.append(group)
            for name, value in settings[version].items():
                (group / name).write_text(value)
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            try:
                (group / "cgroup.procs").write_text(str(process.pid))
            finally:
                said, _ = process.communicate("\n", timeout=120)
        except OSError as error:
            pytest.skip(f"no group can be made in {folder}: {error}")
        assert process.returncode == 0
        return json.loads(said)

    yield run
    for group in made:
        for _ in range(50):  # until the kernel has let go of the process
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.02)


def test_a_cpu_quota_is_what_is_usable(limited):
    settings = {2: {"cpu.max": "50000 100000"}, 1: {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}}
    quota, usable, affinity, _, _ = limited("cpu", settings)
    assert (quota, usable) == (0.5, 0.5)
    assert affinity == len(os.sched_getaffinity(0))


def test_a_memory_limit_is_what_may_be_used(limited):
    settings = {2: {"memory.max": str(GIB)}, 1: {"memory.limit_in_bytes": str(GIB)}}
    _, _, _, limit, available = limited("memory", settings)
    assert limit == GIB
    # What the process itself holds counts.
    assert 0.5 * GIB < available < GIB
