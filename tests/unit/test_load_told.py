"""The border to the load generator: what is read of its file, and the one line for a file that is damaged.

`tests/data/guidellm-*.json` were written by guidellm 0.8.1 against tests/scripted_server.py, once, as
`tests/real/test_load_generator.py` sends requests; of each only what stands beside the requests was cut, and tracebacks
(`python tests/unit/test_load_told.py FILE` does that).
"""

import copy
import itertools
import json
import sys
from pathlib import Path

import pytest

from pytest_infer.errors import EngineError
from pytest_infer.measure.load import told
from pytest_infer.metrics import load
from pytest_infer.metrics.timing import percentile
from pytest_infer.records import Repetition, RequestStatus
from queueing import at_rate

DATA = Path(__file__).parents[1] / "data"


def cut(report):
    """Return a report without what is not read and is large, or names folders: metrics, configuration, tracebacks."""
    kept = [{"requests": one["requests"]} for one in report["benchmarks"]]
    for requests in kept:
        for request in itertools.chain(*(found or () for found in requests["requests"].values())):
            request["info"]["traceback"] = None
    return {"metadata": report["metadata"], "benchmarks": kept}


@pytest.fixture
def rate():
    return json.loads(DATA.joinpath("guidellm-rate.json").read_text())


@pytest.fixture
def read(tmp_path):
    """Return a function: a report, or the text of one, to the requests that are read of it."""

    def make(report):
        path = tmp_path / "answers.json"
        path.write_text(report if isinstance(report, str) else json.dumps(report))
        return told.read(path)

    return make


def test_what_a_server_answered_is_read(rate, read):
    found = read(rate)
    assert [request.status for request in found] == [RequestStatus.DONE] * 12
    assert {(request.prompt_tokens, request.output_tokens, request.cached) for request in found} == {(4, 4, 0)}
    for request in found:
        assert request.due_s < request.sent_s < request.first_s < request.last_s < request.end_s
    assert [request.due_s for request in found] == sorted(request.due_s for request in found)
    of = at_rate([Repetition(requests=found, seed=1)], 15)
    part = load.steady(of.repetitions[0], of)
    # A service takes 30 ms, of which the first of four tokens takes a quarter.
    assert min(load.latencies_s(part)) > 0.03
    assert min(load.ttfts_s(part)) > 0.0075
    assert percentile(load.tpots_s(part), 50) == pytest.approx(0.0075, rel=0.2)
    assert load.misses(part) == 0


def test_failures_and_what_was_given_up_are_read_with_their_words(read):
    found = read(DATA.joinpath("guidellm-failures.json").read_text())
    assert [request.status.value for request in found] == ["done"] * 4 + ["failed"] * 3 + ["cancelled"] * 5
    assert [request.error for request in found[4:8]] == [
        "429 As scripted",
        "peer closed connection without sending complete message body (incomplete chunked read)",
        "[UNUSABLE_BACKEND_RESPONSE] backend resolved with empty response payload",
        "Request was cancelled",
    ]
    assert all(request.due_s is not None and request.end_s is not None for request in found)
    of = at_rate([Repetition(requests=found, seed=1)], 10)
    part = load.steady(of.repetitions[0], of)
    # Of twelve, two are cut at either end: of those between, two were answered.
    assert (len(part.offered), len(part.done)) == (8, 2)
    assert load.misses(part) == 75.0


def test_a_request_that_was_never_due_is_none(rate, read):
    rate["benchmarks"][0]["requests"]["incomplete"] = [
        {"info": {"timings": {"resolve_end": 5.0}, "error": "cancelled"}}
    ]
    assert len(read(rate)) == 12


def test_an_arrival_from_before_the_beginning_is_due_at_the_beginning(rate, read):
    info = rate["benchmarks"][0]["requests"]["successful"][3]["info"]
    info["timings"]["targeted_start"] = -0.9
    assert read(rate)[0].due_s == info["scheduler_start_time"]


@pytest.mark.parametrize("early", [2, 12])
def test_arrivals_that_were_all_to_be_before_the_beginning_are_no_measurement(rate, read, early):
    for one in rate["benchmarks"][0]["requests"]["successful"][:early]:
        one["info"]["timings"]["targeted_start"] = -0.5
    with pytest.raises(told.NotAsAskedError, match=rf"sent {early} of 12 requests at once"):
        read(rate)


def end_early(one):
    one["info"]["timings"]["request_end"] = one["info"]["timings"]["request_start"] - 1


@pytest.mark.parametrize(("times", "few"), [(1, 1), (25, 3)])
def test_a_clock_that_went_back_is_a_line_and_few_requests_by_themselves_have_failed(rate, read, times, few):
    answered = rate["benchmarks"][0]["requests"]["successful"]
    answered[:] = [copy.deepcopy(one) for one in answered * times]
    for one in answered[:few]:
        end_early(one)
    found = read(rate)
    failed = [request for request in found if request.status is RequestStatus.FAILED]
    assert [request.error for request in failed] == few * ["its answer ended before it began"]
    assert all(request.end_s == request.sent_s for request in failed)
    assert len(found) == 12 * times
    end_early(answered[few])
    with pytest.raises(EngineError, match="end before they begin: was the clock set"):
        read(rate)


@pytest.mark.parametrize("kind", ["errored", "incomplete"])
def test_what_failed_or_was_given_up_keeps_its_words_where_its_clock_went_back(read, kind):
    report = json.loads(DATA.joinpath("guidellm-failures.json").read_text())
    told = [(request.status, request.error) for request in read(report)]
    end_early(report["benchmarks"][0]["requests"][kind][0])
    found = read(report)
    assert [(request.status, request.error) for request in found] == told
    assert all(request.end_s >= request.sent_s for request in found if request.sent_s is not None)


def test_an_answer_without_a_token_is_no_answer(rate, read):
    del rate["benchmarks"][0]["requests"]["successful"][0]["info"]["timings"]["first_token_iteration"]
    failed = [request for request in read(rate) if request.status is RequestStatus.FAILED]
    assert [request.error for request in failed] == ["no token came"]


def test_a_server_that_tells_nothing_of_its_cache(rate, read):
    for one in rate["benchmarks"][0]["requests"]["successful"]:
        one["cached_tokens"] = None
    assert {request.cached for request in read(rate)} == {None}


def test_no_word_of_a_server_keeps_the_key_that_it_was_asked_with(rate, read, monkeypatch):
    monkeypatch.setenv("PYTEST_INFER_SERVER_KEY", "s3cret")
    one = rate["benchmarks"][0]["requests"]["successful"].pop()
    one["info"]["error"] = "RuntimeError('illegal line: Bearer s3cret')"
    rate["benchmarks"][0]["requests"]["errored"] = [one]
    (said,) = {request.error for request in read(rate) if request.error}
    assert said == "illegal line: Bearer …"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda report: "", "truncated"),
        (lambda report: json.dumps(report)[:-40], "cannot be read"),
        (lambda report: "[" * 100_000, "cannot be read"),
        (lambda report: report | {"metadata": {"version": 3, "guidellm_version": "1.0"}}, "is of format 3"),
        (
            lambda report: (
                report["benchmarks"][0]["requests"]["successful"][0].update(output_tokens=2**31),
                report,
            )[1],
            "cannot be read",
        ),
        (lambda report: report | {"benchmarks": []}, "holds 0 benchmarks, not one"),
        (lambda report: report | {"benchmarks": report["benchmarks"] * 2}, "holds 2 benchmarks, not one"),
        (lambda report: report | {"benchmarks": [{"requests": {"successful": [{"info": 1}]}}]}, "cannot be read"),
        (lambda report: {"metadata": report["metadata"]}, "missing required field `benchmarks`"),
    ],
)
def test_a_damaged_file_is_one_line(rate, read, change, said):
    with pytest.raises(EngineError, match=r"^the load generator's answers\.json ") as raised:
        read(change(rate))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(EngineError, match="cannot be read: No such file"):
        told.read(tmp_path / "answers.json")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(json.dumps(cut(json.loads(path.read_text())), indent=1) + "\n")
