"""Traces of load, of seconds or Mooncake's: what the generator is given of them, and the line for what is none."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_infer.engines.base import EngineOptions, Served
from pytest_infer.errors import EngineError, OptionError
from pytest_infer.measure.load import generator, trace, workload
from pytest_infer.measure.load.generator import Sending
from pytest_infer.measure.load.workload import Synthetic, Workload
from pytest_infer.pytest_face import under_load
from pytest_infer.records import Level, LevelKind, LoadRequest, Objectives, Repetition, RequestStatus, UnderLoad

MOONCAKE = Path(__file__).parents[1] / "data" / "mooncake.jsonl"
OWN = {"timestamp": 0, "input_length": 5, "output_length": 3}


def written(path, *rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_trace_of_seconds(tmp_path):
    path = written(tmp_path / "trace.jsonl", {**OWN, "timestamp": 2.5, "output_length": 9}, {**OWN, "timestamp": 1})
    found = trace.read(path, "x")
    assert (len(found.requests), found.longest, found.mooncake) == (2, 9, False)
    assert [row["timestamp"] for row in found.rows()] == [0, 1.5]
    assert not any("hash_ids" in row for row in found.rows())
    work = Workload(trace=found, tokenizer="/m")
    assert (work.told, work.made_up, work.shares, work.path) == ("trace=trace.jsonl", True, False, workload.COMPLETIONS)
    assert workload.synthetic(f"trace={path},tokenizer=/m", "x").trace == str(path)


def test_mooncakes_milliseconds_become_seconds_and_their_blocks_stay():
    found = trace.read(MOONCAKE, "x")
    assert found.mooncake
    rows = list(found.rows())
    assert [row["timestamp"] for row in rows] == pytest.approx([0, 0.3, 0.3, 0.6])
    assert [list(row["hash_ids"]) for row in rows] == [[0, 1], [2], [0, 3], [0]]
    assert Workload(trace=found).shares, "what the server has cached is as the trace wants it"
    assert Workload(trace=found).sha256 != Workload(trace=None).sha256


def test_the_generator_reads_it_as_what_it_is(tmp_path):
    for path, kind in ((MOONCAKE, "mooncake"), (written(tmp_path / "own.jsonl", OWN), "trace_synthetic")):
        sending = Sending(
            served=Served(url="http://127.0.0.1:1", model="m"),
            level=Level(kind=LevelKind.REPLAY, value=2.0),
            work=Workload(trace=trace.read(path, "x"), tokenizer="/m"),
            requests=1,
            limit_s=1.0,
            salt="s",
        )
        (data,) = generator.scenario(sending, 1, tmp_path)["spec"]["data"]
        assert data["kind"] == kind
        assert data["source"] == {"kind": "json_file", "path": str(tmp_path / "data.jsonl")}
        assert data.get("hash_id_block_size") == (512 if kind == "mooncake" else None)


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "content",
    [
        MARK + b"%s\n%s\n",
        b"%s\r\n\r\n%s\r\n",
        MARK + b"%s\r\n" + MARK + b"%s\n" + MARK,
        b"\n  %s\n%s",
    ],
    ids=["mark", "windows", "joined", "blank"],
)
def test_whatever_wrote_its_lines(tmp_path, content):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(content % (json.dumps(OWN).encode(), json.dumps({**OWN, "output_length": 7}).encode()))
    assert [request.output_length for request in trace.read(path, "x").requests] == [3, 7]


CAKE = {**OWN, "input_length": 600, "hash_ids": [1, 2]}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "holds no request"),
        ([OWN, {}], "line 2: Object missing required field `timestamp`"),
        ([OWN, OWN, {**OWN, "input_length": 0}], "line 3: Expected `int` >= 1 - at `$.input_length`"),
        ([{**OWN, "timestamp": -1}], "line 1: Expected `float` >= 0"),
        ([{**OWN, "timestamp": 1e300}], "line 1: "),
        ([CAKE, {**CAKE, "hash_ids": [1]}], "line 2: 1 hash_ids of 512 tokens each for an input_length of 600"),
        ([{**CAKE, "hash_ids": [1, -2]}], "line 1: Expected `int` >= 0"),
        ([{**CAKE, "hash_ids": "1"}], "line 1: Expected `array | null`, got `str`"),
        ([CAKE, OWN], "line 2: all lines have hash_ids (Mooncake's format, its timestamps in milliseconds) or none"),
        ([OWN, CAKE], "line 2: all lines have hash_ids"),
    ],
)
def test_what_is_no_trace_is_one_line(tmp_path, rows, said):
    path = written(tmp_path / "trace.jsonl", *rows)
    with pytest.raises(OptionError, match=r"^--infer-load-data: ") as raised:
        trace.read(path, "--infer-load-data")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "line 1: "),
        (b'{"timestamp": 0, "input_length": 5, "outp', "line 1: Input data was truncated"),
        (b'{"timestamp": 0, "input_length": 5, "output_length": 3}\n\xff', "line 2: "),
        (b"timestamp,input_length,output_length\n0,5,3\n", "line 1: JSON is malformed"),
        (b"\n \n", "holds no request"),
        (None, "No such file"),
    ],
)
def test_damaged_bytes_are_one_line(tmp_path, content, said):
    path = tmp_path / "trace.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionError, match=r"^--infer-load-data: ") as raised:
        trace.read(path, "--infer-load-data")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_all_of_a_trace_is_sent_and_how_many_were_asked_for_is_no_other_work(tmp_path):
    work = Workload(trace=trace.read(written(tmp_path / "own.jsonl", OWN), "x"), tokenizer="/m")
    level = Level(kind=LevelKind.REPLAY, value=1.0)

    def hashed(requests, work):
        settings = SimpleNamespace(load_requests=requests, load_limit_s=60.0, objectives=Objectives())
        return under_load._info(level, work, SimpleNamespace(settings=settings)).content_sha256

    assert hashed(64, work) == hashed(8, work)
    made_up = Workload(synthetic={"prompt_tokens": 5, "output_tokens": 5}, tokenizer="/m")
    assert hashed(64, made_up) != hashed(8, made_up)


def test_prompts_of_another_tokenizer_are_other_work(tmp_path):
    session = SimpleNamespace(settings=SimpleNamespace(engine_options=EngineOptions(model="m")))
    found = []
    for name, text in (("a", "{}"), ("b", "{}"), ("c", "{ }")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(text)
        data = Synthetic(counts={"prompt_tokens": 5, "output_tokens": 5}, tokenizer=str(tmp_path / name))
        found.append(under_load._made_up(data, session))
    assert found[0].sha256 == found[1].sha256 != found[2].sha256
    assert found[2].told.endswith(",tokenizer=c")


@pytest.mark.parametrize(
    ("times", "refused"), [((0, 1), True), ((0, 1, 1), True), ((0, 1, 2), False), ((5,) * 20, True), ((0,) * 12, True)]
)
def test_a_trace_without_time_between_its_first_and_last_requests_is_refused(tmp_path, times, refused):
    rows = [{**OWN, "timestamp": time} for time in times]
    work = Workload(trace=trace.read(written(tmp_path / "own.jsonl", *rows), "x"), tokenizer="/m")
    with pytest.raises(OptionError, match=r"own\.jsonl: no time lies.*a longer trace") if refused else nullcontext():
        under_load.check_steady(Level(kind=LevelKind.REPLAY, value=1.0), work, 64)


def test_a_replay_is_not_sent_to_an_option_that_it_does_not_heed():
    level = Level(kind=LevelKind.REPLAY, value=1.0)
    done = LoadRequest(
        status=RequestStatus.DONE, due_s=0.0, sent_s=0.0, first_s=1.0, last_s=1.0, end_s=1.0, output_tokens=1
    )
    of = UnderLoad(
        level=level, objectives=Objectives(), repetitions=(Repetition(requests=(done,) * 2, seed=1),), generator="g"
    )
    with pytest.raises(EngineError, match="take a longer trace") as raised:
        under_load.check_answered(of, lambda: None)
    assert "--infer-load-requests" not in str(raised.value)
