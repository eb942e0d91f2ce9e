"""Rounds of which only texts are known, and what a server counted of them: kept, compared and doubted."""

import dataclasses
import itertools
from pathlib import Path

import msgspec
import pytest

from pytest_infer.engines.base import Engine
from pytest_infer.errors import EngineError
from pytest_infer.measure import asking, rounds, served, warnings
from pytest_infer.measure.asking import Asking
from pytest_infer.measure.clock import TokenClock
from pytest_infer.metrics import summarize, timing
from pytest_infer.prompts import Prompt
from pytest_infer.records import Limits, PromptRecord, Reported, WarningKind
from pytest_infer.storage import block, journal, sidecar
from pytest_infer.storage.schema import WHOLE_BLOCK, of_block

DATA = Path(__file__).parents[1] / "data"
PROMPT = Prompt(name="p", text="a b c")


@pytest.fixture
def record():
    return msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)


def text_trace(*pieces, prompt=0, **reported):
    clock = TokenClock(now=itertools.count(0, 10).__next__)
    clock.start()
    for piece in pieces:
        clock.tick_text(*piece) if isinstance(piece, tuple) else clock.tick_text(piece)
    if reported:
        clock.reported(**reported)
    return clock.trace(prompt_tokens=prompt, requested_tokens=20, stopped_by=None)


def with_traces(record, *traces, **output):
    rounds = [dataclasses.replace(record.rounds[0], trace=trace, disturbed=()) for trace in traces]
    return dataclasses.replace(record, rounds=tuple(rounds), output=dataclasses.replace(record.output, **output))


def test_texts_are_ticks_of_so_many_tokens():
    trace = text_trace(" a", "", (" b c", 2))
    assert (trace.stamps_ns, trace.tick_sizes, trace.token_ids) == ((10, 20, 30), (1, 1, 2), ())
    assert trace.texts == (" a", "", " b c")
    assert trace.said == " a b c"
    assert timing.generated_tokens(trace) == 4


def test_ids_and_texts_in_one_generation_are_refused():
    clock = TokenClock()
    clock.start()
    clock.tick([1])
    clock.tick_text(" a")
    with pytest.raises(EngineError, match="ids and texts in one generation"):
        clock.trace(prompt_tokens=1, requested_tokens=9, stopped_by=None)
    clock.start()
    clock.tick_text(" a")
    assert clock.trace(prompt_tokens=1, requested_tokens=9, stopped_by=None).texts == (" a",)


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_text_of_no_token_is_refused(tokens):
    with pytest.raises(EngineError, match=r"without token ids \(tick 1\)"):
        text_trace(" a", (" b", tokens))


def test_what_a_server_counts_comes_bit_by_bit():
    clock = TokenClock()
    clock.start()
    clock.tick([1])
    clock.reported(prompt=7)
    clock.reported(generated=1, cached=0, allowed=2)
    clock.reported(generated=2)
    trace = clock.trace(prompt_tokens=5, requested_tokens=9, stopped_by=None)
    assert trace.reported == Reported(prompt=7, generated=2, cached=0, allowed=2)
    assert trace.prompt_tokens == 5
    clock.start()
    clock.tick([1])
    assert clock.trace(prompt_tokens=5, requested_tokens=9, stopped_by=None).reported is None


def test_a_prompt_whose_ids_nobody_tells_has_as_many_as_the_server_counts(record):
    found = with_traces(record, text_trace(" a", " b"))
    figures = summarize(found)
    assert figures["prompt_tokens"].value is figures["overall_throughput"].value is None
    assert figures["generated_tokens"].value == 2
    clock = TokenClock(now=itertools.count(0, 10).__next__)
    clock.start()
    clock.tick_text(" a")
    clock.reported(prompt=7)
    assert clock.trace(prompt_tokens=0, requested_tokens=9, stopped_by=None).prompt_tokens == 7


def test_every_request_has_another_nonce_of_the_same_length():
    ask = Asking(prompt=PROMPT, ids=[1, 2])
    requests = [ask.next() for _ in range(50)]
    nonces = [one.nonce for one in requests]
    assert len(set(nonces)) == 50
    assert {len(one) for one in nonces} == {15}
    assert all(a[0] != b[0] for a, b in itertools.pairwise(nonces)), "what begins alike is cached"
    assert [one.round for one in requests] == list(range(requests[0].round, requests[0].round + 50))
    assert asking.nonce(10**8 + 12) == "2 1 0 0 0 0 0 0"


def test_an_engine_of_before_is_asked_as_ever():
    class Old(Engine):
        def prepare(self, prompt_ids, limits):
            self.prepared = prompt_ids

        def generate(self, prompt_ids, limits, clock):
            clock.tick([len(prompt_ids)])

    engine, clock, request = Old(), TokenClock(), Asking(prompt=PROMPT, ids=[5, 6]).next()
    engine.ready(request, Limits(max_new_tokens=3))
    clock.start()
    engine.respond(request, Limits(max_new_tokens=3), clock)
    assert engine.prepared == [5, 6]
    assert clock.trace(prompt_tokens=2, requested_tokens=3, stopped_by=None).token_ids == (2,)
    assert engine.observed() is engine.varied() is None


def test_what_is_left_of_a_generation_is_done_outside_of_its_window():
    """Ids are completed in the lists that were ticked, and counts told, before the trace is made."""
    done = []

    class Leaving(Engine):
        def generate(self, prompt_ids, limits, clock):
            self.ids, self.clock = [-1], clock
            clock.tick(self.ids)
            done.append("generated")

        def settle(self):
            self.ids[:] = [7]
            self.clock.reported(generated=1)
            done.append("settled")

    class System:
        def begin(self):
            done.append("begun")

        def end(self, before):
            done.append("ended")

    ask = Asking(prompt=PROMPT, ids=[5, 6])
    trace = rounds.timed_round(Leaving(), ask, Limits(max_new_tokens=3), System()).trace
    assert done == ["begun", "generated", "ended", "settled"]
    assert (trace.token_ids, trace.reported.generated) == ((7,), 1)


def test_an_engine_that_generates_nothing_is_named():
    with pytest.raises(EngineError, match="neither generate nor respond"):
        Engine.generate(object(), [1], None, None)


def test_texts_are_compared_by_character(record):
    found = with_traces(record, text_trace(" a", " b"), text_trace(" a b"), text_trace(" a", " c"), by="text")
    assert warnings.first_difference(found.rounds[:2]) is None
    assert warnings.first_difference(found.rounds) == (2, 3)
    output = dataclasses.replace(found.output, first_difference=(2, 3), equal=False)
    (said,) = (w for w in warnings.find(found.rounds, None, output) if w.kind is WarningKind.OUTPUT_DIFFERS)
    assert said.text.startswith("round 3 differs from round 1 at generated character 4")


@pytest.mark.parametrize(
    ("reported", "kind", "words"),
    [
        ({"generated": 3}, WarningKind.MISCOUNTED, "round 1 has 2 generated tokens here, and 3 as the server counts"),
        ({"prompt": 9}, WarningKind.MISCOUNTED, "round 1 has 4 prompt tokens here, and 9 as the server counts"),
        ({"cached": 3, "allowed": 0}, WarningKind.CACHED, "3 tokens of the prompt in the server's cache, where none"),
        ({"cached": 3, "allowed": 2}, WarningKind.CACHED, "where 2 may be"),
        ({"generated": 2, "prompt": 4, "cached": 2, "allowed": 2}, None, ""),
        ({"cached": 1000}, None, ""),
        ({}, None, ""),
    ],
)
def test_what_the_server_counts_is_held_against_the_ticks(record, reported, kind, words):
    found = with_traces(record, _counted(reported))
    said = list(served.find(found.rounds, found.output))
    assert [one.kind for one in said] == ([] if kind is None else [kind])
    assert not said or words in said[0].text


def _counted(reported):
    trace = text_trace(" a", " b", prompt=4)
    return dataclasses.replace(trace, reported=Reported(**reported) if reported else None)


def test_the_rounds_that_are_marked_are_counted(record):
    traces = [_counted({"generated": 2}), _counted({"generated": 3}), _counted({"generated": 5})]
    (said,) = served.find(with_traces(record, *traces).rounds, record.output)
    assert said.text.startswith("2 of 3 rounds (first round 2) have 2 generated tokens here, and 3 as")


def test_rounds_of_other_prompts_have_no_one_output(record):
    found = with_traces(record, text_trace(" a"), text_trace(" b", " c"), varied="each has its nonce", by="text")
    assert summarize(found)["output_sha256"].reason == "each has its nonce"
    (said,) = served.find(found.rounds, found.output)
    assert said.kind is WarningKind.LENGTHS_DIFFER
    assert said.text.startswith("the rounds generated 1 to 2 tokens, as each has its nonce")
    built = of_block(block.build(found), WHOLE_BLOCK)
    assert (built.output.equal, built.output.varied, built.output.by) == (True, "each has its nonce", "text")


def test_prompts_of_other_lengths_are_marked(record):
    found = with_traces(record, text_trace(" a", prompt=5), text_trace(" a", prompt=7))
    (said,) = served.find(found.rounds, found.output)
    assert said.text.startswith("the rounds' prompts have 5 to 7 tokens")


def test_texts_and_counts_are_stored(record, tmp_path):
    found = with_traces(record, _counted({"generated": 2, "cached": 1}), text_trace(" é", "", "\ud800"))
    built = of_block(block.build(found), WHOLE_BLOCK)
    assert built.rounds.reported == (Reported(generated=2, cached=1), Reported())
    assert "reported" not in block.build(record)["rounds"]
    sidecar.write(tmp_path / "run.json", [found])
    arrays = sidecar.read(tmp_path / "run.json")
    head = f"{record.nodeid}|1|"
    assert arrays[head + "text_sizes"].tolist() == [3, 0, 1]
    assert bytes(arrays[head + "texts"])[:3].decode() == " é"
    assert arrays[head + "token_ids"].tolist() == []


def test_a_journal_takes_texts_back(record, tmp_path):
    found = with_traces(record, _counted({"generated": 2}))
    path = tmp_path / "left.jsonl"
    path.write_bytes(msgspec.json.encode(journal.Entry(nodeid="n", key="k", record=found)) + b"\n")
    (entry,) = journal.read(path).entries
    assert entry.record.rounds[0].trace == found.rounds[0].trace


@pytest.mark.parametrize("wrong", [{"texts": (" a",)}, {"token_ids": (1, 2)}, {"tick_sizes": (1, 0)}])
def test_texts_that_do_not_fit_their_ticks_are_damage(record, tmp_path, wrong):
    trace = dataclasses.replace(_counted({}), **wrong)
    path = tmp_path / "left.jsonl"
    path.write_bytes(msgspec.json.encode(journal.Entry(nodeid="n", key="k", record=with_traces(record, trace))) + b"\n")
    assert "do not belong together" in journal.read(path).damage
