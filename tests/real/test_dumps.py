"""Counts as SGLang records them and ktransformers reads them: what is written is read as their loaders read it."""

import json

import numpy as np
import pytest
from lazily import torch

from pytest_infer.analysis.experts import imported, source
from pytest_infer.errors import OptionError, StorageError
from pytest_infer.measure.experts import dumps
from pytest_infer.records import ExpertSite
from pytest_infer.storage.schema import Counts, Tokens

pytestmark = pytest.mark.real

DECODE = [[7, 1, 1, 1], [1, 1, 2, 6]]


def sglang(path):
    """Write what `_StatAccumulator.dump` of SGLang's expert_distribution.py writes: passes, layers, experts."""
    passes = torch.tensor([[[0] * 4, [3, 1, 0, 0], [1, 0, 1, 2]], [[0] * 4, [4, 0, 1, 1], [0, 1, 1, 4]]])
    others = {"rank": 0, "average_utilization_rate_over_window": None}
    torch.save({**others, "logical_count": passes.to(torch.int32)}, path)
    return path


def masks(path, ratio):
    """Return which experts ktransformers' SGLang puts on the GPU: kt_ep_wrapper.py, and kt_kernel's experts_base.py."""
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    counts = loaded["logical_count"]
    counts = counts.sum(dim=0) if counts.dim() == 3 else counts
    chosen = torch.topk(counts.view(-1).float(), k=int(counts.numel() * ratio), largest=True, sorted=False).indices
    mask = torch.zeros(counts.numel(), dtype=torch.bool)
    mask[chosen] = True
    return mask.view(counts.shape)


def census(slots=(4, 4), layers=(1, 2)):
    sites = tuple(
        ExpertSite(name=f"model.layers.{n}.mlp.experts", layer=n, experts=held, slots=held, k=1)
        for n, held in zip(layers, slots, strict=True)
    )
    rows = tuple(tuple(row[:held]) for row, held in zip(DECODE, slots, strict=True))
    counts = Counts(prefill=tuple((0,) * held for held in slots), decode=rows)
    prompt = source.CarriedPrompt(name="p", tokens=Tokens(prefill=0, decode=10), counts=counts)
    return source.CensusFile(schema=source.SCHEMA, sites=sites, prompts=(prompt,), model="m")


def test_what_sglang_recorded_is_summed_over_its_passes(tmp_path):
    found = dumps.read(sglang(tmp_path / "expert_distribution_recorder_1.pt"))
    assert found.dtype == np.int64
    assert found.tolist() == [[0] * 4, [7, 1, 1, 1], [1, 1, 2, 6]]
    taken = imported.census([tmp_path / "expert_distribution_recorder_1.pt"], census().sites, "m")
    assert [list(row) for row in taken.prompts[0].counts.decode] == DECODE
    assert taken.prompts[0].tokens == Tokens(prefill=0, decode=10)


def test_ktransformers_reads_what_is_written(tmp_path):
    path = tmp_path / "counts.pt"
    path.write_bytes(imported.file_of_counts(source.of_census(census(), tmp_path / "census.json")))
    assert masks(path, 2 / 12).tolist() == [[False] * 4, [True, False, False, False], [False, False, False, True]]
    # And SGLang's own --init-expert-location, which also takes JSON: compute_initial_expert_location_metadata.
    held = torch.load(path, weights_only=True)
    assert set(held) == {"logical_count"}
    assert json.dumps(held["logical_count"].tolist())
    assert dumps.read(path).tolist() == [[0] * 4, *DECODE]


def test_layers_of_several_sets_have_no_such_file(tmp_path):
    for held in (census(slots=(4, 3)), census(layers=(1, 1))):
        with pytest.raises(OptionError, match=r"take \.json"):
            imported.file_of_counts(source.of_census(held, tmp_path))


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: path.write_bytes(b"no"), "no file of torch.save"),
        (lambda path: torch.save({"records": []}, path), "record with --expert-distribution-recorder-mode stat"),
        (lambda path: torch.save({"logical_count": torch.zeros(3)}, path), "no `logical_count` of layers and experts"),
        (lambda path: torch.save({"logical_count": -torch.ones(2, 3)}, path), "negative or no numbers"),
        (lambda path: torch.save({"logical_count": torch.full((2, 3), torch.nan)}, path), "negative or no numbers"),
        (lambda path: torch.save(Evil(), path), "no file of torch.save"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: None, "No such file"),
    ],
)
def test_what_is_no_recording_is_one_line_and_runs_nothing(tmp_path, capsys, write, said):
    path = tmp_path / "a.pt"
    write(path)
    with pytest.raises(StorageError, match=said):
        dumps.read(path)
    assert capsys.readouterr().out == ""
