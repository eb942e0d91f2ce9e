"""What a person sees at the end of a run, and while it goes on."""

import io
import json
import re
import statistics
from contextlib import nullcontext

import pytest

from pytest_infer.report.live import LiveLine
from pytest_infer.report.terminal import printable

SLOW = "Scripted.delays = [0.02, 0.004, 0.004]"


def summary(result):
    """Return the lines of our section."""
    lines = result.outlines
    start = next(n for n, line in enumerate(lines) if "= inference =" in line)
    return [line.rstrip() for line in lines[start + 1 : -1]]


def test_a_row_a_prompt_then_mean_and_deviation(suite):
    pytester = suite(engine=SLOW)
    result = pytester.runpytest("--benchmark-json=run.json", "--infer-rounds=2", "--benchmark-quiet")
    lines = summary(result)
    assert lines[0].startswith("scripted · float32 · cpu")
    assert re.match(r"prompt +tokens +TTFT ITL p50 ITL p99 +decode +peak +CPU hottest", lines[1])
    assert re.match(r" +in\+out +ms +ms +ms +tok/s +MiB +% experts", lines[2])
    assert re.match(r"first +3\+3 ", lines[3].replace(" !", ""))
    assert re.match(r"second +2\+3 ", lines[4].replace(" !", ""))
    run = json.loads((pytester.path / "run.json").read_text())
    rows = [r["extra_info"]["pytest_infer"] for r in run["benchmarks"] if r["params"]["phase"] == "total"]
    rates = [row["metrics"]["decode_throughput"]["value"] for row in rows]
    mean, deviation = (line.split() for line in lines[5:7])
    assert mean[0] == "mean"
    assert float(mean[4]) == pytest.approx(statistics.fmean(rates), rel=0.01)
    assert deviation[:2] == ["±", "sd"]
    assert float(deviation[5]) == pytest.approx(statistics.stdev(rates), rel=0.01)


def test_a_narrow_terminal_gets_two_lines_a_prompt(suite, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    result = suite(engine=SLOW).runpytest("--infer-rounds=1", "--benchmark-quiet")
    lines = summary(result)
    assert all(len(line) <= 50 for line in lines)
    result.stdout.fnmatch_lines(["first*3+3 tokens", "  TTFT 2* ms · ITL *"])


def test_no_escapes_where_there_is_no_terminal_and_colours_on_demand(suite):
    pytester = suite(engine=SLOW)
    assert "\x1b" not in pytester.runpytest("--infer-rounds=1").stdout.str()
    assert "\x1b[1m" in pytester.runpytest("--infer-rounds=1", "--color=yes").stdout.str()


def test_quiet(suite):
    result = suite().runpytest("-q", "--infer-rounds=1")
    result.assert_outcomes(passed=2)
    assert "inference" not in result.stdout.str()


def test_verbose_shows_the_output_with_escapes_made_visible(suite):
    engine = SLOW + "\nScripted.decode = lambda self, ids: 'red \\x1b[31m text\\u202e'\n"
    result = suite(engine=engine).runpytest("-v", "--infer-rounds=1")
    assert "\x1b" not in result.stdout.str()
    assert r"first: red \x1b[31m text\u202e" in result.outlines


def test_different_tokens_in_different_rounds_are_named(suite):
    engine = """
    def generate(self, prompt_ids, limits, clock):
        self.calls += 1
        for token in (1, 2, self.calls):
            clock.tick([token])
        return StopReason.LENGTH

    Scripted.generate = generate
    """
    result = suite(engine=engine).runpytest("--infer-rounds=2", "--infer-no-profile")
    text = " ".join(result.stdout.str().split())
    assert "output differs between rounds in first, second. first: round 2 differs from round 1" in text
    assert "at generated token 3" in text


def test_a_suite_without_measuring_tests_has_no_section(pytester):
    pytester.makepyfile("def test_other():\n    pass\n")
    assert "inference" not in pytester.runpytest().stdout.str()


@pytest.mark.parametrize(
    ("raw", "shown"), [("plain ü 東京", "plain ü 東京"), ("a\nb", "a\\nb"), ("\x1b]0;title\x07", "\\x1b]0;title\\x07")]
)
def test_printable(raw, shown):
    assert printable(raw) == shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_live_line_leaves_the_cursor_where_it_was():
    stream = Terminal()
    line = LiveLine(stream, nullcontext, lambda: 7)
    line.show("measuring")
    assert stream.getvalue() == "\n\r\x1b[2Kmeasuring\x1b[1A\r\x1b[7C"
    line.clear()
    line.clear()
    assert stream.getvalue().endswith("\n\r\x1b[2K\x1b[1A\r\x1b[7C")
    assert stream.getvalue().count("\n") == 2


def test_the_live_line_is_silent_where_there_is_no_terminal():
    stream = io.StringIO()
    LiveLine(stream, nullcontext).show("measuring")
    assert stream.getvalue() == ""
