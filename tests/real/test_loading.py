"""What cannot be loaded or run is one line, most of it before the weights are read."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from lazily import Late, transformers

from pytest_infer.engines.base import EngineOptions
from pytest_infer.errors import ModelError

safetensors_torch = Late("safetensors.torch")
quantization = Late("pytest_infer.engines.transformers.quantization")

pytestmark = pytest.mark.real


def engine_for(folder, **options):
    from pytest_infer.engines.transformers.engine import TransformersEngine

    return TransformersEngine(EngineOptions(model=str(folder), **options))


def refusal(call):
    with pytest.raises(ModelError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copy_of(model_folder, tmp_path):
    """Return a function: a copy of a tiny model's folder, with other entries in its config."""

    def copy(kind="mixtral", **entries):
        folder = tmp_path / kind
        folder.mkdir()
        for file in model_folder(kind).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | entries))
        return folder

    return copy


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"hidden_size": "abc"}, "expected int, got str"),
        ({"vocab_size": None}, "expected int, got NoneType"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"hidden_act": "zzz"}, "KeyError: 'zzz'"),
        ({"dtype": "floot"}, "no attribute 'floot'"),
        ({"model_type": "nonsense"}, "nonsense"),
    ],
    ids=str,
)
def test_a_config_of_wrong_values_is_refused_before_weights_are_read(copy_of, entries, says):
    folder = copy_of(**entries)
    (folder / "model.safetensors").unlink()
    assert says in refusal(engine_for(folder).check)


def test_weights_of_other_shapes_are_named(copy_of):
    line = refusal(engine_for(copy_of(hidden_size=64)).load)
    assert "the weights do not match the config: lm_head.weight is 300x32, by the config 300x64" in line
    assert line.endswith("and 27 more")


def test_missing_tensors_are_named(copy_of):
    line = refusal(engine_for(copy_of(num_hidden_layers=5)).load)
    assert "the weights lack: model.layers.3.input_layernorm.weight, " in line
    assert line.endswith("and 15 more")


def test_tied_weights_are_not_missing(tmp_path, model_folder):
    config = transformers.LlamaConfig.from_pretrained(model_folder("llama"), tie_word_embeddings=True)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(model_folder("llama")).save_pretrained(tmp_path)
    assert "lm_head.weight" not in safetensors_torch.load_file(tmp_path / "model.safetensors")
    engine = engine_for(tmp_path)
    assert engine.load().name == tmp_path.name
    engine.close()


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("mixtral", {"attention": "magic"}, "cannot run it here; usable: eager, flex_attention, sdpa"),
        ("mixtral", {"attention": "flash_attention_2"}, "usable: eager, flex_attention, sdpa"),
        ("mixtral", {"attention": "paged|eager"}, "usable: eager, flex_attention, sdpa"),
        ("mixtral", {"attention": "kernels-community/none"}, "usable: eager, flex_attention, sdpa"),
        ("mixtral", {"experts_implementation": "magic"}, "usable: batched_mm, eager, grouped_mm"),
        ("mixtral", {"experts_implementation": "deepgemm"}, "usable: batched_mm, eager, grouped_mm"),
        ("mixtral", {"experts_implementation": "sonicmoe"}, "usable: batched_mm, eager, grouped_mm"),
        ("llama", {"experts_implementation": "batched_mm"}, "LlamaForCausalLM has no experts"),
    ],
    ids=str,
)
def test_what_this_machine_cannot_run_is_refused_before_weights_are_read(copy_of, kind, options, says, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = copy_of(kind)
    (folder / "model.safetensors").unlink()
    line = refusal(engine_for(folder, device="cpu", **options).check)
    assert says in line
    assert next(iter(options.values())) in line or "has no experts" in line


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("T5Config", "t5 is an encoder-decoder model"),
        ("ViTConfig", "is no causal language model"),
    ],
    ids=["t5", "vit"],
)
def test_what_is_no_causal_model_is_refused(tmp_path, model_folder, config, says):
    transformers.AutoTokenizer.from_pretrained(model_folder()).save_pretrained(tmp_path)
    getattr(transformers, config)().save_pretrained(tmp_path)
    assert says in refusal(engine_for(tmp_path).check)


def test_an_encoder_decoder_is_refused_when_it_is_adopted_too(model_folder, other_model):
    config = transformers.T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = transformers.T5ForConditionalGeneration(config)
    engine = engine_for(model_folder())
    assert "t5 is an encoder-decoder model" in refusal(lambda: engine.adopt(model, other_model[1]))


def test_a_model_with_code_of_its_own_names_the_option(tmp_path):
    entries = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    assert "add --infer-trust-remote-code" in refusal(engine_for(tmp_path).check)


def test_results_hold_no_path_of_this_machine(model_folder, tmp_path):
    engine = engine_for(model_folder())
    info = engine.load()
    assert (info.name, info.source) == (model_folder().name, "local folder")
    adopted = transformers.AutoModelForCausalLM.from_pretrained(model_folder())
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder())
    info = engine.adopt(adopted, tokenizer)
    assert (info.name, info.source) == (model_folder().name, "adopted")
    assert engine.adopt(adopted, tokenizer, name="mine").name == "mine"
    engine.close()


def test_an_adopted_model_has_no_revision_of_the_options(other_model):
    engine = engine_for("someone/else", revision="v2")
    info = engine.adopt(*other_model)
    assert info.revision is None
    assert info.name == "MixtralForCausalLM"
    engine.close()


def test_an_adopted_model_is_quantised_as_it_is_and_not_as_the_options_say(other_model):
    model, tokenizer = other_model
    engine = engine_for("someone/else", quantization="int8-dynamic")
    assert engine.adopt(model, tokenizer).quantization is None
    assert engine.adapt(replace(engine.options, threads=1)).quantization is None
    quantised = quantization.applied(model, engine.options)
    engine.close()
    assert engine_for("someone/else").adopt(quantised, tokenizer).quantization == "int8-dynamic"


REFUSED = """
import sys
import pytest
code = pytest.main(sys.argv[1:])
print("torch" in sys.modules, int(code))
"""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--infer-model=./nothing"], "./nothing: no such folder"),
        (["--infer-model=bareword"], "unknown model 'bareword'"),
        (["--infer-model=."], ".: the folder holds no config.json"),
        (["--infer-revision=v1"], "reference-moe comes with the package and has no revisions"),
        (["--infer-dtype=float7"], "unknown dtype 'float7'"),
    ],
    ids=str,
)
def test_a_wrong_name_is_refused_without_torch(pytester, monkeypatch, options, says):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(test_it="def test_prompt(infer, prompt):\n    infer(prompt)\n")
    pytester.path.joinpath("prompts.toml").write_text('[[prompt]]\nname = "p"\ntext = "hello"\n')
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, *options], capture_output=True, text=True, check=False, timeout=120
    )
    (line,) = [line for line in done.stderr.splitlines() if "pytest-infer:" in line]
    assert says in line
    assert done.stdout.split()[-2:] == ["False", str(int(pytest.ExitCode.USAGE_ERROR))]


def test_a_revision_of_a_local_folder_is_refused(model_folder):
    line = refusal(engine_for(model_folder(), revision="main").check)
    assert "is a local folder and has no revisions: leave out the revision main" in line


def test_the_hash_of_the_weights_follows_the_bytes_and_the_adopted_have_none(
    copy_of, model_folder, monkeypatch, tmp_path
):
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(tmp_path / "cache"))
    engine, twin, other = engine_for(model_folder()), engine_for(copy_of()), engine_for(model_folder("llama"))
    for each in (engine, twin, other):
        each.load()
    assert engine.weights_sha256() == twin.weights_sha256() != other.weights_sha256()
    assert len(engine.weights_sha256()) == 64
    engine.adopt(other.running.model, transformers.AutoTokenizer.from_pretrained(model_folder()))
    assert engine.weights_sha256() is None
    for each in (engine, twin, other):
        each.close()


COMMIT = "c0ffee" + "0" * 34


@pytest.fixture
def hub_cache(model_folder, monkeypatch, tmp_path):
    """Return the snapshot of owner/name in the cache of a hub that is not asked, without its weights."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for file in model_folder().iterdir():
        if file.suffix != ".safetensors":
            put(snapshot, file, file.name)
    return snapshot


def put(snapshot, file, blob):
    """Put a file into the hub's cache, as a blob of this name."""
    held = snapshot.parent.parent / "blobs" / blob
    held.write_bytes(file.read_bytes())
    (snapshot / file.name).symlink_to(held)


def test_a_hub_model_is_hashed_where_the_hub_keeps_it(hub_cache, model_folder):
    put(hub_cache, model_folder() / "model.safetensors", "ab" * 32)
    engine = engine_for("owner/name")
    info = engine.load()
    assert (info.name, info.source, info.revision) == ("owner/name", "owner/name", COMMIT)
    wanted = hashlib.sha256(f"model.safetensors\0{'ab' * 32}\n".encode()).hexdigest()
    assert engine.weights_sha256() == wanted
    engine.close()


def test_weights_are_fetched_before_a_load_and_only_once(hub_cache, model_folder, monkeypatch):
    told = []
    engine = engine_for("owner/name", progress=told.append)
    engine.check()
    assert "the hub's cache does not hold its weights, and HF_HUB_OFFLINE is set" in refusal(engine.load)

    def download(name, *, revision, allow_patterns):
        if "model.safetensors" in allow_patterns:
            put(hub_cache, model_folder() / "model.safetensors", "ab" * 32)
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    held = [SimpleNamespace(rfilename=file.name, size=1) for file in model_folder().iterdir()]
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=held))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert not engine.files()
    engine.fetch()
    assert [path.name for path in engine.files()] == ["ab" * 32]
    assert engine.load().revision == COMMIT
    assert told == ["fetching owner/name · 1 B …", "loading owner/name …"]
    engine.close()


def test_loading_after_adopting_is_the_options_model_again(model_folder, other_model):
    engine = engine_for(model_folder("llama"))
    engine.adopt(*other_model)
    info = engine.load()
    assert (info.name, info.architecture) == (model_folder("llama").name, "LlamaForCausalLM")
    assert engine._config.model_type == "llama"
    engine.close()
