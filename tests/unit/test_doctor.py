"""The doctor's figures against bytes that are there, sums done by hand, and a fake control group's limit."""

import dataclasses
import json
import struct
import time
from pathlib import Path

import not_files
import pytest
from typer.testing import CliRunner

from pytest_infer.analysis.doctor import kv_cache, requirements
from pytest_infer.analysis.doctor import ranks as division
from pytest_infer.analysis.doctor.requirements import Fit, Room
from pytest_infer.cli import doctor as doctor_command
from pytest_infer.cli.main import app
from pytest_infer.engines.bundled import cache
from pytest_infer.engines.checkpoint import source
from pytest_infer.errors import ModelError, OptionError
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.measure.machine import description, host, probe
from pytest_infer.records import MachineInfo, MachineProbe
from pytest_infer.storage import cache_file, probes

GIB = 2**30
PHI_TINY = {
    "model_type": "phimoe",
    "hidden_size": 4096,
    "intermediate_size": 448,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.ENV, str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")


def folder_of(path, config):
    path.mkdir(exist_ok=True)
    path.joinpath("config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def write_safetensors(path, shapes, kind="BF16", size=2):
    header, end = {}, 0
    for name, shape in shapes.items():
        count = size
        for n in shape:
            count *= n
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    return end


def run(monkeypatch, *arguments, limit=24 * GIB, available=20 * GIB, governor=None):
    info = MachineInfo(
        cpu="Fast 1000",
        logical_cores=2,
        physical_cores=2,
        affinity_cores=2,
        quota_cores=None,
        usable_cores=2.0,
        memory_bytes=24 * GIB,
        memory_limit_bytes=limit,
        system="Linux",
        kernel="6",
        architecture="x86_64",
        python="CPython 3.12",
        governor=governor,
    )
    monkeypatch.setattr(description, "describe", lambda: info)
    monkeypatch.setattr(host, "describe", lambda: host.Host(available_bytes=available))
    return CliRunner().invoke(app, ["doctor", *arguments])


def row(built, dtype):
    return next(need for need in built["model"]["needs"] if need["dtype"] == dtype)


def made_probe(threads):
    return MachineProbe(
        threads=threads,
        read_bandwidth=10e9,
        read_bandwidth_spread=0.05,
        flops={"float32": 100e9},
        caches={},
        at_ns=1,
        boot=probe.boot(),
    )


def test_a_probe_made_now_gives_the_ceiling_and_is_kept(monkeypatch):
    asked = []
    monkeypatch.setattr(probe, "measure", lambda threads: asked.append(threads) or made_probe(threads))
    command = ("--model", "reference-moe", "--format", "json")
    assert "decode_ceiling" not in row(json.loads(run(monkeypatch, *command).output), "float32")
    now = row(json.loads(run(monkeypatch, *command, "--probe").output), "float32")
    assert now["decode_ceiling"] == pytest.approx(10e9 / now["step_bytes"])
    assert row(json.loads(run(monkeypatch, *command).output), "float32") == now
    assert asked == [2]


HOUR_NS = 3600 * 10**9


@pytest.fixture
def booted(monkeypatch):
    """A machine that has been up for ten days."""
    monkeypatch.setattr(doctor_command.time, "clock_gettime", lambda _clock: 240 * 3600.0, raising=False)
    monkeypatch.setattr(doctor_command.time, "monotonic", lambda: 240 * 3600.0)


def kept(hours=3.0, threads=2, **changes):
    made = dataclasses.replace(made_probe(threads), at_ns=time.time_ns() - round(hours * HOUR_NS), **changes)
    # As an older version kept it, which did not ask how far it scatters.
    cache_file.write(probes.NAME, {probes.key(threads): made})
    return made


def never(_threads):
    raise AssertionError("probed again")


def probing(monkeypatch, *answers):
    """Let the machine be probed with these answers in turn; return how often it was."""
    left, asked = list(answers), []
    monkeypatch.setattr(probe, "measure", lambda threads: asked.append(threads) or left.pop(0))
    return asked


def test_the_age_and_the_scatter_of_a_kept_probe_are_shown(monkeypatch, booted):
    monkeypatch.setattr(probe, "measure", never)
    kept()
    assert "10.0 GB/s ± 5.00 % with 2 threads, 3 h ago" in run(monkeypatch).output.replace("\n", " ")
    assert json.loads(run(monkeypatch, "--format=json").output)["probe_age_s"] == pytest.approx(3 * 3600, abs=60)
    kept(hours=0.0, threads=1)
    assert "with 1 thread " in run(monkeypatch).output.replace("\n", " ") + " "
    kept(hours=-5)
    assert "the clock was set since" in run(monkeypatch).output.replace("\n", " ")


@pytest.mark.parametrize(
    ("doubtful", "why"),
    [
        ({"read_bandwidth": 1e9, "read_bandwidth_spread": 0.41}, "it was disturbed (1.00 GB/s ± 41.0 %)"),
        ({"waited": 0.3}, "it was disturbed (10.0 GB/s while its threads waited 30.0 % of the time)"),
        ({"hours": 50}, "it is 2 days old"),
        ({"governor": "powersave"}, "the frequency governor was powersave then and is performance now"),
    ],
    ids=["scatters", "waited", "old", "governor"],
)
def test_a_kept_probe_that_is_in_doubt_is_made_again(monkeypatch, booted, doubtful, why):
    kept(**doubtful)
    now = dataclasses.replace(made_probe(2), at_ns=time.time_ns(), read_bandwidth=44e9, governor="performance")
    asked = probing(monkeypatch, now)
    output = " ".join(run(monkeypatch, governor="performance").output.split())
    assert "44.0 GB/s ± 5.00 % with 2 threads" in output
    assert f"probed again, as the kept probe was in doubt: {why}" in output
    assert asked == [2]
    # It is the one that is kept.
    monkeypatch.setattr(probe, "measure", never)
    assert "44.0 GB/s" in run(monkeypatch, governor="performance").output


@pytest.mark.parametrize(
    "answer",
    [Unavailable("PyTorch cannot be loaded"), dataclasses.replace(made_probe(2), read_bandwidth_spread=0.9)],
    ids=["no torch", "disturbed again"],
)
def test_a_probe_that_is_in_doubt_is_not_used_where_there_is_no_other(monkeypatch, booted, answer):
    kept(read_bandwidth_spread=0.41)
    probing(monkeypatch, *[answer] * 3)
    done = run(monkeypatch, "--model", "reference-moe", "--format", "json")
    built = json.loads(done.output)
    assert done.exit_code == 0
    assert "probe" not in built
    assert "the kept probe is not used: it was disturbed" in built["probe_note"]
    assert "decode_ceiling" not in row(built, "float32")


def test_a_probe_that_contradicts_the_kept_one_is_made_once_more(monkeypatch, booted):
    kept(read_bandwidth=90e9)
    slow, fast = (
        dataclasses.replace(made_probe(2), at_ns=time.time_ns(), read_bandwidth=rate) for rate in (30e9, 50e9)
    )
    asked = probing(monkeypatch, slow, fast)
    output = " ".join(run(monkeypatch, "--probe").output.split())
    assert "50.0 GB/s ± 5.00 % with 2 threads" in output
    assert "read 30.0 GB/s and 50.0 GB/s now and 90.0 GB/s 3 h ago" in output
    assert asked == [2, 2]
    asked = probing(monkeypatch, dataclasses.replace(fast, read_bandwidth=51e9))
    assert "ago" not in run(monkeypatch, "--probe").output
    assert asked == [2]


def test_a_probe_that_cannot_be_made_is_one_line(monkeypatch):
    monkeypatch.setattr(probe, "measure", lambda threads: Unavailable("too little memory is free"))
    done = run(monkeypatch, "--probe")
    assert done.exit_code == 2
    assert "too little memory is free" in done.output


def test_the_embedded_model_agrees_with_its_bytes(monkeypatch):
    done = run(monkeypatch, "--model", "reference-moe", "--format", "json")
    assert done.exit_code == 0, done.output
    built = json.loads(done.output)
    stored = source.find("reference-moe").files[0].stat().st_size
    assert row(built, "bfloat16")["weights_bytes"] == pytest.approx(stored, rel=0.01)
    assert row(built, "float32")["weights_bytes"] == pytest.approx(2 * stored, rel=0.01)
    assert built["model"]["chosen"] == "float32"
    # 4 layers x keys and values x 2 heads x 32 x 2048 tokens x 4 bytes
    assert row(built, "float32")["kv_bytes"] == 4 * 2 * 2 * 32 * 2048 * 4


def test_a_sharded_folder_agrees_with_its_bytes(tmp_path):
    folder = folder_of(tmp_path / "sharded", {**PHI_TINY, "model_type": "unheard of", "torch_dtype": "bfloat16"})
    first = write_safetensors(folder / "model-00001-of-00002.safetensors", {"model.embed_tokens.weight": [512, 64]})
    second = write_safetensors(folder / "model-00002-of-00002.safetensors", {"lm_head.weight": [512, 64], "b": [7]})
    names = {"model.embed_tokens.weight": 1, "lm_head.weight": 2, "b": 2}
    index = {"weight_map": {name: f"model-{n:05}-of-00002.safetensors" for name, n in names.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    needs = requirements.of(source.find(str(folder)), Room(limit_bytes=GIB))
    assert needs.chosen.dtype == "bfloat16"
    assert needs.chosen.weights_bytes == first + second == 2 * (2 * 512 * 64 + 7)
    # blocks of 34 and 18 bytes for 32 weights, and the seven numbers in float32
    by_dtype = {need.dtype: need.weights_bytes for need in needs.needs}
    assert by_dtype["int8"] == 2 * 512 * 64 // 32 * 34 + 28
    assert by_dtype["int4"] == 2 * 512 * 64 // 32 * 18 + 28


def test_a_shard_that_is_missing_is_named(tmp_path):
    folder = folder_of(tmp_path / "m", PHI_TINY)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"gone\.safetensors is missing"):
        source.find(str(folder))


def test_a_gguf_file_agrees_with_its_bytes(tmp_path):
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    for add, value in (
        (writer.add_block_count, 2),
        (writer.add_embedding_length, 64),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 2),
        (writer.add_context_length, 128),
    ):
        add(value)
    weights = numpy.ones((4096, 64), dtype=numpy.float32)
    blocks = gguf.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", numpy.ones(64, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    needs = requirements.of(source.find(str(path)), Room(limit_bytes=GIB))
    assert needs.chosen.dtype == "stored"
    assert needs.chosen.weights_bytes == pytest.approx(path.stat().st_size, rel=0.01)
    assert needs.parameters == 4096 * 64 + 64
    # Q8_0 is what int8 is computed as.
    assert next(n.weights_bytes for n in needs.needs if n.dtype == "int8") == needs.chosen.weights_bytes
    assert needs.chosen.kv_bytes == 2 * 2 * 2 * 16 * 128 * 2


def test_what_is_here_has_no_revisions(tmp_path):
    tmp_path.joinpath("x.gguf").write_bytes(b"GGUF")
    for name in (str(tmp_path / "x.gguf"), str(tmp_path), "reference-moe"):
        with pytest.raises(ModelError, match="has no revisions: leave out the revision v1"):
            source.find(name, "v1")


def test_the_disk_is_that_of_the_hubs_cache(tmp_path, monkeypatch):
    held = source.Checkpoint(name="owner/name", source=source.ModelSource.CONFIG, config=PHI_TINY)
    monkeypatch.setattr(source, "find", lambda *of: held)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "not there" / "hub"))
    asked = []
    usage = doctor_command.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor_command.shutil, "disk_usage", lambda place: asked.append(place) or usage)
    run(monkeypatch, "--model", "owner/name")
    assert asked == [tmp_path]


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K", "IQ3_S", "MXFP4", "BF16", "TQ1_0"])
def test_block_sizes_are_those_of_the_gguf_package(name):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    from pytest_infer.engines.checkpoint import gguf_header

    assert gguf_header.BLOCKS[kind] == (name, *gguf.GGML_QUANT_SIZES[kind])


def test_a_cut_or_foreign_gguf_is_one_line(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(ModelError, match="not a GGUF file"):
        source.find(str(path))
    key = b"general.alignment"
    aligned = struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, len(key)) + key + struct.pack("<II", 4, 0)
    path.write_bytes(aligned)
    with pytest.raises(ModelError, match="aligned to 0"):
        source.find(str(path))


def header(*parts, tensors=0, keys=0):
    return struct.pack("<4sIQQ", b"GGUF", 3, tensors, keys) + b"".join(parts)


def text(content):
    return struct.pack("<Q", len(content)) + content


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "content",
    [
        header(keys=2**63),
        header(struct.pack("<Q", 2**62), keys=1),
        header(text(b"k"), struct.pack("<IIQ", 9, 0, 2**62), keys=1),
        header(text(b"k"), struct.pack("<IIQ", 9, 8, 2**62), keys=1),
        header(text(b"k"), struct.pack("<I", 9), struct.pack("<IQ", 9, 1) * 5000, keys=1),
        header(text(b"k\xff"), struct.pack("<II", 4, 0), keys=1),
        header(text(b"t"), struct.pack("<I", 2**31), bytes(10_000), tensors=1),
        header(text(b"k"), struct.pack("<I", 77), keys=1),
    ],
    ids=["keys", "a long name", "numbers", "texts", "nesting", "no UTF-8", "dimensions", "an unknown type"],
)
def test_a_gguf_header_that_asks_for_too_much_is_one_line(tmp_path, content):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a GGUF file") as caught:
        source.find(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", ["99999999999", "\u00b2", "00000"])
def test_a_part_of_a_split_gguf_is_believed_within_reason(tmp_path, count):
    path = tmp_path / f"x-00001-of-{count}.gguf"
    path.write_bytes(header())
    assert source.find(str(path)).files == (path,)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b'{"a": "\xff"}',
        b"[]",
        b"7",
        b"",
        b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        b'{"a": 1e999}',
    ],
)
def test_a_damaged_config_is_one_line(tmp_path, content):
    folder = folder_of(tmp_path / "model", PHI_TINY)
    folder.joinpath("config.json").write_bytes(content)
    result = CliRunner().invoke(app, ["doctor", "--model", str(folder)])
    assert result.exit_code == 2, result.output
    assert "not a config" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "more",
    [
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": "many"},
        {"hidden_size": 10**30},
        {"hidden_size": [4096]},
        {"layer_types": 7},
        {"layer_types": [[]] * 32},
        {"layer_types": {"a": 1}},
        {"mlp_only_layers": 7},
        {"text_config": [1]},
        {"num_key_value_heads": "four"},
        {"sliding_window": {}},
        {"dtype": {}},
        {"model_type": []},
        {"max_position_embeddings": -1},
    ],
    ids=str,
)
def test_a_config_of_other_types_ends_in_what_is_known(tmp_path, more):
    folder = folder_of(tmp_path / "model", PHI_TINY | more)
    result = CliRunner().invoke(app, ["doctor", "--model", str(folder)])
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code in (0, 1, 2)


@not_files.needs_posix
@pytest.mark.timeout(120)
@pytest.mark.parametrize("make", not_files.EVERY, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json", "x.gguf"])
def test_what_is_no_file_of_a_model_is_never_opened(tmp_path, make, name):
    folder = folder_of(tmp_path / "model", PHI_TINY)
    folder.joinpath(name).unlink(missing_ok=True)
    make(folder / name)
    result = CliRunner().invoke(app, ["doctor", "--model", str(folder)])
    assert isinstance(result.exception, SystemExit | None), result.exception


def test_phi_tiny_moe_by_its_config_alone(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "phi-tiny", PHI_TINY)
    attention = 2 * 4096 * 2048 + 2 * 4096 * 512
    layer = attention + 16 * 3 * 4096 * 448 + 16 * 4096 + 4 * 4096
    parameters = 2 * 32064 * 4096 + 32 * layer + 2 * 4096
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        done = run(monkeypatch, "--model", str(folder), "--dtype", dtype, "--format", "json")
        assert done.exit_code == 0, done.output
        model = json.loads(done.output)["model"]
        assert model["parameters"] == parameters == pytest.approx(3.755e9, rel=0.001)
        need = row(json.loads(done.output), dtype)
        assert need["weights_bytes"] == size * parameters
        assert need["kv_bytes"] == 32 * 2 * 4 * 128 * 4096 * size
        assert need["verdict"] == "fits"
    # Measured with random weights: 14,766 MiB at the peak in float32, 67 tokens (shared/design/models.md).
    few = requirements.of(source.find(str(folder)), Room(limit_bytes=24 * GIB), context=67, dtype="float32")
    assert few.chosen.minimum_bytes / 2**20 == pytest.approx(14766, rel=0.01)
    active = parameters - 32064 * 4096 - 32 * 14 * 3 * 4096 * 448
    assert few.active_parameters == active
    assert few.chosen.step_bytes == 4 * (active + 32 * 2 * 4 * 128 * 67)


def needs_of(folder, config, shapes):
    write_safetensors(folder_of(folder, config).joinpath("model.safetensors"), shapes)
    return requirements.of(source.find(str(folder)), Room(limit_bytes=GIB), context=1)


MOE = {
    "model_type": "granitemoe", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_local_experts": 8, "num_experts_per_tok": 2, "dtype": "bfloat16",
}  # fmt: skip


def test_experts_that_a_checkpoint_calls_otherwise(tmp_path):
    block = "model.layers.0.block_sparse_moe"
    shapes = {"model.embed_tokens.weight": [10, 4], f"{block}.router.layer.weight": [8, 4]}
    stacks = {f"{block}.input_linear.weight": [8, 6, 4], f"{block}.output_linear.weight": [8, 4, 3]}
    found = needs_of(tmp_path / "granite", MOE, shapes | stacks)
    assert found.parameters == 40 + 32 + 8 * 36
    assert found.active_parameters == 40 + 32 + 2 * 36


def test_experts_that_are_not_found_are_no_dense_model(tmp_path):
    found = needs_of(tmp_path / "odd", MOE, {"model.embed_tokens.weight": [10, 4], "layers.0.mlp.odd.weight": [8, 24]})
    assert found.parameters == 40 + 192
    assert (found.active_parameters, found.chosen.step_bytes) == (None, None)


def test_a_tower_for_images_takes_memory_and_is_not_read(tmp_path):
    dense = {key: MOE[key] for key in MOE if "experts" not in key} | {"model_type": "gemma3"}
    shapes = {"model.embed_tokens.weight": [10, 4], "model.vision_tower.layers.0.mlp.weight": [16, 4]}
    found = needs_of(tmp_path / "seeing", dense, shapes)
    assert found.chosen.weights_bytes == 2 * (40 + 64)
    assert found.active_parameters == 40
    assert found.chosen.step_bytes == 2 * 40 + 2 * 8  # and keys and values of one token


@pytest.mark.parametrize(
    "head",
    [
        "mtp.layers.0",  # qwen3_next, nemotron_h
        "mtp.0",  # deepseek_v4
        "model.mtp.layers.0",
        "model.language_model.mtp.0",
        "model.mtp_layers.0",
        "model.mtp_block.0",
        "mtp_dspark.0",
    ],
)
def test_a_draft_head_is_not_loaded(tmp_path, head):
    shapes = {"model.embed_tokens.weight": [10, 4], "model.layers.0.mlp.experts.0.w1.weight": [8, 4]}
    drafts = {f"{head}.mlp.experts.0.w1.weight": [8, 4], f"{head}.norm.weight": [4]}
    assert needs_of(tmp_path / "drafting", MOE, shapes | drafts).parameters == 40 + 32


def test_what_a_config_says_is_escaped(tmp_path, monkeypatch):
    config = {**PHI_TINY, "layer_types": ["\x1b[2Jodd"] * 32}
    done = run(monkeypatch, "--model", str(folder_of(tmp_path / "a\x1bb", config)))
    assert done.exit_code == 0, done.output
    assert "layers of type \\x1b[2Jodd" in done.output
    assert "\x1b" not in done.output
    config.pop("num_local_experts")
    done = run(monkeypatch, "--model", str(folder_of(tmp_path / "a\x1bb", config)))
    assert done.exit_code == 2
    assert "\x1b" not in done.output


def test_what_cannot_fit_is_exit_code_1_and_names_what_would(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "phi-tiny", PHI_TINY)
    done = run(monkeypatch, "--model", str(folder), "--dtype", "float32", limit=12 * GIB)
    assert done.exit_code == 1
    assert "does not fit 12.0 GiB; bfloat16, float16, int8, int4 would" in done.output
    assert run(monkeypatch, "--model", str(folder), "--dtype", "bfloat16", limit=12 * GIB).exit_code == 0
    nothing = run(monkeypatch, "--model", str(folder), limit=GIB)
    assert nothing.exit_code == 1
    assert "no dtype here would" in nothing.output


def test_what_others_hold_is_told_but_no_failure(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "phi-tiny", PHI_TINY)
    done = run(monkeypatch, "--model", str(folder), available=2 * GIB)
    assert done.exit_code == 0
    assert "2.00 GiB are free now of 24.0 GiB" in done.output


def test_what_the_config_does_not_tell_is_no_guess(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "m", {**PHI_TINY, "model_type": "unheard"})
    done = run(monkeypatch, "--model", str(folder))
    assert done.exit_code == 2
    assert "its config alone does not tell its shapes" in done.output
    with pytest.raises(OptionError, match="known: auto"):
        requirements.of(source.find("reference-moe"), Room(limit_bytes=GIB), dtype="int3")


def test_a_model_that_is_not_built_is_one_line(monkeypatch):
    done = run(monkeypatch, "--model", "smollm2")
    assert (done.exit_code, done.output) == (
        2,
        "pytest-infer: smollm2 is not built yet: pytest-infer models --build smollm2\n",
    )


BASE = {"num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 64}


@pytest.mark.parametrize(
    ("more", "elements"),
    [
        ({}, 4 * 2 * 64 * 100),
        ({"num_key_value_heads": 2}, 4 * 2 * 16 * 100),
        ({"head_dim": 16}, 4 * 2 * 128 * 100),
        ({"model_type": "mistral", "sliding_window": 30}, 4 * 2 * 64 * 30),
        ({"sliding_window": 100}, 4 * 2 * 64 * 100),
        ({"sliding_window": 30, "use_sliding_window": False}, 4 * 2 * 64 * 100),
        ({"sliding_window": 30, "layer_types": ["sliding_attention", "full_attention"] * 2}, 2 * 128 * (30 + 100)),
        ({"layer_types": ["linear_attention"] * 3 + ["full_attention"]}, 2 * 64 * 100),
        ({"kv_lora_rank": 32, "qk_rope_head_dim": 8}, 4 * 40 * 100),
        ({"num_kv_shared_layers": 1}, 3 * 2 * 64 * 100),
        ({"text_config": {"num_hidden_layers": 2}}, 2 * 2 * 64 * 100),
        ({"num_key_value_heads": [1, 2, 3, 0]}, 6 * 2 * 8 * 100),
        ({"v_head_dim": 4}, 4 * 8 * 12 * 100),
        ({"multi_query": True}, 4 * 2 * 8 * 100),
    ],
)
def test_the_cache_that_a_config_tells(more, elements):
    assert kv_cache.of_config({**BASE, **more}, 100).elements == elements


@pytest.mark.parametrize(
    "more",
    [
        {"model_type": "gemma2", "sliding_window": 30},
        {"model_type": ["mistral"], "sliding_window": 30},
        {"mamba_d_state": 16},
        {"kv_lora_rank": 32},
        {"layer_types": ["new_attention"] * 4},
        {"layer_types": ["full_attention"]},
        {"is_encoder_decoder": True},
        {"global_head_dim": 8},
        {"num_attention_heads": None},
        {"num_hidden_layers": None},
    ],
)
def test_the_cache_that_a_config_does_not_tell(more):
    found = kv_cache.of_config({**BASE, **more}, 100)
    assert found.elements is None
    assert found.how.startswith("unknown: ")


@pytest.mark.parametrize(
    ("limit", "available", "verdict"),
    [
        (10 * GIB, None, Fit.FITS),
        (10 * GIB, GIB, Fit.FITS),
        (10 * GIB, GIB // 4, Fit.NOT_NOW),
        (500 * 2**20, None, Fit.TIGHT),
        (400 * 2**20, None, Fit.TOO_LARGE),
    ],
)
def test_verdicts(limit, available, verdict):
    needs = requirements.of(source.find("reference-moe"), Room(limit_bytes=limit, available_bytes=available))
    assert needs.chosen.verdict is verdict


DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.skipif(not DOCS.exists(), reason="the wheel is tested without docs/")
def test_the_pages_commands_work(monkeypatch):
    page = (DOCS / "doctor.md").read_text(encoding="utf-8")
    commands = [
        line.split("#")[0].split()[2:] for line in page.splitlines() if line.startswith("    pytest-infer doctor")
    ]
    assert len(commands) == 7
    monkeypatch.setattr(probe, "measure", made_probe)
    for arguments in commands:
        done = run(monkeypatch, *arguments)
        assert done.exit_code == 0, done.output


HEADS = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 96, "num_attention_heads": 12}


@pytest.mark.parametrize(
    ("more", "ranks", "possible", "refused"),
    [
        ({}, 4, (1, 2, 3, 4, 6, 12), None),
        ({}, 5, (1, 2, 3, 4, 6, 12), "12 heads cannot be divided among 5 ranks"),
        ({"num_key_value_heads": 4}, 4, (1, 2, 4), None),
        ({"num_key_value_heads": 4}, 3, (1, 2, 4), "12 heads and 4 of keys and values cannot be divided among 3 ranks"),
        ({"num_key_value_heads": [4, 6]}, 4, (1, 2), "12 heads and 4, 6 of keys and values cannot be divided"),
        ({"num_attention_heads": None, "n_head": 8}, 8, (1, 2, 4, 8), None),
        ({"multi_query": True}, 2, (1,), "12 heads and 1 of keys and values cannot be divided among 2 ranks"),
        ({"kv_lora_rank": 512, "num_key_value_heads": 1}, 6, (1, 2, 3, 4, 6, 12), None),
        ({"text_config": {"num_key_value_heads": 3}}, 2, (1, 3), "12 heads and 3 of keys and values cannot be"),
        ({"num_attention_heads": "12"}, 2, (), "the config does not tell how many heads its layers have"),
    ],
)
def test_ranks_share_whole_heads(more, ranks, possible, refused):
    found = division.of({**HEADS, **more}, ranks)
    assert found.possible == possible
    assert (found.refused or "").startswith(refused or "-" * (found.refused is not None))


def test_ranks_that_cannot_share_a_model_are_exit_code_1(monkeypatch):
    done = run(monkeypatch, "--model", "reference-moe", "--ranks", "4")
    assert done.exit_code == 1
    assert "6 heads and 2 of keys and values cannot be divided among 4 ranks; 2 can" in done.output
    done = run(monkeypatch, "--model", "reference-moe", "--ranks", "2", "--format", "json")
    assert done.exit_code == 0
    assert json.loads(done.output)["division"] == {"ranks": 2, "possible": [1, 2]}
    done = run(monkeypatch, "--ranks", "2")
    assert done.exit_code == 2
    assert "name it with --model" in done.output


def test_heads_that_are_not_told_are_exit_code_2(monkeypatch, tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"a": [4, 4]})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    done = run(monkeypatch, "--model", str(tmp_path), "--ranks", "2")
    assert done.exit_code == 2
    assert "the config does not tell how many heads" in done.output


@pytest.mark.parametrize("name", ["x" * 5000, "../" * 2000 + "x", "a\0b", "."])
def test_an_index_that_names_what_cannot_be_a_file(tmp_path, monkeypatch, name):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    done = run(monkeypatch, "--model", str(tmp_path))
    assert done.exit_code == 2
    assert "is missing: fetch it again" in done.output
    assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize("name", ["x" * 5000, "./" + "x" * 5000, "./" + "x" * 5000 + ".gguf"])
def test_a_model_whose_name_is_too_long_for_the_system(monkeypatch, name):
    done = run(monkeypatch, "--model", name)
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1


def test_a_model_in_the_home_of_an_unknown_user_is_one_line(monkeypatch):
    done = run(monkeypatch, "--model", "~nobody-here/model")
    assert done.exit_code == 2
    assert done.output.startswith("pytest-infer: ~nobody-here/model: no such folder")
