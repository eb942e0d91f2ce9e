"""What each module of an architecture is for, and what each role reads and multiplies."""

from functools import cache

import pytest
import tiny_moe
from lazily import Late, torch, transformers

from pytest_infer.engines.base import TOWER, EngineOptions
from pytest_infer.records import Role

roles = Late("pytest_infer.engines.roles")
work = Late("pytest_infer.engines.transformers.work")
expert_sites = Late("pytest_infer.measure.experts.sites")
TransformersEngine = Late("pytest_infer.engines.transformers.engine:TransformersEngine")

pytestmark = pytest.mark.real


@cache
def tiny(kind):
    return tiny_moe.build(kind)


@pytest.mark.parametrize("kind", tiny_moe.TYPES)
def test_every_module_of_every_architecture_has_a_role(kind):
    model = tiny(kind)
    places = {place.name: place for place in roles.places(model)}
    found = {place.role for place in places.values()}
    unknown = {type(place.module).__name__ for place in places.values() if place.role not in set(Role)}
    assert unknown == set()
    assert {Role.AROUND, Role.EMBEDDING, Role.NORMS, Role.HEAD, Role.RESIDUAL, Role.ROUTER, Role.EXPERTS} <= found
    assert found & {Role.SCORES, Role.LINEAR}
    if Role.SCORES in found:
        assert {Role.PROJECTIONS, Role.OUTPUT} & found
    for site in expert_sites.find(model):
        if TOWER.search(site.name):  # ernie4_5_vl_moe's experts for images
            assert site.name not in places
            continue
        # jetmoe's and doge's sites are blocks, which hold a router too.
        within = {place.role for name, place in places.items() if f"{name}.".startswith(f"{site.name}.")}
        assert Role.EXPERTS in within or places[site.name].routed, site.name
        assert places[site.name].layer == site.layer
    assert places[next(name for name, m in model.named_modules() if m is model.get_output_embeddings())].role == "head"


TINY = {"vocab_size": 96, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
DENSE = {
    "GPT2Config": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96},
    "OPTConfig": {**TINY, "ffn_dim": 64, "num_attention_heads": 4, "word_embed_proj_dim": 32},
    "BloomConfig": {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "FalconConfig": {**TINY, "num_attention_heads": 4},
    "GPTNeoXConfig": {**TINY, "num_attention_heads": 4},
    "Gemma2Config": {**TINY, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    "PhiConfig": {**TINY, "num_attention_heads": 4},
    "MambaConfig": {**TINY, "state_size": 8},
    "GraniteMoeHybridConfig": {
        **TINY,
        "num_local_experts": 0,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mamba_n_heads": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
}


@pytest.mark.parametrize("name", DENSE)
def test_modules_of_dense_architectures_have_roles_too(name):
    config = getattr(transformers, name)(**DENSE[name])
    places = list(roles.places(transformers.AutoModelForCausalLM.from_config(config)))
    found = {place.role for place in places}
    assert {type(place.module).__name__ for place in places if place.role not in set(Role)} == set()
    assert {Role.EMBEDDING, Role.NORMS, Role.HEAD, Role.RESIDUAL} <= found
    mixer = {Role.LINEAR} if name == "MambaConfig" else {Role.SCORES, Role.PROJECTIONS, Role.OUTPUT, Role.DENSE}
    assert mixer <= found
    assert not {Role.ROUTER, Role.EXPERTS, Role.SHARED} & found


SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
PART_OF_BLT = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 64}
ZAMBA = {**TINY, "num_attention_heads": 4, "num_key_value_heads": 4}
OF_PARTS = {
    "ZambaConfig": (
        {**ZAMBA, "num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
        {
            "model.layers.0.mamba": Role.LINEAR,
            "model.layers.1.shared_transf": Role.RESIDUAL,
            "model.layers.1.shared_transf.self_attn": Role.SCORES,
            "model.layers.1.shared_transf.self_attn.q_proj": Role.PROJECTIONS,
            "model.layers.1.shared_transf.feed_forward": Role.DENSE,
            "model.layers.1.shared_transf.pre_ff_layernorm": Role.NORMS,
            "model.layers.1.linear": Role.RESIDUAL,
            "model.layers.1.mamba_decoder.mamba": Role.LINEAR,
            "model.layers.1.mamba_decoder.input_layernorm": Role.NORMS,
        },
    ),
    "Zamba2Config": (
        {**ZAMBA, "layers_block_type": ["linear_attention", "hybrid"], "use_shared_attention_adapter": True},
        {
            "model.layers.1.shared_transformer": Role.RESIDUAL,
            "model.layers.1.shared_transformer.self_attn.linear_q_adapter_list.0.0": Role.PROJECTIONS,
            "model.layers.1.shared_transformer.self_attn.o_proj": Role.OUTPUT,
            "model.layers.1.shared_transformer.feed_forward.down_proj": Role.DENSE,
            "model.layers.1.linear": Role.RESIDUAL,
            "model.layers.1.mamba_decoder.mamba": Role.LINEAR,
        },
    ),
    "ModernBertDecoderConfig": (
        {**TINY, "num_attention_heads": 4, "pad_token_id": 0},
        {"model.layers.0.attn.q_proj": Role.PROJECTIONS, "model.layers.0.attn.Wo": Role.OUTPUT},
    ),
    "XLMConfig": (
        {"vocab_size": 96, "emb_dim": 32, "n_layers": 2, "n_heads": 4},
        {
            "transformer.attentions.1": Role.SCORES,
            "transformer.attentions.1.q_lin": Role.PROJECTIONS,
            "transformer.attentions.1.out_lin": Role.OUTPUT,
            "transformer.layer_norm1.1": Role.NORMS,
            "transformer.ffns.1.lin1": Role.DENSE,
        },
    ),
    "CpmAntConfig": (
        {**TINY, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 64},
        {
            "cpmant.encoder.layers.1.self_att.self_attention.project_q": Role.PROJECTIONS,
            "cpmant.encoder.layers.1.self_att.self_attention.attention_out": Role.OUTPUT,
        },
    ),
    "LEDConfig": (
        {**SEQ2SEQ, "vocab_size": 96},
        {
            "led.encoder.layers.0.self_attn.longformer_self_attn.query": Role.PROJECTIONS,
            "led.encoder.layers.0.self_attn.output": Role.OUTPUT,
        },
    ),
    "RwkvConfig": (
        TINY,
        {"rwkv.blocks.0.attention.key": Role.LINEAR, "rwkv.blocks.0.feed_forward.key": Role.DENSE},
    ),
    "BltConfig": (
        {
            "vocab_size": 96,
            "encoder_hash_byte_group_vocab": 96,
            **{f"{part}_config": PART_OF_BLT for part in ("patcher", "encoder", "decoder", "global")},
        },
        {
            "model.local_decoder.cross_attn_layers.0": Role.SCORES,
            "model.local_decoder.cross_attn_layers.0.q_proj": Role.PROJECTIONS,
            "model.local_decoder.cross_attn_layers.0.o_proj": Role.OUTPUT,
            "model.local_decoder.layers.0": Role.RESIDUAL,
        },
    ),
    "FSMTConfig": (
        {**SEQ2SEQ, "src_vocab_size": 96, "tgt_vocab_size": 96},
        {
            "model.decoder.embed_tokens": Role.EMBEDDING,
            "model.decoder.output_projection": Role.HEAD,
            "model.decoder.layers.0.fc1": Role.DENSE,
        },
    ),
}


@pytest.mark.parametrize("name", OF_PARTS)
def test_parts_that_are_called_otherwise_have_the_role_that_they_have_elsewhere(name):
    values, expected = OF_PARTS[name]
    config = getattr(transformers, name)(**values)
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    places = {place.name: place.role for place in roles.places(auto.from_config(config))}
    assert {part: places[part] for part in expected} == expected


@pytest.mark.parametrize("kind", ["muse_spark"])
def test_what_leads_into_the_width_of_experts_and_out_of_it_belongs_to_them(kind):
    found = [place.role for place in roles.places(tiny(kind)) if place.name.endswith("_expert_proj")]
    assert found
    assert set(found) == {Role.EXPERTS}


@pytest.mark.parametrize("kind", tiny_moe.TYPES)
def test_the_work_of_all_roles_is_the_whole_work(kind):
    model = tiny(kind)
    whole = work.of(model)
    if whole is None:
        return
    assert sum(own.read_bytes for own in whole.roles.values()) == whole.read_bytes
    of_body = [own.parameters for role, own in whole.roles.items() if role != Role.HEAD]
    assert whole.parameters == (None if None in of_body else sum(of_body))
    assert whole.roles[Role.HEAD].parameters == whole.head_parameters > 0
    # Whatever sees text, tables in full and shared tensors once.
    seen = {
        id(p): p.nbytes for place in roles.places(model) for p in place.module._parameters.values() if p is not None
    }
    assert sum(own.parameter_bytes for own in whole.roles.values()) == sum(seen.values()) >= whole.read_bytes
    # Of each layer's modules those that hold the most.
    assert whole.roles[Role.EXPERTS].read_bytes > 0


@pytest.mark.parametrize("kind", ["gemma4_text", "dots3_note"])
def test_a_config_whose_layers_differ_tells_no_attention(kind, other_model):
    model = tiny(kind)
    info = TransformersEngine(EngineOptions(model="reference-moe")).adopt(model, other_model[1])
    assert info.work.pair_flops is None
    assert info.work.read_bytes > 0


SEEING = {
    "smolvlm": "model.connector",
    "idefics3": "model.connector",
    "phi4_multimodal": "model.embed_tokens_extend.image_embed",
    "kimi_k25": "model.mm_projector",
    "deepseek_vl": "model.aligner",
    "paddleocr_vl": "model.projector",
    "video_llama_3": "model.projector",
    "video_llava": "model.image_tower",
    "minicpmv4_6": "model.merger",
}


@pytest.mark.parametrize("kind", SEEING)
def test_no_part_that_only_sees_images_has_a_role(kind):
    config = transformers.AutoConfig.for_model(kind)
    with torch.device("meta"):
        model = tiny_moe.model_class(kind)._from_config(config)
    part = model.get_submodule(SEEING[kind])
    within = {id(parameter) for parameter in part.parameters()}
    assert within
    places = list(roles.places(model))
    assert not within & {id(p) for place in places for p in place.module._parameters.values()}
    assert {Role.SCORES, Role.HEAD} <= {place.role for place in places}


@pytest.mark.parametrize("kind", ["aria", "minimax_m3_vl", "ernie4_5_vl_moe"])
def test_what_leads_from_images_into_the_text_is_not_read_for_text(kind):
    model = tiny(kind)
    names = [name for name, _ in model.named_parameters() if "projector" in name or "resampler" in name]
    assert names
    assert not [place.name for place in roles.places(model) if "projector" in place.name or "resampler" in place.name]
    body = sum(p.nbytes for name, p in model.named_parameters() if name not in names)
    assert work.of(model).read_bytes <= body
