"""Cold, warm and mixed loads: their names, the first run's extra, and the table of `pytest-infer loading`."""

import dataclasses
import json
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from pytest_infer.analysis import loading as analysis
from pytest_infer.analysis.compare import comparison
from pytest_infer.analysis.compare.verdicts import Verdict
from pytest_infer.cli import loading as command
from pytest_infer.cli.main import app
from pytest_infer.engines.base import EngineOptions
from pytest_infer.errors import ModelError
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.loading import process
from pytest_infer.measure.loading.process import LoadingAnswer, LoadingRequest
from pytest_infer.metrics import by_key, loading, summarize
from pytest_infer.records import CacheState, Loading, LoadingRound, PromptRecord, Reading, absent
from pytest_infer.report import loading as report
from pytest_infer.storage import block
from pytest_infer.units import show

DATA = Path(__file__).parents[1] / "data"
COLD, WARM = CacheState.COLD, CacheState.WARM
MB = 10**6


@pytest.fixture(scope="module")
def record():
    return msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)


def reading(value):
    return Reading(value=value, source="test")


LOAD = Loading(
    cached=reading(0.25),
    read_bytes=reading(30 * MB),
    rss_anon_bytes=reading(200 * MB),
    rss_file_bytes=reading(50 * MB),
    peak_rss_bytes=reading(300 * MB),
)


def loaded(record, load=LOAD, **changes):
    return dataclasses.replace(record, model=dataclasses.replace(record.model, load=load), **changes)


def later(of, delay_s, **counters):
    """Return the round with each tick so much later, and other counters."""
    stamps = tuple(stamp + round(1e9 * delay_s) for stamp in of.trace.stamps_ns)
    return dataclasses.replace(
        of,
        trace=dataclasses.replace(of.trace, stamps_ns=stamps),
        counters=dataclasses.replace(of.counters, **counters),
    )


# the metrics of a run


@pytest.mark.parametrize(
    ("cached", "state"),
    [(0, "cold"), (0.0099, "cold"), (0.01, "mixed"), (0.99, "mixed"), (0.991, "warm"), (1, "warm")],
)
def test_a_load_is_called_by_what_was_cached(record, cached, state):
    load = dataclasses.replace(LOAD, cached=reading(cached))
    assert loading.state(load.cached).value == state
    assert summarize(loaded(record, load))["load_cache"].value == state


def test_the_loads_figures_are_metrics(record):
    found = summarize(loaded(record))
    assert {key: found[key].value for key in found if key.startswith("load_")} == {
        "load_s": 1.5,
        "load_cache": "mixed",
        "load_cached_percent": 25,
        "load_read_bytes": 30 * MB,
        "load_peak_rss_bytes": 300 * MB,
        "load_rss_anon_bytes": 200 * MB,
        "load_rss_file_bytes": 50 * MB,
    }
    assert found["load_peak_rss_bytes"].source == "test"


def test_without_a_load_and_without_the_counters_the_reason_is_given(record):
    assert summarize(record)["load_cache"].reason == "the run did not load the model itself"
    load = dataclasses.replace(LOAD, cached=absent("no mincore"), read_bytes=absent("no io"))
    found = summarize(loaded(record, load))
    assert loading.state(load.cached) is None
    assert {found[key].reason for key in ("load_cache", "load_cached_percent")} == {"no mincore"}
    assert found["load_read_bytes"].reason == "no io"


def test_the_stored_model_does_not_hold_the_load_twice(record):
    built = block.build(loaded(record))
    assert "load" not in built["model"]
    assert built["metrics"]["load_cached_percent"] == {"value": 25, "unit": "%", "mean": 25, "source": "test"}
    assert built["metrics"]["load_cache"]["value"] == "mixed"


def test_a_record_with_a_load_survives_the_journals_json(record):
    whole = loaded(record, first_run=record.rounds[0])
    assert msgspec.json.decode(msgspec.json.encode(whole), type=PromptRecord) == whole


def test_the_first_runs_extra_is_what_it_took_beyond_the_median(record):
    # The rounds take 380, 381, 382 and 383 ms, the first run 0.5 s more than the first of them.
    first = later(record.rounds[0], 0.5, read_bytes=reading(7 * MB))
    found = summarize(dataclasses.replace(record, first_run=first))
    assert found["first_run_extra_s"].value == pytest.approx(0.880 - 0.3815)
    assert found["first_run_read_bytes"].value == 7 * MB


def test_without_a_first_run_the_reason_is_given(record):
    cold = dataclasses.replace(record, warmup_rounds=0, first_run=None)
    assert "among the timed ones" in summarize(cold)["first_run_extra_s"].reason
    assert "among the timed ones" in summarize(cold)["first_run_read_bytes"].reason
    trace = dataclasses.replace(record.rounds[0].trace, stamps_ns=(1_000_200_000_000,), tick_sizes=(1,), token_ids=(1,))
    shorter = dataclasses.replace(record.rounds[0], trace=trace)
    other = summarize(dataclasses.replace(record, first_run=shorter))["first_run_extra_s"]
    assert (other.value, other.reason) == (None, "the first run and the rounds did not generate equally many tokens")


# cold and warm side by side


def load_round(record, asked, load_s, first_s, *, cached=None, read=0.0, **changes):
    """Return a round whose first token takes `first_s` and the next one 0.2 s."""
    of = record.rounds[0]
    one = dataclasses.replace(of.trace, stamps_ns=(of.trace.start_ns + 200_000_000,), tick_sizes=(1,), token_ids=(1,))
    again = dataclasses.replace(of, trace=one)
    share = (0.0 if asked is COLD else 1.0) if cached is None else cached
    whole = dataclasses.replace(of.counters, read_bytes=reading(read * MB), peak_rss_bytes=reading(400 * MB))
    return dataclasses.replace(
        LoadingRound(
            asked=asked,
            model="mine",
            load_s=load_s,
            load=dataclasses.replace(LOAD, cached=reading(share), read_bytes=reading(0.5 * read * MB)),
            first=later(again, first_s - 0.2),
            again=again,
            whole=whole,
            file_bytes=100 * 2**20,
        ),
        **changes,
    )


@pytest.fixture
def rounds(record):
    cold, warm = (3.0, 2.0, 2.5), (1.0, 1.0, 0.5)
    return [
        made
        for a, b in zip(cold, warm, strict=True)
        for made in (load_round(record, COLD, a, 0.7, read=100), load_round(record, WARM, b, 0.3))
    ]


def spreads(rounds, asked):
    return {f.key: analysis.spread(f, analysis.asked_for(asked, rounds)) for f in analysis.FIGURES}


def test_each_figure_has_its_median_and_range(rounds):
    cold, warm = spreads(rounds, COLD), spreads(rounds, WARM)
    assert (cold["load_s"].median, cold["load_s"].least, cold["load_s"].most) == (2.5, 2.0, 3.0)
    assert (warm["load_s"].median, warm["load_s"].least, warm["load_s"].most) == (1.0, 0.5, 1.0)
    assert cold["first_token_s"].median == pytest.approx(0.7)
    assert cold["ready_s"].median == pytest.approx(3.2)
    assert cold["first_run_extra_s"].median == pytest.approx(0.5)
    assert (cold["load_read_bytes"].median, cold["read_bytes"].median) == (50 * MB, 100 * MB)
    assert (warm["read_bytes"].median, warm["cached_percent"].median) == (0, 100)
    assert cold["peak_rss_bytes"].median == 400 * MB


def test_the_table_shows_cold_and_warm_side_by_side(rounds):
    lines = report.render(rounds, width=100, color=False).splitlines()
    assert lines[0] == "mine · 100 MiB of weights in files · median of 3 rounds each, in fresh processes"
    assert lines[1].split() == ["cold", "warm"]
    found = {line[:20].strip(): line[20:].split("  ") for line in lines[2:]}
    cells = {label: [cell.strip() for cell in row if cell.strip()] for label, row in found.items()}
    assert cells["loading"] == ["2.50 s (2.00 s – 3.00 s)", "1.00 s (500 ms – 1.00 s)"]
    assert cells["read in all"] == ["95.4 MiB", "0 B"]
    assert cells["cached before"] == ["0 %", "100 %"]
    assert len(lines) == 2 + len(analysis.FIGURES)


def test_json_has_every_round_and_both_states(rounds):
    found = json.loads(report.as_json(rounds))
    assert (found["model"], found["file_bytes"], found["doubts"]) == ("mine", 100 * 2**20, [])
    assert [r["asked"] for r in found["rounds"]] == ["cold", "warm"] * 3
    assert [r["load_s"] for r in found["rounds"]] == [3.0, 1.0, 2.0, 1.0, 2.5, 0.5]
    assert found["cold"]["load_s"] == {"median": 2.5, "least": 2.0, "most": 3.0, "reason": None}
    assert set(found["warm"]) == {figure.key for figure in analysis.FIGURES}


@pytest.mark.skipif(sys.platform != "linux", reason="a fake /proc is read with Linux calls")
def test_a_container_without_io_counters_gets_a_dash_and_why(record, rounds, tmp_path):
    (tmp_path / "self").mkdir()
    system = SystemCounters(platform="linux", proc=tmp_path)
    blind = system.end(system.begin())
    system.close()
    why = f"this kernel or container has no {tmp_path}/self/io"

    changed = [dataclasses.replace(of, whole=blind) for of in rounds]
    lines = report.render(changed, width=200, color=False).splitlines()
    assert next(line for line in lines if line.startswith("read in all")).split() == ["read", "in", "all", "—", "—"]
    assert f"— read in all: {why}" in lines
    found = json.loads(report.as_json(changed))["cold"]["read_bytes"]
    assert found == {"median": None, "least": None, "most": None, "reason": why}

    measured = tuple(dataclasses.replace(of, counters=blind) for of in record.rounds)
    stored = block.build(dataclasses.replace(record, rounds=measured))
    for key in ("read_bytes", "write_bytes", "read_chars", "read_calls"):
        assert key not in stored["metrics"]
        assert stored["absent"][key] == why
        assert show(stored["metrics"].get(key), by_key(key).unit) == "—"


@pytest.mark.parametrize(
    ("before", "after", "verdict"), [("cold", "warm", "incomparable"), ("warm", "warm", "inconclusive")]
)
def test_a_cold_load_is_not_compared_with_a_warm_one(make_row, before, after, verdict):
    rows = [
        make_row(only=("prompt_tokens", "output_sha256"), load_s=load_s, load_cache=cache)
        for load_s, cache in ((2.0, before), (1.0, after))
    ]
    pair = comparison.RowPair(before=rows[0], after=rows[1])
    found = {j.metric.key: j for j in comparison.judge([pair], lambda _row: comparison.all_metrics())}
    assert found["load_s"].verdict is Verdict(verdict)
    if before != after:
        assert found["load_s"].reason == "differ: load_cache cold → warm"


def test_a_load_that_was_not_as_asked_is_named(record):
    stayed = load_round(record, COLD, 1.0, 0.3, cached=0.4)
    small = load_round(record, WARM, 1.0, 0.3, cached=0.8)
    cold, warm = load_round(record, COLD, 1.0, 0.3), load_round(record, WARM, 1.0, 0.3)
    assert analysis.doubts([cold, warm]) == []
    assert analysis.doubts([stayed, small, cold, warm]) == [
        "1 of 2 cold rounds were not cold: 40.0 % of the files stayed in the page cache, as another process maps them "
        "or they lie in memory",
        "1 of 2 warm rounds were not warm: 80.0 % of the files were in the page cache once they were read, so memory "
        "has no room for them",
    ]
    unknown = dataclasses.replace(cold, load=dataclasses.replace(cold.load, cached=absent("not mine")))
    assert analysis.doubts([unknown]) == ["1 of 1 cold rounds were not cold: it is not known what was cached, not mine"]
    refused = dataclasses.replace(stayed, problem="permission denied: x")
    assert analysis.doubts([refused]) == ["1 of 1 cold rounds were not cold: permission denied: x"]
    assert "! 1 of 1 cold rounds were not cold" in report.render([refused], width=100, color=False)


# the command and its processes


@pytest.fixture
def asked(record, monkeypatch):
    """What the command asks of its processes, none of which is started."""
    requests = []

    def ask(request, tell):
        requests.append(request)
        return load_round(record, request.cache, 2.0 if request.cache is COLD else 1.0, 0.3)

    monkeypatch.setattr(process, "ask", ask)
    monkeypatch.setattr(command.sys, "platform", "linux")
    return requests


def run(*arguments):
    return CliRunner().invoke(app, ["loading", *arguments])


def test_loads_are_cold_and_warm_in_turns_after_one_that_does_not_count(asked):
    result = run("--model", "some/model", "--rounds=2", "--dtype=bfloat16", "--threads=1", "--format=json")
    assert result.exit_code == 0, result.output
    assert [request.cache for request in asked] == [WARM, COLD, WARM, COLD, WARM]
    assert {(r.options, r.engine) for r in asked} == {
        (EngineOptions(model="some/model", dtype="bfloat16", threads=1), "transformers")
    }
    found = json.loads(result.stdout)
    assert (found["cold"]["load_s"]["median"], found["warm"]["load_s"]["median"]) == (2.0, 1.0)
    assert len(found["rounds"]) == 4


def test_the_default_is_three_rounds_of_the_model_in_the_package(asked):
    result = run()
    assert len(asked) == 7
    assert asked[0].options.model == "reference-moe"
    assert "median of 3 rounds each" in result.stdout


def test_a_model_that_cannot_be_loaded_is_one_line(asked, monkeypatch):
    def ask(request, tell):
        raise ModelError("no such model")

    monkeypatch.setattr(process, "ask", ask)
    result = run()
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "pytest-infer: no such model"


def test_another_system_is_refused_before_anything_is_loaded(asked, monkeypatch):
    monkeypatch.setattr(command.sys, "platform", "darwin")
    result = run()
    assert (result.exit_code, asked) == (2, [])
    assert "cold loading takes Linux" in result.output


REQUEST = LoadingRequest(cache=COLD, engine="e", options=EngineOptions(model="m"))


def child(code):
    return [sys.executable, "-S", "-c", code]


def test_what_takes_long_in_a_process_is_told_at_once(record, tmp_path):
    told, heard = [], tmp_path / "heard"
    answer = msgspec.json.encode(LoadingAnswer(round=load_round(record, COLD, 1.0, 0.3))).decode()
    # It goes on once it was heard.
    code = (
        "import os, sys, time; sys.stdin.read(); print('a warning', file=sys.stderr)\n"
        f"print({process.TELLS!r} + 'fetching 12 GB', file=sys.stderr, flush=True)\n"
        "for _ in range(6000):\n"
        f"    if os.path.exists({str(heard)!r}): break\n"
        "    time.sleep(0.01)\n"
        "else: sys.exit('nobody heard it')\n"
        f"sys.stdout.write({answer!r})"
    )

    def tell(line):
        told.append(line)
        heard.touch()

    assert process.ask(REQUEST, tell, child(code)).asked is COLD
    assert told == ["fetching 12 GB"]


def test_a_process_answers_with_its_round(record):
    made = load_round(record, COLD, 1.0, 0.3)
    answer = msgspec.json.encode(LoadingAnswer(round=made)).decode()
    code = f"import sys; sys.stdin.read(); sys.stdout.write({answer!r})"
    assert process.ask(REQUEST, print, child(code)) == made


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ('print(\'{"error": "no such engine"}\')', "^no such engine$"),
        ("import sys; sys.exit('out of memory')", "m: the process that loads it ended with 1: out of memory"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by signal 9$"),
        ("print('not json')", "ended with 0$"),
    ],
)
def test_a_process_that_fails_says_why(code, says):
    with pytest.raises(ModelError, match=says):
        process.ask(REQUEST, print, child(code))


def test_the_process_itself_says_what_is_wrong_with_the_request():
    with pytest.raises(ModelError, match=r"^unknown engine 'nope'; known: .*transformers"):
        process.ask(LoadingRequest(cache=COLD, engine="nope", options=EngineOptions(model="m")), print)
