"""Runs commands, each in a child of this process, which has loaded what a run loads: the slowest part of a start.

`python zygote.py [MODULE ...]` measures once with pytest, which imports what that needs, then imports these modules.
"""

import functools
import gc
import importlib
import json
import os
import runpy
import sys
import tempfile
import threading
import traceback
from pathlib import Path

MODULES = {"pytest": "pytest", "pytest-benchmark": "pytest_benchmark"}
SUITE = """
import pytest
from pytest_infer.engines.base import Engine
from pytest_infer.records import ModelInfo, StopReason

class Silent(Engine):
    def load(self):
        return ModelInfo(name="silent", engine="silent", dtype="float32", device="cpu", parameter_bytes=1)

    def encode(self, prompt):
        return [1]

    def decode(self, token_ids):
        return ""

    def generate(self, prompt_ids, limits, clock):
        clock.tick([1])
        return StopReason.EOS

@pytest.fixture(scope="session")
def engine():
    return Silent()

def test_it(infer):
    infer("one")
"""


def main():
    # First, so that pytest loads its plugins itself, as it wants to: some are packages that other modules import too.
    measure_once()
    for name in sys.argv[1:]:
        module, _, attribute = name.partition(":")
        getattr(importlib.import_module(module), attribute or "__name__")
    # In each child collections go through what is its own, whatever that sets aside: two dozen are most of a short run.
    gc.collect()
    gc.freeze()
    gc.freeze = gc.unfreeze = lambda: None
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            run(**order)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def measure_once():
    """Import what a run imports, by a run."""
    import cpuinfo
    import pytest

    # It starts processes whenever pytest-benchmark saves a run.
    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)
    cpuinfo.get_cpu_info()
    answers = os.dup(1)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_it.py").write_text(SUITE, encoding="utf-8")
        os.dup2(2, 1)
        quiet = ["-q", "-p", "no:cacheprovider", "--infer-no-probe", "--infer-rounds=1", "--benchmark-json=run.json"]
        before, there = os.environ.pop("PYTEST_ADDOPTS", None), Path.cwd()
        os.chdir(folder)
        code = pytest.main([*quiet, f"--rootdir={folder}", folder])
        os.chdir(there)
    if before is not None:
        os.environ["PYTEST_ADDOPTS"] = before
    os.dup2(answers, 1)
    os.close(answers)
    del sys.modules["test_it"]
    if code or threading.active_count() > 1:
        raise SystemExit(f"the run of the zygote's own: exit code {code}, threads: {threading.enumerate()}")


def run(program, arguments, folder, environment, out, err):
    """Become that command: its output goes into two files."""
    code = 1
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for number, path in enumerate((os.devnull, out, err)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        # As `python -m` has it, in place of this file's folder.
        sys.path[0] = folder
        sys.argv = [program, *arguments]
        if program in MODULES:
            runpy.run_module(MODULES[program], run_name="__main__", alter_sys=True)
        else:
            from pytest_infer.cli.main import app

            app(prog_name=program)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - as an interpreter shows it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
