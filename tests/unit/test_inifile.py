"""The gate's rules of the ini file, as the command reads them."""

import pytest

from pytest_infer.cli.inifile import gate_rules
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


def test_a_configuration_without_rules_gives_none(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -q\n")
    assert gate_rules(tmp_path) == []


def test_a_broken_file_is_one_line(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool\n")
    with pytest.raises(OptionError, match="cannot be read"):
        gate_rules(tmp_path)
