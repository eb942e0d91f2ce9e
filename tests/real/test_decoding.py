"""What a model's own generation config may bring into a round, and what it may not."""

import json

import pytest
from lazily import transformers

from pytest_infer.engines.base import EngineOptions, Sampling
from pytest_infer.measure.clock import TokenClock
from pytest_infer.prompts import Prompt
from pytest_infer.records import Limits, StopReason

pytestmark = pytest.mark.real

TWELVE = Limits(max_new_tokens=12, ignore_eos=True)


@pytest.fixture
def own(model_folder, tmp_path):
    """Return a function: entries of generation_config.json to a folder that holds them."""

    def folder(**entries):
        for file in model_folder().iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        path = tmp_path / "generation_config.json"
        path.write_text(json.dumps({"eos_token_id": 0, "pad_token_id": 1, **entries}))
        return tmp_path

    return folder


@pytest.fixture
def loaded():
    """Return a function: a folder to an engine that loaded it; closed at the end."""
    from pytest_infer.engines.transformers.engine import TransformersEngine

    engines = []

    def load(folder, **options):
        engine = TransformersEngine(EngineOptions(model=str(folder), **options))
        engines.append(engine)
        return engine, engine.load()

    yield load
    for engine in engines:
        engine.close()


def run(engine, limits=TWELVE):
    clock = TokenClock()
    ids = engine.encode(Prompt(name="p", text="hello"))
    engine.reset()
    clock.start()
    stopped = engine.generate(ids, limits, clock)
    return clock.trace(prompt_tokens=len(ids), requested_tokens=limits.max_new_tokens, stopped_by=stopped)


@pytest.mark.parametrize(
    "entries",
    [
        {"num_beams": 3, "early_stopping": True},
        {"num_beams": 2, "num_return_sequences": 2},
        {"max_time": 1e-9},
        {"stop_strings": ["a", "b", "e", "\u0120"]},
        {"max_length": 7},
        {"max_new_tokens": 2},
        {"min_length": 50, "max_length": 60},
        {"min_new_tokens": 100},
        {"do_sample": True, "temperature": 3.0, "top_k": 3, "top_p": 0.5, "min_p": 0.2},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"prompt_lookup_num_tokens": 3},
        {"guidance_scale": 2.0},
        {"forced_eos_token_id": 0},
        {"cache_implementation": "static"},
        {"output_scores": True, "output_attentions": True},
        {"use_cache": False},
    ],
    ids=str,
)
def test_the_models_own_config_changes_no_work(own, loaded, model_folder, entries, caplog, recwarn):
    wanted = run(loaded(model_folder())[0])
    engine, info = loaded(own(**entries))
    transformers.utils.logging.enable_propagation()
    caplog.clear()
    trace = run(engine)
    transformers.utils.logging.disable_propagation()
    assert trace.token_ids == wanted.token_ids
    assert trace.tick_sizes == (1,) * 12
    assert trace.stopped_by is StopReason.LENGTH
    # A warning would be written within the timed window.
    assert not caplog.records
    assert not recwarn.list
    assert info.generation["do_sample"] is False
    assert info.generation["use_cache"] is True


def test_a_minimal_length_does_not_hold_back_an_end(own, loaded):
    engine, _ = loaded(own(min_new_tokens=10))
    ids = run(engine).token_ids
    engine.running.config.eos_token_id = ids[4]
    assert run(engine, Limits(max_new_tokens=12)).token_ids == ids[: ids.index(ids[4]) + 1]


def test_what_shapes_the_scores_stays_and_is_recorded(own, loaded, model_folder):
    plain, info = loaded(model_folder())
    assert not {"repetition_penalty", "no_repeat_ngram_size", "min_p"} & set(info.generation)
    first = run(plain).token_ids[0]
    folder = own(repetition_penalty=1.7, no_repeat_ngram_size=2, suppress_tokens=[first], min_p=0.1, typical_p=1.0)
    engine, info = loaded(folder)
    assert info.generation["repetition_penalty"] == 1.7
    assert info.generation["no_repeat_ngram_size"] == 2
    assert info.generation["suppress_tokens"] == f"[{first}]"
    assert first not in run(engine).token_ids
    # Of no effect without sampling, and therefore not named.
    assert not {"min_p", "typical_p"} & set(info.generation)
    engine, info = loaded(folder, sampling=Sampling(temperature=2.0))
    assert info.generation["min_p"] == 0.1
    assert "typical_p" not in info.generation
    assert len(run(engine).token_ids) == 12


def test_a_stop_string_that_the_last_token_completes_is_the_reason(loaded, model_folder):
    engine, _ = loaded(model_folder())
    text = engine.decode(run(engine).token_ids)
    stop = next(c for c in text[2:] if c.isprintable() and c != "\ufffd" and c not in text[:2])
    ended = run(engine, Limits(max_new_tokens=12, ignore_eos=True, stop=(stop,)))
    exact = Limits(max_new_tokens=len(ended.token_ids), ignore_eos=True, stop=(stop,))
    again = run(engine, exact)
    assert again.token_ids == ended.token_ids
    assert again.stopped_by is StopReason.STOP_STRING
    assert run(engine, Limits(max_new_tokens=12, ignore_eos=True, stop=("§§",))).stopped_by is StopReason.LENGTH


def test_adopted_models_get_their_own_config_back(loaded, model_folder, other_model):
    engine, _ = loaded(model_folder())
    first, tokenizer = other_model
    first.generation_config.num_beams = 3
    own_config = first.generation_config
    engine.adopt(first, tokenizer)
    assert first.generation_config is not own_config
    assert len(run(engine).token_ids) == 12
    second = transformers.AutoModelForCausalLM.from_pretrained(model_folder())
    second_config = second.generation_config
    engine.adopt(second, tokenizer)
    assert first.generation_config is own_config
    assert own_config.num_beams == 3
    engine.close()
    assert second.generation_config is second_config
    assert second_config.eos_token_id == 0


def test_adopting_one_model_twice_keeps_its_config(loaded, model_folder, other_model):
    engine, _ = loaded(model_folder())
    model, tokenizer = other_model
    own_config = model.generation_config
    engine.adopt(model, tokenizer)
    engine.adopt(model, tokenizer)
    engine.close()
    assert model.generation_config is own_config
