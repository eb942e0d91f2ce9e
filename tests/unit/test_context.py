"""How many positions a config says that a model takes."""

import pytest

from pytest_infer.engines.checkpoint import context

YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
LONG = {"short_factor": [1.0], "long_factor": [4.0]}


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        # as it is written, under whatever name
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024, "n_ctx": 1024}, 1024),
        ({"max_seq_len": 4096}, 4096),
        ({"max_position_embeddings": 2048, "rope_scaling": None}, 2048),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 2048),
        # unknown
        ({}, None),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": 0}, None),
        ({"max_position_embeddings": -1}, None),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": "2048"}, None),
        ({"max_position_embeddings": -1, "n_positions": 512}, 512),
        ({"max_position_embeddings": -1, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, None),
        # values that no config should hold
        ({"max_position_embeddings": 64, "rope_scaling": {"type": ["yarn"], "factor": 4.0}}, 64),
        ({"max_position_embeddings": 64, "rope_scaling": {"rope_type": {"a": 1}, "factor": 4.0}}, 64),
        ({"max_position_embeddings": 2**63, "rope_scaling": {"type": "yarn", "factor": 1e308}}, 2**63),
        ({"max_position_embeddings": 10**400, "rope_scaling": {"type": "linear", "factor": 2.0}}, 10**400),
        # YaRN: Qwen2.5 (the limit stays), Qwen3, DeepSeek-V3 and gpt-oss (the limit is stretched already)
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", **YARN}}, 131072),
        ({"max_position_embeddings": 40960, "rope_scaling": {"rope_type": "yarn", **YARN}}, 131072),
        ({"max_position_embeddings": 40960, "rope_parameters": {"rope_type": "yarn", **YARN}}, 131072),
        (
            {
                "max_position_embeddings": 163840,
                "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
            },
            163840,
        ),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 256),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "yarn", "factor": 1.5}}, 150),
        # dynamic and linear: Vicuna 16k, Hunyuan (whose factor changes nothing)
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2}}, 8192),
        (
            {"max_position_embeddings": 32768, "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0}},
            32768,
        ),
        # longrope and Llama 3: the limit says all, or what it is stretched from
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope", **LONG},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 4096,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope", "factor": 32.0, **LONG},
            },
            131072,
        ),
        ({"max_position_embeddings": 131072, "rope_scaling": {"type": "su", "factor": 2.0, **LONG}}, 131072),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
        # what is no scaling of the limit
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, 32768),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "yarn", "factor": float("inf")}}, 2048),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "yarn", "factor": "4"}}, 2048),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "yarn", "factor": 0.5}}, 2048),
        ({"max_position_embeddings": 2048, "rope_scaling": "yarn"}, 2048),
        # kinds of layers: Gemma 3, whose windows are not stretched
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            131072,
        ),
        # Command R
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
        ({"model_max_length": 4096}, 4096),
    ],
    ids=str,
)
def test_the_limit_and_what_scaling_makes_of_it(config, longest):
    assert context.longest(config) == longest
