"""A model on a machine that is described: what lies in which memory, by hand, and the rate that follows from it."""

import json

import pytest
from typer.testing import CliRunner

from pytest_infer.analysis.doctor import requirements, split
from pytest_infer.analysis.doctor.requirements import RUNTIME_BYTES, Fit, Need, Parts
from pytest_infer.analysis.doctor.split import Described
from pytest_infer.analysis.doctor.weights import STORED, Weights
from pytest_infer.cli.main import app
from pytest_infer.engines.checkpoint import source
from pytest_infer.engines.checkpoint.tensors import Tensor
from pytest_infer.measure.machine import probe
from pytest_infer.metrics import roofline
from pytest_infer.records import MachineProbe
from pytest_infer.storage import probes

GIB = 2**30
MIXTURE = {
    "model_type": "qwen3_moe", "num_hidden_layers": 3, "hidden_size": 64, "vocab_size": 512, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 8,
    "num_experts_per_tok": 2, "mlp_only_layers": [0], "tie_word_embeddings": False, "dtype": "bfloat16",
    "max_position_embeddings": 100,
}  # fmt: skip
DENSE = {key: value for key, value in MIXTURE.items() if "expert" not in key} | {
    "model_type": "qwen3",
    "tie_word_embeddings": True,
}
EXPERT = 3 * 64 * 32 * 2


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")


def need(experts=True, kv=100, **parts):
    made = {"experts": experts, "units": 10, "selected": 2, "movable_bytes": 1000, "fixed_bytes": 300, **parts}
    weights = made["movable_bytes"] + made["fixed_bytes"] + 50
    read = made["movable_bytes"] * made["selected"] // made["units"] + made["fixed_bytes"] + kv
    return Need(
        dtype="float32",
        weights_bytes=weights,
        kv_bytes=kv,
        minimum_bytes=0,
        recommended_bytes=0,
        step_bytes=read,
        verdict=Fit.UNKNOWN,
        parts=Parts(**made),
    )


@pytest.mark.parametrize(
    ("vram", "on_gpu", "gpu", "seconds"),
    [
        # 10 are left free and 400 are read by each token; experts have 100 each, and a token reads 200 of them.
        (0, 0, 0, 600 / 10),
        (409, 0, 0, 600 / 10),
        (410, 0, 400, 200 / 10 + 400 / 100),
        (709, 2, 600, 160 / 10 + 440 / 100),
        (10_000, 10, 1400, 600 / 100),
    ],
)
def test_a_gpu_has_what_every_token_reads_first_and_then_experts(vram, on_gpu, gpu, seconds):
    machine = Described(ram_bytes=GIB, vram_bytes=vram, reserve_bytes=10, bandwidth=10, vram_bandwidth=100)
    found = split.of(need(), machine)
    assert (found.on_gpu, found.units, found.gpu_bytes) == (on_gpu, 10, gpu)
    # The table that is looked up stays in main memory, and so does the runtime.
    assert found.ram_bytes == 1350 + 100 - gpu + RUNTIME_BYTES
    assert found.ceiling == pytest.approx(1 / seconds)
    assert found.verdict is Fit.FITS


def test_a_dense_model_is_divided_by_layers():
    machine = Described(ram_bytes=GIB, vram_bytes=700, reserve_bytes=0, bandwidth=10, vram_bandwidth=100)
    found = split.of(need(experts=False, selected=10), machine)
    assert (found.on_gpu, found.experts) == (3, False)
    assert found.ceiling == pytest.approx(1 / (700 / 10 + 700 / 100))


def test_what_is_not_known_has_no_rate():
    machine = Described(ram_bytes=GIB, vram_bytes=700, reserve_bytes=0)
    assert split.of(need(), machine).ceiling is None
    assert split.of(need(), Described(ram_bytes=None, bandwidth=1.0)).verdict is Fit.UNKNOWN
    assert split.of(need(), Described(ram_bytes=RUNTIME_BYTES)).verdict is Fit.TOO_LARGE


def test_the_parts_of_a_mixture_are_its_tensors(tmp_path):
    tmp_path.joinpath("config.json").write_text(json.dumps(MIXTURE), encoding="utf-8")
    found = requirements.of(source.find(str(tmp_path)), requirements.Room(limit_bytes=None))
    parts = found.chosen.parts
    assert (parts.experts, parts.units, parts.selected) == (True, 16, 4)
    assert parts.movable_bytes == 16 * EXPERT
    embedding = 512 * 64 * 2
    assert found.chosen.weights_bytes == parts.movable_bytes + parts.fixed_bytes + embedding
    # A row of the embedding is looked up, which the parts leave out.
    assert found.chosen.step_bytes == parts.fixed_bytes + 4 * EXPERT + found.chosen.kv_bytes


def test_a_token_reads_the_bytes_of_its_weights_not_their_share_of_all(tmp_path):
    # Experts of half a byte a weight, attention of two, an embedding that is looked up and a head of one.
    shapes = {
        "blk.0.ffn_up_exps.weight": ("Q4_0", (8, 64, 32), 8 * 64 * 32 * 18 // 32),
        "blk.0.attn_q.weight": ("F16", (64, 64), 64 * 64 * 2),
        "token_embd.weight": ("F16", (512, 64), 512 * 64 * 2),
        "output.weight": ("Q8_0", (512, 64), 512 * 64 * 34 // 32),
    }
    config = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4,
              "head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 2}  # fmt: skip
    held = source.Checkpoint(
        name="mixed", source=source.ModelSource.GGUF, config=config, tensors=tuple(
            Tensor(name=name, dtype=dtype, shape=shape, bytes=size) for name, (dtype, shape, size) in shapes.items()
        ),
    )  # fmt: skip
    found = requirements.of(held, requirements.Room(limit_bytes=None), context=16)
    need = found.chosen
    by_hand = 2 * 64 * 32 * 18 // 32 + 64 * 64 * 2 + 512 * 64 * 34 // 32 + 16 * 2 * 64 * 2
    assert (need.dtype, need.step_bytes) == ("stored", by_hand)
    assert found.active_parameters == 2 * 64 * 32 + 64 * 64 + 512 * 64
    # Without a GPU both ways to the limit are one.
    alone = split.of(need, Described(ram_bytes=GIB, bandwidth=1e9))
    assert alone.ceiling == pytest.approx(roofline.ceiling(1e9, need.step_bytes), rel=1e-12)


@pytest.mark.parametrize(
    ("head", "looked_up"),
    [(["lm_head.qweight", "lm_head.scales"], 100), (["lm_head.weight_packed"], 100), (["lm_head.bias"], 0), ([], 0)],
)
def test_an_embedding_is_looked_up_beside_a_packed_head_of_its_own(head, looked_up):
    names = ["model.embed_tokens.weight", "model.layers.0.output.dense.weight", *head]
    files = tuple(Tensor(name=name, dtype="I32", shape=(5, 5), bytes=100) for name in names)
    parts = Weights(tensors=(), own=STORED, files=files, stored=100 * len(files)).parts(STORED)
    assert parts.fixed_bytes == 100 * (1 + len(head)) - looked_up


def test_the_parts_of_a_dense_model_are_its_layers(tmp_path):
    tmp_path.joinpath("config.json").write_text(json.dumps(DENSE), encoding="utf-8")
    parts = requirements.of(source.find(str(tmp_path)), requirements.Room(limit_bytes=None)).chosen.parts
    assert (parts.experts, parts.units, parts.selected) == (False, 3, 3)
    # The tied embedding is the head too, which each token reads; and the last norm.
    assert parts.fixed_bytes == 2 * (512 * 64 + 64)


def test_packed_weights_whose_config_tells_nothing_have_no_parts(tmp_path):
    tmp_path.joinpath("config.json").write_text(json.dumps({"model_type": "new", "num_hidden_layers": 2}))
    tmp_path.joinpath("pytorch_model.bin").write_bytes(bytes(64))
    found = requirements.of(source.find(str(tmp_path)), requirements.Room(limit_bytes=GIB))
    assert found.chosen.parts is None
    assert split.of(found.chosen, Described(ram_bytes=GIB)) is None


# the command


@pytest.fixture
def doctor(tmp_path):
    tmp_path.joinpath("model").mkdir()
    tmp_path.joinpath("model", "config.json").write_text(json.dumps(MIXTURE), encoding="utf-8")

    def run(*words, code=0):
        done = CliRunner().invoke(app, ["doctor", "--model", str(tmp_path / "model"), *words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code == code, done.output
        return done

    run.folder = tmp_path / "model"
    return run


MACHINE = ("--ram=1GiB", "--vram=400KiB", "--reserve=0B", "--bandwidth=50MB/s", "--vram-bandwidth=500MB/s")


def test_a_machine_that_is_described(doctor):
    lines = doctor(*MACHINE).stdout.splitlines()
    assert lines[0] == (
        "a machine with 1.00 GiB of RAM read at 50.0 MB/s and 400 KiB of VRAM read at 500 MB/s, 0 B of it left free"
    )
    assert lines[-1] == "model in bfloat16 fits"
    (row,) = (line.split() for line in lines if line.startswith("bfloat16"))
    built = json.loads(doctor(*MACHINE, "--format=json").stdout)
    found = next(one for one in built["model"]["needs"] if one["dtype"] == "bfloat16")
    kept = found["parts"]["fixed_bytes"] + found["kv_bytes"]
    on_gpu = (400 * 1024 - kept) // EXPERT
    assert 0 < on_gpu < 16
    assert f"{on_gpu} of 16" in " ".join(row)
    read = 4 * EXPERT
    seconds = read * (1 - on_gpu / 16) / 50e6 + (read * on_gpu / 16 + kept) / 500e6
    assert found["split"]["ceiling"] == pytest.approx(1 / seconds)
    assert built["described"]["ram_bytes"] == GIB


def test_what_does_not_fit_is_exit_code_1_and_named(doctor):
    said = doctor("--ram=430MB", code=1).stdout.splitlines()[-1]
    assert said.startswith("model in bfloat16 does not fit; no dtype here would")
    assert "does not fit; int8, int4 would" in doctor(f"--ram={RUNTIME_BYTES + 300_000}B", code=1).stdout


@pytest.mark.parametrize("words", [("--ram=430MB",), ("--ram=430MB", "--vram=1GiB", "--reserve=0B")])
def test_json_says_what_the_text_and_the_exit_code_say(doctor, monkeypatch, words):
    # This machine, whose probe tells nothing of the other, would do.
    monkeypatch.setattr(probes, "load", lambda threads: MachineProbe(
        threads=1, read_bandwidth=40e9, read_bandwidth_spread=0.05, flops={"bfloat16": 1e9}, caches={}, at_ns=1,
        boot=probe.boot(),
    ))  # fmt: skip
    monkeypatch.setattr("pytest_infer.cli.doctor.kept_probe.doubt", lambda *of: None)
    folder = doctor.folder
    shapes = {"model_type": "new", "num_hidden_layers": 2} if len(words) > 1 else MIXTURE
    folder.joinpath("config.json").write_text(json.dumps(shapes), encoding="utf-8")
    folder.joinpath("pytorch_model.bin").write_bytes(bytes(2**20))
    code = 2 if len(words) > 1 else 1
    model = json.loads(doctor(*words, "--format=json", code=code).stdout)["model"]
    said = doctor(*words, code=code).stdout.splitlines()
    for need in model["needs"]:
        (line,) = (line for line in said if line.startswith(f"{need['dtype']} "))
        assert line.endswith(f" {need['verdict']}")
    assert model["fitting"] == []
    assert "no dtype here would" in said[-1]
    assert "cores_recommended" not in model
    assert all("decode_ceiling" not in need for need in model["needs"])


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        # Not the memory of this machine, which is larger.
        (("--ram=300MiB",), 1, "does not fit; no dtype here would"),
        (("--ram=4GiB",), 0, "fits"),
        # Both memories may hold it together; nobody knows what of it can be moved.
        (("--ram=300MiB", "--vram=1GiB", "--reserve=0B"), 2, "is not known to fit; no dtype here would"),
        (("--ram=300MiB", "--vram=1GiB", "--reserve=1GiB"), 1, "does not fit; no dtype here would"),
    ],
)
def test_a_model_of_unknown_shapes_is_judged_by_the_machine_that_is_described(doctor, tmp_path, words, code, line):
    folder = tmp_path / "model"
    folder.joinpath("config.json").write_text(json.dumps({"model_type": "new", "num_hidden_layers": 2}))
    folder.joinpath("pytorch_model.bin").write_bytes(bytes(2**20))
    assert doctor(*words, code=code).stdout.splitlines()[-1] == f"model in stored {line}"


def test_this_machines_probe_stands_for_its_memory_alone(doctor, monkeypatch):
    made = MachineProbe(
        threads=1, read_bandwidth=40e9, read_bandwidth_spread=0.05, flops={}, caches={}, at_ns=1, boot=probe.boot()
    )
    monkeypatch.setattr(probes, "load", lambda threads: made)
    monkeypatch.setattr("pytest_infer.cli.doctor.kept_probe.doubt", lambda *of: None)
    here = doctor("--vram=1GiB", "--vram-bandwidth=100GB/s").stdout
    assert here.startswith("this machine with ")
    assert " of RAM read at 40.0 GB/s and 1.00 GiB of VRAM" in here
    assert "no tok/s: give --bandwidth, as they are measured" in doctor("--ram=4GiB").stdout


def test_a_run_tells_how_near_an_engine_comes(doctor, storage, make_block):
    storage.add([make_block("a", mbu=0.4), make_block("b", mbu=0.5), make_block("c", mbu=1.2)])
    kept = f"--storage={storage.folder}"
    built = json.loads(doctor(*MACHINE, "--like=latest", kept, "--format=json").stdout)
    row = next(one for one in built["model"]["needs"] if one["dtype"] == "bfloat16")
    assert row["decode_likely"] == pytest.approx([0.4 * row["split"]["ceiling"], 0.5 * row["split"]["ceiling"]])
    said = " ".join(doctor(*MACHINE, "--like=latest", kept).stdout.split())
    assert "likely: as prompts of run 0001 cccccccc (main) (hand-made float32) reached 40.0 to 50.0 % of" in said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--ram=16",), "--ram '16': write a number with its unit"),
        (("--ram=1GiB", "--bandwidth=3"), "--bandwidth '3': write a number with its unit"),
        (("--vram=x",), "--vram 'x': write a number with its unit"),
        (("--vram=1GiB", "--reserve=x"), "--reserve 'x': write a number with its unit"),
        (("--reserve=1GiB",), "--vram-bandwidth and --reserve are about a GPU: give its memory with --vram"),
        (("--ram=1GiB", "--vram-bandwidth=1GB/s"), "are about a GPU: give its memory with --vram"),
        (("--ram=1GiB", "--like=7"), "no run '7'"),
        (("--like=latest",), "--like is about a described machine: with --ram, --vram or --bandwidth"),
        (("--ram=",), "--ram '': write a number with its unit"),
        (("--bandwidth=",), "--bandwidth '': write a number with its unit"),
        (("--revision=v1",), "model is a local folder and has no revisions: leave out the revision v1"),
    ],
)
def test_what_cannot_be_is_one_line(doctor, storage, make_block, words, line):
    storage.add([make_block("a")])
    (said,) = doctor(*words, f"--storage={storage.folder}", code=2).stderr.splitlines()
    assert said.startswith("pytest-infer: ")
    assert line in said


def test_a_run_without_its_limit_is_one_line(doctor, storage, make_block):
    storage.add([make_block("a")])
    said = doctor("--ram=1GiB", "--like=latest", f"--storage={storage.folder}", code=2).stderr
    assert "no prompt of it knows its MBU: a small model that fits the caches, or no probe" in said


@pytest.mark.parametrize("word", ["--ram=1GiB", "--ranks=2", "--revision=v1", "--context=16", "--dtype=float32"])
def test_what_is_about_a_model_without_one_is_one_line(word):
    done = CliRunner().invoke(app, ["doctor", word])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "are about a model: name it with --model" in done.stderr
