"""The files that init writes: nothing is overwritten, and where they go."""

import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pytest_infer import prompts
from pytest_infer.cli import inifile
from pytest_infer.cli.main import app

ROOT = Path(__file__).parents[2]
WORKFLOW = ".github/workflows/inference-benchmarks.yml"
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
    init("--ci")
    for name in [*FILES, WORKFLOW]:
        (tmp_path / name).write_text("# mine")
    # A link to nothing is a name that is taken, too.
    (tmp_path / "bench" / "prompts.toml").unlink()
    (tmp_path / "bench" / "prompts.toml").symlink_to("elsewhere.toml")
    code, lines = init("--ci")
    assert code == 0
    left = [line for line in lines if line.startswith("left alone  ")]
    assert len(left) == 5
    assert {(tmp_path / name).read_text() for name in [*FILES, WORKFLOW] if "toml" not in name} == {"# mine"}
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
    init("--ci")
    text = (tmp_path / WORKFLOW).read_text()
    for job in yaml.safe_load(text)["jobs"].values():
        assert {step["run"] for step in job["steps"] if step.get("name") == "install"} == {f"pip install {packages}"}
    page = ROOT / "docs" / "ci" / "inference-benchmarks.yml"
    if project and page.exists():
        assert page.read_text() == text, "docs/ci/ shows what init writes, and its steps are run by a test"


def test_the_workflow_keeps_the_history_of_a_run_with_a_failed_test(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init("--ci")
    steps = yaml.safe_load((tmp_path / WORKFLOW).read_text())["jobs"]["main"]["steps"]
    uses = [step.get("uses", step.get("name", "")).partition("@")[0] for step in steps]
    restore, measure, save = map(uses.index, ("actions/cache/restore", "measure", "actions/cache/save"))
    assert restore < measure < save
    assert steps[save]["if"] == "always()"
    for key in ("path", "key"):
        assert steps[restore]["with"][key] == steps[save]["with"][key]
    assert f"--benchmark-storage={steps[save]['with']['path']}" in steps[measure]["run"]
    # A second attempt of one run cannot save under the key of its first.
    assert "github.run_attempt" in steps[save]["with"]["key"]
    assert steps[save]["with"]["key"].startswith(steps[restore]["with"]["restore-keys"])


def test_a_workflow_below_the_top_of_a_repository_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    assert f"move it to {tmp_path}" in " ".join(init("inner", "--ci")[1])
    assert "move it" not in " ".join(init(".", "--ci")[1])


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
