from __future__ import annotations

from pytest_infer.measure.counters import cgroup


def test_hybrid_memberships() -> None:
    text = "9:name=systemd:/\n4:memory:/box/d2\n2:cpu,cpuacct:/a:b\n0::/user.slice\n"
    assert cgroup.parse_memberships(text) == {
        "name=systemd": "/",
        "memory": "/box/d2",
        "cpu": "/a:b",
        "cpuacct": "/a:b",
        "": "/user.slice",
    }


def test_mounts_with_escapes_and_optional_fields() -> None:
    text = (
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
        "32 31 0:29 /docker/1 /sys/fs/c\\040g rw master:1 shared:2 - cgroup cgroup rw,cpu,cpuacct\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    mounts = cgroup.parse_mounts(text)
    assert mounts["cpuacct"] == ("/docker/1", "/sys/fs/c g")
    assert mounts[cgroup.UNIFIED] == ("/", "/sys/fs/cgroup/unified")
    assert "mode=755" not in mounts


def test_v2_takes_the_least_of_all_levels(proc, groups) -> None:
    top = groups.mount("cgroup2", "", "/user/session")
    groups.limit(top / "user", cpu_max="150000 100000\n", memory_max="max\n")
    groups.limit(top / "user/session", cpu_max="max 100000\n", memory_max="2048\n")
    found = cgroup.discover(proc.root)
    assert found.unified == (top / "user/session", top / "user", top)
    assert cgroup.quota_cores(found) == 1.5
    assert cgroup.memory_limit_bytes(found) == 2048


def test_v1_takes_the_least_of_all_levels(proc, groups) -> None:
    cpu = groups.mount("cgroup", "cpu", "/a/b")
    memory = groups.mount("cgroup", "memory", "/a/b")
    groups.limit(cpu / "a", cpu_cfs_quota_us="50000\n", cpu_cfs_period_us="100000\n")
    groups.limit(cpu / "a/b", cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    groups.limit(memory / "a/b", memory_limit_in_bytes="9223372036854771712\n")
    groups.limit(memory / "a", memory_limit_in_bytes="4096\n")
    found = cgroup.discover(proc.root)
    assert cgroup.quota_cores(found) == 0.5
    assert cgroup.memory_limit_bytes(found) == 4096


def test_a_container_sees_its_own_part_of_v1(proc, groups) -> None:
    memory = groups.mount("cgroup", "memory", "/docker/1/inner", root="/docker/1")
    groups.limit(memory / "inner", memory_limit_in_bytes="8192\n")
    found = cgroup.discover(proc.root)
    assert found.memory_v1 == (memory / "inner", memory)
    assert cgroup.memory_limit_bytes(found) == 8192


def test_a_path_outside_the_mount_falls_back_to_the_mount(proc, groups) -> None:
    top = groups.mount("cgroup2", "", "/../other", root="/")
    assert cgroup.discover(proc.root).unified == (top,)
    memory = groups.mount("cgroup", "memory", "/host/path", root="/docker/1")
    assert cgroup.discover(proc.root).memory_v1 == (memory,)


def test_without_limits_there_are_none(proc, groups) -> None:
    groups.mount("cgroup2", "", "/")
    found = cgroup.discover(proc.root)
    assert cgroup.quota_cores(found) is None
    assert cgroup.memory_limit_bytes(found) is None


def test_without_control_groups_all_is_empty(proc) -> None:
    assert cgroup.discover(proc.root) == cgroup.ControlGroups()
    proc.remove("self/cgroup")
    assert cgroup.discover(proc.root) == cgroup.ControlGroups()


def test_another_process_has_groups_of_its_own(proc, groups) -> None:
    top = groups.mount("cgroup2", "", "/ours")
    groups.limit(top / "ours", memory_max="100\n")
    groups.limit(top / "theirs", memory_max="400\n")
    for pid in (7, 8):
        groups.join(pid, "/theirs")
    found = cgroup.discover(proc.root, (7, 8))
    assert found.unified == (top / "theirs", top)
    assert cgroup.memory_limit_bytes(found) == 400
    assert cgroup.memory_limit_bytes(cgroup.discover(proc.root)) == 100


def test_groups_of_others_that_tell_nothing_are_none_with_the_reason(proc, groups) -> None:
    top = groups.mount("cgroup2", "", "/ours")
    groups.limit(top / "ours", memory_max="100\n")
    groups.join(7, "/../theirs")
    assert cgroup.discover(proc.root, (7,)) == cgroup.ControlGroups(
        why="the control group of process 7 is not shown to this one"
    )
    groups.join(7, "/ours")
    groups.join(8, "/")
    assert cgroup.discover(proc.root, (7, 8)).why == "processes 7, 8 are in several control groups"
