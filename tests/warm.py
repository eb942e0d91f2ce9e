"""A process that has loaded what runs load, and starts each command as a child of its own in no time."""

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path


class Warm:
    """Starts `pytest`, `pytest-benchmark` and `pytest-infer` as children of a warm process; one runs at a time."""

    def __init__(self, *modules: str, environment: dict[str, str] | None = None) -> None:
        self._zygote = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py")), *modules],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # what was read ahead would be none to `select`
        )
        if self._zygote.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the warm process ended with {self._zygote.wait()}")

    def start(self, program, arguments, *, folder, environment, out, err) -> "Started":
        order = {
            "program": program, "arguments": arguments, "folder": str(folder), "environment": environment,
            "out": str(out), "err": str(err),
        }  # fmt: skip
        self._zygote.stdin.write(json.dumps(order).encode() + b"\n")
        return Started(int(self._zygote.stdout.readline()), self._zygote.stdout)

    def close(self) -> None:
        self._zygote.kill()
        with self._zygote:
            pass


class Started:
    """A command that was started, with what pytester asks of a `Popen`."""

    stdin = None

    def __init__(self, pid, answers) -> None:
        self.pid, self._answers = pid, answers

    def wait(self, timeout=None) -> int:
        if timeout is not None and not select.select([self._answers], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("", timeout)
        try:
            return int(self._answers.readline())
        except BaseException:
            # How it ended is no answer to the next order.
            self.kill()
            self._answers.readline()
            raise

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def forking(pytester, warm, monkeypatch):
    """Return that `pytester`, whose processes of pytest are children of the warm one from now on."""
    popen = pytester.popen

    def fork(cmdargs, *, stdout, stderr, **more):
        python, module, *arguments = map(str, cmdargs)
        if python != sys.executable or not module.startswith("-m"):
            return popen(cmdargs, stdout=stdout, stderr=stderr, **more)
        if module == "-m":
            module, *arguments = arguments
        program = module.removeprefix("-m").replace("_", "-")
        here = Path.cwd()
        path = filter(None, [str(here), os.environ.get("PYTHONPATH")])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
        return warm.start(program, arguments, folder=here, environment=environment, out=stdout.name, err=stderr.name)

    monkeypatch.setattr(pytester, "popen", fork)
    return pytester


@contextlib.contextmanager
def apart_from_what_is_loaded():
    """Let collections of garbage go through what comes within the block alone, whatever a run there sets aside."""
    freeze, unfreeze = gc.freeze, gc.unfreeze
    gc.freeze()
    gc.freeze = gc.unfreeze = lambda: None
    try:
        yield
    finally:
        gc.freeze, gc.unfreeze = freeze, unfreeze
        gc.unfreeze()
