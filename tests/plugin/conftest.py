"""A scripted engine in a suite of its own, so that the plugin is tested without a model."""

import functools
import importlib
import pkgutil
import sys
import textwrap

import cpuinfo
import numpy  # noqa: F401 - in-process runs forget modules they import, and numpy cannot be loaded twice
import pytest
import scipy.stats  # noqa: F401 - as numpy, of which it loads more

import pytest_infer
import warm
from pytest_infer.ab.baton import Waits
from pytest_infer.measure import disturbance
from pytest_infer.measure.breakdown.marks import HostStamper

HEAVY = tuple(f"pytest_infer.{room}" for room in ("engines.transformers", "engines.bundled", "measure.experts"))
"""What needs torch, which no test here does in this process."""
for _found in pkgutil.walk_packages(pytest_infer.__path__, "pytest_infer."):
    # An in-process run forgets what it is the first to import, and would patch or import it anew each time.
    if not _found.name.startswith(HEAVY):
        importlib.import_module(_found.name)

ENGINE = '''
import time

import pytest

from pytest_infer.engines.base import Engine
from pytest_infer.records import ModelInfo, StopReason


class Scripted(Engine):
    """Generates 1, 2, 3, …, sleeping before each tick as the script says, seconds."""

    delays = [0.0]
    chunks = None
    context = None

    def __init__(self):
        self.calls = 0

    def load(self):
        return ModelInfo(name="scripted", engine="scripted", dtype="float32", device="cpu", parameter_bytes=1000)

    def encode(self, prompt):
        return list(range(len((prompt.text or "a dialogue").split())))

    def decode(self, token_ids):
        return " ".join(map(str, token_ids))

    def context_length(self):
        return self.context

    def wait(self, delay):
        if delay:
            time.sleep(delay)

    def generate(self, prompt_ids, limits, clock):
        self.calls += 1
        made = 0
        for number, delay in enumerate(self.delays):
            if made >= limits.max_new_tokens:
                return StopReason.LENGTH
            size = self.chunks[number] if self.chunks else 1
            self.wait(delay)
            clock.tick(list(range(made + 1, made + size + 1)))
            made += size
        return StopReason.EOS if made < limits.max_new_tokens else StopReason.LENGTH


@pytest.fixture(scope="session")
def engine():
    return Scripted()
'''

VIRTUAL = '''
import os
import random

from pytest_infer.ab.baton import Waits
from pytest_infer.measure import disturbance
from pytest_infer.measure.breakdown.marks import HostStamper

# Of real time, of which none passes.
disturbance.reasons = lambda counters, usable_cores: ()
Waits.end = lambda self: self.turns_ns.append(0)
HostStamper.now = staticmethod(lambda: Scripted.now)


class Scripted(Scripted):
    """Lets no real time pass: each delay is that long on the clock, give or take a twentieth of a percent.

    So a gate is tested, and not the noise of the machine that the tests run on.
    """

    now = 0
    noise = random.Random(os.getpid())

    def wait(self, delay):
        Scripted.now += round(1e9 * delay * self.noise.lognormvariate(0, 0.0005))

    def starts(self, clock):
        clock._now, clock._start_ns = lambda: Scripted.now, Scripted.now

    def generate(self, prompt_ids, limits, clock):
        self.starts(clock)
        return super().generate(prompt_ids, limits, clock)


@pytest.fixture(scope="session")
def engine():
    return Scripted()
'''

TEST = """
def test_prompt(infer, prompt):
    infer(prompt)
"""

SUITE = """
[defaults]
max_new_tokens = 3

[[prompt]]
name = "first"
text = "one two three"

[[prompt]]
name = "second"
text = "four five"
"""


@pytest.fixture(scope="session", autouse=True)
def _one_cpu():
    """Describe the processor once: py-cpuinfo starts processes for it whenever pytest-benchmark saves a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpuinfo, "get_cpu_info", functools.cache(cpuinfo.get_cpu_info))
        yield


class _TorchRefused:
    """Finds no torch: a run in this process forgets what it is the first to import, and torch is not loaded twice."""

    def __init__(self):
        self.asked = False

    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            self.asked = True
            raise ImportError("no test of the plugin loads torch in this process: is its own engine found?")


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch):
    refused = _TorchRefused()
    monkeypatch.setattr(sys, "meta_path", [refused, *sys.meta_path])
    yield
    assert not refused.asked, "a run in this process would have loaded torch"


@pytest.fixture(scope="session")
def _warm():
    made = warm.Warm()
    yield made
    made.close()


@pytest.fixture
def pytester(pytester, _warm, monkeypatch):
    """`pytester` whose runs are children of a process that has loaded what a run loads.

    A run that takes `plugins`, or `runpytest_inprocess`, is in this process, where a test can patch what it uses.
    """
    inprocess = pytester.runpytest_inprocess

    def runpytest_inprocess(*arguments, **more):
        with warm.apart_from_what_is_loaded():
            return inprocess(*arguments, **more)

    def runpytest(*arguments, plugins=(), **more):
        if plugins:
            return runpytest_inprocess(*arguments, plugins=plugins, **more)
        return made.runpytest_subprocess(*arguments, **more)

    made = warm.forking(pytester, _warm, monkeypatch)
    monkeypatch.setattr(made, "runpytest_inprocess", runpytest_inprocess)
    monkeypatch.setattr(made, "runpytest", runpytest)
    return made


@pytest.fixture
def cold(pytester, monkeypatch):
    """`pytester` whose processes begin with nothing loaded, for what is said of the modules of a run."""
    monkeypatch.setattr(pytester, "popen", type(pytester).popen.__get__(pytester))
    return pytester


@pytest.fixture(autouse=True)
def _plain_environment(pytester, monkeypatch):
    """Keep the outer run's own options and colours, and what depends on the machine, out of the inner ones."""
    # A disturbed round is measured again, which no test can foresee that counts rounds or looks for warnings.
    # After `pytester`, which takes the variable away.
    # Hypothesis takes half a second to load in every process, anyio a tenth of that, and no inner test uses either.
    # As an ini key: with an option a run begins earlier, which no user's does who types none.
    monkeypatch.setenv("PYTEST_ADDOPTS", "-o infer_repeat_disturbed=0 -p no:hypothesispytest -p no:anyio")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def suite(pytester, monkeypatch):
    """A suite of two prompts on the scripted engine; `suite(engine="…")` adds lines to the engine's module.

    `virtual=True`: its delays pass on the clock only.
    """
    # What one test learns of its machine is not for the next.
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(pytester.path / ".cache"))

    # Back after a virtual run in this process.
    monkeypatch.setattr(disturbance, "reasons", disturbance.reasons)
    monkeypatch.setattr(Waits, "end", Waits.end)
    monkeypatch.setattr(HostStamper, "now", staticmethod(HostStamper.now))

    def make(*, engine="Scripted.delays = [0.0] * 3", test=TEST, prompts=SUITE, virtual=False):
        pytester.makeconftest(ENGINE + (VIRTUAL if virtual else "") + "\n" + textwrap.dedent(engine))
        pytester.makepyfile(test_suite=test)
        if prompts is not None:
            pytester.path.joinpath("prompts.toml").write_text(prompts, encoding="utf-8")
        return pytester

    return make


@pytest.fixture
def installs(pytester):
    """Return a function that installs the class `Told` as the engine `told` of another distribution."""

    def install(code):
        pytester.path.joinpath("told_engine.py").write_text(f"from conftest import Scripted\n\n{code}\n")
        info = pytester.path / "told-1.0.dist-info"
        info.mkdir(exist_ok=True)
        info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: told\nVersion: 1.0\n")
        info.joinpath("entry_points.txt").write_text("[pytest_infer.engines]\ntold = told_engine:Told\n")
        pytester.syspathinsert()

    return install
