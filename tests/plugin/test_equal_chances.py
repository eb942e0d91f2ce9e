"""Identical code is no regression, whatever surrounds the run or watches one side of it; its rounds really compute.

`benchmarks/equal_chances.py` counts the same with a model, turns of a token and many trials.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ENGINE = """
import os
import pathlib
import sys

def one(number):
    return number % 7

def step():
    total = 0
    for number in range(3000):
        total += one(number)
    return total

def generate(self, prompt_ids, limits, clock):
    for number in range(limits.max_new_tokens):
        step()
        clock.tick([number])
    return StopReason.LENGTH

Scripted.generate = generate

if str(pathlib.Path(__file__).parent) == os.environ["OURS"]:
    exec(os.environ.get("WATCHER", ""))
"""
PROMPT = '[defaults]\nmax_new_tokens = 6\n[[prompt]]\nname = "first"\ntext = "a b c"\n'
RUN = ("bench", "-p", "no:cacheprovider", "--infer-no-profile", "--infer-timeline=off", "--infer-no-probe")
# So wide that no noise breaks it: what one side alone suffers from takes three times as long.
GATE = ("--infer-against=HEAD~1", "--infer-turns=round", "--infer-gate=tpot:40%,ttft:40%", "--infer-max-rounds=10")
TRACER = "def trace(*_):\n    return trace\nsys.settrace(trace)"
PROFILER = "sys.setprofile(lambda *_: None)"
CPROFILE = "import cProfile\ncProfile.Profile().enable()"
MONITORING = """
tool = sys.monitoring.PROFILER_ID
sys.monitoring.use_tool_id(tool, "counting")
sys.monitoring.register_callback(tool, sys.monitoring.events.LINE, lambda code, line: None)
sys.monitoring.set_events(tool, sys.monitoring.events.LINE)
"""
BUSY = (sys.executable, "-c", "while True: pass")
AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")


@contextmanager
def beside(*command, **how):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def repository(pytester, suite, monkeypatch):
    """A repository of two equal commits, as a folder."""
    suite(engine=ENGINE, prompts=PROMPT)
    folder = pytester.path
    folder.joinpath("bench").mkdir()
    for name in ("conftest.py", "test_suite.py", "prompts.toml"):
        folder.joinpath(name).rename(folder / "bench" / name)
    folder.joinpath(".gitignore").write_text("__pycache__\nout.json\n")
    monkeypatch.setenv("OURS", str(folder / "bench"))
    who = ("-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "a"), ("commit", "-qm", "b", "--allow-empty")):
        subprocess.run(["git", *who, *command], cwd=folder, check=True)
    return folder


def verdicts(repository, *start, **environment):
    """Return the verdict on each figure of a comparison of equal code, started like this."""
    start = start or (sys.executable, "-m", "pytest")
    done = subprocess.run(
        [*start, *RUN, *GATE, "--benchmark-json=out.json"],
        cwd=repository, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    path = repository / "out.json"
    assert path.is_file(), done.stdout + done.stderr
    judged = json.loads(path.read_text())["pytest_infer"]["gate"]["judgements"]
    assert [j["rounds"] for j in judged] == [[10, 10]] * 2, done.stdout
    return [j["verdict"] for j in judged]


def test_a_side_that_is_slowed_is_called_so(repository):
    # What the tests below would see if one side alone suffered: the engine itself computes twenty times as much.
    slowed = "plain = step\ndef step():\n    for _ in range(20):\n        plain()\nglobals()['step'] = step"
    assert verdicts(repository, WATCHER=slowed) == ["regressed"] * 2


@pytest.mark.parametrize(
    "watcher",
    [
        TRACER,
        PROFILER,
        CPROFILE,
        pytest.param(
            MONITORING,
            marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with Python 3.12"),
        ),
    ],
    ids=["tracer", "profiler", "cprofile", "monitoring"],
)
def test_a_tool_that_watches_one_side(repository, watcher):
    assert "regressed" not in verdicts(repository, WATCHER=watcher)


def covered():
    if importlib.util.find_spec("coverage") is None:
        return (sys.executable, "-c", f"import sys\n{TRACER}\nimport pytest\nsys.exit(pytest.console_main())")
    # Not the null device: coverage removes what it is to write, which as root is the device itself.
    data = Path(tempfile.gettempdir()) / "test_equal_chances.coverage"
    return (sys.executable, "-m", "coverage", "run", f"--data-file={data}", "-m", "pytest")


STARTS = {
    "coverage": covered(),
    "cprofile": (sys.executable, "-m", "cProfile", "-o", os.devnull, "-m", "pytest"),
    "taskset": ("taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-m", "pytest"),
    "nice": ("nice", "-n", "10", sys.executable, "-m", "pytest"),
}


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_however_it_is_started(repository, start):
    if shutil.which(STARTS[start][0]) is None:
        pytest.skip(f"there is no {start}")
    assert "regressed" not in verdicts(repository, *STARTS[start])


@pytest.mark.slow
@pytest.mark.parametrize("own_session", [False, True])
def test_beside_busy_loops(repository, own_session):
    # In one's own session they slow one side alone where the kernel shares cores out between sessions (autogroups).
    if not own_session and not (AUTOGROUP.exists() and AUTOGROUP.read_text().strip() == "1"):
        pytest.skip("this kernel has no autogroups, or they are off")
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(beside(*BUSY, start_new_session=own_session))
        assert "regressed" not in verdicts(repository)


@pytest.mark.slow
def test_beside_another_run_of_the_same_suite(repository):
    again = (sys.executable, "-m", "pytest", *RUN, "--infer-rounds=10000", "--infer-gate=off")
    with beside(*again, cwd=repository, start_new_session=True):
        assert "regressed" not in verdicts(repository)
