"""The release command: what it refuses, and what its rehearsal and the workflow do."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
CHANGES = "# Changelog\n\n## {} - 2026-12-01\n\n- Something.\n"
PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "pytest-infer"
version = "1.2.0"
requires-python = ">=3.11"
description = "A small one."
readme = "README.md"
[tool.hatch.build.targets.wheel]
packages = ["pytest_infer"]
"""

pytestmark = pytest.mark.skipif(not WORKFLOW.exists(), reason="the wheel's tests run without the repository")


def git(*arguments, cwd):
    own = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main")
    return subprocess.run(["git", *own, *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def project(tmp_path):
    """Return a small repository that is ready for its release 1.2.0, with a remote."""
    folder = tmp_path / "project"
    files = {
        "pyproject.toml": PROJECT,
        "CHANGELOG.md": CHANGES.format("1.2.0"),
        "README.md": "# Small\n\nSmall.\n",
        "pytest_infer/__init__.py": "",
        "results/Linux-CPython-3.11-64bit/0001_v1.2.0.json": "{}",
        ".gitignore": "dist/\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "release", folder / ".ci" / "release")
    git("init", "-q", cwd=folder)
    git("add", ".", cwd=folder)
    git("commit", "-qm", "Everything", cwd=folder)
    git("init", "-q", "--bare", str(tmp_path / "remote"), cwd=tmp_path)
    git("remote", "add", "origin", str(tmp_path / "remote"), cwd=folder)
    return folder


def release(folder, *arguments):
    names = {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.com"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", ".ci/release", *arguments],
        cwd=folder,
        env={**os.environ, **names, "PATH": path, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def refused_for(folder, version="1.2.0"):
    done = release(folder, version)
    assert done.returncode == 1, done.stdout + done.stderr
    assert not (folder / "dist").exists()
    assert git("tag", cwd=folder).split() in ([], ["v1.2.0"])
    return done.stderr.splitlines()


def test_a_version_that_the_project_does_not_have(project):
    assert refused_for(project, "1.3.0") == ["not released: pyproject.toml says version 1.2.0, not 1.3.0"]


def test_a_tag_that_exists(project):
    git("tag", "v1.2.0", cwd=project)
    assert refused_for(project) == ["not released: the tag v1.2.0 exists"]


def test_everything_that_is_missing_is_said_at_once(project):
    (project / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n")
    git("rm", "-q", "--cached", "-r", "results", cwd=project)
    assert refused_for(project) == [
        "not released: no run of this version is committed: pytest bench --benchmark-save=v1.2.0",
        "not released: CHANGELOG.md has no section '## 1.2.0 - YYYY-MM-DD'",
        "not released: there is something that is not committed: git status",
    ]


def test_a_word_that_it_does_not_know(project):
    assert release(project, "1.2.0", "--push").returncode == 2


def test_it_builds_checks_and_pushes_a_tag(project, tmp_path):
    done = release(project, "1.2.0")
    assert done.returncode == 0, done.stdout + done.stderr
    built = sorted(path.name for path in (project / "dist").iterdir())
    assert built == ["pytest_infer-1.2.0-py3-none-any.whl", "pytest_infer-1.2.0.tar.gz"]
    assert git("tag", cwd=tmp_path / "remote").split() == ["v1.2.0"]


def test_a_rehearsal_builds_the_commit_and_sends_nothing(project, tmp_path):
    (project / "pytest_infer" / "left.py").write_text("not committed")
    done = release(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was tagged or sent" in done.stdout
    with tarfile.open(project / "dist" / "pytest_infer-1.2.0.tar.gz") as built:
        assert not [name for name in built.getnames() if name.endswith("left.py")]
    assert git("tag", cwd=project) == git("tag", cwd=tmp_path / "remote") == ""


def test_the_workflow_gives_each_job_no_more_than_it_needs():
    found = yaml.safe_load(WORKFLOW.read_text())
    assert found["permissions"] == {}
    assert {name: job["permissions"] for name, job in found["jobs"].items()} == {
        "build": {"contents": "read"},
        "publish": {"id-token": "write"},
    }
    uses = re.findall(r"uses: (.*)", WORKFLOW.read_text())
    assert [line for line in uses if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


@pytest.mark.parametrize(
    "command",
    [
        ("zizmor", "--offline", "--no-progress", "--no-config", WORKFLOW),
        ("check-jsonschema", "--builtin-schema=vendor.github-workflows", WORKFLOW),
        ("actionlint", WORKFLOW),
        ("shellcheck", "--shell=bash", ROOT / ".ci" / "release", ROOT / ".ci" / "run"),
    ],
    ids=lambda command: command[0],
)
def test_the_tools_that_know_these_formats_find_nothing(command):
    found = shutil.which(command[0], path=str(Path(sys.executable).parent)) or shutil.which(command[0])
    if found is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([found, *map(str, command[1:])], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
