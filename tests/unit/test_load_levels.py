"""How levels of load, objectives and synthetic prompts are written, and the line for what is none."""

from itertools import pairwise

import pytest

from pytest_infer.errors import OptionError, SuiteError
from pytest_infer.measure.load import workload
from pytest_infer.measure.load.workload import Workload
from pytest_infer.prompts import Message, Prompt
from pytest_infer.pytest_face import levels
from pytest_infer.records import Level, LevelKind, Objectives


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["concurrency=1,2, 8"], ["concurrency=1", "concurrency=2", "concurrency=8"]),
        (["rate=0.5,1"], ["rate=0.5:poisson", "rate=1:poisson"]),
        (["rate=2:constant"], ["rate=2:constant"]),
        (["replay", "replay=0.5"], ["replay=1", "replay=0.5"]),
        (["throughput", "concurrency=4"], ["throughput", "concurrency=4"]),
        ([], []),
    ],
)
def test_levels(lines, names):
    assert [level.name for level in levels.parse(lines, "--infer-load")] == names


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("concurrent=2", "unknown kind of load 'concurrent'; did you mean concurrency? known"),
        ("concurrency", "concurrency takes numbers, as in concurrency=1,2,4"),
        ("rate=", "rate takes numbers, as in rate=0.5,1,2"),
        ("concurrency=0", "whole numbers from 1 to 10000, not '0'"),
        ("concurrency=1.5", "not '1.5'"),
        ("concurrency=1,,2", "not ''"),
        ("concurrency=99999", "not '99999'"),
        ("rate=fast", "requests per second above 0, not 'fast'"),
        ("rate=-1", "not '-1'"),
        ("rate=inf", "not 'inf'"),
        ("rate=nan", "not 'nan'"),
        ("replay=fast", "replay takes a scale of its time above 0, not 'fast'"),
        ("rate=1:bursty", "unknown spacing of a rate 'bursty'; known: constant, poisson"),
        ("throughput=3", "takes no value, not '3'"),
        ("rate=1,1.0", "rate=1:poisson stands there twice"),
    ],
)
def test_what_is_no_level_is_one_line(line, said):
    with pytest.raises(OptionError, match=r"^--infer-load: ") as raised:
        levels.parse([line], "--infer-load")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_objectives():
    assert levels.objectives(None, "--infer-slo") == Objectives()
    found = levels.objectives("ttft=500ms, tpot=50ms,latency=1.5min", "--infer-slo")
    assert found == Objectives(ttft_s=0.5, tpot_s=0.05, latency_s=90.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("itl=5ms", "unknown objective 'itl'; known: latency, tpot, ttft"),
        ("ttft", "a time above 0 with its unit, as 500ms or 2s, not ''"),
        ("ttft=5", "not '5'"),
        ("ttft=0ms", "not '0ms'"),
        ("ttft=1s,ttft=2s", "ttft stands there twice"),
    ],
)
def test_what_is_no_objective_is_one_line(text, said):
    with pytest.raises(OptionError) as raised:
        levels.objectives(text, "--infer-slo")
    assert said in str(raised.value)


def test_synthetic_prompts():
    found = workload.synthetic("prompt_tokens=32, output_tokens=8,prefix_tokens=16,tokenizer=models/m", "x")
    assert found.counts == {"prompt_tokens": 32, "output_tokens": 8, "prefix_tokens": 16}
    assert found.tokenizer == "models/m"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tokens=3", "unknown key 'tokens'"),
        ("prompt_tokens=x", "takes a whole number above 0, not 'x'"),
        ("prompt_tokens=0", "not '0'"),
        ("prompt_tokens=1234567890123", "not '1234567890123'"),
        ("prompt_tokens=5", "lacks output_tokens, or trace=FILE"),
        ("prompt_tokens=5,output_tokens=5,prompt_tokens=6", "prompt_tokens stands there twice"),
        ("prompt_tokens=5,output_tokens=5,tokenizer=a,tokenizer=b", "tokenizer stands there twice"),
        ("prompt_tokens=5,output_tokens=5,output_tokens_min=9,output_tokens_max=8", "_min is above output_tokens_max"),
        ("prompt_tokens=5,trace=x", "a trace has its own counts: leave out prompt_tokens"),
    ],
)
def test_what_describes_no_prompts_is_one_line(text, said):
    with pytest.raises(OptionError, match=r"^--infer-load-data") as raised:
        workload.synthetic(text, "--infer-load-data")
    assert said in str(raised.value)


A = Prompt(name="a", text="one")
B = Prompt(name="b", text="two")
TALK = Prompt(name="c", messages=(Message("system", "be brief"), Message("user", "hello")))


COUNTS = {"prompt_tokens": 5, "output_tokens": 5}


def rows(prompts, number, seed=1, salt="s", **more):
    return list(workload.rows(Workload(prompts=tuple((p, 5) for p in prompts), **more), number, seed, salt))


def test_each_request_differs_from_every_other_and_all_prompts_come_equally_often():
    found = rows([A, B], 40)
    texts = [row["prompt"] for row in found]
    assert len(set(texts)) == 40
    assert {len(text) for text in texts} == {workload.NONCE_DIGITS + 1 + 3}
    assert sum(text.endswith(" one") for text in texts) == 20
    assert {row["output_tokens_count"] for row in found} == {5}


def test_of_many_requests_each_has_a_number_of_its_own():
    found = [row["prompt"].partition(" ")[0] for row in rows([A], 20_000)]
    assert len(set(found)) == 20_000
    # Those that follow each other differ from their first digit on.
    assert all(a[0] != b[0] for a, b in pairwise(found))


def test_the_order_follows_from_the_seed_and_the_numbers_from_the_run_too():
    order = [[row["prompt"].partition(" ")[2] for row in rows([A, B], 20, seed)] for seed in (1, 1, 2)]
    assert order[0] == order[1] != order[2]
    assert not {row["prompt"] for row in rows([A], 20, 1, "s")} & {row["prompt"] for row in rows([A], 20, 1, "t")}
    assert not {row["prompt"] for row in rows([A], 20, 1)} & {row["prompt"] for row in rows([A], 20, 2)}


def test_without_numbers_prompts_are_sent_as_they_are():
    assert {row["prompt"] for row in rows([A], 3, bust=False)} == {"one"}


def test_a_dialogue_has_its_number_ahead_of_its_first_message():
    (row,) = rows([TALK], 1)
    assert [message["role"] for message in row["messages"]] == ["system", "user"]
    assert row["messages"][0]["content"].endswith(" be brief")
    assert row["messages"][1]["content"] == "hello"
    assert "prompt" not in row


def test_texts_and_dialogues_go_to_their_own_paths_and_not_together():
    assert Workload(prompts=((A, 5),)).path == workload.COMPLETIONS
    assert Workload(prompts=((TALK, 5),)).path == workload.CHAT
    with pytest.raises(SuiteError, match="this suite has both"):
        _ = Workload(prompts=((A, 5), (TALK, 5))).path


def test_other_work_has_another_hash():
    hashes = [
        Workload(prompts=((A, 5),)).sha256,
        Workload(prompts=((B, 5),)).sha256,
        Workload(prompts=((A, 6),)).sha256,
        *(Workload(synthetic=COUNTS, tokenizer="/m/a", tokenizer_sha256=sha256).sha256 for sha256 in (None, "1", "2")),
    ]
    assert len(set(hashes)) == 6
    assert hashes[3] == Workload(synthetic=COUNTS, tokenizer="/m/b").sha256


def test_a_tokenizer_that_was_named_is_told_by_its_name():
    assert Workload(synthetic=COUNTS, tokenizer="/m/a").told == "prompt_tokens=5,output_tokens=5"
    named = Workload(synthetic=COUNTS, tokenizer="/m/a", tokenizer_sha256="1")
    assert named.told == "prompt_tokens=5,output_tokens=5,tokenizer=a"


def test_a_stream_sends_four_requests_at_least():
    assert workload.number_of_requests(Level(kind=LevelKind.CONCURRENCY, value=32.0), 64) == 128
    assert workload.number_of_requests(Level(kind=LevelKind.CONCURRENCY, value=2.0), 64) == 64
    assert workload.number_of_requests(Level(kind=LevelKind.RATE, value=100.0), 64) == 64
