"""What belongs to a request is made once, outside generate(), and ends it where transformers' own would."""

import pytest
from lazily import Late, torch, transformers

from pytest_infer.engines.base import EngineOptions
from pytest_infer.errors import SuiteError
from pytest_infer.measure.clock import TokenClock
from pytest_infer.prompts import Prompt
from pytest_infer.records import Limits, StopReason

requests = Late("pytest_infer.engines.transformers.request")

pytestmark = pytest.mark.real


@pytest.fixture
def engine(model_folder):
    from pytest_infer.engines.transformers.engine import TransformersEngine

    made = TransformersEngine(EngineOptions(model=str(model_folder())))
    made.load()
    yield made
    made.close()


@pytest.fixture
def ids(engine):
    return engine.encode(Prompt(name="p", text="hello"))


@pytest.fixture
def built(monkeypatch):
    """Return the stop strings of every criterion that is built, in order."""
    seen = []
    own = transformers.StopStringCriteria.__init__

    def init(criterion, tokenizer, stop_strings):
        seen.append(tuple(stop_strings))
        own(criterion, tokenizer, stop_strings)

    monkeypatch.setattr(transformers.StopStringCriteria, "__init__", init)
    return seen


@pytest.fixture
def fed(engine, monkeypatch):
    """Return the arguments of every call of the model's generate(), in order."""
    seen = []
    own = engine.running.model.generate

    def generate(ids, **given):
        seen.append((ids, given))
        return own(ids, **given)

    monkeypatch.setattr(engine.running.model, "generate", generate)
    return seen


def a_round(engine, ids, limits):
    clock = TokenClock()
    engine.reset()
    engine.prepare(ids, limits)
    clock.start()
    stopped = engine.generate(ids, limits, clock)
    return clock.trace(prompt_tokens=len(ids), requested_tokens=limits.max_new_tokens, stopped_by=stopped)


def stop_of(engine, ids):
    """Return a character that the model generates, but not at the very start."""
    text = engine.decode(a_round(engine, ids, Limits(max_new_tokens=12, ignore_eos=True)).token_ids)
    return next(c for c in text[2:] if c.isprintable() and c != "\ufffd" and c not in text[:2])


def limits(stop=(), batch=None, n=12):
    return Limits(max_new_tokens=n, ignore_eos=True, stop=stop, batch=batch)


@pytest.mark.parametrize("batch", [None, 3])
def test_rounds_of_a_prompt_build_its_criterion_once(engine, ids, built, batch):
    for _ in range(3):
        engine.prepare(ids, limits((stop := "xyz",), batch))
        before = list(built)
        a_round(engine, ids, limits((stop,), batch))
        assert built == before == [("xyz",)]


def test_prompts_in_turns_build_each_criterion_once(engine, ids, built):
    other = engine.encode(Prompt(name="q", text="another one"))
    for _ in range(2):
        a_round(engine, ids, limits(("abc",)))
        a_round(engine, other, limits(("xyz", "de")))
        a_round(engine, ids, limits())
    assert built == [("abc",), ("xyz", "de")]


def test_a_generation_that_was_not_prepared_builds_what_it_needs(engine, ids, built):
    clock = TokenClock()
    clock.start()
    assert engine.generate(ids, limits(("abc",)), clock) is StopReason.LENGTH
    assert built == [("abc",)]


def test_ids_and_configuration_are_made_before_the_clock_starts(engine, ids, fed):
    for batch in (None, 3):
        engine.prepare(ids, limits(batch=batch))
        a_round(engine, ids, limits(batch=batch))
        a_round(engine, ids, limits(batch=batch))
    (first, given), (again, given_again), *batched = fed
    assert first is again
    assert given["attention_mask"] is given_again["attention_mask"]
    assert given["generation_config"] is given_again["generation_config"]
    assert first.tolist() == [ids]
    assert [ids.shape[0] for ids, _ in batched] == [3, 3]


def test_other_ids_or_limits_are_another_request(engine, ids, fed):
    a_round(engine, ids, limits())
    ids.append(ids[0])  # the same list
    a_round(engine, ids, limits())
    a_round(engine, list(reversed(ids)), limits())
    a_round(engine, ids, limits(n=5))
    assert [given.tolist() for given, _ in fed] == [[ids[:-1]], [ids], [ids[::-1]], [ids]]
    assert [given["generation_config"].max_new_tokens for _, given in fed] == [12, 12, 12, 5]


def test_it_ends_where_generate_itself_ends(engine, ids, model_folder):
    stop = stop_of(engine, ids)
    trace = a_round(engine, ids, limits((stop,)))
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder())
    model.generation_config.eos_token_id = None
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder())
    given = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1}
    own = model.generate(**tokenizer("hello", return_tensors="pt"), stop_strings=[stop], tokenizer=tokenizer, **given)
    assert list(trace.token_ids) == own[0, len(ids) :].tolist()
    assert len(trace.token_ids) < 12
    assert trace.stopped_by is StopReason.STOP_STRING
    assert a_round(engine, ids, limits((stop,), batch=2)).token_ids == trace.token_ids


def test_nothing_of_the_vocabulary_is_kept(engine, ids):
    from transformers.generation import stopping_criteria

    a_round(engine, ids, limits(("abc",)))
    assert not stopping_criteria.STOP_STRING_EMBEDDING_CACHE


def test_a_stop_string_that_no_token_can_end_is_one_line(engine, ids, monkeypatch):
    def init(*_, **__):
        raise ValueError("Stop string preprocessing was unable to identify tokens")

    monkeypatch.setattr(transformers.StopStringCriteria, "__init__", init)
    with pytest.raises(SuiteError, match=r"stop strings \['§'\]: no token of the model is part of them"):
        engine.prepare(ids, limits(("§",)))


@pytest.mark.parametrize("stops", [None, lambda ids, scores: ids[:, 0] == 7])
def test_a_batch_asks_its_device_and_does_not_wait_for_it(stops):
    """Tensors on meta have no values: whoever asks for one fails, as a card would have to be waited for."""
    meta = requests._first_ended(frozenset({2, 5}), stops, torch.device("meta"))
    assert meta(torch.ones(3, 4, dtype=torch.int64, device="meta"), None).shape == (3,)
    ended = requests._first_ended(frozenset({2, 5}), stops, torch.device("cpu"))
    for ids, done in (([[1, 5], [1, 1]], True), ([[1, 1], [1, 5]], False), ([[7, 1], [1, 1]], stops is not None)):
        assert ended(torch.tensor(ids), None).tolist() == [done, done]
    assert requests._first_ended(frozenset(), None, torch.device("cpu"))(torch.tensor([[1]]), None).tolist() == [False]
