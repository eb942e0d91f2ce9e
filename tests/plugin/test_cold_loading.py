"""Cold and warm loads in a run: what is dropped, what is said of it, and that hashing leaves no trace."""

import json
import mmap
import os
import sys
import time
from pathlib import Path

import pytest

from pytest_infer.engines.base import Engine
from pytest_infer.errors import ModelError
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.loading import page_cache, timed
from pytest_infer.metrics import loading
from pytest_infer.records import CacheState, ModelInfo

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mincore and posix_fadvise as Linux has them")
SIZE = 2**22


class Reads(Engine):
    """Loads by reading the first half of a file, and hashes by reading all of it."""

    def __init__(self, path, *, wrong=False):
        self.path = path
        self.wrong = wrong

    def check(self):
        if self.wrong:
            raise ModelError("wrong")

    def files(self):
        return (self.path,)

    def load(self):
        with self.path.open("rb", buffering=0) as file:
            # Else the kernel reads ahead of what is asked for.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            self.half = file.read(SIZE // 2)
        return ModelInfo(name="reads", engine="reads")

    def weights_sha256(self):
        self.path.read_bytes()
        return "hash"


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(SIZE))
    page_cache.drop([path])
    if page_cache.cached([path]).value:
        pytest.skip(f"the file system of {tmp_path} keeps the file in memory (tmpfs?)")
    return path


@pytest.fixture
def system():
    counters = SystemCounters()
    yield counters
    counters.close()


def test_a_load_is_as_warm_as_it_finds_the_files(weights, system):
    for fill, state in ((False, CacheState.COLD), (True, CacheState.WARM)):
        if fill:
            page_cache.fill([weights])
        info = timed.measured(Reads(weights), system, cold=False, note=pytest.fail)
        assert loading.state(info.load.cached) is state
        assert info.load.read_bytes.value in (None, 0 if fill else SIZE // 2)
        assert info.load_read_bytes == info.load.read_bytes.value
        assert info.load.rss_anon_bytes.value + info.load.rss_file_bytes.value <= info.load.peak_rss_bytes.value * 1.02
        assert info.load_s > 0


def test_a_cold_load_finds_nothing_in_the_page_cache(weights, system):
    page_cache.fill([weights])
    info = timed.measured(Reads(weights), system, cold=True, note=pytest.fail)
    assert info.load.cached.value == 0
    assert info.load.read_bytes.value in (None, SIZE // 2)


def test_a_wrong_model_is_refused_before_its_pages_are_dropped(weights, system):
    page_cache.fill([weights])
    with pytest.raises(ModelError):
        timed.measured(Reads(weights, wrong=True), system, cold=True, note=pytest.fail)
    assert page_cache.cached([weights]).value == pytest.approx(1, abs=0.02)  # the kernel may take pages back


def test_what_is_fetched_is_no_part_of_the_load(tmp_path, system):
    delay, engine = 0.5, Reads(tmp_path / "weights.bin")

    def fetch():
        time.sleep(delay)
        engine.path.write_bytes(bytes(SIZE))

    engine.fetch = fetch
    info = timed.measured(engine, system, cold=False, note=pytest.fail)
    assert 0 < info.load_s < delay
    # What was just written is in memory.
    assert loading.state(info.load.cached) is CacheState.WARM


def test_pages_that_stay_are_named(weights, system):
    notes = []
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for offset in range(0, SIZE, mmap.PAGESIZE):
            mapped[offset]
        info = timed.measured(Reads(weights), system, cold=True, note=notes.append)
    assert loading.state(info.load.cached) is CacheState.WARM
    (note,) = notes
    assert note.startswith("! --infer-cold-load: the load was not cold, 100 % of the model's files stayed")


def test_an_engine_without_files_cannot_be_cold(weights, system):
    notes, engine = [], Reads(weights)
    engine.files = tuple
    info = timed.measured(engine, system, cold=True, note=notes.append)
    assert info.load.cached.value is None
    (note,) = notes
    assert note.startswith("! --infer-cold-load: whether the load was cold is not known: no files of the weights")


def test_hashing_leaves_to_the_first_run_what_the_load_did_not_read(weights, system):
    engine = Reads(weights)
    timed.measured(engine, system, cold=True, note=pytest.fail)
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for offset in range(0, SIZE // 2, mmap.PAGESIZE):
            mapped[offset]
        left = page_cache.cached([weights]).value
        assert timed.weights_sha256(engine) == "hash"
        # The half that is mapped stays, with the few pages that the kernel maps around one.
        assert page_cache.cached([weights]).value == pytest.approx(left, abs=0.05)
        assert left == pytest.approx(0.5, abs=0.05)


def test_hashing_leaves_a_warm_file_warm(weights, system):
    page_cache.fill([weights])
    timed.weights_sha256(Reads(weights))
    assert page_cache.cached([weights]).value == pytest.approx(1, abs=0.02)  # the kernel may take pages back


ENGINE = """
import pathlib

WEIGHTS = pathlib.Path("weights.bin").absolute()
load = Scripted.load
Scripted.load = lambda self: [WEIGHTS.read_bytes(), load(self)][1]
Scripted.files = lambda self: (WEIGHTS,)
"""


@pytest.mark.parametrize(("way", "state"), [("", "warm"), ("option", "cold"), ("ini", "cold")])
def test_a_run_says_whether_its_load_was_cold(suite, weights, monkeypatch, way, state):
    monkeypatch.setenv("COLUMNS", "150")
    pytester = suite(engine=ENGINE)
    path = pytester.path / "weights.bin"
    path.write_bytes(bytes(SIZE))
    if way == "ini":
        pytester.makeini("[pytest]\ninfer_cold_load = true\n")
    args = ["--infer-cold-load"] if way == "option" else []
    result = pytester.runpytest("--benchmark-json=run.json", "--infer-rounds=1", "-v", *args)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([f"loaded in * ({state})"])
    rows = [row["extra_info"]["pytest_infer"] for row in json.loads(Path("run.json").read_text())["benchmarks"]]
    for block in (block for block in rows if block["phase"] == "total"):
        metrics = block["metrics"]
        assert metrics["load_cache"]["value"] == state
        assert metrics["load_peak_rss_bytes"]["value"] > 0
        assert "first_run_extra_s" in metrics
    # Without a warm-up there is no first run that is not among the rounds.
    pytester.runpytest("--benchmark-json=run.json", "--infer-rounds=1", "--infer-warmup=0")
    block = json.loads(Path("run.json").read_text())["benchmarks"][0]["extra_info"]["pytest_infer"]
    assert "among the timed ones" in block["absent"]["first_run_extra_s"]
