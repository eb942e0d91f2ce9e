"""The token clock on a fake clock: what it stamps, and which engines it refuses."""

import pytest

from pytest_infer.errors import EngineError
from pytest_infer.measure.clock import TokenClock
from pytest_infer.records import StopReason


def clock_at(*moments):
    return TokenClock(now=iter(moments).__next__)


def test_a_tick_is_stamped_when_it_comes():
    clock = clock_at(1000, 1200, 1220, 1340)
    clock.start()
    for ids in ([7], [8, 9], [10]):
        clock.tick(ids)
    trace = clock.trace(prompt_tokens=5, requested_tokens=4, stopped_by=StopReason.LENGTH)
    assert trace.start_ns == 1000
    assert trace.stamps_ns == (1200, 1220, 1340)
    assert trace.tick_sizes == (1, 2, 1)
    assert trace.token_ids == (7, 8, 9, 10)
    assert (trace.prompt_tokens, trace.requested_tokens, trace.stopped_by) == (5, 4, StopReason.LENGTH)
    assert trace.prefill_end_ns is None


def test_prefill_apart_from_the_first_token():
    clock = clock_at(0, 150, 200)
    clock.start()
    clock.prefilled()
    clock.tick([1])
    trace = clock.trace(prompt_tokens=1, requested_tokens=1, stopped_by=None)
    assert (trace.prefill_end_ns, trace.stamps_ns) == (150, (200,))


def test_starting_again_forgets_the_last_generation():
    clock = clock_at(0, 1, 2, 100, 110)
    clock.start()
    clock.prefilled()
    clock.tick([1])
    clock.start()
    clock.tick([2])
    trace = clock.trace(prompt_tokens=1, requested_tokens=1, stopped_by=None)
    assert (trace.start_ns, trace.stamps_ns, trace.token_ids, trace.prefill_end_ns) == (100, (110,), (2,), None)


def test_ids_become_plain_integers():
    class Id:
        def __int__(self):
            return 42

    clock = clock_at(0, 1)
    clock.start()
    clock.tick([Id()])
    (token,) = clock.trace(prompt_tokens=1, requested_tokens=1, stopped_by=None).token_ids
    assert type(token) is int
    assert token == 42


def test_eos_before_the_limit_is_fine():
    clock = clock_at(0, 1)
    clock.start()
    clock.tick([2])
    trace = clock.trace(prompt_tokens=1, requested_tokens=60, stopped_by=StopReason.EOS)
    assert (trace.requested_tokens, len(trace.token_ids)) == (60, 1)


@pytest.mark.parametrize(
    ("ticks", "message"),
    [
        ([], "generated no token, or never called clock.tick"),
        ([[1], []], r"without token ids \(tick 1\)"),
        ([[1, 2], [3]], "ticked 3 tokens where 2 were asked for"),
        ([7], "clock.tick takes a list of token ids: object of type 'int' has no len"),
        (["a"], "clock.tick takes a list of token ids: invalid literal"),
        ([[None]], "clock.tick takes a list of token ids: "),
        ([[2**31]], f"ticked the id {2**31}: ids go up to {2**31 - 1}"),
    ],
)
def test_an_engine_that_breaks_the_contract_is_named(ticks, message):
    clock = clock_at(*range(10))
    clock.start()
    for ids in ticks:
        clock.tick(ids)
    with pytest.raises(EngineError, match=message):
        clock.trace(prompt_tokens=1, requested_tokens=2, stopped_by=None)


def test_the_real_clock_is_perf_counter_ns():
    from time import perf_counter_ns

    before = perf_counter_ns()
    clock = TokenClock()
    clock.start()
    clock.tick([1])
    trace = clock.trace(prompt_tokens=1, requested_tokens=1, stopped_by=None)
    assert before <= trace.start_ns <= trace.stamps_ns[0] <= perf_counter_ns()


def test_a_trace_is_a_snapshot():
    clock = clock_at(0, 1, 2, 3)
    clock.start()
    clock.tick([1])
    before = clock.trace(prompt_tokens=1, requested_tokens=9, stopped_by=None)
    clock.tick([2])
    assert before.stamps_ns == (1,)
    clock.start()
    assert (before.start_ns, before.token_ids) == (0, (1,))


def test_the_stamp_comes_before_the_books():
    """What the clock does with the ids must not count as time of the token that it stamps."""
    asked = []

    class Ids(list):
        def __len__(self):
            asked.append("ids")
            return super().__len__()

        def __iter__(self):
            asked.append("ids")
            return super().__iter__()

    def now():
        asked.append("now")
        return len(asked)

    clock = TokenClock(now=now)
    clock.start()
    clock.tick(Ids([5]))
    assert asked[:2] == ["now", "now"]


def test_as_many_as_asked_for_are_not_too_many():
    clock = clock_at(0, 1)
    clock.start()
    clock.tick([1, 2])
    assert clock.trace(prompt_tokens=1, requested_tokens=2, stopped_by=None).tick_sizes == (2,)


def test_ticks_are_stamped_with_the_moment_their_bytes_came():
    clock = clock_at(0, 10, 20, 30, 40)
    clock.start()
    first, second = clock.now(), clock.now()
    clock.arrived(first)
    clock.tick([1])
    clock.tick([2])
    clock.arrived(second)
    clock.tick([3])
    assert clock.trace(prompt_tokens=1, requested_tokens=3, stopped_by=None).stamps_ns == (10, 10, 20)
    clock.start()
    clock.tick([1])
    assert clock.trace(prompt_tokens=1, requested_tokens=3, stopped_by=None).stamps_ns == (40,)


@pytest.mark.parametrize("said", [(None,), (b"a",), ("a", 1.5)])
def test_what_is_no_text_is_named(said):
    clock = clock_at(0, 1)
    clock.start()
    clock.tick_text(*said)
    with pytest.raises(EngineError, match=r"clock\.tick_text takes a text and a number: "):
        clock.trace(prompt_tokens=1, requested_tokens=2, stopped_by=None)


@pytest.mark.parametrize("told", [(12, 11), (2, 3)])
def test_times_that_go_back_are_named(told):
    """Seconds where nanoseconds belong lie before the round."""
    clock = clock_at(10)
    clock.start()
    for at in told:
        clock.arrived(at)
        clock.tick([1])
    with pytest.raises(EngineError, match=r"clock\.arrived was given a time before the last one"):
        clock.trace(prompt_tokens=1, requested_tokens=2, stopped_by=None)


def test_a_reason_may_be_its_word_and_no_other():
    clock = clock_at(0, 1)
    clock.start()
    clock.tick([1])
    trace = clock.trace(prompt_tokens=1, requested_tokens=1, stopped_by="eos")
    assert trace.stopped_by is StopReason.EOS
    with pytest.raises(
        EngineError, match=r"the engine ended with unknown reason 'stop'.*known: eos, length, stop string"
    ):
        clock.trace(prompt_tokens=1, requested_tokens=1, stopped_by="stop")
