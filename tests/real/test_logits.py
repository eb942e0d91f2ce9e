"""Broken weights are seen in the logits of the profile round, and nowhere in the timed ones."""

import json

import pytest
from lazily import torch, transformers

from asked import asked
from pytest_infer.engines.base import EngineOptions, Sampling
from pytest_infer.errors import ModelError
from pytest_infer.measure.clock import TokenClock
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.logits import watching
from pytest_infer.measure.rounds import Runner, timed_round
from pytest_infer.records import Limits

pytestmark = pytest.mark.real


@pytest.fixture
def system():
    counters = SystemCounters()
    yield counters
    counters.close()


def spoil(model, name, value):
    with torch.no_grad():
        model.get_parameter(name)[0] = value
    return model


def measured(model, tokenizer, system, **limits):
    from pytest_infer.engines.transformers.engine import TransformersEngine

    engine = TransformersEngine(EngineOptions(model="reference-moe"))
    engine.adopt(model, tokenizer)
    ids, given = [5, 6, 7], Limits(max_new_tokens=4, ignore_eos=True, **limits)
    timed = timed_round(engine, asked(ids), given, system)
    profile = Runner(engine=engine, asking=asked(ids), limits=given, system=system, usable_cores=2.0).profile(
        timed.trace, experts=False
    )
    assert not model._forward_hooks
    engine.close()
    return profile


@pytest.mark.parametrize(
    ("name", "value", "bad"),
    [
        ("lm_head.weight", float("nan"), 4),
        ("model.norm.weight", float("inf"), 4),
        ("model.layers.1.input_layernorm.weight", float("nan"), 4),
        ("model.embed_tokens.weight", float("nan"), 0),  # the row of an id that no prompt has
        ("lm_head.weight", 1.0, 0),
    ],
)
@pytest.mark.parametrize("batch", [None, 2])
def test_what_is_broken_is_counted(other_model, system, name, value, bad, batch):
    model, tokenizer = other_model
    profile = measured(spoil(model, name, value), tokenizer, system, batch=batch)
    assert (profile.nonfinite_logits.value, profile.passes) == (bad, 4)
    assert profile.tokens_equal


def test_a_dtype_that_overflows_is_counted(other_model, system):
    model, tokenizer = other_model
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    assert measured(model, tokenizer, system).nonfinite_logits.value == 0
    assert measured(model.half(), tokenizer, system).nonfinite_logits.value == 4


@pytest.mark.parametrize(
    ("made", "bad"),
    [
        (lambda good: good, 0),
        (lambda good: (good, "cache"), 0),
        (lambda good: good + float("nan"), 1),
        (lambda good: torch.where(good % 4 == 0, -torch.inf, good), 0),  # an id that must not be chosen
        (lambda good: torch.full_like(good, -torch.inf), 1),
        (lambda good: torch.where(good % 4 == 0, torch.inf, good), 1),
    ],
    ids=["finite", "tuple", "nan", "masked", "nothing", "inf"],
)
def test_what_counts_as_finite(made, bad):
    module = torch.nn.Identity()
    with watching(module, "none") as seen:
        module(made(torch.arange(12.0).reshape(1, 3, 4)))
    assert seen.reading().value == bad


@pytest.mark.parametrize(
    ("module", "output", "says"),
    [
        (None, None, "nothing to hook"),
        (object(), None, "takes no hook"),
        ("identity", {"x": 1}, "AttributeError"),
        ("identity", "text", "AttributeError"),
        ("identity", None, "AttributeError"),
    ],
    ids=["no module", "no hook", "table", "text", "nothing"],
)
def test_an_instrument_that_fails_says_why(module, output, says):
    module = torch.nn.Identity() if module == "identity" else module
    with watching(module, "nothing to hook") as seen:
        if isinstance(module, torch.nn.Module):
            module(output)
    assert seen.reading().value is None
    assert says in seen.reading().reason


def test_a_module_that_is_not_called_says_so():
    with watching(torch.nn.Identity(), "none") as seen:
        pass
    assert "no forward pass" in seen.reading().reason


def test_nothing_is_sampled_from_them_and_that_is_one_line(other_model):
    from pytest_infer.engines.transformers.engine import TransformersEngine

    model, tokenizer = other_model
    engine = TransformersEngine(EngineOptions(model="reference-moe", sampling=Sampling()))
    engine.adopt(spoil(model, "lm_head.weight", float("nan")), tokenizer)
    with pytest.raises(ModelError, match="logits are NaN or infinite, so nothing can be sampled"):
        engine.generate([5, 6], Limits(max_new_tokens=2), TokenClock())
    engine.close()


@pytest.fixture
def broken(forked, model_folder):
    """A suite whose model holds NaN."""
    folder = forked.path / "broken"
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder())
    spoil(model, "lm_head.weight", float("nan")).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model_folder()).save_pretrained(folder)
    forked.makepyfile("def test_prompt(infer, prompt):\n    infer(prompt)\n")
    forked.path.joinpath("prompts.toml").write_text('[[prompt]]\nname = "hi"\ntext = "hello"\nmax_new_tokens = 4\n')
    return folder


def test_the_summary_says_so_and_every_gate_fails(forked, broken):
    given = (f"--infer-model={broken}", "--infer-rounds=2", "--infer-no-probe", "--infer-ignore-eos")
    result = forked.runpytest_subprocess(*given, "--benchmark-autosave")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["! hi: 4 of 4 forward passes gave logits that are NaN or*"])
    (path,) = forked.path.glob(".benchmarks/*/*.json")
    (block,) = [
        row["extra_info"]["pytest_infer"]
        for row in json.loads(path.read_text())["benchmarks"]
        if row["params"]["phase"] == "total"
    ]
    assert block["metrics"]["nonfinite_logits"]["value"] == 4
    gated = forked.runpytest_subprocess(*given, "--infer-gate=ttft<=100s")
    assert gated.ret == 1
    gated.stdout.fnmatch_lines(["*logits of 4 forward passes are NaN or infinite*"])
