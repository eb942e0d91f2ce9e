"""A pytest run in a storage that holds something damaged: it is named, left out, and the run is saved."""

import json
import os
import sys
from datetime import datetime, timedelta

import pytest

DEEP = "[" * 2000 + "]" * 2000
pytestmark = pytest.mark.timeout(300)


def journal(pytester, content):
    folder = pytester.mkdir(".benchmarks").joinpath(".journal")
    folder.mkdir()
    folder.joinpath("x.jsonl").write_bytes(content)


JOURNALS = {
    "a byte that is not UTF-8": lambda p: journal(p, b'{"nodeid":"a\xff","key":"b","record":{}}\n'),
    "nesting": lambda p: journal(p, f'{{"nodeid":"a","key":"b","record":{DEEP}}}\n'.encode()),
    "another type": lambda p: journal(p, b'{"nodeid":1,"key":"b","record":{}}\n'),
    "a folder": lambda p: (p.mkdir(".benchmarks") / ".journal" / "x.jsonl").mkdir(parents=True),
    "a pipe": lambda p: (
        (p.mkdir(".benchmarks") / ".journal").mkdir(),
        os.mkfifo(p.path / ".benchmarks" / ".journal" / "x.jsonl"),
    ),
    "a device": lambda p: (
        (p.mkdir(".benchmarks") / ".journal").mkdir(),
        (p.path / ".benchmarks" / ".journal" / "x.jsonl").symlink_to("/dev/zero"),
    ),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
@pytest.mark.parametrize("resume", [(), ("--infer-resume",)], ids=["", "resuming"])
@pytest.mark.parametrize("damage", JOURNALS.values(), ids=JOURNALS)
def test_a_damaged_journal_is_named_and_the_run_is_saved(suite, damage, resume):
    pytester = suite()
    damage(pytester)
    result = pytester.runpytest("--benchmark-autosave", "--infer-rounds=1", *resume)
    result.assert_outcomes(passed=2)
    text = " ".join(result.stdout.str().split())
    assert text.count("left out: ") == 1
    assert "x.jsonl: " in text
    assert "INTERNALERROR" not in text
    (saved,) = pytester.path.glob(".benchmarks/*/*.json")
    assert len(json.loads(saved.read_text())["benchmarks"]) == 6


def test_a_damaged_run_is_named_by_a_gate_and_by_a_report(suite):
    pytester = suite()
    pytester.runpytest("--benchmark-autosave", "--infer-rounds=1").assert_outcomes(passed=2)
    (first,) = pytester.path.glob(".benchmarks/*/*.json")
    run = json.loads(first.read_text())
    first.with_name("0100_deep.json").write_text(f'{{"datetime":"2026-01-01T00:00:00","benchmarks":[],"x":{DEEP}}}')
    first.with_name("0101_byte.json").write_bytes(first.read_bytes().replace(b'"fullname": "', b'"fullname": "\xff', 1))
    run["benchmarks"][0]["extra_info"]["pytest_infer"]["metrics"]["ttft_s"] = {"value": "fast"}
    # Of its own time: copies of a run count once.
    run["datetime"] = (datetime.fromisoformat(run["datetime"]) + timedelta(microseconds=1)).isoformat()
    first.with_name("0102_type.json").write_text(json.dumps(run))
    os.mkfifo(first.with_name("0103_pipe.json"))
    for options in (("--infer-gate=ttft:900%",), ("--infer-report=report.html",)):
        result = pytester.runpytest("--benchmark-autosave", "--infer-rounds=1", *options)
        text = " ".join(result.stdout.str().split())
        assert "2 passed" in text
        for name in ("0100_deep", "0101_byte", "0102_type", "0103_pipe"):
            assert text.count(f"{name}.json: ") == 1, (options, name, text)
        assert "INTERNALERROR" not in text


@pytest.mark.skipif(sys.platform != "linux", reason="kills")
def test_what_a_killed_save_leaves_is_gone_after_the_next(suite):
    die = """
    import os
    from pytest_infer.storage import files

    def linked(*args):
        os.kill(os.getpid(), 9)

    files.os.link = linked
    """
    pytester = suite(engine=die.replace("\n    ", "\n"))
    assert pytester.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=1").ret == -9
    folder = next(pytester.path.glob(".benchmarks/Linux*"))
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")]
    suite()
    result = pytester.runpytest("--benchmark-autosave", "--infer-rounds=1", "--infer-resume")
    result.assert_outcomes(passed=2)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".npz"]
