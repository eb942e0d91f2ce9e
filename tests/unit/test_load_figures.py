"""Figures of a load test: the steady part, latency from when a request was due, goodput, Little's law, its marks."""

import dataclasses
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_infer.measure.load import marks
from pytest_infer.metrics import load
from pytest_infer.records import Level, LevelKind, LoadRequest, Objectives, Repetition, RequestStatus, WarningKind
from queueing import at_rate, mean_latency_md1, mean_latency_mm1, of_streams, simulated


def request(due=None, sent=None, first=None, last=None, end=None, tokens=4, status=RequestStatus.DONE, **more):
    return LoadRequest(
        status=status, due_s=due, sent_s=sent, first_s=first, last_s=last, end_s=end, output_tokens=tokens, **more
    )


def evenly(number, every=1.0, late=0.0, took=0.5):
    """Return requests that are due evenly, sent `late`, and answered `took` later."""
    found = []
    for at in range(number):
        due = at * every
        sent = due + late
        found.append(request(due, sent, sent + took / 4, sent + took, sent + took))
    return Repetition(requests=tuple(found), seed=1)


def closed(streams, each, took=1.0, idle=0.0, tokens=4):
    """Return the requests of streams that wait for each answer, and `idle` before they ask again."""
    found = []
    for stream in range(streams):
        at = 0.001 * stream
        for _ in range(each):
            found.append(request(None, at, at + took / 4, at + took, at + took, tokens))
            at += took + idle
    return Repetition(requests=tuple(found), seed=1)


def part_of(repetition, of):
    part = load.steady(repetition, of)
    assert part is not None
    return part


def test_the_first_and_the_last_tenth_of_a_rate_are_left_out():
    of = at_rate([evenly(40)])
    part = part_of(of.repetitions[0], of)
    assert (part.begin_s, part.end_s) == (4.0, 36.0)
    assert [r.due_s for r in part.offered] == list(range(4, 36))
    assert load.offered_rate(part) == 1.0


def test_a_stream_loses_one_request_at_either_end_at_least():
    of = of_streams([closed(8, 5)], 8)
    part = part_of(of.repetitions[0], of)
    assert part.begin_s == pytest.approx(1.0)
    assert part.end_s == pytest.approx(4.0)
    assert load.at_work(part) == pytest.approx(8, rel=0.01)
    # Three answers of four tokens of each stream end within three seconds.
    assert load.throughput(part) == pytest.approx(8 * 4, rel=0.01)
    assert load.s_per_token(part) == pytest.approx(1 / 32, rel=0.01)


def test_too_few_requests_have_no_steady_part():
    of = at_rate([evenly(2)])
    assert load.steady(of.repetitions[0], of) is None
    assert load.durations(of) == []


def test_all_at_once_has_no_warm_up():
    level = Level(kind=LevelKind.THROUGHPUT)
    repetition = Repetition(requests=tuple(request(0.0, 0.0, 0.5, 1.0 + n, 1.0 + n) for n in range(4)), seed=1)
    of = dataclasses.replace(at_rate([repetition]), level=level)
    part = part_of(repetition, of)
    assert (part.begin_s, part.end_s, len(part.offered)) == (0.0, 4.0, 4)
    assert load.throughput(part) == 4.0
    assert marks.find(of, bust=True) == ()


def test_latency_counts_from_when_a_request_was_due():
    of = at_rate([evenly(20, late=0.25)])
    part = part_of(of.repetitions[0], of)
    assert load.latencies_s(part) == pytest.approx([0.75] * len(part.offered))
    assert load.ttfts_s(part) == pytest.approx([0.375] * len(part.offered))
    assert load.dispatch_s(part) == pytest.approx([0.25] * len(part.offered))


def test_the_latency_of_a_stream_counts_from_when_it_sent():
    of = of_streams([closed(2, 10, idle=0.5)], 2)
    part = part_of(of.repetitions[0], of)
    assert load.latencies_s(part) == pytest.approx([1.0] * len(part.offered))
    assert load.dispatch_s(part) == []


def test_time_per_output_token_is_that_after_the_first():
    assert load.tpot_s(request(0, 0, 1.0, 4.0, 4.0, tokens=4)) == 1.0
    assert load.tpot_s(request(0, 0, 1.0, 1.0, 1.0, tokens=1)) is None
    assert load.tpot_s(request(0, 0, None, None, 1.0, tokens=0)) is None


GOOD = {"due": 10.0, "sent": 10.0, "first": 10.2, "last": 10.5, "end": 10.6}


@pytest.mark.parametrize(
    ("changes", "objectives", "kept"),
    [
        ({}, {}, True),
        ({}, {"ttft_s": 0.21, "tpot_s": 0.11, "latency_s": 0.61}, True),
        ({"first": 10.3}, {"ttft_s": 0.21}, False),
        ({"due": 9.9}, {"ttft_s": 0.21}, False),
        ({"last": 11.0}, {"tpot_s": 0.11}, False),
        ({"end": 10.7}, {"latency_s": 0.61}, False),
        ({"tokens": 1}, {"tpot_s": 0.11}, True),
        ({"status": RequestStatus.FAILED}, {}, False),
        ({"status": RequestStatus.CANCELLED}, {}, False),
    ],
)
def test_a_good_request_keeps_every_objective(changes, objectives, kept):
    of = at_rate([], **objectives)
    part = load.Steady(begin_s=0.0, end_s=20.0, offered=(), known=(), of=of)
    assert load.good(request(**GOOD | changes), part, Objectives(**objectives)) is kept


def test_goodput_is_a_count_by_hand():
    requests = [
        *(request(n, n, n + 0.1, n + 0.4, n + 0.4) for n in range(10, 17)),
        request(17, 17, 17.9, 18.4, 18.4),  # late
        request(18, 18, end=18.1, status=RequestStatus.FAILED, tokens=0),
        request(19, 19, end=30.0, status=RequestStatus.CANCELLED, tokens=0),
    ]
    of = at_rate([], ttft_s=0.5)
    part = load.Steady(begin_s=10.0, end_s=20.0, offered=tuple(requests), known=tuple(requests), of=of)
    assert load.good_rate(part) == pytest.approx(0.7)
    assert load.misses(part) == pytest.approx(30.0)
    assert load.errors(requests) == {"failed": 1, "cancelled": 1}


THE_SAME = settings(deadline=None, derandomize=True, database=None)
"""The same examples each time, however long one takes."""


@THE_SAME
@given(rate=st.floats(0.2, 5), service=st.floats(0.01, 0.15), seed=st.integers(0, 10**6), exponential=st.booleans())
def test_little_holds_of_any_run_whose_ends_are_empty(rate, service, seed, exponential):
    repetition = simulated(rate, service, 50, seed, exponential=exponential)
    of = at_rate([repetition], rate)
    begin, end = repetition.requests[0].due_s - 1.0, max(r.end_s for r in repetition.requests) + 1.0
    whole = load.Steady(begin_s=begin, end_s=end, offered=repetition.requests, known=repetition.requests, of=of)
    assert load.in_flight(whole) == pytest.approx(load.by_littles_law(whole))


@THE_SAME
@given(
    st.lists(
        st.tuples(
            st.floats(0, 100), st.floats(0, 5), st.floats(0, 5), st.integers(0, 9), st.sampled_from(RequestStatus)
        ),
        max_size=60,
    )
)
def test_no_requests_make_figures_that_cannot_be(found):
    requests = tuple(
        request(at, at + wait, at + wait, at + wait + took, at + wait + took, tokens, status)
        for at, wait, took, tokens, status in found
    )
    of = at_rate([Repetition(requests=requests, seed=1)], ttft_s=1.0)
    part = load.steady(of.repetitions[0], of)
    if part is None:
        return
    assert 0 <= load.misses(part) <= 100
    assert load.good_rate(part) <= load.offered_rate(part) * (1 + 1e-9)
    assert load.throughput(part) >= 0
    assert 0 <= load.in_flight(part) <= len(requests)
    assert all(value >= 0 for value in (*load.latencies_s(part), *load.ttfts_s(part), *load.dispatch_s(part)))


@pytest.mark.parametrize("utilisation", [0.3, 0.7])
@pytest.mark.parametrize(("exponential", "theory"), [(False, mean_latency_md1), (True, mean_latency_mm1)])
def test_figures_of_a_simulated_queue_are_those_of_queueing_theory(utilisation, exponential, theory):
    service = 0.1
    rate = utilisation / service
    of = at_rate([simulated(rate, service, 4000, seed, exponential=exponential) for seed in range(8)], rate)
    means = [statistics.fmean(load.latencies_s(part_of(repetition, of))) for repetition in of.repetitions]
    half = 4 * statistics.stdev(means) / math.sqrt(len(means))
    assert statistics.fmean(means) == pytest.approx(theory(rate, service), abs=half)
    assert marks.find(of, bust=True) == ()


# marks


def kinds(of, *, bust=True):
    return [warning.kind for warning in marks.find(of, bust=bust)]


def test_a_late_sender_marks_a_rate():
    assert kinds(at_rate([evenly(40, late=0.005)])) == []
    of = at_rate([evenly(40, late=0.05)])
    assert kinds(of) == [WarningKind.CLIENT_BOUND]
    assert "sent 50.0 ms late or more, beside a median TTFT of 175 ms" in marks.find(of, bust=True)[0].text


def test_the_repetition_whose_sender_was_latest_for_its_times_is_the_one_that_counts():
    # 20 ms of 300 are less than 15 of 100.
    slow, fast = evenly(40, late=0.02, took=1.2), evenly(40, late=0.015, took=0.4)
    assert kinds(at_rate([slow])) == []
    assert kinds(at_rate([fast])) == kinds(at_rate([slow, fast])) == [WarningKind.CLIENT_BOUND]


def test_streams_that_idle_mark_a_level():
    assert kinds(of_streams([closed(4, 10, idle=0.02)], 4)) == []
    assert kinds(of_streams([closed(4, 10, idle=0.3)], 4)) == [WarningKind.CLIENT_BOUND]


def test_a_queue_that_grows_is_not_steady():
    of = at_rate([simulated(20, 0.1, 200, seed) for seed in range(3)], 20)
    (warning,) = [w for w in marks.find(of, bust=True) if w.kind is WarningKind.UNSTEADY]
    assert "more requests (--infer-load-requests), or" in warning.text
    replayed = dataclasses.replace(of, level=Level(kind=LevelKind.REPLAY, value=1.0))
    (warning,) = [w for w in marks.find(replayed, bust=True) if w.kind is WarningKind.UNSTEADY]
    assert "a longer trace, or" in warning.text


def test_failures_are_told_with_the_words_of_the_most_frequent():
    failed = [
        request(n, n, end=n + 0.1, status=RequestStatus.FAILED, tokens=0, error="429 slow down") for n in range(2)
    ]
    broken = request(3, 3, end=3.1, status=RequestStatus.FAILED, tokens=0, error="500")
    repetition = evenly(40)
    of = at_rate([dataclasses.replace(repetition, requests=(*failed, broken, *repetition.requests))])
    (warning,) = [w for w in marks.find(of, bust=True) if w.kind is WarningKind.REQUESTS_FAILED]
    assert warning.text == "3 of 43 requests have no answer (2: 429 slow down, and 1 more): misses"


def test_requests_that_the_generator_does_not_tell_of_are_told():
    of = at_rate([dataclasses.replace(evenly(40), asked=42)])
    (warning,) = marks.find(of, bust=True)
    said = "2 are in no figure: they were not due before the end, or simulated lost them"
    assert (warning.kind, warning.text) == (WarningKind.REQUESTS_FAILED, said)


def test_hits_in_the_servers_cache_are_marked_where_none_were_wanted():
    requests = [dataclasses.replace(r, prompt_tokens=10, cached=4) for r in evenly(40).requests]
    of = at_rate([Repetition(requests=tuple(requests), seed=1)])
    assert kinds(of) == [WarningKind.CACHED]
    assert kinds(of, bust=False) == []
