"""The commands that a page shows, and a shell for them that starts in no time."""

import os
import re
import shlex
import subprocess
from dataclasses import dataclass

SMALL = (
    "-o infer_rounds=1 -o infer_max_rounds=2 -o infer_repeat_disturbed=0 -o infer_warmup=0 -o infer_max_new_tokens=2 "
    "-p no:cacheprovider"
)
"""Options under which a run takes a moment; what the page says of its figures is not tested here.

Ini keys, as no reader types them: with an option on the command line a run begins earlier.
"""
LOADED = tuple(f"transformers:{name}" for name in ("AutoModelForCausalLM", "AutoTokenizer", "MixtralForCausalLM"))
"""What every run of a model imports."""
OURS = ("pytest", "pytest-infer", "pytest-benchmark")
NOBODY = {f"GIT_{who}_{what}": "nobody@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def commands_of(text):
    """Return the commands of a page's shell blocks, and of indented lines that start with a program of ours, in order.

    A block under `<!-- not run: REASON -->` is left out.
    """
    kept = re.sub(r"^<!-- not run: .+? -->\n```.*?^```\n", "", text, flags=re.MULTILINE | re.DOTALL)
    block = r"^```(?:sh|console)\n(.*?)^```"
    line = r"^ {4}((?:pytest|pytest-infer|pytest-benchmark|python) [^\n]*)$"
    found = []
    for match in re.finditer(f"{block}|{line}", kept, flags=re.MULTILINE | re.DOTALL):
        lines = [each.removeprefix("$ ").split("  #")[0].strip() for each in (match[1] or match[2]).splitlines()]
        found += [each for each in lines if each and not each.startswith("#")]
    return found


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Shell:
    """Runs programs of ours as children of a warm process, and everything else in bash."""

    def __init__(self, warm, scratch, options=SMALL):
        self._out, self._err = scratch / "out", scratch / "err"
        self._environment = {**NOBODY, "PYTEST_ADDOPTS": options, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        self._warm = warm

    def run(self, command, folder):
        program, *arguments = shlex.split(command)
        if program not in OURS or ">" in arguments or "&&" in arguments:
            done = subprocess.run(
                ["bash", "-ec", command],
                cwd=folder,
                env={**os.environ, **self._environment},
                capture_output=True,
                text=True,
                check=False,
            )
            return Done(done.returncode, done.stdout, done.stderr)
        for path in (self._out, self._err):
            path.write_bytes(b"")
        environment = {**os.environ, **self._environment}
        started = self._warm.start(
            program, arguments, folder=folder, environment=environment, out=self._out, err=self._err
        )
        code = started.wait()
        return Done(code, *(path.read_text(encoding="utf-8") for path in (self._out, self._err)))
