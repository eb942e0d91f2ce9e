"""Whose tokens rounds follow: decided by what is generated freely, and by what the engine can do."""

import struct

import pytest

from pytest_infer.engines.base import Engine
from pytest_infer.errors import EngineError
from pytest_infer.measure import following
from pytest_infer.records import ExpertUsage, Reference, Scores, TokenTrace


class Able(Engine):
    def __init__(self):
        self.given = []

    def follow(self, token_ids):
        self.given.append(token_ids)


EXPERTS = ExpertUsage(
    sites=(), prefill_tokens=2, decode_tokens=2, prefill=(), decode=(), check="passed", trace=(), trace_weights=()
)
OURS = Reference(name="0001", tokens=(1, 2, 3), free=(1, 2, 3))


@pytest.mark.parametrize(
    ("engine", "free", "timed", "problem", "profiled"),
    [
        (Able(), (1, 2, 3), False, None, (1, 2, 3)),
        (Able(), (1, 2, 4), True, None, (1, 2, 3)),
        (Able(), (1, 2), True, None, (1, 2, 3)),
        (Engine.__new__(type("Plain", (Engine,), {})), (1, 2, 3), False, None, None),
        (Engine.__new__(type("Plain", (Engine,), {})), (1, 2), False, following.CANNOT, None),
    ],
    ids=["same", "other", "shorter", "unable, same", "unable, other"],
)
def test_who_follows(engine, free, timed, problem, profiled):
    found = following.decide(OURS, engine, list(free))
    assert (found.free, found.timed, found.problem) == (free, timed, problem)
    assert following.timed(found) == (OURS.tokens if timed else None)
    assert following.profiled(found, engine) == profiled


def test_what_cannot_be_followed_is_not():
    wrong = Reference(name="0001", tokens=(1, 2), free=(1, 2), problem="another vocabulary")
    found = following.decide(wrong, Able(), (1,))
    assert (found.timed, found.problem) == (False, "another vocabulary")
    assert following.profiled(found, Able()) is None


def test_nobody_to_follow():
    assert following.timed(None) is None
    assert following.profiled(None, Able()) is None


def test_an_engine_is_told_only_if_it_can_follow():
    able = Able()
    following.steer(able, None)
    following.steer(able, (1,))
    assert able.given == [None, (1,)]
    plain = Engine.__new__(type("Plain", (Engine,), {}))
    following.steer(plain, None)
    with pytest.raises(EngineError, match="cannot follow"):
        following.steer(plain, (1,))


def scores(sequences, positions, width):
    def numbers(kind, count, first=0):
        return struct.pack(f"<{count}{kind}", *range(first, first + count))

    each = sequences * positions
    return Scores(
        sequences=sequences,
        positions=positions,
        width=width,
        vocabulary=100,
        tokens=numbers("i", each),
        chosen=numbers("f", each),
        top_ids=numbers("i", each * width),
        top=numbers("f", each * width),
        rest=numbers("f", each, 50),
    )


def test_a_reference_is_cut_to_a_limit():
    whole = Reference(name="a", tokens=(4, 5, 6), free=(4, 5, 6), scores=scores(2, 3, 2), experts=EXPERTS)
    assert following.cut(whole, 3) is whole
    cut = following.cut(whole, 2)
    assert (cut.tokens, cut.experts) == ((4, 5), EXPERTS)
    assert cut.scores.positions == 2
    assert struct.unpack("<4i", cut.scores.tokens) == (0, 1, 3, 4)
    assert struct.unpack("<4f", cut.scores.rest) == (50, 51, 53, 54)
    assert struct.unpack("<8i", cut.scores.top_ids) == (0, 1, 2, 3, 6, 7, 8, 9)


@pytest.mark.parametrize(("told", "place"), [((1, 2, 4), 3), ((2, 3, 4), 1), ((1, 2), 3), ((1, 2, 3, 4), 4)])
def test_a_round_that_leaves_what_it_was_given_is_an_error(told, place):
    trace = TokenTrace(
        prompt_tokens=1, requested_tokens=9, start_ns=0, stamps_ns=told, tick_sizes=(1,) * len(told), token_ids=told
    )
    with pytest.raises(EngineError, match=f"was given 3 tokens by Engine.follow and left them at number {place}: "):
        following.obeyed(trace, (1, 2, 3))
    following.obeyed(trace, told)
    following.obeyed(trace, None)
