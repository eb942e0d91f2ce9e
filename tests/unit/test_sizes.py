"""Sizes of a model's parts: from safetensors headers, and from what a run stored."""

import json
import struct
from pathlib import Path

import pytest

import pytest_infer
from pytest_infer.analysis.placement import sizes
from pytest_infer.engines.checkpoint import tensors
from pytest_infer.errors import ModelError
from pytest_infer.records import ExpertSite

REFERENCE = Path(pytest_infer.__file__).parent / "engines" / "data" / "reference-moe"
BYTES = {"F32": 4, "BF16": 2, "U8": 1}


def site(layer, experts=2, **changes):
    fields = {"name": f"model.layers.{layer}.mlp.experts", "kind": "mlp", "slots": experts, "k": 1, **changes}
    return ExpertSite(layer=layer, experts=experts, **fields)


def write(path, dtype="F32", **shapes):
    """Write a safetensors file of zeros; names have __ for a dot."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin = end
        count = 1
        for dimension in shape:
            count *= dimension
        end += count * BYTES[dtype]
        header[name.replace("__", ".")] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def read(folder, *sites):
    return sizes.of_tensors(tensors.of_folder(folder), sites, "there")


def test_the_shipped_model():
    found = read(REFERENCE, *(site(n, 8) for n in range(4)))
    # Three matrices of 128 x 192 in bfloat16.
    assert found.experts == (3 * 128 * 192 * 2,) * 4
    assert found.shared == (0, 0, 0, 0)
    # Router 8 x 192, two norms, q and o 192 x 192, k and v 64 x 192.
    assert found.layers == dict.fromkeys(range(4), 2 * 192 * (8 + 2 + 2 * 192 + 2 * 64))
    assert found.outside == {"model.embed_tokens": 2 * 4096 * 192, "model.norm": 2 * 192}
    assert found.tied
    total = sum(t.bytes for t in tensors.of_folder(REFERENCE))
    assert found.dense == found.read == total - 32 * found.experts[0]
    assert found.prefix == sizes.stack(site(0)) == "model.layers"
    assert found.source == "files of there (BF16)"


def test_stacked_experts_shared_ones_and_an_untied_head(tmp_path):
    write(
        tmp_path / "model.safetensors",
        model__embed_tokens__weight=[10, 4],
        lm_head__weight=[10, 4],
        model__norm__weight=[4],
        model__layers__0__mlp__up__weight=[4, 4],  # a dense layer
        model__layers__1__mlp__experts__gate_up_proj=[2, 4, 6],
        model__layers__1__mlp__experts__down_proj=[2, 3, 4],
        model__layers__1__mlp__experts__down_proj_bias=[2, 4],
        model__layers__1__mlp__shared_experts__up__weight=[5, 4],
        model__layers__1__mlp__shared_expert_gate__weight=[1, 4],
        model__layers__1__mlp__gate__weight=[2, 4],
    )
    found = read(tmp_path, site(1))
    assert found.experts == (4 * (24 + 12 + 4),)
    assert found.shared == (80,)
    assert found.layers == {0: 64, 1: 80 + 16 + 32}
    assert found.dense == 160 + 160 + 16 + 64 + 128
    # An input embedding of its own is looked up, a row a token.
    assert found.read == found.dense - 160
    assert not found.tied


def test_an_index_names_the_files(tmp_path):
    write(tmp_path / "a.safetensors", model__layers__0__mlp__experts__0__w1__weight=[3, 4])
    write(tmp_path / "b.safetensors", model__layers__0__mlp__experts__1__w1__weight=[3, 4], model__norm__weight=[4])
    write(tmp_path / "stray.safetensors", model__layers__0__mlp__experts__2__w1__weight=[3, 4])
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert read(tmp_path, site(0)).experts == (48,)


def test_a_draft_head_that_the_model_never_ran_is_left_out(tmp_path):
    names = {f"model__layers__{n}__mlp__experts__{e}__w1__weight": [3, 4] for n in (0, 1) for e in (0, 1)}
    write(tmp_path / "model.safetensors", **names, model__layers__1__norm__weight=[4])
    found = read(tmp_path, site(0))
    assert (found.experts, found.dense) == ((48,), 0)


def test_two_sites_in_a_layer_are_told_by_their_names(tmp_path):
    write(
        tmp_path / "model.safetensors",
        model__layers__0__mlp__experts__weight=[2, 4],
        model__layers__0__attn__experts__weight=[2, 6],
    )
    both = [site(0), site(0, name="model.layers.0.attn.experts", kind="attention")]
    assert read(tmp_path, *both).experts == (16, 24)


def test_experts_that_a_checkpoint_calls_otherwise(tmp_path):
    # transformers renames granitemoe's tensors when it loads them.
    write(
        tmp_path / "model.safetensors",
        model__layers__0__block_sparse_moe__input_linear__weight=[2, 6, 4],
        model__layers__0__block_sparse_moe__output_linear__weight=[2, 4, 3],
        model__layers__0__shared_mlp__input_linear__weight=[6, 4],
    )
    found = read(tmp_path, site(0, name="model.layers.0.block_sparse_moe.experts"))
    assert found.experts == (4 * (24 + 12),)
    assert found.shared == (4 * 24,)


def test_a_tower_for_images_is_no_layer_of_the_text_and_not_read(tmp_path):
    write(
        tmp_path / "model.safetensors",
        model__language_model__layers__0__mlp__experts__weight=[2, 4],
        model__language_model__layers__0__norm__weight=[4],
        model__vision_tower__encoder__layers__0__mlp__weight=[5, 4],
        model__embed_tokens__weight=[3, 4],
    )
    found = read(tmp_path, site(0, name="model.language_model.layers.0.mlp.experts"))
    assert found.layers == {0: 16}
    assert found.prefix == "model.language_model.layers"
    assert found.dense == 16 + 80 + 48
    assert found.read == 16 + 48


def test_another_way_to_the_layers_is_known_by_their_number(tmp_path):
    write(tmp_path / "model.safetensors", language__model__layers__0__moe__experts__weight=[2, 4], vision__norm=[4])
    found = read(tmp_path, site(0))
    assert found.experts == (16,)
    assert found.prefix == "language.model.layers"


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ({"model__layers__0__mlp__up__weight": [4, 4]}, "no experts of layer 0 in the files"),
        ({f"model__layers__0__mlp__experts__{e}__w": [4] for e in range(3)}, "layer 0 has 3 experts, the run 2"),
        ({"model__layers__0__mlp__experts__w": [5, 4]}, "layer 0 has 5 experts, the run 2"),
    ],
)
def test_another_model_is_refused(tmp_path, names, line):
    write(tmp_path / "model.safetensors", **names)
    with pytest.raises(ModelError, match=line):
        read(tmp_path, site(0))


def headed(header):
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("model.safetensors", b"", "not a safetensors file"),
        ("model.safetensors", b"\xff" * 8, "its header would be"),
        ("model.safetensors", struct.pack("<Q", 4) + b"null", "not a safetensors file"),
        ("model.safetensors", struct.pack("<Q", 9) + b'{"a": {}}', "not a safetensors file"),
        ("model.safetensors", headed(b'{"\xff": {}}'), "not a safetensors file: not UTF-8"),
        ("model.safetensors", headed(b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}"), "nested too deeply"),
        ("model.safetensors", headed(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}'), ">= 0"),
        ("model.safetensors", headed(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}'), "ends before"),
        ("model.safetensors", headed(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}'), "length"),
        ("pytorch_model.bin", b"x", r"sizes are read from .safetensors files only \(found: .bin\)"),
        ("model.gguf", b"x", r"sizes are read from .safetensors files only \(found: .gguf\)"),
        ("readme.txt", b"x", r"sizes are read from .safetensors files only \(found: none\)"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=line):
        tensors.of_folder(tmp_path)


def test_a_file_cut_short_is_said(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, a=[10])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="cut short"):
        tensors.of_folder(tmp_path)


def test_a_file_that_the_index_names_and_is_not_there(tmp_path):
    index = {"weight_map": {"x": "gone.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match=r"gone\.safetensors: No such file"):
        tensors.of_folder(tmp_path)


def test_what_a_run_stored():
    sites = [site(0, expert_bytes=100), site(1, expert_bytes=50, shared=1, shared_bytes=30)]
    found = sizes.of_run(sites, 1000)
    assert (found.experts, found.shared, found.dense, found.read) == ((100, 50), (0, 30), 700, 700)
    # 200 of the other 700 are an embedding that is only looked up.
    assert sizes.of_run(sites, 1000, 800).read == 500
    assert sizes.of_run(sites, 1000, 800).dense == 700
    assert sizes.of_run(sites, None).dense is None
    with pytest.raises(ModelError, match="name the model with --model"):
        sizes.of_run([site(0)], 1000)
