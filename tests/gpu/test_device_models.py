"""The same model on the CPU and on the device: tokens, experts, scores, parts, batches, and weights in two places."""

import pytest
from on_device import IDS, LIMITS, generated, usage_of

from asked import asked
from pytest_infer.measure.breakdown import taken
from pytest_infer.records import Limits, Role


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_experts_are_counted_as_on_the_cpu(engines, device, experts):
    on_cpu, expected = usage_of(engines(device="cpu", experts_implementation=experts))
    engine = engines(device=str(device), experts_implementation=experts)
    _, found = usage_of(engine, follow=on_cpu.token_ids)
    assert found.check == expected.check == "passed"
    assert (found.prefill, found.decode, found.trace) == (expected.prefill, expected.decode, expected.trace)
    for weights, others in (
        (found.prefill_weights, expected.prefill_weights),
        (found.decode_weights, expected.decode_weights),
    ):
        assert [sum(site) for site in weights] == pytest.approx([sum(site) for site in others], rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_scores_are_those_of_the_cpu_as_far_as_the_dtype_goes(engines, device, dtype):
    import numpy as np

    on_cpu, expected = generated(engines(device="cpu", dtype=dtype), scores=True)
    engine = engines(device=str(device), dtype=dtype)
    engine.follow(on_cpu.token_ids)
    try:
        _, found = generated(engine, scores=True)
    finally:
        engine.follow(None)
    given, wanted = (np.frombuffer(one.chosen, "<f4") for one in (found, expected))
    assert np.abs(given - wanted).max() < {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}[dtype]
    assert engine.running.describe("m", None, None).device == str(device)


def test_a_text_has_the_perplexity_of_the_cpu(engines, device):
    given, wanted = (engines(device=name).log_probabilities(IDS, 1) for name in (str(device), "cpu"))
    assert given == pytest.approx(wanted, abs=1e-3)


def test_a_batch_generates_what_a_sequence_does(engines, device):
    engine = engines(device=str(device))
    alone, _ = generated(engine)
    _, usage = usage_of(engine, sequences=4)
    together, _ = generated(engine, limits=Limits(max_new_tokens=24, ignore_eos=True, batch=4))
    assert usage.check == "passed"
    # A batch may be rounded otherwise: most of the tokens, and the first ones.
    assert together.token_ids[:4] == alone.token_ids[:4]
    assert len(together.token_ids) == len(alone.token_ids)


def test_steps_are_taken_apart_into_the_cpus_roles_by_the_devices_clock(engines, device, monkeypatch):
    import torch

    def roles(engine, waits):
        trace, _ = generated(engine)
        waits.clear()
        found = taken.take(engine, asked(IDS), LIMITS, trace)
        return found, {one.role for one in found.decode.roles}

    waits = []
    for module in {torch.cuda, torch.accelerator}:
        own = module.synchronize
        monkeypatch.setattr(module, "synchronize", lambda *given, own=own: (waits.append(given), own(*given)))
    _, expected = roles(engines(device="cpu"), waits)
    found, seen = roles(engines(device=str(device)), waits)
    assert seen == expected
    assert {Role.SCORES, Role.ROUTER, Role.EXPERTS, Role.HEAD, Role.SAMPLING} <= seen
    assert found.clock == ("host" if device.type == "cpu" else "device")
    for phase in (found.prefill, found.decode):
        whole = [sum(own) for own in zip(*(one.self_ns for one in phase.roles), strict=True)]
        rest = [total - cost for total, cost in zip(phase.observed_ns, phase.cost_ns, strict=True)]
        assert whole == pytest.approx(rest, rel=0.01, abs=2000)
    # Before each generation and when its events are read, never between two modules.
    generations = len(found.prefill.observed_ns) + len(found.prefill.bare_ns) + 1
    assert len(waits) <= 2 * generations * (device.type != "cpu")


def test_operators_have_the_time_of_their_kernels(engines, device):
    from pytest_infer.measure.breakdown import operators

    found = operators.take(engines(device=str(device)), asked(IDS), LIMITS)
    assert found.absent is None
    assert found.decode.operators
    if device.type == "cuda":
        assert found.decode.device_s > 0
        assert found.prefill.peak_bytes


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_weights_in_two_places(engines, device, tmp_path, place):
    """The first layers on the device, the others on the CPU or in files; all in files where the device is the CPU."""
    from accelerate import disk_offload, dispatch_model

    from pytest_infer.engines.base import EngineOptions
    from pytest_infer.engines.transformers.engine import TransformersEngine

    if device.type == place:
        pytest.skip("the same place")
    expected, usage = usage_of(engines(device="cpu"))
    engine = TransformersEngine(EngineOptions(model="reference-moe", dtype="float32"))
    engine.load()
    model = engine.running.model
    if device.type == "cpu":
        disk_offload(model, tmp_path, execution_device="cpu")
    else:
        layers = len(model.model.layers)
        ends = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
        places = {f"model.layers.{n}": 0 if n < layers // 2 else place for n in range(layers)}
        dispatch_model(model, {**dict.fromkeys(ends, 0), **places}, offload_dir=str(tmp_path), force_hooks=True)
    info = engine.adopt(model, engine._tokenizer)
    assert "meta" in info.device.split(", ")
    trace, found = usage_of(engine, follow=expected.token_ids)
    assert trace.token_ids == expected.token_ids
    assert (found.prefill, found.decode) == (usage.prefill, usage.decode)
    assert "offloaded" in taken.absent(engine, trace, taken.ON)
    engine.close()


def test_a_compiled_model_generates_the_same(card):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pytest_infer.engines.base import EngineOptions
    from pytest_infer.engines.transformers.engine import TransformersEngine

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().to(card)
    tokens = []
    for compiled in (False, True):
        engine = TransformersEngine(EngineOptions(model="own", compile=compiled))
        engine.adopt(model, None)
        tokens.append([generated(engine)[0].token_ids for _ in range(2)])
        engine.close()
    assert tokens[0] == tokens[1]
