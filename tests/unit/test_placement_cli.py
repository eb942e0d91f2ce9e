"""`pytest-infer placement` on a stored run: what it prints, its exports, and how it ends."""

import argparse
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from native_rows import native
from test_html_report import Page
from test_sizes import write
from typer.testing import CliRunner

from pytest_infer.analysis.placement import device_map, planning
from pytest_infer.analysis.placement import sizes as model_sizes
from pytest_infer.cli.main import app
from pytest_infer.errors import OptionError
from pytest_infer.measure.experts import dumps
from pytest_infer.records import ExpertSite
from pytest_infer.report.html import page
from pytest_infer.report.placement import exports
from pytest_infer.report.placement import terminal as report
from pytest_infer.storage import runs, sidecar

MIB = 2**20
# Two layers of four experts, top 1; the first expert of the first layer and the last of the second are hot.
HOT = ([7, 1, 1, 1], [1, 1, 1, 7])


def experts(decode=HOT, prefill=([0] * 4, [0] * 4), **changes):
    sites = [
        {
            "name": f"model.layers.{n}.mlp.experts",
            "layer": n,
            "kind": "mlp",
            "experts": 4,
            "slots": 4,
            "k": 1,
            "expert_bytes": MIB,
            **changes.pop("site", {}),
        }
        for n in range(len(decode))
    ]
    tokens = {"prefill": sum(prefill[0]), "decode": sum(decode[0])}
    counts = {"prefill": list(prefill), "decode": list(decode)}
    return {"check": "passed", "tokens": tokens, "sites": sites, "counts": counts, **changes}


@pytest.fixture
def infer(storage, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(app, ["placement", *arguments, f"--storage={storage.folder}"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def add(storage, make_block):
    """Return a function that stores a run of prompts with the usage given for each."""

    def run(*usages, model=None, machine=None, **figures):
        blocks = [
            make_block(
                f"p{n}",
                experts=usage,
                prompt={"content_sha256": f"{n:064}"},
                model={"name": "toy", "parameter_bytes": 10 * MIB, **(model or {})},
                machine=machine,
                **{"kv_cache_bytes": MIB // 2, **figures},
            )
            for n, usage in enumerate(usages)
        ]
        return storage.add(blocks)

    return run


def test_a_budget_in_full(infer, add):
    add(*[experts()] * 4)
    result = infer("--gpu-memory", "5MiB", "--cpu-bandwidth", "10MiB/s", "--gpu-bandwidth", "100MiB/s")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("placement of 0001 ccccccc")
    assert "decode of 4 prompts, 40 tokens" in lines[0]
    assert lines[1].startswith("8 experts of 1.00 MiB in 2 layers: 8.00 MiB, 2.00 MiB of other weights; as loaded")
    # 10 MiB of parameters less 8 experts are dense; half a MiB of KV cache was measured.
    assert lines[2] == (
        "GPU memory 5.00 MiB − 2.00 MiB other weights − 512 KiB KV cache = 2.50 MiB for experts: 2 of 8"
    )
    rows = {line[:34].strip(): line[34:].split("%") for line in lines[4:9]}
    # 14 of the 20 selections of a prompt, in all of them.
    assert [cell.strip() for cell in rows["frequency, over all layers"]] == ["70.0", "70.0", "70–70", ""]
    assert [cell.strip() for cell in rows["random (range: 2 sd of draws)"]][:2] == ["25.0", "25.0"]
    # Of a token's 2 MiB 0.6 are on the CPU: 0.06 + 0.014 + 0.02 s in turns, or the longer of the first two + 0.02.
    assert "a token reads 614 KiB of experts on the CPU and 1.40 MiB on the GPU" in result.stdout
    assert "10.6 tok/s (CPU and GPU in turns), 12.5 tok/s (both at once within a layer)" in result.stdout
    assert len([line for line in lines if line[-1:] and line[-1] in "█▉▊▋▌▍▎▏"]) == 9  # a tenth holds no expert


@pytest.mark.parametrize("columns", [40, 60, 72])
def test_a_narrow_terminal_shows_fewer_columns_and_no_part_of_a_figure(infer, add, monkeypatch, columns):
    add(*[experts()] * 4)
    speeds = ("--gpu-memory=5MiB", "--cpu-bandwidth=10MiB/s", "--gpu-bandwidth=100MiB/s")
    wide = infer(*speeds).stdout
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = infer(*speeds).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert not [line for line in lines if "…" in line]
    shown = [word for line in lines for word in line.split() if word[0].isdigit()]
    assert set(shown) <= set(wide.split())


def test_a_layer_with_several_sets_of_experts_is_one_layer(infer, add):
    usage = experts(HOT * 2, ([0] * 4,) * 4)
    for n, site in enumerate(usage["sites"]):
        site.update(layer=n // 2)
    add(usage, usage, model={"parameter_bytes": 18 * MIB})
    assert "16 experts of 1.00 MiB in 4 MoE sites (2 layers): " in infer("--gpu-memory", "5MiB").stdout


def test_the_bandwidth_that_the_run_probed_stands_for_its_side(infer, add):
    add(*[experts()] * 4, machine={"probe": {"device": "cpu", "read_bandwidth": 10 * MIB}})
    budget = ("--gpu-memory", "5MiB")
    assert "no tok/s: give --gpu-bandwidth (" in infer(*budget).stdout
    result = infer(*budget, "--gpu-bandwidth", "100MiB/s")
    assert "10.6 tok/s (CPU and GPU in turns)" in result.stdout
    assert "CPU: 10.5 MB/s, probed before that run" in result.stdout
    given = json.loads(infer(*budget, "--cpu-bandwidth", "1GB/s", "--format=json").stdout)["bandwidths"]
    assert given == {"cpu": 1e9, "gpu": None, "pcie": None, "probed": []}


def test_rates_that_need_one_bandwidth_are_not_said_to_lack_another(infer, add):
    add(*[experts()] * 4)
    said = " ".join(infer("--gpu-memory=1GiB", "--gpu-bandwidth=100MiB/s").stdout.split())
    assert "predicted decode, at most: 25.0 tok/s" in said
    assert "no tok/s where experts are on both sides: give --cpu-bandwidth (of memory" in said
    assert "tok/s: time = bytes / bandwidth" in said


def test_in_sample_and_held_out_differ_where_prompts_do(infer, add):
    add(experts(([9, 1, 0, 0], [5, 5, 0, 0])), experts(([0, 0, 1, 9], [0, 0, 5, 5])))
    chosen = json.loads(infer("--gpu-memory", "3.5MiB", "--kv-cache", "0.5MiB", "--format", "json").stdout)["chosen"]
    # Both prompts' hottest expert is selected 9 times of 40; planned from one prompt it serves nothing of the other.
    assert chosen["in_sample"]["frequency"] == 9 / 40
    assert chosen["held_out"]["frequency"] == {"mean": 0, "low": 0, "high": 0}
    assert chosen["cpu_bytes_per_token"] == 2 * MIB
    assert chosen["held_out"]["random"]["mean"] == chosen["in_sample"]["random"] == 1 / 8


def test_one_prompt_cannot_be_held_out(infer, add):
    add(experts())
    result = infer("--gpu-memory", "5MiB")
    assert "held out: needs two prompts" in result.stdout
    assert "no tok/s: give --cpu-bandwidth and --gpu-bandwidth" in result.stdout
    assert "they need a trace" in result.stdout
    data = json.loads(infer("--gpu-memory", "5MiB", "--format=json").stdout)
    assert set(data["chosen"]["held_out"].values()) == {None}


def swept(make_block, axis, *told):
    """Return rows of two prompts in a configuration each: a value, an expert's bytes, the second prompt's tokens."""
    blocks = []
    for value, size, tokens in told:
        for name in ("a", "b"):
            usage = experts(HOT if name == "a" else [[tokens, 0, 0, 0]] * 2, site={"expert_bytes": size})
            block = make_block(name, experts=usage, model={"name": "toy", axis: value}) | {"config": {axis: value}}
            blocks.append(native(block, f"bench/t.py::t[{name}-{axis}={value}]"))
    return blocks


def test_an_experts_unknown_size_is_another_than_a_known_one(infer, storage, make_block):
    run = storage.add(swept(make_block, "quantization", ("none", 2 * MIB, 5), ("int4", None, 5)))
    said = "several sizes (quantization=none, quantization=int4): choose with -k TEXT"
    assert said in infer("--gpu-memory=5MiB", "--dense-on=cpu").stderr.splitlines()[-1]
    assert f"No placement: the run's experts have {said}" in Page(page.render(runs.read(run), ())).shown


def test_sizes_that_nothing_else_tells_apart_go_by_their_tests(infer, storage, make_block):
    sizes = {"a": 2 * MIB, "b": None}
    storage.add([make_block(n, experts=experts(site={"expert_bytes": size})) for n, size in sizes.items()])
    refused = infer("--gpu-memory=5MiB", "--dense-on=cpu").stderr.splitlines()[-1]
    assert "several sizes (bench/t.py::t[a], bench/t.py::t[b]): choose with -k TEXT" in refused


def test_a_sweep_of_dtypes_is_one_model_of_several_sizes(infer, storage, make_block):
    """The counts are of one model; whose sizes to plan with is asked. A prompt went on longer in bfloat16."""
    storage.add(swept(make_block, "dtype", ("float32", 2 * MIB, 5), ("bfloat16", MIB, 10)))
    budget = ("--gpu-memory=5MiB", "--dense-on=cpu")
    refused = infer(*budget)
    assert refused.exit_code == 2
    assert "several sizes (dtype=float32, dtype=bfloat16): choose with -k TEXT, or" in refused.stderr.splitlines()[-1]
    of_one = infer(*budget, "-k", "dtype=bfloat16").stdout.splitlines()[0]
    assert of_one.endswith(" · toy bfloat16 · decode of 2 prompts, 20 tokens")
    shown = CliRunner().invoke(app, ["experts", f"--storage={storage.folder}", "--format=json"])
    assert json.loads(shown.stdout)["tokens"]["decode"] == 20
    assert json.loads(shown.stdout)["decode_step_bytes"] == []


def test_two_tests_of_one_prompt_are_one_prompt(infer, storage, make_block):
    same = [make_block(name, experts=experts(), prompt={"content_sha256": "5" * 64}) for name in ("a", "b")]
    storage.add(same)
    assert "1 prompt," in infer("--dense-on=cpu").stdout


def test_all_fits(infer, add):
    add(*[experts()] * 2)
    result = infer("--gpu-memory", "1GiB")
    assert "all 8 fit" in result.stdout
    assert infer("--gpu-memory", "1GiB", "--format=llama.cpp").stdout == "--n-gpu-layers 999\n"


def test_the_experts_of_a_draft_head_are_not_those_of_the_first_layer(infer, add, tmp_path):
    add(*[experts()] * 2)
    stacks = ("model__layers__0", "model__layers__1", "mtp__layers__0")
    shapes = {f"{stack}__mlp__experts__{n}__w1__weight": [3, 4] for stack in stacks for n in range(4)}
    write(tmp_path / "model.safetensors", model__norm__weight=[4], mtp__fc__weight=[4, 8], **shapes)
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}', encoding="utf-8")
    found = json.loads(infer("--model", str(tmp_path), "--format", "json").stdout)["sizes"]
    assert (found["expert_bytes"], found["dense_bytes"]) == ([48, 48], 16)


def test_without_a_budget_there_is_the_sweep(infer, add):
    add(*[experts()] * 2)
    lines = infer().stdout.splitlines()
    assert "GPU memory" not in "".join(lines)
    assert len([line for line in lines if re.match(r" *[0-9.]+ +[0-8] +[0-9.]+ ", line)]) == 10


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--gpu-memory", "3MiB"],
            "--gpu-memory 3.00 MiB leaves 512 KiB after 2.00 MiB of dense weights and 512 KiB of",
        ),
        (["--gpu-memory", "1MiB"], "--gpu-memory 1.00 MiB is 1.50 MiB short after"),
        (["--gpu-memory", "8"], "--gpu-memory '8': write a number with its unit"),
        (["--reserve", "x"], "--reserve 'x': write a number with its unit"),
        (["--reserve", "1GiB", "--kv-cache", "0B"], "--kv-cache, --reserve: of one budget: give --gpu-memory"),
        (["--like", "latest"], "--like: of one budget: give --gpu-memory"),
        *(
            ([f"--{option}="], f"--{option} '': write a number with its unit")
            for option in ("kv-cache", "reserve", "gpu-memory")
        ),
        (["--like=", "--gpu-memory=6MiB"], "no run ''"),
        (["--dtype="], "--dtype is of a model's files: name it with --model"),
        (["--model="], "unknown model ''; known: "),
        (["--dtype=", "--model=reference-moe"], "dtype ''"),
        (["--cpu-bandwidth", "40GB"], "--cpu-bandwidth '40GB': write a number with its unit"),
        (["--phase", "prefill"], "no expert was selected in prefill"),
        (["--format", "llama.cpp"], "--format llama.cpp is for one budget: give --gpu-memory"),
        (["--gpu-memory", "6MiB", "--format", "device-map"], "device-map names every module of the model"),
        (
            ["--gpu-memory", "6MiB", "--format", "llama.cpp", "--dense-on", "cpu"],
            "--format llama.cpp puts all other weights on the GPU: leave out --dense-on cpu",
        ),
        (["--model", "./nowhere"], "./nowhere: no such folder"),
        (["7"], "no run '7' among the 1"),
        (["--export", "config.ini/census.json"], "config.ini/census.json: Not a directory"),
    ],
)
def test_what_cannot_be_is_one_line(infer, add, tmp_path, arguments, line):
    tmp_path.joinpath("config.ini").touch()
    add(*[experts()] * 2)
    result = infer(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (said,) = result.stderr.splitlines()
    assert said.startswith(f"pytest-infer: {line}") or line in said


@pytest.mark.parametrize(
    ("arguments", "remedies"),
    [
        ("", "more memory, or less --kv-cache, or --dense-on cpu"),
        ("--reserve=1MiB", "more memory, or less --kv-cache or --reserve, or --dense-on cpu"),
        ("--kv-cache=0B --reserve=1MiB --format=llama.cpp", "more memory, or less --reserve"),
        ("--dense-on=cpu --reserve=2.5MiB --format=json", "more memory, or less --reserve"),
    ],
)
def test_what_would_make_room_is_offered_and_nothing_else(infer, add, arguments, remedies):
    add(*[experts()] * 2)
    assert infer("--gpu-memory=3MiB", *arguments.split()).stderr.endswith(f" takes 1.00 MiB: give {remedies}\n")


def test_a_device_map_needs_no_room_for_all_other_weights(infer, add, tmp_path):
    """It moves whole layers, whose attention is most of the model here: what is outside and one layer must fit."""
    add(*[experts()] * 2)
    layers = ("model__layers__0", "model__layers__1")
    shapes = {f"{layer}__mlp__experts__{n}__w1__weight": [3, 4] for layer in layers for n in range(4)}
    shapes |= {f"{layer}__self_attn__q_proj__weight": [250] for layer in layers}
    write(tmp_path / "model.safetensors", model__norm__weight=[4], **shapes)
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}', encoding="utf-8")
    words = ("--model", str(tmp_path), "--kv-cache=0B")
    mapped = infer(*words, "--gpu-memory=1300B", "--format=device-map")
    assert json.loads(mapped.stdout)["model.layers.1"] == "cpu"
    assert "0 of 2 whole layers on the GPU (16 B)" in mapped.stderr
    assert (
        "cannot hold 16 B and a layer of 1.16 KiB" in infer(*words, "--gpu-memory=1200B", "--format=device-map").stderr
    )
    assert "and one expert takes 48 B" in infer(*words, "--gpu-memory=1300B").stderr


def test_a_run_without_what_is_asked_for_is_nothing_to_place(infer, add):
    add(experts())
    result = infer("-k", "nothing")
    assert (result.exit_code, result.stdout) == (11, "")
    assert "has no test whose name holds 'nothing'" in result.stderr


def test_a_dense_model_has_no_placement(infer, add):
    add({"absent": "the model is dense: it has no experts to record"})
    assert "no expert usage in run" in (said := infer().stderr)
    assert said.endswith("the model is dense: it has no experts to record\n")


def test_dense_weights_and_cache_on_the_cpu_leave_all_to_the_experts(infer, add):
    add(*[experts()] * 2)
    assert "GPU memory 2.00 MiB = 2.00 MiB for experts: 2 of 8" in infer("--gpu-memory=2MiB", "--dense-on=cpu").stdout


def test_the_census_is_exported(infer, add, tmp_path):
    add(experts(prefill=([2, 0, 0, 0], [0, 2, 0, 0])), experts())
    assert infer("--export", str(tmp_path / "census.json")).exit_code == 0
    found = json.loads((tmp_path / "census.json").read_text(encoding="utf-8"))
    assert [p["counts"]["decode"] for p in found["prompts"]] == [[list(row) for row in HOT]] * 2
    assert found["tokens"] == {"prefill": 2, "decode": 20}
    assert found["experts"][0] == {
        "layer": 0,
        "site": "model.layers.0.mlp.experts",
        "expert": 0,
        "prefill": 2,
        "decode": 14,
        "share": round(16 / 22, 6),
        "bytes": MIB,
    }
    assert [(e["layer"], e["expert"]) for e in found["experts"]] == [(n, e) for n in range(2) for e in range(4)]


def test_a_plain_list_has_the_hottest_first(infer, add):
    add(*[experts(([3, 9, 1, 1], [1, 1, 1, 7]))] * 2)
    result = infer("--gpu-memory", "5.5MiB", "--format", "experts")
    assert result.stdout == "0 1\n1 3\n0 0\n"
    assert result.stderr == "pytest-infer: 3 of 8 experts, 79.2 % of expert reads\n"


def test_llama_cpp_gets_whole_layers_and_is_told_what_that_costs(infer, add):
    add(*[experts()] * 2)
    result = infer("--gpu-memory", "6.5MiB", "--format", "llama.cpp")
    assert result.stdout == "--n-gpu-layers 999 --n-cpu-moe 1\n"
    assert infer("--gpu-memory", "3.5MiB", "--format", "llama.cpp").stdout == "--n-gpu-layers 999 --cpu-moe\n"
    assert "experts of 1 of 2 layers on the GPU, 50.0 % of expert reads; split by expert" in result.stderr
    assert "it would be 80.0 %" in result.stderr
    fast = infer("--gpu-memory=6.5MiB", "--format=llama.cpp", "--cpu-bandwidth=10MiB/s", "--gpu-bandwidth=100MiB/s")
    # Half of a token's 2 MiB of experts is on the CPU, or a fifth; 2 MiB of other weights are on the GPU.
    assert "50.0 % of expert reads, at most 7.69 tok/s; split by expert" in fast.stderr
    assert "80.0 %, at most 13.2 tok/s" in fast.stderr


def test_the_pattern_is_found_in_the_experts_of_its_layers_only():
    expression = re.compile(exports.pattern([1, 12]))
    names = {t: name for t, name in gguf.constants.TENSOR_NAMES.items() if "{bid}" in name}
    routed = {
        gguf.MODEL_TENSOR.FFN_GATE_EXP,
        gguf.MODEL_TENSOR.FFN_UP_EXP,
        gguf.MODEL_TENSOR.FFN_DOWN_EXP,
        *(t for t, name in names.items() if name.endswith(("ffn_gate_up_exps", "chexps"))),
    }
    found = {
        (tensor, layer)
        for tensor, name in names.items()
        for layer in (0, 1, 2, 11, 12, 21, 112)
        if expression.search(f"{name.format(bid=layer)}.weight")
    }
    assert found == {(tensor, layer) for tensor in routed for layer in (1, 12)}


def test_traces_give_the_rates_of_caches(infer, add):
    # Layer 0 alternates between two experts, layer 1 stays with one; the first two of eight tokens are the prompt.
    usage = experts(([3, 3, 0, 0], [6, 0, 0, 0]), ([1, 1, 0, 0], [2, 0, 0, 0]), trace=True)
    path = add(usage, usage)
    arrays = {}
    for n in range(2):
        start = f"bench/t.py::t[p{n}]|experts|model.layers."
        arrays[f"{start}0.mlp.experts"] = np.array([[0], [1]] * 4, dtype=np.uint8)
        arrays[f"{start}1.mlp.experts"] = np.zeros((8, 1), dtype=np.uint8)
    np.savez_compressed(sidecar.path_for(path), **arrays)
    # Four experts fit: two slots a layer hold all that is read; two fit: one slot holds layer 1's.
    for memory, rate in (("4MiB", 1.0), ("2MiB", 0.5)):
        chosen = json.loads(infer("--gpu-memory", memory, "--dense-on=cpu", "--format=json").stdout)["chosen"]
        assert (chosen["lru"], chosen["lfu"]) == (rate, rate)
    shown = infer("--gpu-memory=2MiB", "--dense-on=cpu").stdout
    assert "LRU cache, 1 slots a layer" in shown
    assert "need a trace" not in shown


def test_experts_of_unequal_size_are_said(infer, storage, make_block):
    usage = experts()
    usage["sites"][1]["expert_bytes"] = 2 * MIB
    storage.add([make_block("a", experts=usage, model={"parameter_bytes": 20 * MIB})])
    shown = infer("--gpu-memory=2.5MiB", "--dense-on=cpu").stdout
    assert "8 experts of 1.00 MiB to 2.00 MiB" in shown
    assert "experts differ in size" in shown


def test_a_bar_is_as_long_as_its_share():
    assert report.bar(0) == ""
    assert report.bar(1) == "█" * 16
    assert report.bar(0.5) == "█" * 8
    assert report.bar(1 / 32) == "▌"
    assert report.bar(0.5, 6) == "███"


def split(budget, **changes):
    sites = [
        ExpertSite(name=f"model.layers.{n}.mlp.experts", layer=n, kind="mlp", experts=4, slots=4, k=1) for n in (1, 2)
    ]
    fields = {
        "experts": (10, 10),
        "shared": (0, 0),
        "dense": 130,
        "read": 130,
        "source": "files",
        "layers": {0: 50, 1: 10, 2: 10},
        "outside": {"model.embed_tokens": 40, "model.norm": 20},
        "prefix": "model.layers",
        "tied": True,
        **changes,
    }
    return device_map.split(sites, model_sizes.Sizes(**fields), budget)


def test_a_device_map_fills_layers_from_the_first_and_keeps_room_for_the_largest():
    # 60 outside, three layers of 50. With 209 one stays: beside 110 there must be room for 50 passing through.
    found = split(209)
    assert found.devices == {
        "model.embed_tokens": 0,
        "model.norm": 0,
        "lm_head": 0,
        "model.rotary_emb": 0,
        "model.layers.0": 0,
        "model.layers.1": "cpu",
        "model.layers.2": "cpu",
    }
    assert (found.gpu_layers, found.layers, found.gpu_bytes, found.copied_bytes) == (1, 3, 110, 100)
    assert split(110).gpu_layers == 0
    everything = split(210)
    assert (everything.gpu_layers, everything.copied_bytes) == (3, 0)
    assert "lm_head" not in split(209, tied=False).devices


@pytest.mark.parametrize(
    ("budget", "changes", "line"),
    [
        (109, {}, "cannot hold 60 B and a layer of 50 B"),
        (999, {"prefix": "language.layers"}, "the files name language.layers.N what the model calls model.layers.N"),
        (999, {"layers": {}}, "name its folder with --model"),
    ],
)
def test_a_device_map_that_cannot_be(budget, changes, line):
    with pytest.raises(OptionError, match=line):
        split(budget, **changes)


def test_llama_cpp_gets_a_pattern_where_the_layers_on_the_cpu_are_not_the_first(infer, add):
    """Layer 0 is attention's twin: it takes two experts a token, so its bytes are read more often."""
    usage = experts(([14, 2, 2, 2], [1, 1, 1, 7]))
    usage["sites"][0]["k"] = 2
    add(*[usage] * 2)
    assert infer("--gpu-memory", "6.5MiB", "--format", "llama.cpp").stdout == (
        r"--n-gpu-layers 999 --override-tensor 'blk\.(1)\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU'" + "\n"
    )


class LlamaCppArguments(argparse.ArgumentParser):
    """What common/arg.cpp of llama.cpp takes of these, and which expert tensors then stay on the CPU."""

    def __init__(self):
        super().__init__(exit_on_error=False)
        self.add_argument("-ngl", "--gpu-layers", "--n-gpu-layers", type=int)
        self.add_argument("-cmoe", "--cpu-moe", action="store_true")
        self.add_argument("-ncmoe", "--n-cpu-moe", type=int, default=0)
        self.add_argument("-ot", "--override-tensor", default="")

    def on_cpu(self, line, layers):
        given = self.parse_args(shlex.split(line))
        experts_of = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
        found = [experts_of] if given.cpu_moe else [rf"blk\.{n}{experts_of}" for n in range(given.n_cpu_moe)]
        found += [one.rpartition("=")[0] for one in given.override_tensor.split(",") if one]
        return [n for n in range(layers) if any(re.search(p, f"blk.{n}.ffn_up_exps.weight") for p in found)]


@pytest.mark.parametrize(
    ("memory", "layers"), [("3.5MiB", [2, 3, 4]), ("6.5MiB", [2, 3]), ("10.5MiB", [2]), ("1GiB", [])]
)
def test_llama_cpp_keeps_on_the_cpu_what_the_plan_does(infer, add, memory, layers):
    """Dense layers in front of the experts count for --n-cpu-moe, and have none of these tensors."""
    usage = experts((*HOT, [2, 3, 3, 2]), ([0] * 4,) * 3)
    for n, site in enumerate(usage["sites"]):
        site.update(layer=n + 2, name=f"model.layers.{n + 2}.mlp.experts")
    add(*[usage] * 2, model={"parameter_bytes": 14 * MIB})
    line = infer("--gpu-memory", memory, "--format", "llama.cpp").stdout
    assert [n for n in LlamaCppArguments().on_cpu(line, 5) if n >= 2] == layers


def test_ktransformers_gets_its_options_and_a_file(infer, add, monkeypatch, tmp_path):
    """`int(total * ratio)` experts are the most activated ones: experts-sched-Tutorial.md of ktransformers."""
    monkeypatch.setattr(dumps, "content", lambda counts: json.dumps(counts.tolist()).encode())
    add(*[experts(prefill=([0, 3, 0, 0], [0, 0, 3, 0]))] * 2)
    budget = ("--gpu-memory", "5.5MiB", "--format", "ktransformers", "--export")
    result = infer(*budget, "counts.pt")
    words = shlex.split(result.stdout)
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given["--kt-expert-placement-strategy"] == "frequency"
    assert [path.name for path in tmp_path.glob("*.pt")] == [given["--init-expert-location"]]
    assert json.loads(Path("counts.pt").read_bytes()) == [[14, 2, 2, 2], [2, 2, 2, 14]]
    assert int(8 * float(given["--kt-gpu-experts-ratio"])) == 3
    assert "3 of 8 experts on the GPU" in result.stderr
    # What a plan of another phase places by.
    for phase, counts in (("prefill", [[0, 6, 0, 0], [0, 0, 6, 0]]), ("both", [[14, 8, 2, 2], [2, 2, 8, 14]])):
        assert infer(*budget, "other.pt", "--phase", phase).exit_code == 0
        assert json.loads(Path("other.pt").read_bytes()) == counts
    assert "give --export NAME.pt" in infer("--gpu-memory", "5.5MiB", "--format", "ktransformers").stderr


@pytest.mark.parametrize(("held", "total"), [(1, 3), (2, 3), (1, 7), (5, 6144), (1234, 6144), (6144, 6144), (0, 8)])
def test_a_ratio_gives_back_the_number(held, total):
    made = SimpleNamespace(chosen=SimpleNamespace(held=held), experts=SimpleNamespace(bytes=range(total)))
    ratio = float(f"{planning.PlacementPlan.held_ratio.fget(made):.6g}")
    assert int(total * ratio) == held


@pytest.mark.parametrize(("cpu", "gpu"), [(10, 100), (100, 10)], ids=["cpu slower", "gpu slower"])
def test_a_predicted_rate_has_the_range_of_the_halvings_and_of_a_run(infer, add, cpu, gpu):
    """The hottest expert is the same in both prompts, and read 9 times of 20 in one, 8 in the other."""
    usages = [experts(([9, 1, 0, 0], [5, 5, 0, 0])), experts(([8, 1, 1, 0], [5, 5, 0, 0]))]
    add(*usages, mbu=0.4)
    words = ("--gpu-memory", "3.5MiB", f"--cpu-bandwidth={cpu}MiB/s", f"--gpu-bandwidth={gpu}MiB/s", "--like=latest")
    found = json.loads(infer(*words, "--format=json").stdout)
    low, high = found["chosen"]["decode_throughput"]["in_turns_range"]
    assert low < found["chosen"]["decode_throughput"]["in_turns"] < high
    # Of 2 MiB a token, beside 2 MiB of other weights there.
    rates = [1 / (2 * (1 - s) / cpu + 2 * s / gpu + 2 / gpu) for s in (8 / 20, 9 / 20)]
    assert [low, high] == pytest.approx(sorted(rates))
    assert found["decode_likely"] == pytest.approx([0.4 * low, 0.4 * high])
    said = " ".join(infer(*words).stdout.split())
    assert f"(CPU and GPU in turns, {low:.2f}–{high:.2f})" in said
    assert f"predicted decode, likely: {0.4 * low:.2f} to {0.4 * high:.2f} tok/s, in turns: prompts of run 0001" in said
    assert "reached 40.0 % of their limit" in said
