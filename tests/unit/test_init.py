"""The files that init writes: nothing is overwritten, and where they go."""

import os
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pytest_infer import prompts
from pytest_infer.checkouts.git import git
from pytest_infer.cli import inifile
from pytest_infer.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "ci"
WORKFLOW = ".github/workflows/inference-benchmarks.yml"
GITLAB = ".gitlab/inference-benchmarks.yml"
FILES = ["bench/test_prompts.py", "bench/prompts.toml", "results/.gitignore", "pytest.ini"]


def init(*arguments):
    result = CliRunner().invoke(app, ["init", *map(str, arguments)])
    return result.exit_code, result.output.splitlines()


def below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, lines = init()
    assert code == 0
    assert lines == [*(f"wrote       {name}" for name in FILES), "next: pytest bench --benchmark-autosave"]
    assert below(tmp_path) == sorted(FILES)
    assert len(prompts.load(tmp_path / "bench" / "prompts.toml")) == 3
    compile((tmp_path / "bench" / "test_prompts.py").read_text(), "test_prompts.py", "exec")
    assert inifile.storage(tmp_path) == Path("results")
    # An option of pytest-benchmark's display would bring its tables back.
    assert "addopts = --benchmark-storage=results\n" in (tmp_path / "pytest.ini").read_text()


def test_a_folder_that_is_not_there_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, lines = init("new/one")
    assert lines[-1] == "next: cd new/one && pytest bench --benchmark-autosave"
    assert below(tmp_path / "new" / "one") == sorted(FILES)


def test_the_next_step_can_be_pasted_into_a_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert init("a b")[1][-1] == "next: cd 'a b' && pytest bench --benchmark-autosave"


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init("--ci", "github")
    for name in [*FILES, "bench/ci.sh", WORKFLOW]:
        (tmp_path / name).write_text("# mine")
    # A link to nothing is a name that is taken, too.
    (tmp_path / "bench" / "prompts.toml").unlink()
    (tmp_path / "bench" / "prompts.toml").symlink_to("elsewhere.toml")
    code, lines = init("--ci", "github")
    assert code == 0
    left = [line for line in lines if line.startswith("left alone  ")]
    assert len(left) == 6
    mine = [tmp_path / name for name in [*FILES, "bench/ci.sh", WORKFLOW] if "toml" not in name]
    assert {path.read_text() for path in mine} == {"# mine"}
    assert not (tmp_path / "bench" / "elsewhere.toml").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pyproject.toml", '[tool.pytest.ini_options]\naddopts = ["-q"]\n'),
        ("pytest.toml", '[pytest]\naddopts = ["-q"]\n'),
        ("setup.cfg", "[tool:pytest]\naddopts = -q\n"),
        ("pytest.ini", ""),
    ],
)
def test_a_configuration_is_left_alone_and_what_it_lacks_is_said(tmp_path, monkeypatch, name, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    _, lines = init()
    assert (tmp_path / name).read_text() == text
    assert below(tmp_path) == sorted([*FILES[:3], name])
    assert all(line.startswith("wrote") for line in lines[:3])
    (hint,) = [line for line in lines if line.startswith("add ")]
    assert "--benchmark-storage=results to addopts in " in hint
    assert str(tmp_path / name) in hint


def test_a_configuration_that_names_its_storage_lacks_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = ["--benchmark-storage=runs"]\n')
    assert not [line for line in init()[1] if line.startswith("add ")]


@pytest.mark.parametrize(("project", "packages"), [(False, "pytest-infer"), (True, "-e . pytest-infer")])
def test_the_workflow(tmp_path, monkeypatch, project, packages):
    monkeypatch.chdir(tmp_path)
    if project:
        (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\n')
    init("--ci", "github")
    text = (tmp_path / WORKFLOW).read_text()
    for job in yaml.safe_load(text)["jobs"].values():
        (install,) = [step["run"] for step in job["steps"] if step.get("name") == "install"]
        assert install.splitlines()[-1] == f"pip install {packages}"
    if project and PAGES.exists():
        assert (PAGES / "inference-benchmarks.yml").read_text() == text, "docs/ci/ shows what init writes"


@pytest.mark.parametrize(
    ("own", "remote", "branch"),
    [
        ("main", None, "main"),
        ("master", None, "master"),
        ("topic", None, "main"),
        ("topic", "trunk", "trunk"),
        ("master", "main", "main"),
        ("main", "1.0", "1.0"),
        ("main", "it's", "main"),
    ],
)
def test_the_workflow_measures_pushes_to_the_default_branch(tmp_path, monkeypatch, own, remote, branch):
    monkeypatch.chdir(tmp_path)
    assert git(tmp_path, "init", "--quiet", f"--initial-branch={own}").returncode == 0
    if remote is not None:
        git(tmp_path, "symbolic-ref", "refs/remotes/origin/HEAD", f"refs/remotes/origin/{remote}")
    init("--ci", "github")
    # YAML takes `on` for a truth.
    assert yaml.safe_load((tmp_path / WORKFLOW).read_text())[True]["push"]["branches"] == [branch]


@pytest.mark.parametrize("host", ["github", "gitlab", "shell"])
def test_each_host_has_the_script_and_what_runs_it(tmp_path, monkeypatch, host):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    _, lines = init(f"--ci={host}")
    script = (tmp_path / "bench" / "ci.sh").read_text()
    written = {Path(line.split()[1]) for line in lines if line.startswith("wrote")}
    runs = written - {Path("bench/ci.sh"), *map(Path, FILES)}
    assert runs == {*map(Path, {"github": [WORKFLOW], "gitlab": [GITLAB], "shell": []}[host])}
    assert any("add to .gitlab-ci.yml" in line for line in lines) == (host == "gitlab")
    if PAGES.exists():
        assert (PAGES / "ci.sh").read_text() == script, "docs/ci/ shows what init writes"
        for name in runs:
            shown = "gitlab-ci.yml" if host == "gitlab" else name.name
            assert (PAGES / shown).read_text() == (tmp_path / name).read_text()


def test_an_unknown_host_is_one_line_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, lines = init("--ci=gitea")
    assert (code, lines) == (
        2,
        ["pytest-infer: --ci: unknown host 'gitea'; did you mean gitlab? known: github, gitlab, shell"],
    )
    assert below(tmp_path) == []


def test_a_workflow_below_the_top_of_a_repository_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    assert f"move it to {tmp_path}" in " ".join(init("inner", "--ci=github")[1])
    assert "move it" not in " ".join(init(".", "--ci=github")[1])


@pytest.mark.parametrize(("host", "name"), [("github", WORKFLOW), ("gitlab", GITLAB)])
@pytest.mark.parametrize("inner", ["inner", "tools/bench/llm", "bench/inference-output/x"])
def test_what_is_moved_to_the_top_runs_what_is_there(tmp_path, monkeypatch, inner, host, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / inner).mkdir(parents=True)
    (tmp_path / inner / "pyproject.toml").write_text("")
    init(inner, f"--ci={host}")
    (tmp_path / name).parent.mkdir(parents=True)
    text = (tmp_path / inner / name).rename(tmp_path / name).read_text()
    scripts = re.findall(r"(?<=bash )\S+", text)
    assert len(scripts) == 3
    assert all((tmp_path / script).is_file() for script in scripts)
    assert f"pip install -e ./{inner} pytest-infer\n" in text
    # The script works in its own folder.
    assert re.findall(r"(?m)\S*inference-output(?=$|[],])", text) == (
        2 * [f"{inner}/inference-output"] if host == "github" else [f"[{inner}/inference-output"]
    )
    assert f"{inner}/bench/" in text.partition("files:" if host == "gitlab" else "hashFiles")[2].partition("\n")[0]


def test_a_folder_that_a_workflow_cannot_name_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    code, lines = init("a b", "--ci=github")
    assert code == 2
    assert lines[-1].startswith("pytest-infer: --ci: a workflow cannot name a b/: ")
    # A shell takes these as they are, YAML for two entries, a reserved sign, a directive; bash the last for options.
    for folder in ("a,b", "@scope", "%a", "-x"):
        code, lines = init("--ci=gitlab", "--", folder)
        assert (code, (tmp_path / folder / ".gitlab").exists()) == (2, False)
        assert lines[-1].startswith(f"pytest-infer: --ci: a workflow cannot name {folder}/: ")
    assert below(tmp_path) == []


def test_a_file_in_the_way_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench").write_text("a file")
    code, lines = init()
    assert code == 2
    assert lines == ["pytest-infer: bench is no folder; give another one"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, lines = init(tmp_path / "locked")
    assert code == 2
    assert len(lines) == 1


def test_shell_completion_completes_commands(monkeypatch):
    monkeypatch.setenv("_PYTEST_INFER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "pytest-infer ex")
    monkeypatch.setenv("COMP_CWORD", "1")
    result = CliRunner().invoke(app, prog_name="pytest-infer")
    assert result.output.split() == ["experts", "export"]
