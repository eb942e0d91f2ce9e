"""The shapes that a config tells are those of transformers' own models, built on the meta device."""

from math import prod

import pytest
from lazily import torch, transformers

from pytest_infer.analysis.doctor import shapes

pytestmark = pytest.mark.real

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXTURE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
SHARED = {**MIXTURE, "shared_expert_intermediate_size": 12}
BIASED = {"attention_bias": True, "mlp_bias": True, "lm_head_bias": True}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("llama", {**BIASED, "tie_word_embeddings": True}),
        ("mistral", {}),
        ("mixtral", MIXTURE),
        ("olmoe", {**MIXTURE, "head_dim": 8}),
        ("phi3", {}),
        ("phimoe", MIXTURE),
        ("phimoe", {**MIXTURE, **BIASED}),
        ("qwen2", {"head_dim": 8}),
        ("qwen2_moe", {**SHARED, "head_dim": 8}),
        ("qwen2_moe", {**SHARED, "head_dim": 8, "qkv_bias": False, "decoder_sparse_step": 2}),
        ("qwen3", {}),
        ("qwen3_moe", {**MIXTURE, "mlp_only_layers": [1]}),
        ("smollm3", {"head_dim": 8}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_as_many_parameters_as_the_model_has(kind, more):
    sizes = {**SIZES, **more}
    config = transformers.AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    told = shapes.of_config({"model_type": kind, **sizes})
    assert sum(prod(t.shape) for t in told) == sum(p.numel() for p in model.parameters())
