"""Expert usage of tiny random models, against recounts that know nothing of the recorder."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import pytest
from lazily import Late, torch, transformers

from pytest_infer.errors import ExpertCaptureError

sites = Late("pytest_infer.measure.experts.sites")
ExpertRecorder = Late("pytest_infer.measure.experts.recorder:ExpertRecorder")

pytestmark = pytest.mark.real

COMMON = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # wide enough that routers have opinions
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
FAMILIES = {
    "mixtral": (
        "Mixtral",
        {"intermediate_size": 24, "num_hidden_layers": 3, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "moe_intermediate_size": 16,
            "intermediate_size": 24,
            "head_dim": 8,
            "num_hidden_layers": 4,
            "num_experts": 10,
            "num_experts_per_tok": 3,
            "mlp_only_layers": [1],
        },
    ),
    "olmoe": ("Olmoe", {"intermediate_size": 16, "num_hidden_layers": 3, "num_experts": 12, "num_experts_per_tok": 4}),
    "phimoe": (
        "Phimoe",
        {"intermediate_size": 24, "num_hidden_layers": 3, "num_local_experts": 6, "num_experts_per_tok": 2},
    ),
}
LAYERS = {"mixtral": [0, 1, 2], "qwen3_moe": [0, 2, 3], "olmoe": [0, 1, 2], "phimoe": [0, 1, 2]}
IMPLEMENTATIONS = ["eager", "grouped_mm", "batched_mm"]
PROMPT = [5, 17, 3, 88, 41, 17, 60, 9, 2, 33, 71]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only slow down models this small, by a hundred times when the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@dataclass
class Run:
    usage: object
    tokens: list[int]
    scores: torch.Tensor


def build(family, implementation="eager"):
    name, own = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**COMMON, **own)
    torch.manual_seed(7)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    model.set_experts_implementation(implementation)
    return model


def generate(model, prompt, new, **options):
    ids = torch.tensor([prompt])
    options = {"attention_mask": torch.ones_like(ids)} | options
    return model.generate(
        ids, max_new_tokens=new, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )


def run(model, prompt=PROMPT, new=20, **options):
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=len(prompt)):
        output = generate(model, prompt, new, **options)
    usage = recorder.usage(prompt_tokens=len(prompt), generated_tokens=new)
    return Run(usage, output.sequences[0].tolist(), torch.stack(output.logits))


def counts_of(usage):
    """Return all but the gate weights, whose last bits depend on the shape of a forward."""
    return replace(usage, prefill_weights=None, decode_weights=None)


def recount(model, tokens, prompt):
    """Count the top-k of the router logits of one forward over all tokens that were fed: (prefill, decode)."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]]), output_router_logits=True, use_cache=False).router_logits
    k = model.config.num_experts_per_tok
    index = [layer.topk(k, dim=-1).indices for layer in logits]
    experts = logits[0].shape[-1]
    return tuple(
        tuple(tuple(torch.bincount(layer[part].flatten(), minlength=experts).tolist()) for layer in index)
        for part in (slice(None, prompt), slice(prompt, None))
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_counts_equal_a_recount_from_router_logits(family, implementation):
    model = build(family, implementation)
    result = run(model)
    assert (result.usage.prefill, result.usage.decode) == recount(model, result.tokens, len(PROMPT))
    assert result.usage.check == "passed"


def test_sums_are_layers_by_tokens_by_k(family):
    model = build(family)
    usage = run(model).usage
    config = model.config
    assert [site.layer for site in usage.sites] == LAYERS[family]
    assert {site.k for site in usage.sites} == {config.num_experts_per_tok}
    assert {site.experts for site in usage.sites} == {config.num_local_experts}
    processed = len(PROMPT) + 20 - 1
    total = sum(sum(row) for phase in (usage.prefill, usage.decode) for row in phase)
    assert total == len(LAYERS[family]) * processed * config.num_experts_per_tok
    experts = model.model.layers[0].mlp.experts
    bytes_ = sum(parameter.numel() * 4 for parameter in experts.parameters())
    assert usage.sites[0].expert_bytes * usage.sites[0].experts == bytes_


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_output_is_bit_identical_under_capture(family, implementation):
    model = build(family, implementation)
    bare = generate(model, PROMPT, 20)
    result = run(model)
    assert result.tokens == bare.sequences[0].tolist()
    assert torch.equal(result.scores, torch.stack(bare.logits))


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"prefill_chunk_size": 4},
        {"cache_implementation": "static"},
        {"do_sample": True, "num_return_sequences": 1, "top_k": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_ways_of_running_do_not_change_the_counts(family, options):
    model = build(family)
    expected = run(model)
    options = {"do_sample": False} | options
    recorder = ExpertRecorder(model)
    ids = torch.tensor([PROMPT])
    with recorder.recording(prompt_tokens=len(PROMPT)):
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, **options)
    assert output[0].tolist() == expected.tokens
    usage = recorder.usage(prompt_tokens=len(PROMPT), generated_tokens=20)
    assert counts_of(usage) == counts_of(expected.usage)


def test_long_generation_is_counted_in_several_batches():
    model = build("olmoe")
    result = run(model, new=150)
    assert (result.usage.prefill, result.usage.decode) == recount(model, result.tokens, len(PROMPT))


def test_engine_in_inference_mode_is_counted_too():
    model = build("mixtral")
    expected = run(model).usage
    with torch.inference_mode():
        result = run(model)
    assert counts_of(result.usage) == counts_of(expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_left_padded_batch_is_the_sum_of_its_rows(family, use_cache):
    model = build(family)
    prompts, new = [PROMPT, PROMPT[3:8]], 12
    alone = [run(model, prompt, new) for prompt in prompts]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=width):
        output = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, use_cache=use_cache)
    assert [row[-new:] for row in output.tolist()] == [result.tokens[-new:] for result in alone]
    usage = recorder.usage(prompt_tokens=int(mask.sum()), generated_tokens=2 * new, sequences=2)
    assert usage.check == "passed"
    for phase in ("prefill", "decode"):
        rows = zip(*(getattr(result.usage, phase) for result in alone), strict=True)
        summed = tuple(tuple(map(sum, zip(*pair, strict=True))) for pair in rows)
        assert getattr(usage, phase) == summed


def test_row_that_ended_early_fails_the_check():
    model = build("mixtral")
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=len(PROMPT)):
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    usage = recorder.usage(prompt_tokens=ids.numel(), generated_tokens=6 + 4, sequences=2)
    assert usage.check.startswith("model.layers.0.mlp.experts: 20 decode selections, expected 16 (8 tokens x 2)")


def test_one_token_prompt(family):
    model = build(family)
    result = run(model, prompt=[5])
    assert (result.usage.prefill, result.usage.decode) == recount(model, result.tokens, 1)
    assert (result.usage.prefill_tokens, result.usage.check) == (1, "passed")


def test_one_generated_token(family):
    model = build(family)
    result = run(model, new=1)
    assert (result.usage.prefill, result.usage.decode) == recount(model, result.tokens, len(PROMPT))
    assert (result.usage.decode_tokens, result.usage.check) == (0, "passed")
    assert not any(map(any, result.usage.decode))


def changed_rows(model, block, experts, expert, ids):
    """Return which positions of a block's output change when one expert's weights do."""
    seen = []
    hook = block.register_forward_hook(lambda _module, _args, output: seen.append(output))
    weight = experts.down_proj.data
    original = weight[expert].clone()
    with torch.no_grad():
        model(ids, use_cache=False)
        weight[expert] *= 3
        model(ids, use_cache=False)
        weight[expert] = original
    hook.remove()
    return (seen[0] != seen[1]).reshape(ids.shape[1], -1).any(dim=-1)


def test_perturbing_one_expert_changes_as_many_rows_as_were_recorded(family):
    """Truth without router knowledge: an expert's weights matter to those tokens only that selected it."""
    model = build(family)
    result = run(model)
    ids = torch.tensor([result.tokens[:-1]])
    for number, site in enumerate(result.usage.sites):
        block = model.model.layers[site.layer].mlp
        for expert in range(site.experts):
            rows = changed_rows(model, block, block.experts, expert, ids)
            found = (int(rows[: len(PROMPT)].sum()), int(rows[len(PROMPT) :].sum()))
            assert found == (result.usage.prefill[number][expert], result.usage.decode[number][expert])


def plant(model, choices):
    """Make layer l send token t to the experts `choices[l][t]`: one-hot tokens reach every router unchanged."""
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(*model.model.embed_tokens.weight.shape))
        for layer, wanted in zip(model.model.layers, choices, strict=True):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.experts.down_proj.zero_()
            layer.mlp.gate.weight.zero_()
            for token, experts in enumerate(wanted):
                layer.mlp.gate.weight[list(experts), token] = 1.0


def test_planted_router_gives_back_the_planted_counts():
    model = build("mixtral")
    tokens = model.config.hidden_size  # those that have a dimension of their own
    generator = torch.Generator().manual_seed(1)
    choices = [[torch.randperm(8, generator=generator)[:2].tolist() for _ in range(tokens)] for _ in range(3)]
    plant(model, choices)
    with torch.no_grad():  # token t is followed by t + 5
        model.lm_head.weight.zero_()
        for token in range(tokens):
            model.lm_head.weight[(token + 5) % tokens, token] = 1.0
    prompt = [token % tokens for token in PROMPT]
    result = run(model, prompt=prompt, new=40)
    assert result.tokens[len(prompt) :] == [(prompt[-1] + 5 * step) % tokens for step in range(1, 41)]
    for phase, fed in (("prefill", prompt), ("decode", result.tokens[len(prompt) : -1])):
        for layer, row in enumerate(getattr(result.usage, phase)):
            picked = [expert for token in fed for expert in choices[layer][token]]
            assert row == tuple(picked.count(expert) for expert in range(8))


def test_planted_shares_come_back_exactly():
    """Every token goes to the experts of its class: 8, 4, 2 and 2 tokens of 16 make shares of 1/2, 1/4, 1/8 and 1/8."""
    model = build("mixtral")
    pairs = [(0, 1)] * 8 + [(2, 3)] * 4 + [(4, 5)] * 2 + [(6, 7)] * 2
    filler = [(0, 7)] * (model.config.hidden_size - len(pairs))
    plant(model, [pairs + filler] * 3)
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=16), torch.no_grad():
        model(torch.tensor([list(range(16))]), use_cache=False)
    usage = recorder.usage(prompt_tokens=16, generated_tokens=1)
    assert usage.prefill == ((8, 8, 4, 4, 2, 2, 2, 2),) * 3
    for weights in usage.prefill_weights:  # both experts of a token have the same logit
        assert weights == pytest.approx((4, 4, 2, 2, 1, 1, 1, 1), rel=1e-5)


@pytest.mark.parametrize("use_cache", [True, False])
def test_planted_cycle_is_in_the_trace(use_cache):
    """Token t is followed by t + 1 and goes to the experts t and t + 1 modulo 8, in the last layer to t and t + 4."""
    model = build("mixtral")
    tokens = model.config.hidden_size
    near = [(token % 8, (token + 1) % 8) for token in range(tokens)]
    far = [(token % 8, (token + 4) % 8) for token in range(tokens)]
    plant(model, [near, near, far])
    with torch.no_grad():
        model.lm_head.weight.zero_()
        for token in range(tokens):
            model.lm_head.weight[(token + 1) % tokens, token] = 1.0
    recorder = ExpertRecorder(model)
    ids = torch.tensor([[0, 1, 2]])
    with recorder.recording(prompt_tokens=3, trace=True):
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False, use_cache=use_cache
        )
    usage = recorder.usage(prompt_tokens=3, generated_tokens=80)
    assert (usage.check, usage.prefill_tokens, usage.decode_tokens) == ("passed", 3, 79)
    for site, trace in enumerate(usage.trace):
        rows = [set(trace[2 * token : 2 * token + 2]) for token in range(82)]
        assert rows == [set((near, near, far)[site][token % tokens]) for token in range(82)]


def test_trace_of_a_batch_is_refused():
    model = build("mixtral")
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=len(PROMPT), trace=True):
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
    with pytest.raises(ExpertCaptureError, match="a trace is of one sequence without padding"):
        recorder.usage(prompt_tokens=ids.numel(), generated_tokens=4, sequences=2)


def test_prompt_lookup_is_refused():
    model = build("mixtral")
    repetitive = [5, 6, 7, 5, 6, 7, 5, 6, 7, 5, 6]
    recorder = ExpertRecorder(model)
    ids = torch.tensor([repetitive])
    with recorder.recording(prompt_tokens=len(repetitive)):
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=4
        )
    with pytest.raises(ExpertCaptureError, match="assisted decoding or prompt lookup"):
        recorder.usage(prompt_tokens=len(repetitive), generated_tokens=output.shape[1] - len(repetitive))


def test_reused_cache_prefix_is_refused():
    model = build("mixtral")
    with torch.no_grad():
        cache = model(torch.tensor([PROMPT[:6]]), use_cache=True).past_key_values
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=len(PROMPT)):
        # Up to transformers 5.23 it is called past_key_values.
        name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        generate(model, PROMPT, 4, **{name: cache})
    with pytest.raises(ExpertCaptureError, match="began at position 6"):
        recorder.usage(prompt_tokens=len(PROMPT), generated_tokens=4)


def test_dense_model_has_no_sites():
    config = transformers.LlamaConfig(num_hidden_layers=2, intermediate_size=24, **COMMON)
    assert sites.find(transformers.LlamaForCausalLM(config)) == ()


def test_hooks_are_gone_after_use_and_after_an_exception():
    model = build("qwen3_moe")
    run(model, new=2)

    def fail(*_):
        raise KeyError("interrupted")

    model.model.norm.register_forward_hook(fail)
    with pytest.raises(KeyError, match="interrupted"):
        run(model)
    model.model.norm._forward_hooks.clear()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert run(model).usage.check == "passed"
