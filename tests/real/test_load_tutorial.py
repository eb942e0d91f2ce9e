"""The load test of docs/tutorial.md, with the load generator and a llama-server that its command starts."""

import re
import sys

import pytest
from shell import Shell, commands_of
from test_tutorial import PAGE

import llama_server
from pytest_infer.measure.load import environment

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not PAGE.exists(), reason="the wheel is tested without docs/"),
    pytest.mark.skipif(llama_server.MISSING, reason=llama_server.WHY),
    pytest.mark.skipif(
        environment.installed() is None, reason=f"the load generator is not installed: {environment.INSTALL}"
    ),
]


def test_it_can_be_followed(tmp_path, warm_torch):
    text = PAGE.read_text(encoding="utf-8")
    (command,) = (command for command in commands_of(text) if "--infer-load " in command)
    ((name, code),) = re.findall(r"```python\n# (\S+)\n(.*?)```", text, flags=re.DOTALL)
    folder, scratch = tmp_path / "empty", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    shell = Shell(warm_torch, scratch, options="--infer-rounds=1 --infer-load-requests=16")
    assert shell.run("pytest-infer init", folder).returncode == 0
    folder.joinpath(name).write_text(code, encoding="utf-8")
    skipped = shell.run(f"pytest {name}", folder)
    assert (skipped.returncode, "1 skipped" in skipped.stdout) == (0, True), skipped.stdout
    # The interpreter of this environment, whichever is on the path.
    done = shell.run(command.replace("python -m", f"{sys.executable} -m"), folder)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for level in ("concurrency=1", "concurrency=2", "concurrency=4"):
        assert re.search(rf"^{level}\b", done.stdout, flags=re.MULTILINE), done.stdout
    assert re.search(r"^the server, a repetition: CPU .*, peak memory ", done.stdout, flags=re.MULTILINE), done.stdout
    assert re.search(r"^knee at ", done.stdout, flags=re.MULTILINE) or "bottleneck" in done.stdout
