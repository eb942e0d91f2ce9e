"""The commands of docs/servers.md, run as they stand there: on scripted servers in place of the named ones."""

import shlex
import struct
import sys
from pathlib import Path

import pytest

import scripted_server
from scripted_server import Script

PAGE = Path(__file__).parents[2] / "docs" / "servers.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the wheel is tested without docs/")


def commands():
    blocks = PAGE.read_text(encoding="utf-8").split("```sh\n")[1:] if PAGE.exists() else []
    return [line for block in blocks for line in block.partition("```")[0].replace("\\\n", "").splitlines()]


def test_every_command_is_known():
    assert [command.split()[0] for command in commands()] == [*["pytest"] * 7, "pytest-infer"]


@pytest.fixture
def folder(pytester, monkeypatch):
    """A suite, and programs by the names of servers that are scripted ones; returns the arguments of a command."""
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(pytester.path / ".cache"))
    bench = pytester.mkdir("bench")
    bench.joinpath("test_prompts.py").write_text("def test_prompt(infer, prompt):\n    infer(prompt)\n")
    bench.joinpath("prompts.toml").write_text('[[prompt]]\nname = "p"\ntext = "a b c"\nmax_new_tokens = 3\n')
    pytester.path.joinpath("model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    bin_ = pytester.mkdir("bin")
    # NAME -m MODEL --port N, or NAME serve MODEL --port N: the model is the second argument.
    for name, kind in (("llama-server", "llama"), ("vllm", "vllm"), ("transformers", "openai")):
        script = bin_ / f"{name}.json"
        script.write_text(Script(kind=kind).to_json(), encoding="utf-8")
        run = f"exec {shlex.quote(sys.executable)} {scripted_server.__file__} --script {script}"
        bin_.joinpath(name).write_text(f'#!/bin/sh\n{run} --model "$2" --port "$4"\n')
        bin_.joinpath(name).chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_), prepend=":")
    return pytester


@pytest.mark.parametrize("command", [one for one in commands() if one.startswith("pytest bench")])
def test_a_run(folder, command):
    quick = ("--infer-rounds=1", "--infer-no-probe", "--infer-min-pairs=2", "--infer-max-rounds=2", "--infer-gate=off")
    with scripted_server.running(Script(kind="llama")) as server, scripted_server.running() as other:
        named = command.replace("http://127.0.0.1:8080", server.url).replace("http://127.0.0.1:8081", other.url)
        done = folder.runpytest(*shlex.split(named)[1:], *quick)
    done.assert_outcomes(passed=2 if "--infer-sweep" in command else 1)
    done.stdout.fnmatch_lines(["* inference *"])


def test_two_runs_are_compared(folder):
    with scripted_server.running(Script(kind="llama")) as server:
        for _ in range(2):
            run = (
                "bench",
                f"--infer-server={server.url}",
                "--infer-rounds=2",
                "--infer-no-probe",
                "--benchmark-autosave",
            )
            folder.runpytest(*run).assert_outcomes(passed=1)
    command = shlex.split(next(one for one in commands() if one.startswith("pytest-infer compare")))
    done = folder.run(sys.executable, "-m", "pytest_infer.cli.main", *command[1:])
    assert done.ret in (0, 2), done.stdout.str() + done.stderr.str()
