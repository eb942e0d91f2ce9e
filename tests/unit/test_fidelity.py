"""How far predictions of the same text are apart: by hand, and as properties of any two sides."""

import math

import numpy as np
import pytest
import scored
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pytest_infer.analysis.fidelity import distributions, figures, routing
from pytest_infer.analysis.fidelity.figures import Side
from pytest_infer.analysis.fidelity.routing import Routed
from pytest_infer.metrics import fidelity as metrics

LN2 = math.log(2)


def whole(*rows):
    return distributions.whole(np.log(np.asarray(rows)))


def side(tokens, *rows):
    """Return a side that gave these probabilities (a row a position) and went on with these tokens."""
    table = np.log(np.asarray(rows))
    ids = np.asarray(tokens)
    return Side(tokens=ids, logprobs=table[np.arange(len(ids)), ids], of=distributions.whole(table))


def cut(logits, tokens, k):
    """Return a side of which only the likeliest k tokens and the one that came are known."""
    of = distributions.whole(logits)
    order = np.argsort(-of.logprobs, axis=1, kind="stable")[:, :k]
    known = np.take_along_axis(of.logprobs, order, axis=1)
    rest = np.maximum(1 - np.exp(known).sum(axis=1), 0.0) if k < logits.shape[1] else np.zeros(len(logits))
    came = of.logprobs[np.arange(len(tokens)), tokens]
    return Side(tokens=tokens, logprobs=came, of=distributions.top(order, known, rest, tokens, came))


def test_divergence_by_hand():
    p, q = whole((1 / 2, 1 / 4, 1 / 4), (1 / 2, 1 / 2, 1e-300)), whole((1 / 4, 1 / 4, 1 / 2), (1 / 4, 3 / 4, 1e-300))
    # 1/2 ln 2 + 1/4 ln 1 + 1/4 ln 1/2, and 1/2 ln 2 + 1/2 ln 2/3.
    assert distributions.divergence(p, q) == pytest.approx((LN2 / 4, (LN2 + math.log(2 / 3)) / 2), abs=1e-12)
    # In the other direction the second is 1/4 ln 1/2 + 3/4 ln 3/2.
    assert distributions.divergence(q, p)[1] == pytest.approx(-LN2 / 4 + 3 / 4 * math.log(3 / 2), abs=1e-12)


def test_logits_need_not_be_normalised():
    assert distributions.whole([[3.0, 3.0, 3.0 + LN2]]).logprobs == pytest.approx(np.log([[1 / 4, 1 / 4, 1 / 2]]))


def test_the_bound_by_hand_lumps_what_is_not_known():
    reference, candidate = np.log([[0.5, 0.3, 0.1, 0.1]]), np.log([[0.25, 0.25, 0.4, 0.1]])
    p, q = cut(reference, np.array([0]), 2), cut(candidate, np.array([0]), 2)
    # The reference knows tokens 0 and 1, the candidate 2 and 0, both the one that came. Of token 1 (0.3) the candidate
    # may hold up to 0.25, its least known, and of its lump of 0.75 an even part would be 0.75 · 3/5 = 0.45.
    expected = 0.5 * math.log(0.5 / 0.25) + 0.3 * math.log(0.3 / 0.25) + 0.2 * math.log(0.2 / 0.5)
    assert distributions.divergence(p.of, q.of) == pytest.approx([expected], abs=1e-12)
    exact = 0.5 * math.log(2) + 0.3 * math.log(0.3 / 0.25) + 0.1 * math.log(0.1 / 0.4)
    assert distributions.divergence(distributions.whole(reference), distributions.whole(candidate)) == pytest.approx(
        [exact], abs=1e-12
    )
    assert expected <= exact


def test_another_model_is_far_even_where_no_known_token_is_shared():
    reference = np.zeros((1, 200))
    reference[0, :5] = 9.0
    candidate = np.zeros((1, 200))
    candidate[0, 100:105] = 9.0
    p, q = cut(reference, np.array([7]), 5), cut(candidate, np.array([7]), 5)
    assert distributions.divergence(p.of, q.of)[0] > 1


def test_figures_of_a_forced_pair_by_hand():
    reference = side((0, 1, 2), (1 / 2, 1 / 4, 1 / 4), (1 / 4, 1 / 2, 1 / 4), (1 / 4, 1 / 4, 1 / 2))
    candidate = side((0, 1, 2), (1 / 2, 1 / 4, 1 / 4), (1 / 2, 1 / 4, 1 / 4), (1 / 4, 1 / 8, 5 / 8))
    found = figures.positions(reference, candidate)
    second = 1 / 4 * math.log(1 / 2) + 1 / 2 * LN2
    third = 1 / 4 * LN2 + 1 / 2 * math.log(4 / 5)
    assert found.kl == pytest.approx([0, second, third], abs=1e-12)
    assert found.kl_mean == pytest.approx((second + third) / 3, abs=1e-12)
    # Between the 2nd and the 3rd of 3, 0.98 of the way.
    assert found.kl_p99 == pytest.approx(third + 0.98 * (second - third), abs=1e-12)
    assert found.top1 == pytest.approx(200 / 3)
    assert found.logprob_rms == pytest.approx(math.sqrt((LN2**2 + math.log(5 / 4) ** 2) / 3), abs=1e-12)
    assert found.exact
    gone = figures.split(reference, candidate)
    assert (gone.position, gone.reference, gone.candidate) == (1, 1, 0)
    told = (gone.reference_logprob, gone.candidate_logprob, gone.margin)
    assert told == pytest.approx((-LN2, -LN2, LN2))


def test_free_sides_are_compared_up_to_where_they_part():
    reference = side((0, 1, 2), (1 / 2, 1 / 4, 1 / 4), (1 / 4, 1 / 2, 1 / 4), (1 / 4, 1 / 4, 1 / 2))
    candidate = side((0, 0, 1), (1 / 2, 1 / 4, 1 / 4), (1 / 2, 1 / 4, 1 / 4), (1 / 8, 3 / 4, 1 / 8))
    assert figures.common(reference, candidate) == 2
    found = figures.positions(reference, candidate)
    # What came third did not follow the same text.
    assert found.kl == pytest.approx([0, LN2 / 4], abs=1e-12)
    assert found.logprob_rms == pytest.approx(LN2 / math.sqrt(2), abs=1e-12)
    gone = figures.split(reference, candidate)
    assert (gone.position, gone.reference, gone.candidate) == (1, 1, 0)


def test_a_side_that_ends_first_is_no_split():
    reference = side((0, 1), (1 / 2, 1 / 4, 1 / 4), (1 / 4, 1 / 2, 1 / 4))
    shorter = side((0,), (1 / 2, 1 / 4, 1 / 4))
    assert figures.common(reference, shorter) == 1
    assert figures.split(reference, shorter) is None
    assert figures.split(reference, reference) is None


def test_no_position_is_no_figure():
    nothing = cut(np.zeros((0, 3)), np.zeros(0, dtype=np.int64), 2)
    assert figures.positions(nothing, nothing) is None
    assert figures.split(nothing, nothing) is None


def test_a_tie_goes_to_the_lower_id_on_either_side():
    assert list(distributions.likeliest(whole((1 / 4, 3 / 8, 3 / 8), (1 / 2, 1 / 4, 1 / 4)))) == [1, 0]


def kept(rows, tokens, top=64):
    """Return the scores of one sequence with these probabilities, a row a position."""
    with np.errstate(divide="ignore"):
        return scored.scores(np.log(np.asarray([rows])), tokens, top)


def test_entropy_and_margin_by_hand():
    of = kept([[1 / 2, 1 / 4, 1 / 4]], [0])
    assert metrics.entropy(of) == pytest.approx(1.5 * LN2)
    assert metrics.margin(of) == pytest.approx(LN2)
    lumped = kept([[1 / 2, 1 / 4, 1 / 8, 1 / 8]], [0], top=2)
    # What is not kept counts as one token.
    assert metrics.entropy(lumped) == pytest.approx(1.5 * LN2)
    assert metrics.margin(lumped) == pytest.approx(LN2)


def test_likelihood_by_hand():
    some = [1 / 2, 1 / 4, 1 / 8, 1 / 8]
    assert metrics.nll(kept([some, some, some], [0, 1, 2])) == pytest.approx(2 * LN2)


def test_a_token_that_is_ruled_out_makes_a_model_worse():
    of = kept([[1.0, 0.0], [0.5, 0.5]], [1, 0])
    assert metrics.nll(of) == pytest.approx((700 + LN2) / 2)
    assert metrics.margin(of) == pytest.approx(0)
    assert metrics.margin(kept([[1.0, 0.0]], [0])) == pytest.approx(700)


def test_routing_by_hand():
    reference = Routed(
        chosen=[np.array([[0, 1], [2, 3]]), np.array([[0, 1], [1, 0]])],
        weights=[np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([[0.5, 0.5], [0.625, 0.375]])],
    )
    candidate = Routed(
        # The first token of the first site chose the same in another order, its second lost 3 for 4.
        chosen=[np.array([[1, 0], [2, 4]]), np.array([[0, 1], [1, 0]])],
        weights=[np.array([[0.375, 0.625], [0.5625, 0.4375]]), np.array([[0.5, 0.5], [0.625, 0.375]])],
    )
    found = routing.moved(reference, candidate)
    assert (found.changed, found.weight) == (25.0, 0.5)
    assert routing.moved(reference, Routed(chosen=candidate.chosen)).weight is None
    assert routing.moved(reference, Routed(chosen=candidate.chosen[:1])) is None
    assert routing.moved(Routed(chosen=[]), Routed(chosen=[])) is None


# any two sides


def every(examples):
    """Try so many, the same ones each time."""
    return settings(deadline=None, derandomize=True, database=None, max_examples=examples)


finite = st.floats(-30, 30, width=32)


@st.composite
def pairs(draw):
    """Return logits of two sides of the same shape, the tokens that came, and how many of each are known."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(2, 40)))
    reference = draw(arrays.arrays(np.float64, shape, elements=finite))
    shift = draw(arrays.arrays(np.float64, shape, elements=finite))
    candidate = reference + draw(st.sampled_from((1e-6, 1e-2, 1.0))) * shift
    tokens = draw(arrays.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))
    return reference, candidate, tokens, draw(st.integers(1, shape[1]))


@every(300)
@given(pairs())
def test_the_bound_is_never_above_the_exact_divergence(pair):
    reference, candidate, tokens, k = pair
    exact = distributions.divergence(distributions.whole(reference), distributions.whole(candidate))
    bound = distributions.divergence(cut(reference, tokens, k).of, cut(candidate, tokens, k).of)
    assert (exact >= 0).all()
    assert (bound >= 0).all()
    assert (bound <= exact + 1e-7).all()


@every(100)
@given(pairs())
def test_all_known_is_exact(pair):
    reference, candidate, tokens, _ = pair
    every = reference.shape[1]
    p, q = cut(reference, tokens, every), cut(candidate, tokens, every)
    exact = distributions.divergence(distributions.whole(reference), distributions.whole(candidate))
    assert distributions.divergence(p.of, q.of) == pytest.approx(exact, abs=1e-9)


@every(100)
@given(pairs())
def test_a_side_is_as_far_from_itself_as_nothing(pair):
    reference, _, tokens, k = pair
    one = cut(reference, tokens, k)
    found = figures.positions(one, one)
    assert (found.kl_mean, found.kl_p99, found.top1, found.logprob_rms) == (0, 0, 100, 0)
    assert figures.split(one, one) is None


@every(100)
@given(st.lists(pairs(), min_size=1, max_size=4))
def test_a_batch_is_the_union_of_its_texts(several):
    parts = [figures.positions(cut(p, tokens, k), cut(q, tokens, k)) for p, q, tokens, k in several]
    whole_ = figures.joined(parts)
    counts = np.array([len(part.kl) for part in parts])
    assert whole_.kl_mean == pytest.approx(np.average([part.kl_mean for part in parts], weights=counts), abs=1e-9)
    assert whole_.top1 == pytest.approx(np.average([part.top1 for part in parts], weights=counts))
    squares = np.average([part.logprob_rms**2 for part in parts], weights=counts)
    assert whole_.logprob_rms == pytest.approx(math.sqrt(squares), abs=1e-9)
    assert whole_.kl_p99 == pytest.approx(np.percentile(np.concatenate([part.kl for part in parts]), 99))
