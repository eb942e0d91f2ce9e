"""The transformers engine on tiny models: what it generates, what it says of itself, what it refuses."""

import json
import re

import pytest
import tiny
import tiny_moe
from lazily import torch, transformers

from pytest_infer.engines.base import EngineOptions, Sampling
from pytest_infer.errors import ModelError
from pytest_infer.measure.clock import TokenClock
from pytest_infer.prompts import Message, Prompt
from pytest_infer.records import Limits, StopReason

pytestmark = pytest.mark.real

PROMPT = Prompt(name="p", text="hello")


@pytest.fixture
def made(model_folder):
    """Return a function that makes and loads an engine; they are closed at the end."""
    from pytest_infer.engines.transformers.engine import TransformersEngine

    engines = []

    def make(kind="mixtral", **options):
        engine = TransformersEngine(EngineOptions(model=str(model_folder(kind)), **options))
        engines.append(engine)
        return engine, engine.load()

    yield make
    for engine in engines:
        engine.close()


TWELVE = Limits(max_new_tokens=12, ignore_eos=True)


def run(engine, limits=TWELVE, prompt=PROMPT):
    clock = TokenClock()
    ids = engine.encode(prompt)
    engine.reset()
    clock.start()
    stopped = engine.generate(ids, limits, clock)
    return clock.trace(prompt_tokens=len(ids), requested_tokens=limits.max_new_tokens, stopped_by=stopped)


def plain(folder, n, **given):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor([transformers.AutoTokenizer.from_pretrained(folder)("hello")["input_ids"]])
    config = transformers.GenerationConfig(max_new_tokens=n, do_sample=False, pad_token_id=1, **given)
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return output[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "olmoe", "phimoe", "llama"])
def test_greedy_ids_are_those_of_generate_and_each_is_a_tick(made, model_folder, kind):
    trace = run(made(kind)[0])
    assert list(trace.token_ids) == plain(model_folder(kind), 12)
    assert trace.tick_sizes == (1,) * 12
    assert trace.stopped_by is StopReason.LENGTH
    assert list(trace.stamps_ns) == sorted(trace.stamps_ns)


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"attention": "eager"},
        {"attention": "sdpa"},
        {"experts_implementation": "eager"},
        {"experts_implementation": "grouped_mm"},
        {"experts_implementation": "batched_mm"},
    ],
    ids=str,
)
def test_options_change_how_and_not_what(made, options):
    engine, info = made(**options)
    assert run(engine).token_ids == run(made()[0]).token_ids
    assert info.attention == options.get("attention", info.attention)
    assert info.experts_implementation == options.get("experts_implementation", info.experts_implementation)
    assert info.generation["use_cache"] is options.get("use_cache", True)


def test_sampling_repeats_with_its_seed_and_differs_without(made):
    hot = [run(made(sampling=Sampling(temperature=5.0, seed=seed))[0]).token_ids for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]
    engine, _ = made(sampling=Sampling(temperature=5.0, seed=1))
    assert run(engine).token_ids == run(engine).token_ids == hot[0]


def test_an_end_of_sequence_id_ends_unless_ignored(made):
    engine, _ = made()
    ids = run(engine).token_ids
    # Declare a token that the model does generate to be its end.
    end = ids[4]
    engine.running.config.eos_token_id = end
    first = ids.index(end)
    trace = run(engine, Limits(max_new_tokens=12))
    assert trace.token_ids == ids[: first + 1]
    assert trace.stopped_by is StopReason.EOS
    assert run(engine).token_ids == ids


def test_a_stop_string_ends(made):
    engine, _ = made()
    text = engine.decode(run(engine).token_ids)
    # A character that decodes to itself, not at the very start.
    stop = next(c for c in text[2:] if c.isprintable() and c != "\ufffd" and c not in text[:2])
    trace = run(engine, Limits(max_new_tokens=12, ignore_eos=True, stop=(stop,)))
    assert trace.stopped_by in (StopReason.STOP_STRING, StopReason.LENGTH)
    assert stop in engine.decode(trace.token_ids)
    assert stop not in engine.decode(trace.token_ids[:-1])


def test_dtype_and_threads(made):
    before = torch.get_num_threads()
    engine, info = made(dtype="bfloat16", threads=2)
    assert info.dtype == "bfloat16"
    assert info.threads == torch.get_num_threads() == 2
    engine.close()
    assert torch.get_num_threads() == before


def test_what_it_says_of_itself(made, model_folder):
    engine, info = made()
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder())
    assert info.parameters == sum(p.numel() for p in model.parameters())
    assert info.parameter_bytes == 4 * info.parameters
    assert info.buffer_bytes == sum(b.numel() * b.element_size() for b in model.buffers())
    assert info.architecture == "MixtralForCausalLM"
    assert info.context_length == engine.context_length() == 128
    assert info.device == "cpu"
    assert set(info.versions) == {"torch", "transformers"}
    assert info.experts_implementation == "grouped_mm"
    assert made("llama")[1].experts_implementation is None


def test_cache_bytes_count_every_fed_token(made):
    engine, _ = made()
    trace = run(engine)
    fed = trace.prompt_tokens + len(trace.token_ids) - 1
    layers, heads, dim, keys_and_values, size = 3, 2, 8, 2, 4
    assert engine.cache_bytes() == layers * heads * dim * keys_and_values * size * fed
    engine.reset()
    assert engine.cache_bytes() is None


@pytest.mark.parametrize(
    ("kind", "states", "attending"),
    [
        ("mamba", 3 * 64 * (4 + 16), 0),  # a window of the convolution and a state
        ("qwen3_next", 2 * (64 * 4 + 4 * 8 * 8), 1),
        ("minimax", 4 * 8 * 8, 2),  # on the cache itself
    ],
)
def test_cache_bytes_count_the_states_of_layers_without_keys(kind, states, attending):
    from pytest_infer.engines.transformers.engine import TransformersEngine

    if kind == "mamba":
        config = transformers.MambaConfig(**tiny.COMMON, state_size=16, conv_kernel=4, expand=2)
        model = transformers.MambaForCausalLM(config)
    else:
        model = tiny_moe.build(kind)
    engine = TransformersEngine(EngineOptions(model="reference-moe"))
    engine.adopt(model, tiny.tokenizer())
    clock, ids = TokenClock(), [5, 9, 60, 71, 8]
    clock.start()
    engine.generate(ids, TWELVE, clock)
    heads, dim, keys_and_values, fed = 2, 8, 2, len(ids) + 11
    assert engine.cache_bytes() == 4 * (states + attending * heads * dim * keys_and_values * fed)
    engine.close()


def test_a_dialogue_goes_through_the_chat_template(made):
    engine, _ = made()
    ids = engine.encode(Prompt(name="d", messages=(Message(role="u", content="hi"),)))
    assert engine.decode(ids) == "<u>hi<a>"
    engine._tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        engine.encode(Prompt(name="d", messages=(Message(role="u", content="hi"),)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"dtype": "float7"},
            "unknown dtype 'float7'; did you mean float32",
        ),
        ({"device": "nonsense"}, "unknown device 'nonsense'"),
        ({"device": "cuda:7"}, "unknown device 'cuda:7'; known: cpu"),
        ({"experts_implementation": "magic"}, "magic"),
        ({"attention": "magic"}, "magic"),
    ],
    ids=str,
)
def test_unknown_values_are_one_line(made, options, says):
    if options.get("device", "").startswith("cuda") and torch.cuda.is_available():
        says = "unknown device 'cuda:7'"
    with pytest.raises(ModelError, match=re.escape(says)) as caught:
        made(**options)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_be_loaded_are_one_line(tmp_path, model_folder, monkeypatch):
    from pytest_infer.engines.transformers.engine import TransformersEngine

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refused(model):
        with pytest.raises(ModelError) as caught:
            TransformersEngine(EngineOptions(model=str(model))).load()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such folder" in refused(tmp_path / "missing")
    assert "no config.json" in refused(tmp_path)
    assert "known: reference-moe" in refused("bareword")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model_folder().iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    assert "cannot be loaded" in refused(broken)


def test_adopting_a_model(made, other_model):
    engine, _ = made()
    info = engine.adopt(*other_model)
    assert info.architecture == info.name == "MixtralForCausalLM"
    assert run(engine).token_ids != run(made()[0]).token_ids


# torch's own compiler imports what torch deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.slow
def test_compiled_decoding_generates_and_records_no_experts(made):
    engine, info = made(compile=True)
    assert len(run(engine, Limits(max_new_tokens=4, ignore_eos=True)).token_ids) == 4
    assert info.generation["compile"] is True
    assert engine.experts_module() is None
    assert "compile" in engine.experts_absent()


# through pytest


TEST = "def test_prompt(infer, prompt):\n    infer(prompt)\n"
SUITE = '[[prompt]]\nname = "p"\ntext = "hello there"\nmax_new_tokens = 9\n'


@pytest.fixture
def suite(forked, monkeypatch):
    pytester = forked
    monkeypatch.setenv("PYTEST_ADDOPTS", "--infer-no-probe")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(pytester.path / "cache"))
    pytester.makepyfile(test_it=TEST)
    pytester.path.joinpath("prompts.toml").write_text(SUITE)
    return pytester


def block_of(pytester):
    (path,) = pytester.path.glob(".benchmarks/*/*.json")
    run = json.loads(path.read_text())
    return next(r for r in run["benchmarks"] if r["params"]["phase"] == "total")["extra_info"]["pytest_infer"]


@pytest.mark.parametrize(
    ("kind", "experts", "k"), [("mixtral", 4, 2), ("qwen3_moe", 6, 3), ("olmoe", 8, 2), ("phimoe", 4, 2)]
)
def test_expert_counts_of_a_run_add_up(suite, model_folder, kind, experts, k):
    result = suite.runpytest_subprocess(
        f"--infer-model={model_folder(kind)}", "--infer-ignore-eos", "--benchmark-autosave"
    )
    result.assert_outcomes(passed=1)
    block = block_of(suite)
    counts = block["experts"]["counts"]
    prompt, generated = (block["metrics"][key]["value"] for key in ("prompt_tokens", "generated_tokens"))
    assert block["experts"]["check"] == "passed"
    assert [len(row) for row in counts["decode"]] == [experts] * 3
    assert [sum(row) for row in counts["prefill"]] == [prompt * k] * 3
    assert [sum(row) for row in counts["decode"]] == [(generated - 1) * k] * 3
    assert block["metrics"]["expert_selections"]["value"] == 3 * k * (prompt + generated - 1)
    assert block["output"]["equal"] is True
    assert block["metrics"]["kv_cache_bytes"]["value"] > 0
    assert block["model"]["name"] == model_folder(kind).name
    assert len(block["model"]["weights_sha256"]) == 64
    assert str(model_folder(kind).parent) not in json.dumps(block)


def test_a_dense_model_has_no_expert_usage_and_says_why(suite, model_folder):
    suite.runpytest_subprocess(f"--infer-model={model_folder('llama')}", "--benchmark-autosave").assert_outcomes(
        passed=1
    )
    assert "dense" in block_of(suite)["experts"]["absent"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--infer-max-new-tokens=500"], "do not fit the model's context of 128"),
        (["--infer-model=owner/nothing"], "owner/nothing: cannot be loaded"),
        (["--infer-model=./nothing"], "./nothing: no such folder"),
    ],
)
def test_what_cannot_work_is_one_line_before_the_model_is_loaded(suite, model_folder, options, says):
    result = suite.runpytest_subprocess(f"--infer-model={model_folder()}", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if "pytest-infer:" in line]
    assert says in line
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
