"""Runs of pytest for fuzz.py, which a damaged file may not break, hold up, or make large."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

HANG_S = 10
_NO_REPORT = re.compile(r"^! no report: (?!the run was not stored)", re.MULTILINE)
MOST_BYTES = 10**9


class Hang(BaseException):
    """A command took too long; nothing of ours may catch it."""


class Pytest:
    """Runs of pytest, each a child of a process that has loaded what a run loads: a fresh start takes 2 s."""

    def __init__(self) -> None:
        program = Path(__file__).parents[1] / "tests" / "zygote.py"
        self._warm = subprocess.Popen(
            [sys.executable, str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        if self._answer(60 * HANG_S) != "ready":
            raise SystemExit("the warm process of pytest does not start")
        pages = int(Path(f"/proc/{self._warm.pid}/statm").read_text().split()[0])
        self._most = pages * resource.getpagesize() + MOST_BYTES

    def run(self, arguments: list[str], folder: Path, said: Path) -> None:
        """Run pytest, and raise Hang where it does not end."""
        order = {
            "program": "pytest",
            "arguments": arguments,
            "folder": str(folder),
            "environment": dict(os.environ),
            "out": str(said),
            "err": str(said.with_suffix(".err")),
        }
        assert self._warm.stdin is not None
        self._warm.stdin.write(json.dumps(order) + "\n")
        child = int(self._answer(HANG_S))
        resource.prlimit(child, resource.RLIMIT_AS, (self._most, self._most))
        try:
            self._answer(6 * HANG_S)
        except Hang:
            os.kill(child, signal.SIGKILL)
            self._answer(HANG_S)
            raise

    def _answer(self, seconds: float) -> str:
        assert self._warm.stdout is not None
        if not select.select([self._warm.stdout], [], [], seconds)[0]:
            raise Hang
        return self._warm.stdout.readline().strip()

    def close(self) -> None:
        """End the warm process."""
        self._warm.kill()
        self._warm.communicate()


def run_pytest(folder: Path, pytest: Pytest) -> None:
    """Run the suite in the storage, resuming, with a gate and a report, and remove what it stored."""
    storage = folder / "results"
    before = set(storage.rglob("*"))
    options = ["--benchmark-autosave", f"--benchmark-storage={storage}", "--infer-rounds=1", "--infer-no-probe"]
    options += ["--infer-resume", "--infer-gate=ttft:900%", f"--infer-report={folder / 'report.html'}", "-q"]
    outputs = [folder / "said.out", folder / "said.err"]
    for output in outputs:
        output.unlink(missing_ok=True)
    pytest.run(["-p", "no:cacheprovider", *options], folder / "suite", outputs[0])
    for path in sorted(set(storage.rglob("*")) - before, reverse=True):
        remove(path)
    said = "".join(output.read_text(errors="replace") for output in outputs)
    if not said or "INTERNALERROR" in said or "Traceback (most recent call last)" in said or _NO_REPORT.search(said):
        raise RuntimeError(said[-3000:])


def remove(path: Path) -> None:
    """Remove what lies there, whatever it is."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
