"""Steps of real models taken apart: the parts are the step, what was planted is named, and nothing stays behind."""

import dataclasses
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from fetched import skip_without_package
from lazily import Late, torch, transformers

from asked import asked
from pytest_infer.engines.base import EngineOptions
from pytest_infer.measure import rounds
from pytest_infer.measure.breakdown import taken
from pytest_infer.measure.clock import TokenClock
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.metrics import breakdown
from pytest_infer.records import OUTSIDE, Limits, Role

sites = Late("pytest_infer.measure.experts.sites")
work = Late("pytest_infer.engines.transformers.work")
TransformersEngine = Late("pytest_infer.engines.transformers.engine:TransformersEngine")

pytestmark = pytest.mark.real
IDS = [5, 9, 14, 30, 77, 12, 201, 8, 41, 41, 90]
LIMITS = Limits(max_new_tokens=14, ignore_eos=True)
KINDS = ("llama", "mixtral", "qwen3_moe", "olmoe", "phimoe")


# taking steps apart


def trace_of(engine, limits=LIMITS):
    system = SystemCounters()
    found = rounds.timed_round(engine, asked(IDS), limits, system).trace
    system.close()
    return found


def take(engine, limits=LIMITS):
    return taken.take(engine, asked(IDS), limits, trace_of(engine, limits))


def by_role(phase):
    return {one.role: one for one in phase.roles}


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_are_the_step(kind, engine_of):
    found = take(engine_of(kind))
    for phase in (found.prefill, found.decode):
        whole = [sum(own) for own in zip(*(one.self_ns for one in phase.roles), strict=True)]
        rest = [total - cost for total, cost in zip(phase.observed_ns, phase.cost_ns, strict=True)]
        assert whole == pytest.approx(rest, abs=len(phase.roles))
        assert len(phase.observed_ns) == len(phase.bare_ns)
        expected = {Role.EMBEDDING, Role.PROJECTIONS, Role.SCORES, Role.OUTPUT, Role.CACHE, Role.NORMS, Role.HEAD}
        expected |= {Role.RESIDUAL, Role.POSITIONS, Role.AROUND, Role.PROCESSORS, Role.SAMPLING, Role.LOOP}
        expected |= {Role.DENSE} if kind == "llama" else {Role.ROUTER, Role.EXPERTS}
        assert expected <= set(by_role(phase))
        for role in (Role.SCORES, Role.OUTPUT, Role.CACHE):
            assert by_role(phase)[role].layers == (0, 1, 2)
            assert by_role(phase)[role].calls == 3
        assert by_role(phase)[Role.PROJECTIONS].calls == 9
        assert by_role(phase)[Role.HEAD].layers == ()
        assert by_role(phase)[Role.HEAD].calls == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["smollm2", "smollm2-moe", "reference-moe"])
def test_the_parts_add_up_to_a_step_without_hooks(kind):
    engine = TransformersEngine(EngineOptions(model=kind))
    with skip_without_package():
        engine.load()
    # What the line of a run says, three of at most five times: beside other work a single one may be wrong, or the step
    # be known too badly to say much. If it never is known well, three of five must still be right.
    verdicts, every = Counter(), []
    for _ in range(15):
        parts = breakdown.phase(take(engine, Limits(max_new_tokens=33, ignore_eos=True)).decode)
        every.append(parts.adds_up)
        if parts.remainder_error_s <= 0.05 * parts.step_s:
            verdicts[parts.adds_up] += 1
        if 3 in verdicts.values():
            break
    engine.close()
    if 3 in verdicts.values():
        assert verdicts[True] == 3
    else:
        assert every.count(True) >= 3 / 5 * len(every)


class Watching:
    """Looks at the hooks of a model whenever its engine generates."""

    def __init__(self, engine):
        self.model = engine.running.model
        self.seen = []
        own = engine.generate

        def generate(prompt_ids, limits, clock):
            self.seen.append((type(clock), hooks_of(self.model), replaced()))
            return own(prompt_ids, limits, clock)

        engine.generate = generate


def hooks_of(model):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in vars(module))
        for module in model.modules()
    )


def replaced():
    kinds = (transformers.Cache, transformers.LogitsProcessorList, transformers.StoppingCriteriaList)
    return any(hasattr(value, "__wrapped__") for kind in kinds for name, value in vars(kind).items())


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_timed_rounds_have_no_hooks(kind, engine_of):
    engine = engine_of(kind)
    before = [dict(vars(one)) for one in (transformers.Cache, transformers.LogitsProcessorList)]
    watching, system = Watching(engine), SystemCounters()
    runner = rounds.Runner(engine=engine, asking=asked(IDS), limits=LIMITS, system=system, usable_cores=1.0)
    plan = rounds.RoundPlan(warmup=1, rounds=3, profile=True, experts=True, breakdown="on")
    found = rounds.measure(runner, plan, lambda *_: None)
    assert found.breakdown is not None, found.breakdown_absent
    timed, instrumented = watching.seen[:4], watching.seen[5:]
    assert timed == [(TokenClock, 0, False)] * 4
    # The profile round has its own; then come prefills with and without, and the decode steps.
    assert watching.seen[4][0] is TokenClock
    assert {hooks > 0 for _, hooks, _ in instrumented} == {True, False}
    assert all((hooks > 0) is spans for _, hooks, spans in instrumented)
    # Nothing stays behind.
    runner.timed()
    assert watching.seen[-1] == (TokenClock, 0, False)
    assert [dict(vars(one)) for one in (transformers.Cache, transformers.LogitsProcessorList)] == before
    system.close()


def test_the_output_is_the_same(engine_of):
    engine = engine_of("mixtral")
    expected = trace_of(engine).token_ids
    made = []
    own = engine.generate

    def generate(prompt_ids, limits, clock):
        stopped = own(prompt_ids, limits, clock)
        made.append(tuple(int(i) for ids in clock._ids for i in ids))
        return stopped

    engine.generate = generate
    take(engine)
    assert made[-1] == made[0] == expected
    assert {ids for ids in made if len(ids) == 1} == {expected[:1]}


# what was planted is found


DELAY_S = 0.02


def slowed(own, seconds=DELAY_S):
    def call(*args, **kwargs):
        time.sleep(seconds)
        return own(*args, **kwargs)

    return call


def in_module(name):
    def plant(engine, monkeypatch):
        module = engine.running.model.get_submodule(name)
        monkeypatch.setattr(module, "forward", slowed(module.forward))

    return plant


def in_class(find, name):
    def plant(engine, monkeypatch):
        kind = find()
        monkeypatch.setattr(kind, name, slowed(vars(kind)[name]))

    return plant


PLANTED = {
    "experts of a layer": (in_module("model.layers.1.mlp.experts"), Role.EXPERTS, 1),
    "router of a layer": (in_module("model.layers.2.mlp.gate"), Role.ROUTER, 2),
    "block around experts": (in_module("model.layers.0.mlp"), Role.ROUTER, 0),
    "projection": (in_module("model.layers.0.self_attn.k_proj"), Role.PROJECTIONS, 0),
    "attention itself": (in_module("model.layers.2.self_attn"), Role.SCORES, 2),
    "attention output": (in_module("model.layers.2.self_attn.o_proj"), Role.OUTPUT, 2),
    "norm": (in_module("model.layers.1.input_layernorm"), Role.NORMS, 1),
    "layer": (in_module("model.layers.1"), Role.RESIDUAL, 1),
    "embedding": (in_module("model.embed_tokens"), Role.EMBEDDING, None),
    "head": (in_module("lm_head"), Role.HEAD, None),
    "model": (in_module("model"), Role.AROUND, None),
    "processor": (in_class(lambda: transformers.RepetitionPenaltyLogitsProcessor, "__call__"), Role.PROCESSORS, None),
    "cache": (in_class(lambda: transformers.DynamicCache.__mro__[1], "update"), Role.CACHE, 0),
    "stop criteria": (in_class(lambda: transformers.MaxLengthCriteria, "__call__"), Role.STOPPING, None),
}


@pytest.mark.parametrize("where", PLANTED)
def test_what_was_planted_is_named(where, monkeypatch, other_model):
    plant, role, layer = PLANTED[where]
    model, tokenizer = other_model
    model.generation_config.repetition_penalty = 1.1
    engine = TransformersEngine(EngineOptions(model="reference-moe"))
    engine.adopt(model, tokenizer)
    plant(engine, monkeypatch)
    found = take(engine)
    for phase in (found.prefill, found.decode):
        own = by_role(phase)[role]
        # A sleep is never shorter than asked for, and nothing else of a tiny model always takes as long; beginning to
        # generate may.
        assert min(own.self_ns) > 0.98 * DELAY_S * 1e9
        others = {one.role: min(one.self_ns) for one in phase.roles if one.role not in (role, Role.LOOP)}
        assert max(others.values()) < 0.98 * DELAY_S * 1e9, others
        if layer is not None and role != Role.CACHE:
            assert max(zip(own.layer_ns, own.layers, strict=True))[1] == layer


# what cannot be seen


def test_experts_that_run_past_the_hooks_are_not_called_router(engine_of):
    engine = engine_of("mixtral")
    for layer in engine.running.model.model.layers:
        experts = layer.mlp.experts
        layer.mlp.forward = past_the_hooks(layer.mlp, experts)
    found = take(engine)
    assert Role.UNSEEN_EXPERTS in by_role(found.decode)
    assert not {Role.ROUTER, Role.EXPERTS} & set(by_role(found.decode))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["scripted", "loaded"])
def test_a_part_that_torch_jit_made_is_taken_apart_as_a_whole(engine_of, tmp_path, how):
    engine = engine_of("llama")
    layer = engine.running.model.model.layers[1]
    layer.mlp = torch.jit.script(layer.mlp)
    if how == "loaded":
        torch.jit.save(layer.mlp, tmp_path / "mlp.pt")
        layer.mlp = torch.jit.load(tmp_path / "mlp.pt")
    expected = trace_of(engine).token_ids
    found = take(engine)
    assert by_role(found.decode)[Role.DENSE].layers == (0, 1, 2)
    assert trace_of(engine).token_ids == expected
    assert sites.find(engine.running.model) == ()
    assert work.of(engine.running.model).read_bytes > 0


def past_the_hooks(block, experts):
    def forward(hidden_states):
        states = hidden_states.view(-1, hidden_states.shape[-1])
        _, weights, index = block.gate(states)
        return type(experts).forward(experts, states, index, weights).reshape(hidden_states.shape)

    return forward


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_part_is_a_reason(engine_of):
    engine = engine_of("llama")
    like = trace_of(engine)
    assert taken.absent(engine, like, taken.AUTO) is None
    engine.running.model.model.layers[1].mlp.compile()
    why = taken.absent(engine, like, taken.AUTO)
    assert why == "model.layers.1.mlp is compiled, and hooks do not fire in compiled code"


def test_weights_on_two_devices_are_a_reason(engine_of, monkeypatch):
    engine = engine_of("llama")
    like = trace_of(engine)
    with monkeypatch.context() as patch:
        patch.setattr(taken, "_devices", lambda _: {torch.device("cpu"), torch.device("cuda:0")})
        why = taken.absent(engine, like, taken.AUTO)
    assert why == "the weights are on several devices, whose clocks have nothing in common"
    engine.running.model.lm_head.to("meta")
    assert "offloaded" in taken.absent(engine, like, taken.AUTO)


def test_an_engine_that_fails_in_it_loses_nothing(engine_of):
    engine = engine_of("llama")
    runner = rounds.Runner(
        engine=engine, asking=asked(IDS), limits=LIMITS, system=SimpleNamespace(), usable_cores=1.0, timeline=None
    )
    like = trace_of(engine)

    def generate(*_):
        raise RuntimeError("one token is\ntoo few")

    engine.generate = generate
    found, why = runner.taken_apart(like, "on")
    assert (found, why) == (None, "taking steps apart failed: RuntimeError: one token is too few")
    assert hooks_of(engine.running.model) == 0
    assert not replaced()


def test_one_token_has_no_decode(engine_of):
    engine = engine_of("llama")
    found = take(engine, dataclasses.replace(LIMITS, max_new_tokens=1))
    assert found.decode is None
    assert found.prefill is not None


def test_two_tokens_are_one_step_that_nothing_is_held_against(engine_of):
    found = take(engine_of("llama"), dataclasses.replace(LIMITS, max_new_tokens=2))
    parts = breakdown.phase(found.decode)
    assert (parts.observed, parts.bare, parts.remainder_s, parts.adds_up) == (1, 0, None, None)


def test_a_batch_is_taken_apart(engine_of):
    found = take(engine_of("mixtral"), dataclasses.replace(LIMITS, batch=3))
    assert {Role.EXPERTS, Role.HEAD} <= set(by_role(found.decode))
    assert {one.role for one in found.decode.roles} & OUTSIDE
