"""What of expert usage is stored: gate weights, shared experts, dropped selections and the trace."""

import gc
import io
import json
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pytest_infer.errors import StorageError
from pytest_infer.records import ExpertSite, ExpertUsage, PromptRecord
from pytest_infer.storage import block, runs, schema, sidecar

DATA = Path(__file__).parents[1] / "data"
SITES = (
    ExpertSite(name="l.0", layer=0, kind="mlp", experts=3, slots=4, k=2, expert_bytes=10, shared=1, shared_bytes=7),
    ExpertSite(name="l.1", layer=1, kind="mlp-all", experts=300, slots=300, k=1),
)
WIDE = tuple(int(n in (7, 299)) for n in range(300))
USAGE = ExpertUsage(
    sites=SITES,
    prefill_tokens=2,
    decode_tokens=1,
    prefill=((2, 1, 0, 1), WIDE),
    decode=((0, 1, 1, 0), (1,) + (0,) * 299),
    check="passed",
    prefill_weights=((1.23456789, 0.5, 0.0, 0.0), (0.1,) * 300),
    decode_weights=((0.0, 12345.678, 0.25, 0.0), (0.1,) * 300),
    prefill_dropped=(0, 0),
    decode_dropped=(0, 2),
    trace=(bytes([0, 3, 0, 1, 1, 2]), np.array([7, 299, 0], "<u2").tobytes()),
    note="unheard of",
)


@pytest.fixture
def record():
    golden = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    return replace(golden, profile=replace(golden.profile, experts=USAGE))


def test_block_and_what_is_read_from_it(record):
    built = block.build(record)
    experts = built["experts"]
    assert experts["sites"][0]["shared"] == 1
    assert "shared" not in experts["sites"][1]
    assert experts["weights"]["prefill"][0] == [1.235, 0.5, 0.0, 0.0]
    assert experts["weights"]["decode"][0] == [0.0, 12350.0, 0.25, 0.0]
    assert (experts["dropped"], experts["trace"]) == ({"prefill": [0, 0], "decode": [0, 2]}, True)
    usage = runs.row_of("t", "t", json.loads(json.dumps(built))).experts
    assert (usage.tokens, usage.trace, usage.check, usage.note) == (schema.Tokens(2, 1), True, "passed", "unheard of")
    assert usage.sites[0] == SITES[0]
    assert (usage.sites[1].shared, usage.sites[1].expert_bytes) == (None, None)
    assert usage.counts.decode[0] == (0, 1, 1, 0)
    assert usage.weights.decode[0] == (0.0, 12350.0, 0.25, 0.0)
    assert usage.dropped == schema.Dropped(prefill=(0, 0), decode=(0, 2))


def test_what_was_not_recorded_is_left_out(record):
    plain = replace(
        USAGE,
        prefill_weights=None,
        decode_weights=None,
        prefill_dropped=None,
        decode_dropped=None,
        trace=None,
        note=None,
    )
    built = block.build(replace(record, profile=replace(record.profile, experts=plain)))
    assert set(built["experts"]) == {"check", "tokens", "sites", "counts"}
    usage = runs.row_of("t", "t", built).experts
    assert (usage.weights, usage.dropped, usage.trace, usage.note) == (None, None, False, None)


def test_the_trace_lies_in_the_sidecar(record, tmp_path):
    run_file = tmp_path / "0001_run.json"
    sidecar.write(run_file, [record])
    arrays = sidecar.read(run_file)
    narrow, wide = (arrays[f"{record.nodeid}|experts|{name}"] for name in ("l.0", "l.1"))
    assert (narrow.dtype, narrow.tolist()) == (np.uint8, [[0, 3], [0, 1], [1, 2]])
    assert (wide.dtype, wide.tolist()) == (np.uint16, [[7], [299], [0]])


def test_a_record_with_a_trace_survives_the_journals_json(record):
    assert msgspec.json.decode(msgspec.json.encode(record), type=PromptRecord) == record


def test_a_large_trace_is_a_few_megabytes(record, tmp_path):
    """64 layers, top-8 of 256, 10,000 tokens; skewed as real routers are (a tenth of the experts has half the load)."""
    generator = np.random.default_rng(0)
    odds = np.r_[np.full(26, 0.5 / 26), np.full(230, 0.5 / 230)]
    layer = generator.choice(256, size=10_000 * 8, p=odds).astype("u1").tobytes()
    sites = tuple(ExpertSite(name=f"l.{n}", layer=n, kind="mlp", experts=256, slots=256, k=8) for n in range(64))
    counts = ((0,) * 256,) * 64
    usage = ExpertUsage(
        sites=sites,
        prefill_tokens=9_000,
        decode_tokens=1_000,
        prefill=counts,
        decode=counts,
        check="passed",
        trace=(layer,) * 64,
    )
    path = sidecar.write(tmp_path / "run.json", [replace(record, profile=replace(record.profile, experts=usage))])
    assert path.stat().st_size < 5.2e6  # 512 B a token uncompressed


def _archive(**changes):
    """Return a sidecar's bytes with one array, in which a field of the archive or of the array's heading is wrong."""
    held = io.BytesIO()
    np.savez_compressed(held, **{"t|0|stamps_ns": np.arange(1000)})
    data = bytearray(held.getvalue())
    if "method" in changes:
        for header, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            start = data.index(header) + at
            data[start : start + 2] = changes["method"].to_bytes(2, "little")
    if "flip" in changes:
        middle = len(data) // 3
        data[middle : middle + 40] = bytes(40)
    if "heading" in changes:
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w") as archive:
            heading = changes["heading"].ljust(118).encode()
            archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(heading).to_bytes(2, "little") + heading)
        data = held.getvalue()
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive",
        b"\x93NUMPY",
        _archive()[:-30],
        _archive(method=99),
        _archive(flip=True),
        _archive(heading="{'descr': '<i8', 'shape': ("),
        _archive(heading="'"),
    ],
    ids=["empty", "text", "array", "cut", "unknown method", "damaged", "open heading", "open text"],
)
def test_a_sidecar_that_cannot_be_read_is_one_error_and_left_closed(tmp_path, data):
    tmp_path.joinpath("run.npz").write_bytes(data)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(StorageError, match=r"^run\.npz cannot be read: .+"):
            sidecar.read(tmp_path / "run.json")
        gc.collect()
    assert not [w for w in warned if w.category is ResourceWarning]  # a file left open
