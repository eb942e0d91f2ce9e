"""Records that kept scores, from logits that a test chooses."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from pytest_infer.analysis.fidelity import measured, tokens
from pytest_infer.analysis.fidelity.measured import Told
from pytest_infer.measure.warnings import hash_ids
from pytest_infer.records import TOP, PromptRecord, Reference, Scores

RECORD = Path(__file__).parents[1] / "data" / "record-1.json"
WORDS = ("the", " a", " cat", " sat", "\n", " <b>", " mat", ".")


def scores(logits, tokens, top=TOP):
    """Return scores of logits, shape (sequences, positions, vocabulary), as an engine keeps them."""
    given = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        logprobs = given - np.logaddexp.reduce(given, axis=-1, keepdims=True)
    sequences, positions, vocabulary = given.shape
    ids = np.asarray(tokens).reshape(sequences, positions)
    width = min(top, vocabulary)
    order = np.argsort(-logprobs, axis=-1, kind="stable")
    ordered = np.take_along_axis(logprobs, order, axis=-1)
    with np.errstate(invalid="ignore"):
        rest = np.logaddexp.reduce(ordered[..., width:], axis=-1) if width < vocabulary else np.full(ids.shape, -np.inf)
    chosen = np.take_along_axis(logprobs, ids[..., None], axis=-1)[..., 0]
    return Scores(
        sequences=sequences,
        positions=positions,
        width=width,
        vocabulary=vocabulary,
        tokens=ids.astype("<i4").tobytes(),
        chosen=chosen.astype("<f4").tobytes(),
        top_ids=order[..., :width].astype("<i4").tobytes(),
        top=ordered[..., :width].astype("<f4").tobytes(),
        rest=rest.astype("<f4").tobytes(),
    )


def greedy(logits):
    """Return the likeliest token of each position of the first sequence."""
    return tuple(int(token) for token in np.argmax(np.asarray(logits), axis=-1)[0])


def record(logits, *, reference=None, free=None, name="0001 base", timed=False, kl=None, test=None, **changes):
    """Return a record that generated greedily, or that followed the greedy tokens of a reference's logits."""
    made = msgspec.json.decode(RECORD.read_bytes(), type=PromptRecord)
    tokens = greedy(logits if reference is None else reference)
    every = np.tile(tokens, (np.asarray(logits).shape[0], 1))
    free = (greedy(logits) if free is None else free) if reference is not None else tokens
    output = replace(made.output, sha256=hash_ids(free), text="".join(WORDS[token % len(WORDS)] for token in free))
    followed = None
    if reference is not None:
        followed = Reference(
            name=name,
            tokens=tokens,
            free=free,
            timed=timed,
            scores=scores(reference, every),
            kl=None if kl is None else np.asarray(kl, dtype="<f8").tobytes(),
        )
    made = replace(
        made,
        nodeid=test or made.nodeid,
        profile=replace(made.profile, scores=scores(logits, every)),
        reference=followed,
        output=output,
        pieces={number: WORDS[number % len(WORDS)] for number in range(np.asarray(logits).shape[-1])},
    )
    made = replace(made, **changes)
    return replace(made, fidelity=measured.of_record(made))


def tokens_of(followed):
    """Return the tokens of a record that followed a reference."""
    sides = [Told(scores=one, pieces=followed.pieces) for one in (followed.reference.scores, followed.profile.scores)]
    return tokens.of(*sides)


def around(logits, by, seed=0):
    """Return logits that noise moved, about so many nats each."""
    return np.asarray(logits) + np.random.default_rng(seed + 1000).normal(0, by, np.asarray(logits).shape)


def logits(positions=30, vocabulary=200, sequences=1, seed=1):
    """Return logits of a model that is sure of some tokens and not of others."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (sequences, positions, vocabulary)) * rng.uniform(1, 4, (sequences, positions, 1))
