"""What a person sees at the end of a run, and while it goes on."""

import io
import json
import os
import re
import statistics
import subprocess
import sys
from contextlib import nullcontext, suppress

import pytest

from pytest_infer.pytest_face import summary as summary_of_run
from pytest_infer.records import TokenTrace
from pytest_infer.report.show import live
from pytest_infer.report.show.live import LiveLine
from pytest_infer.report.text import encodable, printable

SLOW = "Scripted.delays = [0.02, 0.004, 0.004]"


def summary(result):
    """Return the lines of our section."""
    lines = result.outlines
    start = next(n for n, line in enumerate(lines) if "= inference =" in line)
    return [line.rstrip() for line in lines[start + 1 : -1]]


def test_a_row_a_prompt_then_the_mean(suite, wide):
    pytester = suite(engine=SLOW, virtual=True)
    result = pytester.runpytest("--benchmark-json=run.json", "--infer-rounds=2")
    lines = summary(result)
    assert lines[0].startswith("scripted · float32 · cpu · median ± sd of 2 rounds · machine ")
    assert re.match(r"prompt +tokens +TTFT +ITL p99 +decode +peak$", lines[1])
    assert re.match(r" +in\+out +ms +ms +tok/s +MiB$", lines[2])
    assert re.match(r"first +3\+3 +\S+ ± \S+ % ", lines[3].replace(" !", ""))
    assert re.match(r"second +2\+3 +\S+ ± \S+ % ", lines[4].replace(" !", ""))
    run = json.loads((pytester.path / "run.json").read_text())
    rows = [r["extra_info"]["pytest_infer"] for r in run["benchmarks"] if r["params"]["phase"] == "total"]
    rates = [row["metrics"]["decode_throughput"]["value"] for row in rows]
    mean = lines[5].split()
    assert mean[0] == "mean"
    assert float(mean[3]) == pytest.approx(statistics.fmean(rates), rel=0.01)


def test_a_narrow_terminal_gets_two_lines_a_prompt(suite, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    result = suite(engine=SLOW, virtual=True).runpytest("--infer-rounds=1", "--benchmark-quiet")
    lines = summary(result)
    assert all(len(line) <= 50 for line in lines)
    result.stdout.fnmatch_lines(["first*3+3 tokens", "  TTFT 20* ms · ITL p99 *"])


def test_no_escapes_where_there_is_no_terminal_and_colours_on_demand(suite):
    pytester = suite(engine=SLOW)
    assert "\x1b" not in pytester.runpytest("--infer-rounds=1").stdout.str()
    assert "\x1b[1m" in pytester.runpytest("--infer-rounds=1", "--color=yes").stdout.str()


UNDISTURBED = "from pytest_infer.measure import disturbance\ndisturbance.reasons = lambda counters, usable_cores: ()\n"


def test_quiet_is_three_lines_and_qq_none(suite, wide):
    pytester = suite(engine=SLOW, virtual=True)
    for _ in range(2):
        result = pytester.runpytest("-q", "--infer-rounds=1", "--benchmark-autosave")
        result.assert_outcomes(passed=2)
    lines = summary(result)
    assert [line.partition(" ")[0] for line in lines] == ["scripted", "2", "since"]
    assert lines[1].startswith("2 prompts: TTFT ")
    assert "inference" not in pytester.runpytest("-qq", "--infer-rounds=1").stdout.str()


def full_disk(pytester):
    (pytester.path / "conftest.py").write_text(
        (pytester.path / "conftest.py").read_text()
        + """
import errno
from pytest_infer.storage import files

def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")

files._write = full
"""
    )


def wrong_output(pytester):
    (pytester.path / "test_suite.py").write_text(
        "def test_prompt(infer, prompt):\n    infer(prompt)\n    assert prompt.name != 'first'\n"
    )


def no_journal(pytester):
    pytester.mkdir(".benchmarks").joinpath(".journal").write_text("a file in the way")


ALARMS = {
    "! the run could not be saved in": full_disk,
    "! test_suite.py::test_prompt[first] did not pass after it was measured": wrong_output,
    "! the journal cannot be written": no_journal,
}


@pytest.mark.parametrize("quiet", ["-q", "-qq"])
@pytest.mark.parametrize(("line", "trouble"), ALARMS.items(), ids=lambda given: getattr(given, "__name__", ""))
def test_quiet_never_hides_an_alarm(suite, line, trouble, quiet):
    pytester = suite(engine=UNDISTURBED)
    trouble(pytester)
    result = pytester.runpytest(quiet, "--infer-rounds=1", "--benchmark-autosave")
    assert line in " ".join(result.stdout.str().split())
    assert [shown for shown in result.outlines if shown.startswith("! ")]


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_what_is_doubtful_about_a_figure_is_said_with_q_too(suite, quiet):
    engine = """
def generate(self, prompt_ids, limits, clock):
    self.calls += 1
    for token in (1, 2, self.calls):
        clock.tick([token])
    return StopReason.LENGTH

Scripted.generate = generate
"""
    result = suite(engine=UNDISTURBED + engine).runpytest(*quiet, "--infer-rounds=3")
    assert any(line.startswith("! ") for line in result.outlines)


def test_verbose_shows_the_output_with_escapes_made_visible(suite):
    engine = SLOW + "\nScripted.decode = lambda self, ids: 'red \\x1b[31m text\\u202e'\n"
    result = suite(engine=engine).runpytest("-v", "--infer-rounds=1")
    assert "\x1b" not in result.stdout.str()
    assert r"  output      red \x1b[31m text\u202e" in result.outlines


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


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "name… · −3 ± 4 % → 東?"),
        ("latin-1", "name. · -3 ± 4 % > ???"),
        ("ascii", "name. . -3 ~ 4 % > ???"),
        (None, "name… · −3 ± 4 % → 東?"),
    ],
)
def test_what_a_stream_lacks_is_replaced_by_what_is_as_wide(encoding, shown):
    stream = io.StringIO() if encoding is None else io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert encodable("name… · −3 ± 4 % → 東\udc80", stream) == shown


def test_a_terminal_of_ascii_is_written_to(suite, cold):
    pytester = suite(engine=SLOW)
    ours, theirs = os.openpty()
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "120"}
    command = [sys.executable, "-m", "pytest", "--infer-rounds=1"]
    with subprocess.Popen(command, cwd=pytester.path, env=environment, stdout=theirs) as process:
        os.close(theirs)
        text = b""
        with suppress(OSError):  # what the reading of a terminal ends with
            while part := os.read(ours, 1 << 16):
                text += part
        assert process.wait() == 0, text
    os.close(ours)
    shown = text.decode("ascii")
    assert re.search(r"\x1b\[2Kloading \S+ \.\x1b\[1A", shown), shown
    assert "\nscripted . float32 . cpu . 1 round . machine " in shown


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x" * 20, "x" * 19),
        ("東京" * 5, "東京" * 4 + "東 "),
        ("東京" * 4 + "xyz", "東京" * 4 + "xyz"),
        ("a\tb\x1b[1m", "a\\tb\\x1b[1m"),
    ],
)
def test_the_live_line_takes_one_line_of_the_terminal(monkeypatch, text, shown):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    LiveLine(stream, nullcontext).show(text)
    assert stream.getvalue() == f"\n\r\x1b[2K{shown}\x1b[1A\r"


def test_the_live_line_is_silent_where_there_is_no_terminal():
    stream = io.StringIO()
    LiveLine(stream, nullcontext).show("measuring")
    assert stream.getvalue() == ""


def blocks_of(pytester):
    (path,) = pytester.path.glob(".benchmarks/*/*.json")
    rows = json.loads(path.read_text())["benchmarks"]
    return [row["extra_info"]["pytest_infer"] for row in rows if row["params"]["phase"] == "total"]


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def test_every_average_and_deviation(suite, wide):
    # Delays three times as long for `second`, so that every time has a spread.
    engine = """
    class Scripted(Scripted):
        def generate(self, prompt_ids, limits, clock):
            self.delays = [0.06, 0.03, 0.03] if len(prompt_ids) == 2 else [0.02, 0.01, 0.01]
            return super().generate(prompt_ids, limits, clock)

    @pytest.fixture(scope="session")
    def engine():
        return Scripted()
    """
    pytester = suite(engine=engine, virtual=True)
    lines = summary(pytester.runpytest("--infer-rounds=3", "--benchmark-autosave", "-v"))
    (mean,) = [line.split()[1:] for line in lines if line.startswith("mean")]
    (spread,) = [line.partition(": ")[2] for line in lines if line.startswith("sd between prompts")]
    spread = [float(part.split()[-2]) for part in spread.split(" · ")]
    assert lines[2].split() == ["in+out", "ms", "ms", "tok/s", "MiB"]
    (path,) = pytester.path.glob(".benchmarks/*/*.json")
    (stored,) = json.loads(path.read_text())["pytest_infer"]["averages"]
    scales = {"ttft_s": 1e3, "itl_p99_s": 1e3, "decode_throughput": 1, "peak_rss_bytes": 2**-20}
    for number, (key, scale) in enumerate(scales.items()):
        values = [scale * statistics.median(block["metrics"][key]["rounds"]) for block in blocks_of(pytester)]
        # Three significant digits are shown.
        assert float(mean[number]) == pytest.approx(sum(values) / 2, rel=0.006), key
        if key != "peak_rss_bytes":  # in KiB where it is small
            assert spread[number] == pytest.approx(abs(values[0] - values[1]) / 2**0.5, rel=0.006), key
        told = stored["metrics"][key]
        assert scale * told["mean"] == pytest.approx(sum(values) / 2), key
        assert scale * told["stdev"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5), key
        assert told["prompts"] == 2
    # Of every figure, also of those that the table does not show.
    assert stored["metrics"].keys() >= {"total_s", "tpot_s", "cpu_s", "cpu_utilization"}


def test_one_prompt_has_no_mean(suite, wide):
    lines = summary(suite(engine=SLOW).runpytest("-k", "first", "-v"))
    assert not [line for line in lines if line.startswith(("mean", "sd between"))]


def test_one_token_shows_a_dash_for_what_it_has_not(suite, wide):
    lines = summary(suite(engine="Scripted.delays = [0.01]").runpytest("--benchmark-quiet"))
    (row,) = [line for line in lines if line.startswith("first ")]
    # After TTFT: ITL p99, decode.
    assert re.search(r"% +— +— +[\d.]+$", row), row


@pytest.mark.parametrize("columns", [40, 64, 80, 120])
def test_no_line_is_wider_than_the_terminal(suite, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = summary(suite(engine=SLOW).runpytest("--infer-rounds=1", "-v", "--benchmark-quiet"))
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("columns", [64, 80, 120])
def test_a_long_name_is_cut_and_the_figures_are_not(suite, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    prompts = f'[[prompt]]\nname = "{"long " * 40}"\ntext = "x y"\nmax_new_tokens = 3\n'
    lines = summary(suite(engine=SLOW, prompts=prompts).runpytest("--infer-rounds=1", "--benchmark-quiet"))
    # A warning of a busy machine names the prompt too, and goes on in a second line.
    (row,) = [line for line in lines if line.startswith("long") and "2+3" in line]
    assert len(row) <= columns
    assert "…" in row
    assert re.search(r" 2\+3 +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+$", row), row


def test_markup_in_names_and_output_is_text(suite, wide):
    prompts = '[[prompt]]\nname = "a [red]b[/red]"\ntext = "x"\n'
    engine = "Scripted.delays = [0.0]\nScripted.decode = lambda self, ids: '[bold]x[/nonsense] :smile:'\n"
    result = suite(engine=engine, prompts=prompts).runpytest("--infer-rounds=1", "-v")
    result.assert_outcomes(passed=1)
    text = "\n".join(summary(result))
    assert "a [red]b[/red]" in text
    assert "[bold]x[/nonsense] :smile:" in text


HOSTILE = r"""
Scripted.delays = [0.0] * 3
Scripted.decode = lambda self, ids: "a\x1b]0;owned\x07b\rover\nnext\u202e\x9b2J\x1b[31m"
"""


@pytest.mark.parametrize("args", [(), ("-v",), ("-vv",), ("-v", "-s"), ("--color=yes",)], ids=" ".join)
def test_escapes_in_the_output_never_reach_the_terminal(suite, wide, args):
    text = suite(engine=HOSTILE).runpytest("--infer-rounds=1", *args).stdout.str()
    for raw in ("\x1b]0;owned", "\x07", "\u202e", "\x9b", "b\rover", "\x1b[31ma"):
        assert raw not in text
    assert (r"a\x1b]0;owned\x07b\rover\nnext\u202e\x9b2J\x1b[31m" in text) == ("-v" in args or "-vv" in args)


def test_a_warning_marks_its_prompt(suite, wide):
    # The warm-up and the first timed round of a prompt agree; every later one differs in its second token.
    engine = """
    def generate(self, prompt_ids, limits, clock):
        self.calls += 1
        clock.tick([1])
        clock.tick([2 if self.calls < 3 else 9])

    Scripted.generate = generate
    """
    lines = summary(suite(engine=engine).runpytest("-k", "first", "--infer-rounds=3", "--benchmark-quiet"))
    assert any(line.startswith("first ! ") for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "! first: round 2 differs from round 1 at generated token 2" in text
    assert "! first: the profile round generated other tokens than the timed rounds" in text


def test_a_cold_first_round_says_what_to_do(suite, wide):
    engine = """
    def generate(self, prompt_ids, limits, clock):
        self.calls += 1
        time.sleep(1.0 if self.calls == 1 else 0.01)
        clock.tick([1])

    Scripted.generate = generate
    """
    result = suite(engine=engine).runpytest("-k", "first", "--infer-warmup=0", "--infer-rounds=4", "--benchmark-quiet")
    text = " ".join(" ".join(summary(result)).split())
    assert "! first: the first timed round took" in text
    assert "raise --infer-warmup" in text


def test_no_empty_section_after_a_refusal(suite):
    result = suite().runpytest("--infer-resume")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "inference" not in result.stdout.str()


FOREIGN = """
def test_other(benchmark):
    benchmark(lambda: None)

def test_prompt(infer, prompt):
    infer(prompt)
"""


def test_pytest_benchmarks_tables_are_there_where_they_are_asked_for(suite, wide):
    pytester = suite(engine=SLOW)
    assert "- benchmark" not in pytester.runpytest("--infer-rounds=1").stdout.str()
    for option in ("--benchmark-columns=median", "--benchmark-sort=name", "--benchmark-group-by=group"):
        text = pytester.runpytest("--infer-rounds=1", option).stdout.str()
        assert text.index("- benchmark") < text.index("= inference =")


def test_pytest_benchmarks_table_of_other_tests_stays(suite, wide):
    text = suite(engine=SLOW, test=FOREIGN).runpytest("--infer-rounds=1").stdout.str()
    assert text.index("test_other") < text.index("= inference =")
    assert "benchmark 'total'" not in text


def test_one_round_is_not_called_rounds(suite, wide):
    lines = summary(suite(engine=SLOW).runpytest("--infer-rounds=1"))
    assert " · 1 round · " in lines[0]


@pytest.mark.parametrize(
    ("seconds", "rounds", "said"),
    [(0.1, 5, ""), (0.5, 5, "2 s left"), (30, 5, "2 min left"), (30, 0, "")],
)
def test_the_live_line_says_how_long_a_prompt_will_take(seconds, rounds, said):
    made = {"stamps_ns": (1, round(seconds * 1e9)), "tick_sizes": (1, 1), "token_ids": (1, 2)}
    trace = TokenTrace(prompt_tokens=1, requested_tokens=2, start_ns=0, **made)
    assert live.seen(None, rounds) == ""
    assert live.seen(trace, rounds).endswith(f" · {said}" if said else "tok/s")


def broken(*_, **__):
    raise KeyError("tpot_s")


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ((summary_of_run, "_swept"), "! no sweep: KeyError: 'tpot_s'"),
        ((summary_of_run.since, "of"), "! no comparison with the last run: KeyError: 'tpot_s'"),
        ((summary_of_run, "write_summary"), "ERROR: no summary: KeyError: 'tpot_s'"),
    ],
)
def test_a_summary_that_breaks_costs_neither_the_run_nor_the_gates_exit_code(suite, monkeypatch, place, line):
    pytester = suite(engine=SLOW)
    monkeypatch.setattr(*place, broken)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    result = pytester.runpytest_inprocess("--benchmark-autosave", "--infer-rounds=1", "--infer-gate=ttft:1%")
    assert result.ret == 11
    result.stdout.fnmatch_lines([line])
    # What is complete needs no journal.
    assert not [path for path in pytester.path.rglob(".journal/*") if path.is_file()]
    assert len(list(pytester.path.rglob("0001_*.npz"))) == 1
    assert (pytester.path / "summary.md").exists()
