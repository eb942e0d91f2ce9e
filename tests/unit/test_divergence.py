"""The exact divergence of two sides' whole distributions, against worked values; and why there is none."""

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pytest_infer.ab import divergence
from pytest_infer.measure import following
from pytest_infer.records import PromptRecord, Scores

DATA = Path(__file__).parents[1] / "data"
P = [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.5, 0.5, 0.0]]
Q = [[0.25, 0.25, 0.5], [0.5, 0.25, 0.25], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]
WORKED = [0.5 * math.log(2) - 0.25 * math.log(2), math.log(2), 0.0, 350 - math.log(2)]


@pytest.fixture
def files(tmp_path):
    made = divergence.Files.within(tmp_path)
    with np.errstate(divide="ignore"):
        for path, rows in ((made.before, P), (made.after, Q)):
            np.log(np.asarray(rows)).astype(np.float32).tofile(path)
    return made


@pytest.mark.parametrize("at_once", [1, 3, 7, 2**22])
def test_worked_values(files, monkeypatch, at_once):
    monkeypatch.setattr(divergence, "_AT_ONCE", at_once)
    assert divergence.kl(files, 4, 3) == pytest.approx(WORKED, abs=1e-6)


def test_what_float32_makes_of_a_sum_of_1_is_no_divergence(tmp_path):
    """Another order of a layer's sums moves logits by 2e-6: KL 2e-12, though a row adds up to 1 ± 1e-5 only."""
    files = divergence.Files.within(tmp_path)
    random = np.random.default_rng(1)
    logits = random.normal(scale=3, size=(8, 4096)).astype(np.float32)
    for path, noise in ((files.before, 0.0), (files.after, 2e-6)):
        moved = logits + random.normal(scale=noise, size=logits.shape).astype(np.float32)
        total = np.log(np.exp(moved).sum(1, keepdims=True, dtype=np.float32)) * np.float32(1 + noise)
        (moved - total).astype(np.float32).tofile(path)
    found = divergence.kl(files, 8, 4096)
    assert found.mean() == pytest.approx(2e-6**2 / 2, rel=1)
    assert found.max() < 1e-9


def test_what_is_not_finite_stays_so(files):
    np.full((4, 3), np.nan, np.float32).tofile(files.after)
    assert np.isnan(divergence.kl(files, 4, 3)).all()


def record(positions=4, vocabulary=3, problem=None, name="p"):
    golden = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    empty = dict.fromkeys(("tokens", "chosen", "top_ids", "top", "rest"), b"")
    scores = Scores(sequences=1, positions=positions, width=3, vocabulary=vocabulary, **empty)
    reference = replace(divergence.of("main", (1, 2), (1, 2), follow=True), problem=problem)
    profile = replace(golden.profile, scores=scores)
    return replace(golden, profile=profile, reference=reference, pieces={1: name})


def test_our_record_gets_all_of_the_other_side(files):
    base = record(name="base")
    found = divergence.compared(base, record(name="ours"), files)
    assert np.frombuffer(found.reference.kl) == pytest.approx(WORKED, abs=1e-6)
    assert found.reference.scores is base.profile.scores
    assert found.reference.experts is base.profile.experts
    assert found.reference.dtype == base.model.dtype is not None
    assert found.pieces == {1: "ours"}


@pytest.mark.parametrize(
    ("base", "ours", "why"),
    [
        (record(), record(vocabulary=4), "the vocabularies differ: 3 and 4"),
        (record(positions=3), record(), "were not kept"),
        (record(positions=5), record(positions=5), "were not kept"),
        (record(), record(problem="cannot"), "no scores of the same tokens"),
        (replace(record(), profile=replace(record().profile, scores=None)), record(), "no scores of the same tokens"),
    ],
)
def test_why_there_is_none(files, base, ours, why):
    found = divergence.compared(base, ours, files).reference
    assert found.kl is None
    assert why in found.kl_absent


def test_sides_that_wrote_no_files(files):
    assert "one after the other" in divergence.compared(record(), record(), None).reference.kl_absent
    files.remove()
    files.remove()
    assert "were not kept" in divergence.compared(record(), record(), files).reference.kl_absent


def test_a_side_without_a_profile_round_is_left_as_it_is(files):
    ours = replace(record(), profile=None)
    assert divergence.compared(record(), ours, files) is ours


def test_whose_tokens_they_are():
    assert divergence.of("main", [1, 2], [1, 2], follow=False).problem is None
    assert divergence.of("main", [1, 2], [1, 3], follow=True).problem is None
    assert divergence.of("main", [1, 9], [1, 3], follow=True, vocabulary=10).problem is None
    assert divergence.of("main", [1, 9], [1, 9], follow=True, vocabulary=9).problem is None
    assert "did not tell all" in divergence.of("main", [1, -1], [1], follow=True, vocabulary=9).problem
    assert "token 9 is none of the model's 9" in divergence.of("main", [1, 9], [1], follow=True, vocabulary=9).problem
    assert divergence.of("main", [1, 2], [1, 3], follow=False).problem == following.CANNOT
    assert "other numbers of tokens" in divergence.of("main", [1, 2], [1], follow=True, asked=(2, 1)).problem
    assert divergence.of("main", [1, 2], [1, 2], follow=True, asked=(9, 8)).problem is None
