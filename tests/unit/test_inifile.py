"""The gate's rules of the ini file, as the command reads them."""

from pathlib import Path

import pytest

from pytest_infer.cli.inifile import accepted, gate_rules, nearest, storage
from pytest_infer.cli.shared import open_history
from pytest_infer.engines.bundled import cache
from pytest_infer.errors import OptionError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pyproject.toml", '[tool.pytest.ini_options]\ninfer_gate = ["ttft:5%", "output:exact"]\n'),
        ("pyproject.toml", '[tool.pytest.ini_options]\ninfer_gate = """ttft:5%\noutput:exact"""\n'),
        ("pyproject.toml", '[tool.pytest]\ninfer_gate = ["ttft:5%", "output:exact"]\n'),
        ("pytest.ini", "[pytest]\ninfer_gate =\n    ttft:5%\n    output:exact\n"),
        ("setup.cfg", "[tool:pytest]\ninfer_gate =\n    ttft:5%\n    output:exact\n"),
    ],
)
def test_rules_are_read_as_pytest_reads_them(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    inner = tmp_path / "bench"
    inner.mkdir()
    assert [line for line in gate_rules(inner) if line] == ["ttft:5%", "output:exact"]


@pytest.mark.parametrize(("lines", "rules"), [("off", []), ("ttft:5%\n    off", ["ttft:5%"])])
def test_a_command_that_asks_for_a_gate_is_not_told_that_it_is_off(tmp_path, lines, rules):
    (tmp_path / "pytest.ini").write_text(f"[pytest]\ninfer_gate =\n    {lines}\n")
    assert [line for line in gate_rules(tmp_path) if line] == rules


def test_a_configuration_without_rules_gives_none(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -q\n")
    assert gate_rules(tmp_path) == []


def test_a_broken_file_is_one_line(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool\n")
    with pytest.raises(OptionError, match="cannot be read"):
        gate_rules(tmp_path)


@pytest.mark.parametrize(("given", "path"), [("a.toml", "{here}/a.toml"), ("~/a", "{home}/a"), ("off", "off")])
def test_the_file_of_what_is_accepted_is_where_pytest_finds_it(tmp_path, monkeypatch, given, path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "pytest.ini").write_text(f"[pytest]\ninfer_accepted = {given}\n")
    assert accepted(tmp_path) == path.format(here=tmp_path, home=tmp_path / "home")


@pytest.mark.parametrize(
    ("name", "text", "folder"),
    [
        ("pytest.ini", "[pytest]\naddopts = -q --benchmark-storage=runs\n", "runs"),
        ("pytest.ini", "[pytest]\naddopts = --benchmark-storage 'my runs' -q\n", "my runs"),
        ("pyproject.toml", '[tool.pytest.ini_options]\naddopts = ["--benchmark-storage=file://./runs"]\n', "runs"),
        ("pytest.toml", '[pytest]\naddopts = ["--benchmark-storage", "runs"]\n', "runs"),
        ("tox.ini", "[pytest]\naddopts = --benchmark-storage=a --benchmark-storage=b\n", "b"),
        ("pytest.ini", "[pytest]\naddopts = --benchmark-storage=elasticsearch+http://host\n", None),
        ("pytest.ini", "[pytest]\naddopts = -q\n", None),
        ("tox.ini", "[tox]\n", None),
    ],
)
def test_the_storage_is_where_addopts_say(tmp_path, name, text, folder):
    (tmp_path / name).write_text(text)
    assert storage(tmp_path) == (None if folder is None else Path(folder))


def test_the_storage_is_where_files_of_options_and_the_environment_say(tmp_path, monkeypatch):
    """As pytest takes them: `@FILE` from the working directory, a word a line, and PYTEST_ADDOPTS before addopts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -q @outer.txt\n")
    (tmp_path / "outer.txt").write_text("--benchmark-autosave\n@inner.txt\n")
    (tmp_path / "inner.txt").write_text("--benchmark-storage\nmy runs\n")
    assert storage(tmp_path) == Path("my runs")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-q --benchmark-storage=others")
    assert storage(tmp_path) == Path("others")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("@gone", "addopts: gone: No such file"),
        ("@.", "addopts: a folder"),
        ("@self", "nested too deeply"),
        ("'", "No closing"),
    ],
)
def test_options_that_cannot_be_read_are_one_line(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    (tmp_path / "self").write_text("@self\n")
    (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = {words}\n")
    with pytest.raises(OptionError, match=said):
        storage(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", words)
    with pytest.raises(OptionError, match=said.replace("addopts", "PYTEST_ADDOPTS")):
        storage(tmp_path)


def test_of_several_files_it_is_the_one_that_pytest_reads(tmp_path):
    (tmp_path / "pytest.ini").write_text("")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\ninfer_gate = ["ttft:5%"]\n')
    assert gate_rules(tmp_path) == []
    assert nearest(tmp_path).path.name == "pytest.ini"


def test_the_usual_folder_that_holds_runs_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(cache.ENV, str(tmp_path / "cache"))
    for name in ("results", ".benchmarks"):
        (tmp_path / name).mkdir()
    assert open_history(None).folder == Path("results")
    (tmp_path / ".benchmarks" / "0001_x.json").write_text("{}")
    assert open_history(None).folder == Path(".benchmarks")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --benchmark-storage=results\n")
    assert open_history(None).folder == Path("results")
