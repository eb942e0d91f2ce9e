"""Sweeps and batches on real models: what is loaded, what is generated, and what is refused before."""

import contextlib

import pytest
from lazily import Late, torch

from asked import asked
from pytest_infer.analysis.sweep.recommend import recommend
from pytest_infer.engines.base import EngineOptions
from pytest_infer.errors import ModelError
from pytest_infer.measure import rounds
from pytest_infer.measure.clock import TokenClock
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.records import Limits, StopReason
from pytest_infer.storage import runs

quantization = Late("pytest_infer.engines.transformers.quantization")
TransformersEngine = Late("pytest_infer.engines.transformers.engine:TransformersEngine")

pytestmark = pytest.mark.real
IDS = [5, 9, 60, 71, 8]


def generate(engine, limits, ids=IDS):
    clock = TokenClock()
    engine.reset()
    clock.start()
    stopped_by = engine.generate(ids, limits, clock)
    return clock.trace(prompt_tokens=len(ids), requested_tokens=limits.max_new_tokens, stopped_by=stopped_by)


@pytest.fixture
def loaded(model_folder):
    """Return a function that loads a tiny model as options say; it is closed at the end."""
    made = []

    def load(kind="mixtral", **options):
        engine = TransformersEngine(EngineOptions(model=str(model_folder(kind)), **options))
        made.append(engine)
        return engine, engine.load()

    yield load
    for engine in made:
        engine.close()


def test_two_by_two_on_the_bundled_model(forked):
    pytester = forked
    pytester.makepyfile("def test_prompt(infer, prompt):\n    infer(prompt)\n")
    text = '[[prompt]]\nname = "p"\ntext = "It was a bright cold day"\nmax_new_tokens = 6\n'
    pytester.path.joinpath("prompts.toml").write_text(text, encoding="utf-8")
    pytester.makeconftest(
        "from pytest_infer.engines.transformers import loading\n"
        "read = loading.weights\n"
        "def weights(source, config, options, **given):\n"
        "    print('LOADED', options.dtype)\n"
        "    return read(source, config, options, **given)\n"
        "loading.weights = weights\n"
    )
    result = pytester.runpytest_subprocess(
        "-s", "--benchmark-autosave", "--infer-rounds=2", "--infer-no-probe", "--infer-threads=1", "--infer-ignore-eos",
        "--infer-sweep=dtype=float32,bfloat16", "--infer-sweep=batch=1,3", timeout=300,
    )  # fmt: skip
    result.assert_outcomes(passed=4)
    loads = [line.split("LOADED ")[1] for line in result.stdout.lines if "LOADED" in line]
    assert loads == ["float32", "bfloat16"]
    (path,) = pytester.path.glob(".benchmarks/*/*.json")
    found = {row.test.partition("[")[2]: row for row in runs.rows(path)}
    one, three = found["p-dtype=float32-batch=1]"], found["p-dtype=float32-batch=3]"]
    # The same text, whose experts and cache are counted for each sequence.
    assert one.metrics["output_sha256"] == three.metrics["output_sha256"]
    assert three.experts.check == "passed"
    assert three.metrics["expert_selections"].value == 3 * one.metrics["expert_selections"].value
    assert three.metrics["kv_cache_bytes"].value == 3 * one.metrics["kv_cache_bytes"].value
    assert found["p-dtype=bfloat16-batch=1]"].metrics["model_bytes"].value < one.metrics["model_bytes"].value
    recommendation = recommend(found.values())
    assert len(recommendation.configurations) == 4
    # A machine that drifts between the loads, which the run sees and its rows do not hold, finds no difference.
    first, said = recommendation.configurations[0].label, " ".join(result.stdout.str().split())
    best = said.partition("best decode")[2].partition("best TTFT")[0]
    undecided = f"not distinct from {first}" in best
    keep = f"no difference found in decode: keep {first}"
    use = f"use the best decode, all sequences: {recommendation.options}"
    assert (keep in said, use in said) == (undecided, not undecided)


def test_a_batch_ticks_once_a_step_with_the_first_sequence(loaded):
    engine, _ = loaded()
    limits = Limits(max_new_tokens=6, ignore_eos=True)
    one, four = generate(engine, limits), generate(engine, Limits(max_new_tokens=6, ignore_eos=True, batch=4))
    assert four.token_ids == one.token_ids
    assert four.tick_sizes == (1,) * 6
    assert four.stopped_by is StopReason.LENGTH


def test_a_batch_ends_with_its_first_sequence(loaded):
    engine, _ = loaded()
    tokens = generate(engine, Limits(max_new_tokens=6, ignore_eos=True)).token_ids
    engine.running.config.eos_token_id = tokens[2]
    first = tokens.index(tokens[2])
    ended = generate(engine, Limits(max_new_tokens=6, batch=3))
    assert ended.token_ids == tokens[: first + 1]
    assert ended.stopped_by is StopReason.EOS
    text = engine.decode(tokens[:2])
    stopped = generate(engine, Limits(max_new_tokens=6, stop=(text,), ignore_eos=True, batch=3))
    assert stopped.stopped_by is StopReason.STOP_STRING
    assert stopped.token_ids == generate(engine, Limits(max_new_tokens=6, stop=(text,), ignore_eos=True)).token_ids


def test_sampled_sequences_differ_and_all_go_on_until_the_first_ends(loaded):
    from pytest_infer.engines.base import Sampling

    engine, _ = loaded(sampling=Sampling(temperature=1.0, seed=1))
    trace = generate(engine, Limits(max_new_tokens=6, ignore_eos=True, batch=3))
    assert trace.tick_sizes == (1,) * 6


def test_experts_of_a_batch_add_up_and_keep_no_trace(loaded):
    engine, _ = loaded()
    limits = Limits(max_new_tokens=4, ignore_eos=True, batch=3)
    with contextlib.closing(SystemCounters()) as system:
        expected = rounds.timed_round(engine, asked(IDS), limits, system).trace
        profile = rounds.Runner(
            engine=engine, asking=asked(IDS), limits=limits, system=system, usable_cores=2.0
        ).profile(expected, experts=True, trace=True)
    usage = profile.experts
    assert usage.check == "passed"
    assert (usage.prefill_tokens, usage.decode_tokens) == (3 * len(IDS), 3 * 3)
    assert usage.trace is None


def test_threads_and_cache_change_without_another_load(loaded):
    before = torch.get_num_threads()
    engine, info = loaded()
    model = engine.running.model
    limits = Limits(max_new_tokens=5, ignore_eos=True)
    cached = generate(engine, limits)
    adapted = engine.adapt(EngineOptions(model=engine.options.model, threads=before + 1, use_cache=False))
    assert engine.running.model is model
    assert (adapted.threads, adapted.generation["use_cache"]) == (before + 1, False)
    assert (adapted.name, adapted.parameters) == (info.name, info.parameters)
    assert generate(engine, limits).token_ids == cached.token_ids
    assert not engine.cache_bytes()
    # Without a number of its own, torch's choice again.
    assert engine.adapt(EngineOptions(model=engine.options.model)).threads == before
    engine.close()
    assert torch.get_num_threads() == before


def test_dynamic_int8_is_smaller_counted_right_and_generates(loaded):
    plain, told = loaded("llama")
    quantised, info = loaded("llama", quantization="int8-dynamic")
    linear = [m for m in plain.running.model.modules() if isinstance(m, torch.nn.Linear)]
    assert info.quantization == "int8-dynamic"
    assert info.parameters == told.parameters
    # Of each weight a byte in place of four; what is no linear layer stays.
    assert info.parameter_bytes == told.parameter_bytes - 3 * sum(m.weight.numel() for m in linear)
    assert info.work.parameters == told.work.parameters
    assert told.work.read_bytes - info.work.read_bytes == told.parameter_bytes - info.parameter_bytes
    assert len(generate(quantised, Limits(max_new_tokens=4, ignore_eos=True)).token_ids) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantization": "int8-dynamic", "dtype": "bfloat16"}, "computes with float32 and not with bfloat16"),
        ({"quantization": "int4"}, "int4: torchao has it for accelerators only; take int8 or int8-dynamic"),
        (
            {"quantization": "int2"},
            "unknown quantization 'int2'; did you mean int8 or int4\\? known: int4, int8, int8-dynamic, none",
        ),
    ],
)
def test_what_cannot_be_quantised_is_refused_before_loading(model_folder, options, said):
    engine = TransformersEngine(EngineOptions(model=str(model_folder("llama")), **options))
    with pytest.raises(ModelError, match=said):
        engine.check()


def test_torchao_that_is_not_installed_is_named(model_folder, monkeypatch):
    monkeypatch.setattr("pytest_infer.engines.transformers.quantization.find_spec", lambda name: None)
    engine = TransformersEngine(EngineOptions(model=str(model_folder("llama")), quantization="int8"))
    with pytest.raises(ModelError, match="needs torchao: pip install torchao; int8-dynamic is torch's own"):
        engine.check()


def test_weight_only_by_torchao(loaded):
    pytest.importorskip("torchao")
    _, told = loaded("llama", dtype="bfloat16")
    engine, info = loaded("llama", dtype="bfloat16", quantization="int8")
    assert info.parameters == told.parameters
    assert info.parameter_bytes < told.parameter_bytes
    assert len(generate(engine, Limits(max_new_tokens=4, ignore_eos=True)).token_ids) == 4
