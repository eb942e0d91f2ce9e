"""A model of 64 layers × 256 experts, top 8: its block against a golden, its size in a run file, and the whole path."""

import dataclasses
import gzip
import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from pytest_benchmark.utils import safe_dumps

from pytest_infer.analysis.experts import census, suite
from pytest_infer.analysis.experts import usage as usages
from pytest_infer.analysis.experts.census import Phase
from pytest_infer.analysis.experts.suite import By, PromptUsage
from pytest_infer.metrics import experts
from pytest_infer.records import ExpertSite, ExpertUsage, PromptRecord
from pytest_infer.storage import block, files, runs, schema
from pytest_infer.storage.schema import Usage

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "block-64x256x8.json.gz"
LAYERS, EXPERTS, K = 64, 256, 8
PREFILL, DECODE = 2000, 500


def planted(tokens, layer):
    """Return counts that add up to tokens x k, a few experts of each layer hot, the same every time."""
    weights = 1 / (16 + (np.arange(EXPERTS) * 97 + layer * 31) % EXPERTS)
    counts = (tokens * K * weights / weights.sum()).astype(np.int64)
    counts[: tokens * K - counts.sum()] += 1
    return tuple(counts.tolist())


@pytest.fixture(scope="module")
def record():
    """The golden record with the usage of a large model."""
    small = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    prefill = tuple(planted(PREFILL, n) for n in range(LAYERS))
    decode = tuple(planted(DECODE, n + LAYERS) for n in range(LAYERS))
    usage = ExpertUsage(
        sites=tuple(
            ExpertSite(
                name=f"model.layers.{n}.mlp.experts",
                layer=n,
                kind="mlp",
                experts=EXPERTS,
                slots=EXPERTS,
                k=K,
                expert_bytes=3 * 2048 * 768 * 2,
            )
            for n in range(LAYERS)
        ),
        prefill_tokens=PREFILL,
        decode_tokens=DECODE,
        prefill=prefill,
        decode=decode,
        check="passed",
        prefill_weights=tuple(tuple(n * 0.12345 for n in row) for row in prefill),
        decode_weights=tuple(tuple(n * 0.12345 for n in row) for row in decode),
    )
    return dataclasses.replace(small, profile=dataclasses.replace(small.profile, experts=usage))


def test_the_block_is_exactly_the_golden(record):
    text = files.dumps(block.build(record)) + "\n"
    if os.environ.get("UPDATE_GOLDENS"):
        GOLDEN.write_bytes(gzip.compress(text.encode(), mtime=0))
    assert text == gzip.decompress(GOLDEN.read_bytes()).decode()


def test_a_prompt_stays_under_400_kb_in_a_run_file(record):
    built = block.build(record)
    inside = files.dumps({"benchmarks": [{"extra_info": {schema.KEY: built}}]})
    assert "weights" in built["experts"]
    assert len(inside.encode()) < 400_000
    # What it is without our own layout.
    assert len(safe_dumps({"benchmarks": [{"extra_info": {schema.KEY: built}}]}, indent=4)) > 2_000_000


def test_from_the_run_file_to_the_view(record, storage):
    golden = json.loads(gzip.decompress(GOLDEN.read_bytes()))
    path = storage.add([{**golden, "prompt": {**golden["prompt"], "name": name}} for name in ("a", "b", "c")])
    rows = runs.read(path).rows
    parts = [census.of(row.experts) for row in rows]
    merged = census.merged(parts)
    assert (merged.prefill_tokens, merged.decode_tokens) == (3 * PREFILL, 3 * DECODE)
    assert [int(row.sum()) for row in census.counts(merged, Phase.BOTH)] == [3 * (PREFILL + DECODE) * K] * LAYERS
    assert merged.decode[5].tolist() == [3 * n for n in planted(DECODE, 5 + LAYERS)]
    found = suite.view(
        [
            PromptUsage(name=row.name, census=part, weights=row.experts.weights)
            for row, part in zip(rows, parts, strict=True)
        ],
        Phase.DECODE,
        By.PROMPT,
    )
    assert len(found.experts) == LAYERS * EXPERTS
    # The sums keep four digits.
    assert [e.gate for e in found.experts if e.times] == pytest.approx([0.12345] * LAYERS * EXPERTS, rel=1e-3)
    # All three prompts have the same use: each serves the others as it serves itself.
    assert found.overlap.matrix[0][1] == pytest.approx(found.overlap.itself[1])


def test_the_figures_of_the_table_agree_with_those_of_the_arrays(record):
    """Without numpy and with it: two ways to the same figures."""
    usage = record.profile.experts
    merged = census.of(msgspec.convert(block.build(record)["experts"], type=Usage))
    found = usages.model(usages.of_census(merged, Phase.BOTH))
    assert experts.imbalance(usage) == pytest.approx(found["imbalance"][0])
    assert experts.entropy(usage) == pytest.approx(found["entropy"][0])
    assert experts.hot_quarter(usage) == pytest.approx(100 * found["coverage"][0])
