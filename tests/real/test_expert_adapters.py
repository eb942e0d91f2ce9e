"""The architectures with an adapter: slots without weights, capacity, image tokens, and what the gates weigh."""

from __future__ import annotations

import pytest
import tiny_moe
from lazily import Late, torch, transformers

from pytest_infer.errors import ExpertCaptureError

sites = Late("pytest_infer.measure.experts.sites")
ExpertRecorder = Late("pytest_infer.measure.experts.recorder:ExpertRecorder")

pytestmark = pytest.mark.real

PROMPT = [5, 17, 3, 88, 41, 17, 60, 9, 2, 33]


def forward(model, ids=PROMPT, **options):
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=len(ids)), torch.no_grad():
        model(input_ids=torch.tensor([ids]), **options)
    return recorder.usage(prompt_tokens=len(ids), generated_tokens=1)


def switch(capacity):
    torch.manual_seed(0)
    config = transformers.SwitchTransformersConfig(
        vocab_size=96, d_model=32, d_kv=8, d_ff=16, num_layers=2, num_sparse_encoder_layers=2, num_decoder_layers=2,
        num_sparse_decoder_layers=2, num_heads=4, num_experts=4, expert_capacity=capacity, decoder_start_token_id=0,
        initializer_factor=1.0,
    )  # fmt: skip
    return transformers.SwitchTransformersForConditionalGeneration(config).eval()


def switch_truth(stack, ids, expert_count):
    """Recount from the modules that really ran: every expert is a module of its own."""
    seen = {}

    def count(name):
        def hook(_module, args, _output):
            seen[name] = args[0].shape[0]

        return hook

    hooks = [
        module.register_forward_hook(count(name))
        for name, module in stack.named_modules()
        if name.rpartition(".")[2].startswith("expert_")
    ]
    with torch.no_grad():
        stack(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    blocks = sorted(
        {name.rpartition(".")[0] for name, _ in stack.named_modules() if ".expert_" in name and name.endswith("_0")}
    )
    return tuple(tuple(seen.get(f"{block}.expert_{e}", 0) for e in range(expert_count)) for block in blocks)


@pytest.mark.parametrize("capacity", [1, 2, 64])
def test_switch_counts_what_ran_and_what_was_dropped(capacity):
    encoder = switch(capacity).encoder
    usage = forward(encoder)
    assert usage.check == "passed"
    assert usage.prefill == switch_truth(encoder, PROMPT, 4)
    assert usage.prefill_dropped == tuple(len(PROMPT) - sum(row) for row in usage.prefill)
    assert max(map(max, usage.prefill)) <= capacity
    assert (sum(usage.prefill_dropped) > 0) == (capacity < 64)


def test_switch_decoder_is_recorded_while_the_whole_model_generates():
    model = switch(64)
    recorder = ExpertRecorder(model.decoder)
    with recorder.recording(prompt_tokens=1):
        model.generate(torch.tensor([PROMPT]), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    usage = recorder.usage(prompt_tokens=1, generated_tokens=5)
    assert (usage.check, usage.prefill_tokens, usage.decode_tokens) == ("passed", 1, 4)
    assert usage.decode_dropped == (0,) * len(usage.sites)


def test_a_whole_encoder_decoder_is_refused():
    with pytest.raises(ExpertCaptureError, match=r"^switch_transformers: .*record its encoder or"):
        sites.find(switch(64))


def test_zaya_skip_is_a_slot_without_weights():
    model = tiny_moe.build("zaya")
    for name, buffer in model.named_buffers():
        if name.endswith("balancing_biases"):
            buffer.zero_()
    usage = forward(model)
    assert {(site.experts, site.slots) for site in usage.sites} == {(8, 9)}
    skipped = [0] * len(usage.sites)
    for number, site in enumerate(usage.sites):
        with_bias = model.get_submodule(site.name.rpartition(".")[0]).gate.balancing_biases
        with_bias[-1] = 10.0
        skipped[number] = site.slots - 1
    usage = forward(model)
    assert all(row == (0,) * 8 + (len(PROMPT),) for row in usage.prefill)
    assert all(not any(row) for row in usage.prefill_weights)


def test_longcat_identity_experts_are_slots_without_weights():
    model = tiny_moe.build("longcat_flash")
    usage = forward(model)
    assert {(site.experts, site.slots) for site in usage.sites} == {(8, 12)}
    site = usage.sites[0]
    model.get_submodule(site.name.rpartition(".")[0]).router.e_score_correction_bias[8 : 8 + site.k] += 10.0
    usage = forward(model)
    assert usage.prefill[0] == (0,) * 8 + (len(PROMPT),) * site.k + (0,) * (4 - site.k)
    assert usage.check == "passed"


def test_jetmoe_has_two_sites_a_layer():
    usage = forward(tiny_moe.build("jetmoe"))
    assert [(site.layer, site.kind) for site in usage.sites][:2] == [(0, "mlp"), (0, "attention")]


def test_llama4_says_that_every_expert_is_computed():
    usage = forward(tiny_moe.build("llama4_text"))
    assert {site.kind for site in usage.sites} == {"mlp-all"}
    assert {site.shared for site in usage.sites} == {1}


def test_ernie_vision_experts_see_image_tokens_only():
    model = tiny_moe.build("ernie4_5_vl_moe")
    text = forward(model)
    assert all("text_moe" in site.name for site in text.sites)
    types = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 0, 0, 0]])
    mixed = forward(model, moe_mm_token_type_ids=types)
    assert mixed.check == "passed"
    rows = {site.name.split(".")[-2]: sum(row) for site, row in zip(mixed.sites, mixed.prefill, strict=True)}
    k = mixed.sites[0].k
    assert rows == {"text_moe": 7 * k, "vision_moe": 3 * k}


def gates(model, ids):
    """Sum gate weights slot by slot in plain Python, from the calls of the experts modules."""
    found = {}

    def add(name):
        def hook(module, args):
            sums = found.setdefault(name, [0.0] * module.num_experts)
            for experts, weights in zip(args[1].tolist(), args[2].tolist(), strict=True):
                for expert, weight in zip(experts, weights, strict=True):
                    sums[expert] += weight

        return hook

    hooks = [m.register_forward_pre_hook(add(n)) for n, m in model.named_modules() if n.endswith(".experts")]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return list(found.values())


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3", "gpt_oss", "dbrx"])
def test_gate_weights_are_summed_per_expert(kind):
    model = tiny_moe.build(kind)
    usage = forward(model)
    for sums, expected in zip(usage.prefill_weights, gates(model, PROMPT), strict=True):
        assert sums == pytest.approx(expected, rel=1e-6)


def test_gate_weights_of_a_normalised_router_sum_to_the_tokens():
    for kind in ("mixtral", "jetmoe"):
        usage = forward(tiny_moe.build(kind))
        for row in usage.prefill_weights:
            assert sum(row) == pytest.approx(len(PROMPT), rel=1e-5)


def test_doge_has_no_gate_weights_but_a_shared_mlp():
    usage = forward(tiny_moe.build("doge"))
    assert usage.prefill_weights is None
    assert {site.shared for site in usage.sites} == {1}
    assert all(site.shared_bytes == 3 * 32 * 48 * 4 for site in usage.sites)


SHARED = {
    "deepseek_v3": (1, 3 * 32 * 16 * 4),
    "qwen2_moe": (1, 3 * 32 * 16 * 4),
    "granitemoehybrid": (1, 3 * 32 * 16 * 4),
}


@pytest.mark.parametrize("kind", SHARED)
def test_shared_experts_are_named_and_sized(kind):
    usage = forward(tiny_moe.build(kind))
    assert {(site.shared, site.shared_bytes) for site in usage.sites} == {SHARED[kind]}


@pytest.mark.parametrize("kind", ["mixtral", "olmoe"])
def test_there_are_none_where_there_are_none(kind):
    assert {(site.shared, site.shared_bytes) for site in forward(tiny_moe.build(kind)).sites} == {(None, None)}


def test_a_type_that_was_not_checked_is_counted_with_a_note():
    model = tiny_moe.build("mixtral")
    model.config.model_type = "mixtral9"
    usage = forward(model)
    assert usage.check == "passed"
    assert usage.note.startswith("mixtral9 is not among the architectures that this version was checked with")


def test_an_irregular_type_is_refused_with_its_name():
    model = tiny_moe.build("mixtral")
    model.config.model_type = "mixtral9"
    type_ = type(model.model.layers[0].mlp.experts)
    odd = type("OddExperts", (type_,), {"forward": lambda self, states, mask: states})
    model.model.layers[0].mlp.experts.__class__ = odd
    with pytest.raises(ExpertCaptureError, match=r"^mixtral9: model\.layers\.0\.mlp"):
        sites.find(model)
