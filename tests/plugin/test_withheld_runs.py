"""Whole runs on a system that withholds its /proc, /sys and cgroup files: each is measured, stored and shown."""

import json
import sys

import pytest

import denied

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these files are Linux's")

OPTIONS = ("--benchmark-autosave", "--benchmark-storage=results", "--infer-rounds=1", "-p", "no:cacheprovider")
MANDATORY = ("total_s", "ttft_s", "generated_tokens")


def blocks(pytester):
    files = sorted(pytester.path.glob("results/*/*.json"))
    rows = json.loads(files[-1].read_text())["benchmarks"]
    return [block for block in (row["extra_info"]["pytest_infer"] for row in rows) if block["phase"] == "total"]


def check(block, path, how):
    assert all(key in block["metrics"] for key in MANDATORY), (path, how)
    assert all(block["absent"].values()), (path, how)


@pytest.mark.parametrize("how", denied.HOWS)
def test_a_run_without_any_of_them_measures_and_shows_all_the_same(suite, how):
    pytester = suite()
    program = (sys.executable, denied.__file__, "*", how)
    result = pytester.run(*program, "pytest:main", *OPTIONS, "--infer-gate=ttft<=9000s")
    assert result.ret == 0, result.stdout.str() + result.stderr.str()
    for block in blocks(pytester):
        check(block, "*", how)
        assert block["machine"]["unread"]
    for command in ("show", "history", "advice"):
        shown = pytester.run(*program, "pytest_infer.cli.main:app", command, "--storage=results")
        assert shown.ret == 0, shown.stderr.str()
    assert "not known in full" in " ".join(result.stdout.str().split())


@pytest.mark.slow
@pytest.mark.parametrize("how", denied.HOWS)
def test_no_single_one_is_needed(suite, how):
    pytester = suite()
    with denied.withheld() as files:
        pytester.runpytest_inprocess(*OPTIONS)
    assert "/proc/self/statm" in files.seen or "/proc/self/status" in files.seen
    for path in sorted(files.seen):
        with denied.withheld(path, how):
            result = pytester.runpytest_inprocess(*OPTIONS)
        assert result.ret == 0, (path, how, result.stdout.str())
        for block in blocks(pytester):
            check(block, path, how)
