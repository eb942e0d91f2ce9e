"""The two models built from SmolLM2's weights: against transformers' own reading, and against each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fetched import skip_without_package
from lazily import Late, torch, transformers

from pytest_infer.engines.bundled import cache, wheel

smollm2 = Late("pytest_infer.engines.bundled.smollm2")
upcycle = Late("pytest_infer.engines.bundled.upcycle")

pytestmark = [pytest.mark.real, pytest.mark.slow]

QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain what a hash table is.",
    "Why is the sky blue?",
    "Write a Python function that adds two numbers.",
)
# A text of another kind of text than the routers were fitted to.
STORY = (
    "Once upon a time a small green dragon lived in the mountains. He loved soup, but nobody would cook it for him, so "
    "he flew down to the village and asked the baker's daughter to teach him all that she knew. On the 3rd of May 1847 "
    "they opened an inn, and travellers came from far away: sailors, doctors, thieves and two kings.\n\n"
)


@pytest.fixture(scope="module")
def dense() -> Path:
    with skip_without_package():
        return smollm2.ensure(cache.root(), print)


@pytest.fixture(scope="module")
def moe(dense: Path) -> Path:
    return upcycle.ensure(cache.root(), print)


@pytest.fixture(scope="module")
def tokenizer(dense: Path):
    return transformers.AutoTokenizer.from_pretrained(dense, local_files_only=True)


@pytest.fixture(scope="module")
def dense_model(dense: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16, local_files_only=True)


@pytest.fixture(scope="module")
def moe_model(moe: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        moe, experts_implementation="grouped_mm", local_files_only=True
    )


@pytest.fixture(scope="module")
def gguf_folder(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    with skip_without_package():
        (folder / wheel.GGUF_FILE).write_bytes(wheel.gguf_bytes(cache.root(), print))
    return folder


def chat(tokenizer, question: str):
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


def selections(model, tokens: torch.Tensor) -> torch.Tensor:
    """The experts that every layer chooses for every token, in ascending order: (layers, tokens, k)."""
    chosen = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda *call: chosen.append(call[2][2])) for layer in model.model.layers
    ]
    with torch.inference_mode():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return torch.stack(chosen).sort(dim=-1).values


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight"),
        ("blk.17.ffn_down.weight", "model.layers.17.mlp.down_proj.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ],
)
def test_weights_are_those_of_the_gguf_package(dense, gguf_folder, stored, name):
    gguf = pytest.importorskip("gguf")
    from safetensors import safe_open

    reader = gguf.GGUFReader(gguf_folder / wheel.GGUF_FILE)
    (tensor,) = (tensor for tensor in reader.tensors if tensor.name == stored)
    expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
    with safe_open(dense / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor(name), expected)


def test_everything_is_what_transformers_reads_from_the_gguf(gguf_folder, tmp_path):
    pytest.importorskip("gguf")
    folder = tmp_path / "converted"
    folder.mkdir()
    smollm2.convert((gguf_folder / wheel.GGUF_FILE).read_bytes(), folder)
    ours = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(gguf_folder, gguf_file=wheel.GGUF_FILE)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert [
        name for name, value in theirs.state_dict().items() if not torch.equal(value, ours.state_dict()[name])
    ] == []
    for key in ("rope_parameters", "rms_norm_eps", "head_dim", "max_position_embeddings", "eos_token_id", "vocab_size"):
        assert getattr(ours.config, key) == getattr(theirs.config, key)
    question = torch.tensor([[1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2]])
    with torch.inference_mode():
        assert torch.equal(ours(question).logits, theirs(question).logits)


def test_weights_need_float32(dense):
    from safetensors.torch import load_file

    weight = load_file(dense / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.half().float())
    assert not torch.equal(weight, weight.bfloat16().float())


def test_tokenizer_splits_digits(tokenizer):
    assert tokenizer.tokenize("In 2024:\n\n12") == ["In", "Ġ", "2", "0", "2", "4", ":", "ĊĊ", "1", "2"]


def test_tokenizer_splits_spaces_from_digits(tokenizer):
    # Byte-level splitting alone would leave the last space to the digit: the trap that the GGUF reader falls into.
    assert tokenizer.tokenize("x    7") == ["x", "ĠĠĠĠ", "7"]


@pytest.mark.parametrize(
    "text", [STORY, "Zoë: 12 + 34 = 46\n\n\tĎábel ß ☃ 你好 \r\n  end ", "<|im_start|>user\nhi<|im_end|>\n"]
)
def test_tokenizer_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_chat_template_is_the_original(tokenizer):
    assert tokenizer.decode(chat(tokenizer, "Hi!")["input_ids"][0]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.convert_ids_to_tokens(2) == "<|im_end|>"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


def test_dense_model_answers(tokenizer, dense_model):
    inputs = chat(tokenizer, QUESTIONS[0])
    answer = dense_model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


def test_mixture_has_the_same_tokenizer(dense, moe):
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (dense / name).read_bytes() == (moe / name).read_bytes()


@pytest.mark.parametrize("question", QUESTIONS)
def test_mixture_equals_the_dense_model(tokenizer, dense_model, moe_model, question):
    inputs = chat(tokenizer, question)
    with torch.inference_mode():
        difference = (moe_model(**inputs).logits - dense_model(**inputs).logits).abs().max().item()
    assert difference == 0
    texts = [model.generate(**inputs, max_new_tokens=32, do_sample=False) for model in (moe_model, dense_model)]
    assert torch.equal(*texts)


def test_routing_depends_on_the_token(tokenizer, moe_model):
    chosen = selections(moe_model, tokenizer(STORY, return_tensors="pt")["input_ids"])
    assert chosen.shape[0] == 30
    assert chosen.shape[2] == upcycle.TOP_K
    changed = (chosen[:, 1:] != chosen[:, :-1]).any(dim=-1).float().mean().item()
    assert changed > 0.5


def test_no_expert_is_idle(tokenizer, moe_model):
    chosen = selections(moe_model, tokenizer(STORY, return_tensors="pt")["input_ids"])
    loads = torch.stack([layer.flatten().bincount(minlength=upcycle.EXPERTS) for layer in chosen])
    fair_share = chosen[0].numel() / upcycle.EXPERTS
    assert loads.min().item() > 0
    assert (loads.max(dim=1).values / fair_share).mean().item() < 1.6


def test_built_from_nothing_and_rebuilt_for_another_format(tmp_path, monkeypatch):
    said: list[str] = []
    with skip_without_package():
        folder = upcycle.ensure(tmp_path, said.append)
    assert [line.partition(":")[0] for line in said[-3:]] == ["smollm2", "smollm2-moe", "smollm2-moe"]
    first = (folder / "model.safetensors").read_bytes()
    said.clear()
    assert upcycle.ensure(tmp_path, said.append) == folder
    assert said == []
    manifest = json.loads((folder / cache.MANIFEST).read_text())
    (folder / cache.MANIFEST).write_text(json.dumps({**manifest, "format": "0.0"}))
    upcycle.ensure(tmp_path, said.append)
    assert len(said) == 2
    assert json.loads((folder / cache.MANIFEST).read_text()) == manifest
    assert (folder / "model.safetensors").read_bytes() == first  # the routers are fitted deterministically
    names = {path.name for path in tmp_path.iterdir()}
    assert names - {wheel.WHEEL} == {"smollm2", "smollm2-moe", ".smollm2.lock", ".smollm2-moe.lock"}
