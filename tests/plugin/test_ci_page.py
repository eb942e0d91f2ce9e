"""docs/ci.md, followed from an empty repository to an accepted regression, with the files that `init --ci` writes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from scratch import CONFTEST, History

from fake_host import TOKEN, Server

ROOT = Path(__file__).parents[2]
PAGE, WORKFLOW = ROOT / "docs" / "ci.md", ROOT / "docs" / "ci" / "inference-benchmarks.yml"
GITLAB = WORKFLOW.with_name("gitlab-ci.yml")
GOLDEN = ROOT / "tests" / "data" / "comment-of-ci-page.md"
FAST, SLOWER = 0.01, 0.0111
OPTIONS = (
    "-p no:hypothesispytest --infer-no-profile --infer-timeline=off --infer-repeat-disturbed=0 "
    "--infer-turns=round --infer-max-rounds=16 --infer-min-pairs=16 "
    "--infer-gate=output:exact --infer-gate=ttft:3% --infer-gate=tpot:3%"
)
FEW = """
import pathlib, sys
few = pathlib.Path("few-rounds")
if few.exists():
    few.unlink()
    sys.argv += ["--infer-max-rounds=4", "--infer-min-pairs=4"]
"""
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the wheel is tested without docs/")


def commands():
    section = PAGE.read_text(encoding="utf-8").partition("\n## From nothing")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_workflow_runs_what_the_page_shows():
    steps = [step for job in yaml.safe_load(WORKFLOW.read_text())["jobs"].values() for step in job["steps"]]
    runs = {step["run"] for step in steps if step.get("name") not in ("install", None)}
    asked = {run.replace('"$(git rev-parse HEAD^1)"', "main") for run in runs}
    assert asked == {c for c in commands() if c.startswith("bash ")}


def test_gitlab_runs_the_same():
    jobs = yaml.safe_load(GITLAB.read_text())
    runs = {line for job in jobs.values() for key in ("script", "after_script") for line in job.get(key, ())}
    asked = {re.sub(r"^INFER_TOKEN=\S+ ", "", run).replace("comment gitlab", "comment github") for run in runs}
    assert {re.sub(r'"\$\{?[^"]*"', "main", run) for run in asked} == {c for c in commands() if c.startswith("bash ")}


def without_what_varies(text):
    text = re.sub(r"\b[0-9a-f]{8}\b", "1a2b3c4d", text)
    return re.sub(r"\\\[[^]]*\\\] \|( p [^|]*)\|( unchanged)", r"[…] | p |\2", text)


@pytest.fixture
def repository(suite, tmp_path):
    """An empty repository with a remote; its engine is as fast as script.py says, on a clock of its own."""
    made = History(suite(engine=CONFTEST, prompts=None, virtual=True).path)
    made.path.joinpath("test_suite.py").unlink()
    bench = made.path / "bench"
    bench.mkdir()
    made.path.joinpath("conftest.py").rename(bench / "conftest.py")
    bench.joinpath("script.py").write_text(f"DECODE = {FAST}\n")
    made.git("init", "-q", "--bare", "-b", "main", str(tmp_path / "origin.git"))
    made.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    return made


@pytest.fixture
def shell(repository, tmp_path):
    """Return a function that runs a command as a job of GitHub does, and the server that takes its comments."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("pytest", "pytest"), ("pytest-infer", "pytest_infer.cli.main")):
        call = "app()" if name == "pytest-infer" else "raise SystemExit(main())"
        imported = "app" if name == "pytest-infer" else "main"
        path = programs / name
        path.write_text(
            f"#!{sys.executable}\n{FEW if name == 'pytest' else ''}from {module} import {imported}\n{call}\n"
        )
        path.chmod(0o755)
    who = {f"GIT_{who}_{what}": "a@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    # Not what whoever runs the tests asks of such a job, nor what is set up for git, as signed commits.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("INFER_")}
    who |= {f"GIT_CONFIG_{scope}": os.devnull for scope in ("GLOBAL", "SYSTEM")}
    with Server() as server:
        environment = {
            **ours, **who, **server.variables,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTEST_ADDOPTS": OPTIONS,
            "INFER_TOKEN": TOKEN,
        }  # fmt: skip

        def run(command):
            return subprocess.run(
                ["bash", "-e", "-c", command],
                cwd=repository.path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )

        run.server = server
        yield run


@pytest.mark.slow
def test_it_can_be_followed_to_an_accepted_regression(repository, shell):
    said, left = [], [1, 0]
    for command in commands():
        if command.startswith("git commit -am"):
            repository.path.joinpath("bench", "script.py").write_text(f"DECODE = {SLOWER}\n")
        done = shell(command)
        expected = left.pop(0) if "pull-request" in command else 0
        assert done.returncode == expected, f"{command}\n{done.stdout}\n{done.stderr}"
        assert TOKEN not in done.stdout + done.stderr
        said.append((command, done.stdout))
        if expected == 1:
            failed = repository.path.joinpath("inference-output", "comment.md").read_text()
    assert left == []
    page = PAGE.read_text(encoding="utf-8")
    gates = [text for command, text in said if "pull-request" in command]
    assert "to accept it, in a commit message:\n  [infer-accept: tpot 12%: WHY]\n" in gates[0]
    for gate, headline in zip(
        gates, re.findall(r"decode 11 % slower \[11, 11\], all 3 prompts[^`\n]*", page), strict=True
    ):
        assert f"\n{headline}\n" in gate
    assert [text.split()[0] for command, text in said if " comment " in command] == ["posted:", "updated:"]
    (comment,) = shell.server.comments
    assert "; accepted" in comment["body"]
    if os.environ.get("UPDATE_GOLDENS"):
        GOLDEN.write_text(without_what_varies(failed), encoding="utf-8")
    assert without_what_varies(failed) == GOLDEN.read_text(encoding="utf-8")
    # Both commits of main are in the history, on its branch, and a gate takes one of them for its baseline.
    files = repository.git("ls-tree", "-r", "--name-only", "--full-tree", "origin/main")
    assert "inference-output" not in files
    repository.git("fetch", "-q", "origin", "inference-results")
    kept = repository.git("ls-tree", "-r", "--name-only", "--full-tree", "FETCH_HEAD").splitlines()
    assert len([name for name in kept if name.endswith(".json")]) == 2
    stored = page.partition("\n## Against a stored run\n")[2]
    fetched, gated = re.findall(r"-->\n```sh\n(.*)\n(.*)\n```", stored)[0]
    assert shell(fetched).returncode == 0
    few = shell(f"{gated} --infer-gate=tpot:3%")
    assert few.returncode == 10, "five comparable runs are needed to pass"
    assert re.search(r"^gate against 0002 [0-9a-f]{8} \(main\): inconclusive$", few.stdout, flags=re.MULTILINE)


@pytest.mark.slow
def test_the_pull_request_that_adds_the_suite_is_measured_alone(repository, shell):
    repository.git("commit", "-q", "--allow-empty", "-m", "nothing yet")
    assert (
        shell("pytest-infer init --ci shell && git switch -q -c first && git add -A && git commit -q -m one").returncode
        == 0
    )
    done = shell("bash bench/ci.sh pull-request main && bash bench/ci.sh comment github")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "main has no bench/: this commit is measured, and compared with nothing" in done.stdout
    assert shell.server.asked == []
    # A commit that nobody knows is no such case.
    assert shell("bash bench/ci.sh pull-request nobody").returncode == 4


@pytest.mark.slow
def test_what_cannot_be_told_is_measured_again_alone(repository, shell):
    assert shell("pytest-infer init --ci shell && git add -A && git commit -q -m one").returncode == 0
    repository.path.joinpath("few-rounds").touch()
    done = shell("bash bench/ci.sh pull-request HEAD && bash bench/ci.sh comment github")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("story", "question", "code"):
        assert f"measured again, with more time: bench/test_prompts.py::test_prompt[{name}]\n" in done.stdout
    assert re.findall(r"^gate against HEAD .*: (\w+)$", done.stdout, flags=re.MULTILINE) == ["inconclusive", "passed"]
    written = repository.path.joinpath("inference-output", "comment.md").read_text()
    assert "**3 of 3 prompts measured again; before: cannot tell " in written
    # Nothing moved, in the end.
    assert done.stdout.endswith("nothing moved: no comment\n")
    repository.path.joinpath("few-rounds").touch()
    assert shell("INFER_AGAIN= bash bench/ci.sh pull-request HEAD").returncode == 10
