"""Compiled decoding is that of the request alone, whichever prompts, threads and models ran before it."""

import pytest
from lazily import Late, torch
from tiny import build, tokenizer

from pytest_infer.engines.base import EngineOptions
from pytest_infer.measure.clock import TokenClock
from pytest_infer.records import Limits

pytestmark = pytest.mark.real

utils = Late("torch._dynamo.utils")
LENGTHS = (60, 10, 20, 33, 47, 51, 64, 77, 80, 92, 13, 29)
PER_TOKEN = 3 * 2 * 2 * 8 * 4
"""Bytes of the cache: layers, keys and values, heads, dimensions of a head, bytes of a value."""


@pytest.fixture
def engine():
    """Return an engine whose graphs are traced by torch and run as they are: that is what is asked about here."""
    from pytest_infer.engines.transformers.engine import TransformersEngine

    torch._dynamo.reset()
    utils.counters.clear()
    made = TransformersEngine(EngineOptions(model="mine", compile=True, device="cpu"))

    def adopt(kind="llama", seed=0):
        made.adopt(build(kind, seed), tokenizer())
        made.running.config.compile_config.backend = "eager"
        return made

    yield adopt
    made.close()
    torch._dynamo.reset()


def run(engine, prompt_tokens, limits=None):
    """Return the tokens of a round and the bytes of its cache."""
    ids, clock = [5 + (7 * n) % 250 for n in range(prompt_tokens)], TokenClock()
    limits = limits or Limits(max_new_tokens=8, ignore_eos=True)
    engine.reset()
    engine.prepare(ids, limits)
    clock.start()
    stopped = engine.generate(ids, limits, clock)
    trace = clock.trace(prompt_tokens=prompt_tokens, requested_tokens=limits.max_new_tokens, stopped_by=stopped)
    return trace.token_ids, engine.cache_bytes()


def graphs():
    """Return how many graphs were compiled; none was given up."""
    assert utils.counters["frames"]["ok"] == utils.counters["frames"]["total"]
    return utils.counters["stats"]["unique_graphs"]


def test_the_cache_of_a_prompt_is_as_long_as_it_is_alone(engine):
    alone = [run(engine("mixtral"), length)[1] for length in (10, 60)]
    together = engine("mixtral")
    longer, shorter = run(together, 60)[1], run(together, 10)[1]
    assert [shorter, longer] == alone
    assert longer - shorter == 50 * PER_TOKEN
    # A pass of an A/B run has a limit of its own.
    assert run(together, 10, Limits(max_new_tokens=3, ignore_eos=True))[1] == shorter - 5 * PER_TOKEN


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_prompts_of_any_length_are_compiled_once(engine, kind, engine_of):
    one, plain = engine(kind), engine_of(kind)
    for length in LENGTHS:
        assert run(one, length)[0] == run(plain, length)[0]
    assert graphs() == 1
    for batch in (2, 3, 4):
        run(one, 20, Limits(max_new_tokens=8, ignore_eos=True, batch=batch))
    assert graphs() == 2


def test_every_number_of_threads_is_compiled_for(engine):
    one, before = engine(), torch.get_num_threads()
    try:
        for threads in range(1, 11):
            torch.set_num_threads(threads)
            run(one, 10)
    finally:
        torch.set_num_threads(before)
    assert graphs() == 10


def test_the_limit_of_torch_is_back_once_nothing_is_compiled(engine):
    config = Late("torch._dynamo.config")
    before = config.recompile_limit
    one = engine()
    assert config.recompile_limit > before
    engine(seed=1)
    one.close()
    assert config.recompile_limit == before
