"""The order of the tests, and how `pytest -n 2` spreads them: file by file, the longest of a folder first."""

import os
import sys

import pytest

ROOMS = ("unit", "plugin", "real")
"""Last what loads torch: a full collection of garbage then takes 0.3 s, and every inner run makes some."""
LONGEST = (
    "test_tutorial.py", "test_smollm2.py", "test_readme.py", "test_bench_models.py", "test_expert_matrix.py",
    "test_against.py", "test_safety.py", "test_sweeps.py",
)  # fmt: skip
HANGS_S = 1200.0
"""No test takes so long on any machine; one that does waits for what never comes."""


def place_of(path):
    """Return the place of a test file in the order."""
    room = next((place for place, room in enumerate(ROOMS) if room in path.parts), len(ROOMS))
    return room, LONGEST.index(path.name) if path.name in LONGEST else len(LONGEST)


def pytest_configure(config):
    """Let a worker that dies end the run: xdist gives its successor files that are done, and waits for ever."""
    if getattr(config.option, "maxworkerrestart", "") is None:
        config.option.maxworkerrestart = "0"


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: place_of(item.path))
    # Against a hang alone. As no ini key: the plugin's own users install no pytest-timeout.
    asked = config.getoption("timeout", None) is not None or "PYTEST_TIMEOUT" in os.environ
    if config.pluginmanager.hasplugin("timeout") and not asked:
        for item in items:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(HANGS_S))


def pytest_collection_finish(session):
    """Hold collecting to seconds: what needs torch imports it when a test of it begins (real/lazily.py)."""
    if loaded := {"torch", "transformers"} & set(sys.modules):
        raise pytest.UsageError(f"collecting the tests imported {', '.join(sorted(loaded))}: see tests/real/lazily.py")
    # Tests write a module anew within the second and to the byte by which a compiled one is taken for it.
    # Not before: pytest compiles our modules its own way, and every process that a test starts would again.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def pytest_sessionstart():
    """Let the runs that tests start take one thread, and be no workers of xdist's, which the environment says."""
    # On cores that tests share, the threads of small models wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
        del os.environ[name]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
