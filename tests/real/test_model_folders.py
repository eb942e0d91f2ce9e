"""What a model's folder may lack, and what its config may say: one line before the weights are read, or it runs."""

import json
import os
import subprocess
import sys

import pytest
from lazily import torch, transformers

from pytest_infer.engines.base import EngineOptions
from pytest_infer.errors import ModelError
from pytest_infer.measure.clock import TokenClock
from pytest_infer.prompts import Prompt
from pytest_infer.records import Limits

pytestmark = pytest.mark.real

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 4977222288\n"
HELLO = Prompt(name="hi", text="hello")
TWO = Limits(max_new_tokens=2, ignore_eos=True)
TEXT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


@pytest.fixture
def copy_of(model_folder, tmp_path):
    """Return a function: a copy of a tiny model's folder, with other entries in its config."""

    def copy(kind="llama", **entries):
        folder = tmp_path / kind
        folder.mkdir()
        for file in model_folder(kind).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text())
        config = {name: value for name, value in config.items() if name not in ("rope_parameters", "rope_theta")}
        (folder / "config.json").write_text(json.dumps(config | entries))
        return folder

    return copy


def engine_for(folder, **options):
    from pytest_infer.engines.transformers.engine import TransformersEngine

    return TransformersEngine(EngineOptions(model=str(folder), **options))


def refusal(call, *args):
    with pytest.raises(ModelError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def generated(engine):
    ids, clock = engine.encode(HELLO), TokenClock()
    engine.prepare(ids, TWO)
    clock.start()
    stopped = engine.generate(ids, TWO, clock)
    return clock.trace(prompt_tokens=len(ids), requested_tokens=2, stopped_by=stopped).token_ids


# contexts


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"type": "dynamic", "factor": 2.0}, 256),
        ({"type": "linear", "factor": 3.0}, 384),
        ({"type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}, 512),
        (None, 128),
    ],
    ids=str,
)
def test_a_scaled_context_is_known_before_the_load_and_stored(copy_of, scaling, longest):
    engine = engine_for(copy_of(rope_scaling=scaling, rope_theta=10000.0))
    engine.check()
    assert engine.context_length() == longest
    assert engine.load().context_length == longest
    engine.close()


@pytest.mark.parametrize("written", [-1, 0])
def test_a_limit_that_is_none_limits_nothing(copy_of, written):
    engine = engine_for(copy_of(max_position_embeddings=written))
    engine.check()
    assert engine.context_length() is None


@pytest.fixture
def positioned(tmp_path, model_folder):
    """Return a folder whose model looks 32 positions up in a table."""
    config = transformers.GPT2Config(vocab_size=300, n_positions=32, n_embd=32, n_layer=2, n_head=4, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    transformers.AutoTokenizer.from_pretrained(model_folder()).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_a_table_of_positions_has_an_end(positioned, tmp_path):
    engine = engine_for(positioned)
    engine.check()
    assert (engine.context_length(), engine.most_positions()) == (32, 32)
    config = transformers.OPTConfig(
        **{name: TEXT[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")},
        ffn_dim=48,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    )
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    transformers.AutoTokenizer.from_pretrained(positioned).save_pretrained(tmp_path / "opt")
    engine = engine_for(tmp_path / "opt")
    engine.check()
    assert engine.most_positions() == 64


@pytest.fixture
def prompted(forked):
    """Return a function: a folder and options to pytest's run of one prompt."""
    forked.makepyfile("def test_prompt(infer, prompt):\n    infer(prompt)\n")
    forked.path.joinpath("prompts.toml").write_text('[[prompt]]\nname = "hi"\ntext = "hello"\nmax_new_tokens = 2\n')
    given = ("--infer-rounds=1", "--infer-warmup=0", "--infer-no-profile", "--infer-no-probe")

    def run(folder, *options):
        return forked.runpytest_subprocess(f"--infer-model={folder}", *given, *options)

    return run


def test_a_longer_context_is_used_and_one_can_be_given(prompted, copy_of):
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    folder = copy_of(rope_scaling=yarn, rope_theta=10000.0)
    prompted(folder, "--infer-prompt-tokens=510").assert_outcomes(passed=1)
    result = prompted(folder, "--infer-prompt-tokens=511")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*511 tokens and 2 new ones do not fit the model's context of 512;*--infer-context N"])
    prompted(folder, "--infer-prompt-tokens=511", "--infer-context=513").assert_outcomes(passed=1)
    result = prompted(folder, "--infer-prompt-tokens=100", "--infer-context=64")
    result.stderr.fnmatch_lines(["*100 tokens and 2 new ones do not fit --infer-context's context of 64*"])


def test_no_option_makes_a_table_longer(prompted, positioned):
    result = prompted(positioned, "--infer-prompt-tokens=40", "--infer-context=64")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*do not fit the 32 positions that the engine has, whatever --infer-context says"])


# ids


def test_an_id_beyond_the_embedding_is_named(copy_of, model_folder, other_model):
    folder = copy_of()
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT | {"vocab_size": 60})).save_pretrained(folder)
    engine = engine_for(folder)
    engine.check()
    line = refusal(engine.encode, HELLO)
    assert line.startswith("prompt 'hi': id ")
    assert "is beyond the embedding of " in line
    assert "which has 60: take the tokenizer that belongs to the model" in line
    # one that was adopted, whose tokenizer got another token
    model, tokenizer = other_model
    engine.adopt(model, tokenizer)
    assert engine.encode(HELLO)
    tokenizer.add_tokens([f"<{n}>" for n in range(300 - len(tokenizer))] + ["<new>"])
    assert engine.encode(Prompt(name="last", text="<0>"))
    assert "id 300 ('<new>') is beyond" in refusal(engine.encode, Prompt(name="added", text="hello<new>"))
    engine.close()


def test_no_test_runs_with_such_an_id(prompted, copy_of):
    folder = copy_of()
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT | {"vocab_size": 60})).save_pretrained(folder)
    result = prompted(folder)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: pytest-infer: prompt 'hi': id * is beyond the embedding of *"])


# a generate() of the model's own


def adopted(model, tokenizer, **methods):
    """Return an engine that has adopted a model with a class of its own."""
    model.__class__ = type("Own", (type(model),), methods)
    engine = engine_for("reference-moe")
    engine.adopt(model, tokenizer)
    return engine


def ids_alone(self, *args, **given):
    return type(self).__mro__[1].generate(self, *args, **given).sequences


def tuples(self, inputs=None, **given):
    return type(self).__mro__[1].generate(self, inputs, **given)["sequences"]


@pytest.mark.parametrize("generate", [ids_alone, tuples])
def test_plain_ids_are_taken(other_model, generate):
    model, tokenizer = other_model
    plain = engine_for("reference-moe")
    plain.adopt(model, tokenizer)
    wanted = generated(plain)
    plain.close()
    engine = adopted(model, tokenizer, generate=generate)
    assert generated(engine) == wanted
    assert engine.cache_bytes() is None
    engine.close()


def unwatched(self, input_ids, attention_mask=None, generation_config=None):
    raise NotImplementedError


def seeing(self, pixel_values, input_ids=None, **given):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("generate", "says"),
    [
        (unwatched, "generate() of Own takes no streamer: measure it with an engine of your own"),
        (seeing, "Own generates from pixel_values and not from text alone"),
        (None, "Own cannot generate"),
    ],
)
def test_a_generate_that_cannot_be_watched_is_refused(other_model, generate, says):
    assert says in refusal(lambda: adopted(*other_model, generate=generate))


# files


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_pointers_of_git_lfs(copy_of, name):
    folder = copy_of()
    (folder / name).write_text(POINTER)
    assert refusal(engine_for(folder).check).endswith(
        f"{name}: a pointer of git-lfs and not the file: run git lfs pull in that folder"
    )


@pytest.mark.parametrize("lost", [1, 2])
def test_missing_files_of_the_weights(copy_of, lost):
    folder = copy_of()
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*.safetensors"))
    engine_for(folder).check()
    for shard in shards[:lost]:
        shard.unlink()
    line = refusal(engine_for(folder).check)
    assert f"{lost} of {len(shards)} files of the weights are missing, the first is {shards[0].name}" in line


def test_a_tokenizer_of_a_later_version(copy_of):
    folder = copy_of()
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": {"type": "Later"}}))
    assert "cannot be loaded: " in refusal(engine_for(folder).check)


def test_an_empty_file_of_the_weights(copy_of):
    folder = copy_of()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()
    assert refusal(engine_for(folder).load).endswith("a file of it ends early; copy or download it again")


def test_no_weights_at_all(copy_of):
    folder = copy_of()
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in refusal(engine_for(folder).check)


@pytest.mark.parametrize(
    ("quantization", "package"),
    [
        ({"quant_method": "gptq", "bits": 4}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "compressed"),
    ],
    ids=str,
)
def test_a_package_that_the_weights_need_is_named(copy_of, quantization, package):
    line = refusal(engine_for(copy_of(quantization_config=quantization)).check)
    assert package in line or "accelerate" in line
    assert "pip install" in line


@pytest.mark.parametrize("left", [[], ["tokenizer_config.json"], ["tokenizer_config.json", "chat_template.jinja"]])
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_a_folder_without_a_tokenizer_says_so(copy_of, kind, left):
    folder = copy_of(kind)
    for path in folder.iterdir():
        if path.suffix != ".safetensors" and path.name not in ("config.json", "generation_config.json", *left):
            path.unlink()
    line = refusal(engine_for(folder).check)
    assert "holds no tokenizer (tokenizer.json, tokenizer.model, vocab.json, …)" in line
    assert "sentencepiece" not in line


# models that see


VISION = {
    "depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32, "patch_size": 4,
}  # fmt: skip
CLIP = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
SEEING = {
    "Qwen2_5_VL": {"vision_config": VISION, "text_config": {**TEXT, "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}},
    "Qwen2VL": {"vision_config": {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "patch_size": 4},
        "text_config": {**TEXT, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}},
    "Llava": {"vision_config": {"model_type": "clip_vision_model", **CLIP},
        "text_config": {"model_type": "llama", **TEXT}},
}  # fmt: skip


@pytest.mark.parametrize("kind", SEEING)
def test_a_model_that_also_sees_is_measured_on_text(tmp_path, model_folder, kind):
    config = getattr(transformers, f"{kind}Config")(**SEEING[kind])
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(model_folder()).save_pretrained(tmp_path)
    engine = engine_for(tmp_path)
    engine.check()
    assert engine.context_length() == 128
    assert engine.load().architecture == f"{kind}ForConditionalGeneration"
    ids = torch.tensor([engine.encode(HELLO)])
    given = {"max_new_tokens": 2, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    own = model.generate(ids, attention_mask=torch.ones_like(ids), **given)
    assert list(generated(engine)) == own[0, ids.shape[1] :].tolist()
    engine.close()


@pytest.mark.parametrize("config", ["Blip2Config", "ViTConfig"])
def test_what_needs_a_picture_is_refused(tmp_path, model_folder, config):
    transformers.AutoTokenizer.from_pretrained(model_folder()).save_pretrained(tmp_path)
    getattr(transformers, config)().save_pretrained(tmp_path)
    line = refusal(engine_for(tmp_path).check)
    assert "generates from pixel_values and not from text alone" in line or "is no causal language model" in line


# the hub


UNREACHED = """
from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.transformers.engine import TransformersEngine
from pytest_infer.errors import ModelError
try:
    TransformersEngine(EngineOptions(model="owner/name")).check()
except ModelError as error:
    print(error)
"""


def test_a_hub_that_nothing_reaches_is_one_line(tmp_path):
    # Nothing listens on port 9 of this machine.
    here = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "no_proxy": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", UNREACHED],
        env=os.environ | here,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("owner/name: the hub cannot be reached (")
    assert "Retry" not in done.stderr
