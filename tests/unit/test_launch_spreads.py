"""What earlier A/B runs of a model said of its launches: kept, pooled, and lost without harm."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from pytest_infer.engines.bundled import cache
from pytest_infer.records import PromptRecord, Turns
from pytest_infer.storage import cache_file, launch_spreads

ONE = "a key"
WHOLE = Turns(every=1, cycles=1, seconds=1.0, ratios={})
RECORD = Path(__file__).parents[1] / "data" / "record-1.json"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.ENV, str(tmp_path / "cache"))


def test_runs_are_pooled_by_their_degrees_of_freedom():
    assert launch_spreads.earlier(ONE) == {}
    launch_spreads.save({ONE: {"step": (1.0, 6.0)}})
    launch_spreads.save({ONE: {"step": (4.0, 2.0), "first": (3.0, 2.0)}})
    assert launch_spreads.earlier(ONE) == {"step": (pytest.approx(14 / 8), 8.0), "first": (3.0, 2.0)}


def test_the_newest_runs_count_and_tell_only_so_much():
    for number in range(launch_spreads.RUNS + 3):
        launch_spreads.save({ONE: {"step": (float(number < 3), 20.0)}})
    assert launch_spreads.earlier(ONE) == {"step": (0.0, launch_spreads.MOST_DF)}


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"threads": 3}},
        {"model": {"dtype": "bfloat16"}},
        {"model": {"name": "n"}},
        {"model": {"device": "cuda:0"}},
        {"prompt": {"content_sha256": "0" * 64}},
        {"config": {"threads": "2"}},
    ],
)
def test_another_prompt_model_or_setting_is_another_thing(change):
    record = msgspec.json.decode(RECORD.read_bytes(), type=PromptRecord)
    parts = {name: new if name == "config" else replace(getattr(record, name), **new) for name, new in change.items()}
    key = launch_spreads.key(record, WHOLE)
    assert launch_spreads.key(replace(record, **parts), WHOLE) != key
    assert launch_spreads.key(replace(record, nodeid="elsewhere"), WHOLE) == key
    # A pass of nine tokens scatters otherwise than one of all.
    assert launch_spreads.key(record, replace(WHOLE, tokens=9)) != key


@pytest.mark.parametrize("content", [b"", b"[]", b'{"x": [{"at_ns": 1}]}', b'{"x": []}', b"\xff"])
def test_a_file_that_cannot_be_read_counts_as_none_and_is_written_anew(content):
    place = cache_file.path(launch_spreads.NAME)
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    assert launch_spreads.earlier(ONE) == {}
    launch_spreads.save({ONE: {"step": (1.0, 6.0)}})
    assert launch_spreads.earlier(ONE) == {"step": (1.0, 6.0)}


def test_a_cache_that_cannot_be_written_loses_it(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.ENV, str(tmp_path / "file"))
    launch_spreads.save({ONE: {"step": (1.0, 6.0)}})
    assert launch_spreads.earlier(ONE) == {}
