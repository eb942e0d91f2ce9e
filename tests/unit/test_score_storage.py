"""What of scores and of a reference is stored: in the block, and as arrays that come back as they were."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pytest_infer.errors import StorageError
from pytest_infer.measure.warnings import hash_ids
from pytest_infer.records import ExpertSite, ExpertUsage, PromptRecord, Reference, Scores
from pytest_infer.storage import block, runs, sidecar

DATA = Path(__file__).parents[1] / "data"


def scores(sequences=2, positions=3, width=4, seed=0):
    rng = np.random.default_rng(seed)
    both = (sequences, positions)
    return Scores(
        sequences=sequences,
        positions=positions,
        width=width,
        vocabulary=10,
        tokens=rng.integers(0, 10, both).astype("<i4").tobytes(),
        chosen=rng.normal(size=both).astype("<f4").tobytes(),
        top_ids=rng.integers(0, 10, (*both, width)).astype("<i4").tobytes(),
        top=rng.normal(size=(*both, width)).astype("<f4").tobytes(),
        rest=np.full(both, -np.inf).astype("<f4").tobytes(),
    )


OWN, THEIRS = scores(), scores(sequences=1, seed=1)
KL = np.array([0.25, np.inf, 0.0])
REFERENCE = Reference(
    name="0003 (main)", tokens=(1, 2, 3), free=(1, 2), timed=True, scores=THEIRS, kl=KL.astype("<f8").tobytes()
)


@pytest.fixture
def record():
    golden = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    profile = replace(golden.profile, scores=OWN)
    return replace(golden, profile=profile, reference=REFERENCE, pieces={1: " the", 2: "ü", 3: ""})


def test_arrays_come_back_as_they_were(tmp_path, record):
    sidecar.write(tmp_path / "run.json", [record])
    arrays = sidecar.read(tmp_path / "run.json")
    key = record.nodeid
    assert arrays[f"{key}|scores|top"].shape == (2, 3, 4)
    assert arrays[f"{key}|scores|top"].dtype == np.float32
    assert arrays[f"{key}|reference|tokens"].shape == (1, 3)
    assert sidecar.scores(arrays, key) == replace(OWN, vocabulary=0)
    assert sidecar.scores(arrays, key, "reference") == replace(THEIRS, vocabulary=0)
    assert arrays[f"{key}|reference|kl"].tolist() == KL.tolist()
    assert sidecar.pieces(arrays, key) == record.pieces
    assert sidecar.scores(arrays, "another") is None
    assert sidecar.pieces(arrays, "another") == {}


def test_a_record_without_scores_has_no_arrays_of_them(tmp_path, record):
    sidecar.write(tmp_path / "run.json", [replace(record, profile=None, reference=None, pieces={})])
    assert not any(
        "scores" in key or "reference" in key or "pieces" in key for key in sidecar.read(tmp_path / "run.json")
    )


def test_gates_lie_beside_the_trace(tmp_path, record):
    sites = (ExpertSite(name="l.0", layer=0, experts=4, slots=4, k=2),)
    gates = np.array([[0.75, 0.25], [0.5, 0.5]], "<f4")
    usage = ExpertUsage(
        sites=sites, prefill_tokens=1, decode_tokens=1, prefill=((1, 1, 0, 0),), decode=((0, 0, 1, 1),),
        check="passed", trace=(bytes([0, 1, 2, 3]),), trace_weights=(gates.tobytes(),),
    )  # fmt: skip
    sidecar.write(tmp_path / "run.json", [replace(record, profile=replace(record.profile, experts=usage))])
    arrays = sidecar.read(tmp_path / "run.json")
    assert arrays[sidecar.gates_key(record.nodeid, "l.0")].tolist() == gates.tolist()
    assert arrays[sidecar.expert_key(record.nodeid, "l.0")].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("what", "array"),
    [
        ("scores|top", np.zeros((2, 3, 5), np.float32)),
        ("scores|chosen", np.zeros((2, 2), np.float32)),
        ("scores|tokens", np.zeros((2, 3), np.float32)),
        ("reference|rest", np.zeros(3, np.float32)),
        ("reference|kl", np.zeros((3, 1))),
        ("pieces", np.zeros((2, 2), np.uint8)),
    ],
)
def test_damaged_arrays_are_refused(tmp_path, record, what, array):
    path = sidecar.write(tmp_path / "run.json", [record])
    with np.load(path) as found:
        np.savez(path, **{**found, f"{record.nodeid}|{what}": array})
    with pytest.raises(StorageError, match="cannot be read"):
        sidecar.read(tmp_path / "run.json")


def test_scores_of_which_a_part_is_missing_are_refused(tmp_path, record):
    path = sidecar.write(tmp_path / "run.json", [record])
    with np.load(path) as found:
        np.savez(path, **{key: array for key, array in found.items() if not key.endswith("scores|rest")})
    with pytest.raises(StorageError, match="different shapes"):
        sidecar.read(tmp_path / "run.json")


def test_damaged_texts_are_refused(tmp_path, record):
    with pytest.raises(StorageError, match="texts of single tokens"):
        sidecar.pieces({f"{record.nodeid}|pieces": np.frombuffer(b'{"a": 1}', np.uint8)}, record.nodeid)


def test_the_block_says_what_there_is(record):
    built = json.loads(json.dumps(block.build(record)))
    assert built["scores"] == {"positions": 3, "sequences": 2, "width": 4, "vocabulary": 10}
    assert built["reference"] == {
        "name": "0003 (main)",
        "tokens": 3,
        "sha256": hash_ids((1, 2, 3)),
        "timed": True,
        "free": 2,
    }
    row = runs.row_of("t", "t", built)
    assert (row.scores.positions, row.scores.vocabulary) == (3, 10)
    assert (row.reference.name, row.reference.timed, row.reference.problem) == ("0003 (main)", True, None)


def test_the_block_says_why_there_is_nothing(record):
    bare = replace(
        record, profile=replace(record.profile, scores=None, scores_absent="the engine offers none"), reference=None
    )
    built = block.build(bare)
    assert built["scores"] == {"absent": "the engine offers none"}
    assert "reference" not in built
    assert runs.row_of("t", "t", built).reference is None
    assert block.build(replace(bare, profile=None, profile_absent="left out"))["scores"] == {"absent": "left out"}


def test_a_record_goes_through_the_journal_and_to_the_other_process(record):
    assert msgspec.json.decode(msgspec.json.encode(record), type=PromptRecord) == record
