"""The load generator itself, against a server on loopback whose service times are known.

These run where `pytest-infer load-generator install` has been run, which takes minutes, and are skipped elsewhere.
"""

import json
import os
import signal
import statistics
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tokenizers import Tokenizer

import scripted_server
from pytest_infer.engines import models
from pytest_infer.engines.base import Served
from pytest_infer.errors import EngineError
from pytest_infer.measure.load import environment, generator, marks, told, trace
from pytest_infer.measure.load.generator import Sending
from pytest_infer.measure.load.workload import Workload
from pytest_infer.metrics import load
from pytest_infer.metrics.timing import NS
from pytest_infer.prompts import Message, Prompt
from pytest_infer.pytest_face import levels, under_load
from pytest_infer.records import Objectives, RequestStatus, UnderLoad, WarningKind
from queueing import first_come
from scripted_server import Answer, Script

MOONCAKE = Path(__file__).parents[1] / "data" / "mooncake.jsonl"
INSTALLED = environment.installed()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(INSTALLED is None, reason=f"the load generator is not installed: {environment.INSTALL}"),
]
TEXT = Prompt(name="a", text="one two three")


def sent(url, level, requests, *, prompts=(TEXT,), seed=1, tokens=4, limit_s=60.0, key=None, work=None, **objectives):
    """Return a level of one repetition as the generator sends it."""
    (of,) = levels.parse([level], "--infer-load")
    sending = Sending(
        served=Served(url=url, model="scripted", key=key),
        level=of,
        work=work or Workload(prompts=tuple((prompt, tokens) for prompt in prompts)),
        requests=requests,
        limit_s=limit_s,
        salt="s",
    )
    found = generator.repetition(INSTALLED, sending, seed)
    return UnderLoad(
        level=of, objectives=Objectives(**objectives), repetitions=(found,), generator=environment.GENERATOR
    )


def services(server):
    """Return how long the server took for each request, in the order of their turns, seconds."""
    return [(one.ended_ns - one.began_ns) / NS for one in sorted(server.served, key=lambda one: one.began_ns)]


def arrivals(server):
    """Return when each request came to the server, in the order of their turns, seconds since 1970."""
    epoch_ns = time.time_ns() - time.perf_counter_ns()
    return [(epoch_ns + one.arrived_ns) / NS for one in sorted(server.served, key=lambda one: one.began_ns)]


def test_each_request_waits_as_long_as_those_before_it_take():
    script = Script(answers=(Answer(service_s=0.2, exponential=True),), slots=1)
    with scripted_server.running(script) as server:
        of = sent(server.url, "rate=3", 60)
        (repetition,) = of.repetitions
        assert [request.status for request in repetition.requests] == [RequestStatus.DONE] * 60
        assert {request.output_tokens for request in repetition.requests} == {4}
        # A repetition that came all at once, as the generator's may on busy cores, is sent again, with other prompts.
        assert len({one.body["prompt"] for one in server.served}) == len(server.served)
        assert {one.body["max_tokens"] for one in server.served} == {4}
        assert {one.body["temperature"] for one in server.served} == {0}
        arrived = arrivals(server)[-60:]
        predicted = first_come(arrived, services(server)[-60:])
    in_turn = sorted(repetition.requests, key=lambda request: request.end_s)
    measured = [request.end_s - at for request, at in zip(in_turn, arrived, strict=True)]
    # What the sender and the loopback add: little beside a service, and never less than nothing.
    added = sorted(got - want for got, want in zip(measured, predicted, strict=True))
    assert statistics.median(added) < 0.05
    # A sender that is held up hears late of those that are on their way then.
    assert abs(statistics.fmean(added[6:-6])) < 0.25 * statistics.fmean(predicted)
    # One is sent when it is due, and arrives at once; on busy cores others may be late.
    assert min(request.sent_s - request.due_s for request in in_turn) == pytest.approx(0, abs=0.1)
    assert min(at - request.sent_s for request, at in zip(in_turn, arrived, strict=True)) == pytest.approx(0, abs=0.1)
    gaps = [b.due_s - a.due_s for a, b in zip(repetition.requests, repetition.requests[1:], strict=False)]
    assert len(set(gaps)) == len(gaps), "two senders would draw each gap twice"


def test_streams_keep_as_many_in_flight_and_goodput_is_what_the_server_saw():
    script = Script(
        answers=(*[Answer(first_s=0.05, gap_s=0.1)] * 15, *[Answer(first_s=2.0)] * 5, Answer(first_s=0.05, gap_s=0.1))
    )
    for _ in range(3):
        with scripted_server.running(script) as server:
            of = sent(server.url, "concurrency=2", 30, ttft_s=1.0)
        (repetition,) = of.repetitions
        part = load.steady(repetition, of)
        late = [request for request in repetition.requests if request.first_s - request.sent_s > 1]
        if len(late) == 5 and load.at_work(part) > 1.7:
            break  # else a process was held up for seconds
    assert len(late) == 5
    assert load.at_work(part) == pytest.approx(2, abs=0.3)
    offered = [request for request in part.offered if request in late]
    assert load.misses(part) == pytest.approx(100 * len(offered) / len(part.offered))
    assert statistics.median(load.tpots_s(part)) == pytest.approx(0.1, rel=0.5)


def test_dialogues_keys_and_failures():
    talk = Prompt(name="b", messages=(Message("user", "hello there"),))
    answers = (*[Answer()] * 4, Answer(status=429, words="slow down"), Answer(cut_at=2), *[Answer()] * 6)
    with scripted_server.running(Script(answers=answers, key="secret")) as server:
        of = sent(server.url, "concurrency=1", 12, prompts=(talk,), key="secret")
        assert {one.path for one in server.served} == {"/v1/chat/completions"}
        assert {one.body["temperature"] for one in server.served} == {0}
        assert {one.headers["authorization"] for one in server.served} == {"Bearer secret"}
        refused = sent(server.url, "concurrency=1", 4, prompts=(talk,))
    (repetition,) = of.repetitions
    failed = [request for request in repetition.requests if request.status is RequestStatus.FAILED]
    assert len(failed) == 2
    assert "429" in failed[0].error
    assert WarningKind.REQUESTS_FAILED in [warning.kind for warning in marks.find(of, bust=True)]
    assert {request.status for request in refused.repetitions[0].requests} == {RequestStatus.FAILED}


def test_synthetic_prompts_have_the_length_that_is_asked_for():
    folder = models.BUNDLED[models.DEFAULT].ensure(str)
    work = Workload(synthetic={"prompt_tokens": 24, "output_tokens": 3}, tokenizer=str(folder))
    with scripted_server.running(Script()) as server:
        of = sent(server.url, "concurrency=2", 8, work=work)
        prompts = [one.body["prompt"] for one in server.served]
    assert {request.output_tokens for request in of.repetitions[0].requests} == {3}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [len(tokenizer.encode(prompt).ids) for prompt in prompts] == [pytest.approx(24, abs=2)] * 8


def came_as(of, times):
    """Return whether all requests were due as a trace says; on busy cores the generator may lose one from its file."""
    requests = of.repetitions[0].requests
    assert {request.status for request in requests} == {RequestStatus.DONE}
    due = [request.due_s - requests[0].due_s for request in requests]
    kept = [times, *(times[:n] + times[n + 1 :] for n in range(len(times)))]
    return any(due == pytest.approx([time - some[0] for time in some], abs=0.001) for some in kept)


def test_a_trace_is_replayed_when_and_as_long_as_it_says(tmp_path):
    folder = models.BUNDLED[models.DEFAULT].ensure(str)
    path = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 0.2 * n, "input_length": 8 + n, "output_length": 2 + n % 2} for n in range(8)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    work = Workload(trace=trace.read(path, "x"), tokenizer=str(folder))
    with scripted_server.running(Script()) as server:
        of = sent(server.url, "replay=2", len(rows), work=work)
        asked = [one.body["max_tokens"] for one in server.served]
    assert sorted(asked) == sorted(row["output_length"] for row in rows)
    assert came_as(of, [2 * row["timestamp"] for row in rows])


def test_mooncakes_trace_is_replayed_with_the_beginnings_that_its_prompts_share():
    folder = models.BUNDLED[models.DEFAULT].ensure(str)
    work = Workload(trace=trace.read(MOONCAKE, "x"), tokenizer=str(folder))
    with scripted_server.running(Script(caches=True)) as server:
        of = sent(server.url, "replay=1", len(work.trace.requests), work=work)
        prompts = [one.body["prompt"] for one in sorted(server.served, key=lambda one: one.arrived_ns)]
        asked = sorted(one.body["max_tokens"] for one in server.served)
    assert came_as(of, [0.0, 0.3, 0.3, 0.6])
    assert asked == [2, 2, 3, 4]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    lengths = sorted(len(tokenizer.encode(prompt).ids) for prompt in prompts)
    assert lengths == [pytest.approx(length, abs=8) for length in (12, 512, 520, 530)]
    first, last = prompts[0], prompts[-1]
    long = next(prompt for prompt in prompts[1:3] if len(prompt) > len(last))
    assert first.startswith(last[:-8])
    assert long.startswith(last[:-8])
    assert first != long


def test_what_is_not_answered_within_the_limit_is_a_miss(monkeypatch):
    # Sent again to the same server, as on busy cores, none of them would be among its first six.
    monkeypatch.setattr(generator, "_TRIES", 1)
    repetition = None
    for _ in range(5):
        with (
            scripted_server.running(Script(answers=(*[Answer(first_s=0.01)] * 6, Answer(stall_at=1)))) as server,
            suppress(told.NotAsAskedError),
        ):
            (repetition,) = sent(server.url, "rate=10", 30, limit_s=15).repetitions
            break
    assert Counter(request.status for request in repetition.requests) == {
        RequestStatus.DONE: 6,
        RequestStatus.CANCELLED: len(repetition.requests) - 6,
    }
    assert len(repetition.requests) > 6


def test_a_starved_sender_marks_the_level():
    with scripted_server.running(Script(answers=(Answer(first_s=0.02),))) as server:
        stop = threading.Event()

        def starve():
            while not stop.wait(0.15):
                found = psutil.Process().children(recursive=True)
                for number in (signal.SIGSTOP, signal.SIGCONT):
                    for process in found:
                        try:
                            os.kill(process.pid, number)
                        except ProcessLookupError:
                            continue
                    time.sleep(0.15 if number is signal.SIGSTOP else 0)

        thread = threading.Thread(target=starve)
        thread.start()
        try:
            of = sent(server.url, "rate=20", 60)
        finally:
            stop.set()
            thread.join()
    assert WarningKind.CLIENT_BOUND in [warning.kind for warning in marks.find(of, bust=True)]


def test_where_nobody_listens_every_request_fails_and_the_level_is_refused():
    of = sent("http://127.0.0.1:9", "concurrency=1", 4)
    assert {request.status for request in of.repetitions[0].requests} == {RequestStatus.FAILED}
    with pytest.raises(EngineError, match=r"concurrency=1, repetition 1: no request was answered: .*connection"):
        under_load.check_answered(of, lambda: None)


def test_a_run_of_pytest_against_a_server_with_a_key(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_INFER_SERVER_KEY", "secret-of-mine")
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(INSTALLED.folder.parent))
    pytester.makepyfile(test_it="def test_load(infer_under_load, load_level):\n    infer_under_load(load_level)\n")
    pytester.path.joinpath("prompts.toml").write_text('[[prompt]]\nname = "a"\ntext = "one"\nmax_new_tokens = 4\n')
    script = Script(answers=(Answer(first_s=0.02, gap_s=0.01),), caches=True, key="secret-of-mine")
    with scripted_server.running(script) as server:
        levels = ["--infer-load=concurrency=2", "--infer-rounds=1", "--infer-load-requests=16"]
        result = pytester.runpytest_subprocess(f"--infer-server={server.url}", *levels, "--benchmark-autosave")
    result.assert_outcomes(passed=1)
    assert any(line.startswith("concurrency=2") for line in result.stdout.lines)
    (path,) = pytester.path.glob(".benchmarks/*/*.json")
    text = path.read_text()
    assert "secret-of-mine" not in text
    block = json.loads(text)["benchmarks"][0]["extra_info"]["pytest_infer"]
    assert block["under_load"]["requests"] == [16]
    # The numbers ahead of the prompts keep them out of the server's cache.
    assert block["metrics"]["level_cached_percent"]["value"] == 0
