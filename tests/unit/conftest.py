"""Stored runs to order: blocks of the golden record with other figures, in files as pytest-benchmark writes them."""

import copy
import hashlib
import json
import shutil
import statistics
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from native_rows import native

from pytest_infer.engines.bundled import cache
from pytest_infer.records import PromptRecord
from pytest_infer.storage import block, history, runs

DATA = Path(__file__).parents[1] / "data"
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module", autouse=True)
def _no_torch():
    """Keep the inner loop short: no unit test imports torch."""
    before = "torch" in sys.modules
    yield
    assert before or "torch" not in sys.modules, "a unit test of this file imported torch"


@pytest.fixture(scope="session")
def _golden():
    return block.build(msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord))


@pytest.fixture(scope="session")
def make_block(_golden):
    """Return a function that makes a block; a figure is a value or a list of rounds, None takes a key away."""

    def make(name="guide", *, prompt=None, model=None, machine=None, only=None, experts=None, ranks=None, **metrics):
        made = copy.deepcopy(_golden)
        if only is not None:
            made["metrics"] = {key: made["metrics"][key] for key in only}
        # Prompts of other names have other texts.
        text = {} if name == "guide" else {"content_sha256": hashlib.sha256(name.encode()).hexdigest()}
        said = {"name": name, **text, **(prompt or {})}
        for table, changes in (("prompt", said), ("model", model), ("machine", machine)):
            made[table].update(changes or {})
            made[table] = {key: value for key, value in made[table].items() if value is not None}
        for key, figure in metrics.items():
            if figure is None:
                made["metrics"].pop(key, None)
            elif isinstance(figure, list):
                made["metrics"][key] = {"value": float(statistics.median(figure)), "rounds": [*map(float, figure)]}
            else:
                made["metrics"][key] = {"value": figure}
        if experts is not None:
            made["experts"] = experts
        if ranks is not None:
            made["ranks"] = ranks
        return made

    return make


@pytest.fixture
def make_row(make_block):
    """Return a function that makes a row that is not stored."""

    def make(name="guide", **changes):
        test = changes.pop("test", f"bench/t.py::t[{name}]")
        return runs.row_of(test, test, make_block(name, **changes))

    return make


class Storage:
    """A storage folder that is filled run by run, each a minute later than the one before."""

    def __init__(self, folder):
        self.folder = folder
        self.made = 0

    def add(self, blocks, *, at=None, name=None, where="Linux-CPython-3.12-64bit", commit="c" * 40, **whole):
        self.made += 1
        commit_info = {"id": commit, "branch": whole.pop("branch", "main"), "dirty": whole.pop("dirty", False)}
        rows = [b if "stats" in b else native(b) for b in blocks]
        run = {
            "machine_info": {"node": "host"},
            "commit_info": commit_info,
            "benchmarks": rows,
            "datetime": (START + timedelta(minutes=self.made)).isoformat() if at is None else at,
            "version": "5.3.1",
        }
        if whole:
            run["pytest_infer"] = {"schema": 1, **whole}
        path = self.folder / where / f"{self.made:04}_{commit[:8]}_x.json" if name is None else self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run), encoding="utf-8")
        return path

    def load(self):
        return history.load(self.folder)


@pytest.fixture
def storage(tmp_path, monkeypatch):
    # Runs are kept in the user's cache, which is not a test's to fill.
    monkeypatch.setenv(cache.ENV, str(tmp_path / "cache"))
    folder = tmp_path / "results"
    folder.mkdir()
    return Storage(folder)


@pytest.fixture(scope="module")
def kept_storage(tmp_path_factory):
    """Return a storage folder that all tests of a module share."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(cache.ENV, str(folder / "cache"))
        (folder / "results").mkdir()
        yield Storage(folder / "results")


@pytest.fixture
def full_disk():
    """Return a context in which no file grows beyond so many bytes."""
    resource = pytest.importorskip("resource", reason="there are no limits of a process here")

    @contextmanager
    def full(most=10):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


@pytest.fixture(scope="session")
def chromium():
    """Return a browser; a test without one is skipped."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"], timeout=120_000)
        plain = browser.new_context

        def patient(**how):
            context = plain(**how)
            context.set_default_timeout(120_000)
            return context

        browser.new_context = patient
        yield browser
        browser.close()
