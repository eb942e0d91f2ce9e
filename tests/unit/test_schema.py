"""The schema of the stored document: what it holds of each record, and how far a file is decoded."""

from dataclasses import fields

import msgspec
import pytest

from pytest_infer import records
from pytest_infer.errors import StorageError
from pytest_infer.storage import runfile, schema


@pytest.mark.parametrize(
    ("part", "record", "elsewhere"),
    [
        (schema.StoredLimits, records.Limits, set()),
        (schema.StoredPrompt, records.PromptInfo, set()),
        (schema.StoredWork, records.Work, set()),
        (schema.Model, records.ModelInfo, {"load"}),
        (schema.Probe, records.MachineProbe, set()),
        (schema.Machine, records.MachineInfo, set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_all_of_a_record_is_in_the_schema(part, record, elsewhere):
    assert set(part.__struct_fields__) == {field.name for field in fields(record)} - elsewhere
    assert part() == msgspec.json.decode(b"{}", type=part), "an older file may lack any of it"


def test_a_file_is_decoded_as_far_as_is_asked(storage, make_block):
    whole, damaged, unread = make_block("a"), make_block("b"), make_block("c")
    damaged["metrics"]["ttft_s"]["value"] = None
    unread["output"]["equal"] = "perhaps"
    path = storage.add([whole])
    assert [test for test, _ in runfile.read(path, runfile.ALL).tests()] == ["bench/t.py::t[a]"]
    path = storage.add([damaged])
    assert len(runfile.read(path, runfile.HEAD).benchmarks) == 1
    with pytest.raises(StorageError, match=f"^{path}: not a run of pytest-benchmark: .*metrics") as raised:
        runfile.read(path, runfile.ROWS)
    assert "\n" not in str(raised.value)
    path = storage.add([unread])
    assert len(runfile.read(path, runfile.ROWS).benchmarks) == 1
    with pytest.raises(StorageError, match=f"^{path}: not a run of pytest-benchmark: .*output.equal"):
        runfile.read(path, runfile.ALL)


@pytest.mark.parametrize("depth", [runfile.HEAD, runfile.ROWS, runfile.ALL], ids=["head", "rows", "all"])
@pytest.mark.parametrize("shape", [{}, {"model": "m"}], ids=["as ours", "another"])
def test_a_newer_schema_is_named_at_every_depth(storage, make_block, depth, shape):
    path = storage.add([{**make_block(), "schema": 2, **shape}])
    with pytest.raises(StorageError, match="schema 2 is newer than this pytest-infer reads; upgrade it"):
        runfile.read(path, depth)
