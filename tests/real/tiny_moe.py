"""Tiny models of every mixture-of-experts architecture of transformers, from their configs, with random weights.

Every text config takes what it knows of TINY, every vision or audio config what it knows of TOWER; EXTRAS says what an
architecture needs beside.
"""

from lazily import Late, torch, transformers

modeling_auto = Late("transformers.models.auto.modeling_auto")
auto_configs = Late("transformers.models.auto.configuration_auto")

VOCABULARY, EXPERTS, K = 96, 8, 2
TINY = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
    "moe_intermediate_size": 16, "expert_ffn_hidden_size": 16, "ffn_hidden_size": 48, "moe_hidden_size": 32,
    "num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS, "moe_num_experts": EXPERTS,
    "num_experts_per_tok": K, "moe_topk": K, "moe_k": K, "top_k_experts": K,
    "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "num_dense_layers": 1,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1,
    "shared_expert_intermediate_size": 16, "shared_intermediate_size": 16, "share_expert_dim": 16,
    "moe_shared_expert_intermediate_size": 16, "shared_experts_intermediate_size": 16, "dense_intermediate_size": 48,
    "intermediate_size_mlp": 48, "prefix_dense_intermediate_size": 48,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "index_topk": 64, "index_head_dim": 16, "index_n_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_head_dim": 8, "linear_num_heads": 4,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_num_heads": 8, "mamba_head_dim": 8,
    "ssm_state_size": 8, "n_groups": 1, "mamba_dt_rank": 4, "mamba_chunk_size": 16, "chunk_size": 16,
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "router_jitter_noise": 0.0, "num_mtp_layers": 0, "num_nextn_predict_layers": 0,
}  # fmt: skip
TOWER = {
    "hidden_size": 32, "embed_dim": 32, "intermediate_size": 32, "num_hidden_layers": 1, "depth": 1,
    "num_attention_heads": 4, "num_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "image_size": 28,
    "patch_size": 14, "num_layers": 1, "out_hidden_size": 32, "d_model": 32, "encoder_layers": 1,
    "encoder_attention_heads": 4, "encoder_ffn_dim": 32, "output_dim": 32, "n_window": 4, "num_position_embeddings": 16,
}  # fmt: skip
_MAPPINGS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
)
EXTRAS = {
    "bailing_hybrid": {"layer_group_size": 2},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": EXPERTS, "moe_top_k": K, "hidden_size": 32},
    },
    "deepseek_v2": {"topk_method": "group_limited_greedy"},
    "deepseek_v4": {
        "head_dim": 16,
        "o_groups": 2,
        "o_lora_rank": 8,
        "hc_mult": 2,
        "sliding_window": 64,
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
    },
    "doge": {"is_moe": True, "num_experts": 16},
    "ernie4_5_vl_moe": {
        "moe_intermediate_size": [16, 16],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    },
    "gemma4": {"enable_moe_block": True, "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8},
    "gemma4_text": {"enable_moe_block": True, "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8},
    "glm4v_moe": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [1, 1, 2],
            "partial_rotary_factor": 1.0,
        }
    },
    "granitemoehybrid": {"layer_types": ["linear_attention", "linear_attention", "full_attention"]},
    "kimi_linear": {"layer_types": ["linear_attention", "linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "linear_attention", "full_attention"]},
    "qwen3_5_moe": {"layer_types": ["linear_attention", "linear_attention", "full_attention"]},
    "step3p7": {"sliding_window": 64},
    "glm5_next": {
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "qk_rope_head_dim": 0,
        "head_dim": 0,
        "hc_mult": 2,
        "index_kpool": 4,
    },
    "hy_v4": {"hc_mult": 2},
    "inkling_text": {"d_rel": 4, "rel_extent": 64, "sliding_window_size": 64},
    "inkling2": {"d_rel": 4, "rel_extent": 64, "sliding_window_size": 64, "unpadded_vocab_size": VOCABULARY},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "num_hidden_layers": 4},
    "jetmoe": {"kv_channels": 8, "num_hidden_layers": 2},
    "longcat_flash": {"num_layers": 2, "zero_expert_num": 4, "moe_topk": 3, "num_key_value_heads": 4},
    "minimax": {"block_size": 16},
    "minimax_m3_vl": {"rotary_dim": 8, "index_block_size": 4},
    "nemotron_h": {"layers_block_type": ["mamba", "moe", "attention", "moe"]},
    "qwen4_exp": {
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "hc_count": 2, "hc_lowrank": 8, "ngram_vocab_size_base": 64, "split_ngram_parts": 4,
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip
"""What the text config of a type needs beside TINY."""
TOWER_EXTRAS = {
    "Dots3NoteVisionConfig": {
        "num_hidden_layers": 42,
        "moe_intermediate_size": 16,
        "adapter_in_dim": 32,
        "adapter_out_dim": 32,
    },
    "Dots3NoteAudioConfig": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "Inkling2VisionConfig": {"text_hidden_size": 32},
    "MuseSparkAudioConfig": {"num_hidden_layers": 1, "patch_sizes": [4], "hidden_sizes": [32], "depths": [1]},
}  # fmt: skip
CLASSES = {"qwen3_omni_moe_thinker": "Qwen3OmniMoeThinkerForConditionalGeneration"}
TYPES = """
    afmoe aria aria_text axk1 axk2 bailing_hybrid beam cohere2_moe dbrx deepseek_ocr2 deepseek_v2 deepseek_v3
    deepseek_v32 deepseek_v4 doge dots1 dots3_note ernie4_5_moe ernie4_5_vl_moe exaone_moe flex_olmo flint gemma4
    gemma4_text glm4_moe glm4_moe_lite glm4v_moe glm5_next glm_moe_dsa gpt_oss granitemoe granitemoe_swa
    granitemoehybrid granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 inkling_text inkling2 jamba jetmoe kimi_linear kolibri1
    laguna lfm2_moe llama4 llama4_text longcat_flash mellum mimo_v2_flash minimax minimax_m2 minimax_m3_vl mistral4
    mistral_large4 mixtral muse_spark nemotron_h olmoe phimoe qwen2_moe qwen3_5_moe qwen3_moe qwen3_next
    qwen3_omni_moe_thinker qwen3_vl_moe qwen4_exp solar_open step3p7 unlimited_ocr zaya
""".split()  # noqa: SIM905 - as the design lists them


def known(config_class, table):
    """Return what of a table the config class declares."""
    names = {name for base in config_class.__mro__ for name in vars(base).get("__annotations__", {})}
    return {name: value for name, value in table.items() if name in names}


def model_class(kind):
    """Return the class that generates text of a type."""
    names = [getattr(modeling_auto, mapping, {}).get(kind) for mapping in _MAPPINGS]
    return getattr(transformers, CLASSES.get(kind) or next(filter(None, names)))


def text_part(config_class, extras):
    """Return the tiny values of a config of text."""
    values = known(config_class, TINY)
    if "kv_lora_rank" in values:  # latent attention has as many heads of keys as of queries
        values["num_key_value_heads"] = values["num_attention_heads"]
    return values | extras


def tower_part(config_class):
    """Return the tiny values of a tower's config and of the configs in it."""
    values = known(config_class, TOWER) | TOWER_EXTRAS.get(config_class.__name__, {})
    if "model_type" in vars(config_class):
        values["model_type"] = config_class.model_type
    for name, part in parts_of(config_class).items():
        values[name] = tower_part(part)
    return values


def parts_of(config_class):
    """Return the classes of the configs within a config."""
    if not (config_class.sub_configs or getattr(config_class, "sub_configs_defaults", None)):
        return {}
    default = config_class()
    names = {*(config_class.sub_configs or {}), *(getattr(config_class, "sub_configs_defaults", None) or {})}
    parts = {name: getattr(default, name, None) for name in sorted(names)}
    return {name: type(part) for name, part in parts.items() if part is not None}


def configuration(kind):
    """Return the tiny config of a type, towers included."""
    config_class, extras = auto_configs.CONFIG_MAPPING[kind], EXTRAS.get(kind, {})
    parts = parts_of(config_class)
    if "text_config" not in parts:
        return config_class(**text_part(config_class, extras))
    values = {name: tower_part(part) for name, part in parts.items() if name != "text_config"}
    return config_class(**values, text_config=text_part(parts["text_config"], extras))


def build(kind, implementation="eager", seed=0):
    """Return a tiny model of a type whose routers have opinions and biases."""
    torch.manual_seed(seed)
    config = configuration(kind)
    if kind == "dbrx":  # a plain attribute that its config no longer declares
        config.attn_config.rope_theta = 10000.0
    if kind == "qwen3_omni_moe_thinker":  # declared by the config around it only
        config.vision_start_token_id = VOCABULARY - 1
    class_ = model_class(kind)
    if class_.config_class is not type(config):
        config = config.get_text_config()
    model = class_._from_config(config)
    # Not as an argument: that is handed to the towers too, and most of them refuse it.
    config.get_text_config()._experts_implementation = implementation
    generator = torch.Generator().manual_seed(seed)
    # The id of the padding may be generated too, and a state of zeros leaves experts without an effect to see.
    embeddings = model.get_input_embeddings().weight.data
    embeddings[0] = 0.2 * torch.randn(embeddings.shape[1], generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith(("e_score_correction_bias", "balancing_biases", "expert_bias")):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("tid2eid"):
            rows = [torch.randperm(EXPERTS, generator=generator)[: buffer.shape[1]] for _ in range(buffer.shape[0])]
            buffer.copy_(torch.stack(rows))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()
