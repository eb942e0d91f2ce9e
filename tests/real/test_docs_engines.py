"""The code of docs/engines.md runs as it stands there, on a tiny model."""

import re
from pathlib import Path

import pytest
from shell import Shell

pytestmark = pytest.mark.real

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
TEST = """
def test_prompt(infer, prompt):
    record = infer(prompt)
    assert len(record.rounds[0].trace.token_ids) == 8
    assert record.output.equal
    assert record.profile.experts.check == "passed"
"""


@pytest.fixture(scope="module")
def shell(warm_torch, tmp_path_factory):
    options = "--infer-ignore-eos --infer-no-probe --infer-rounds=2 --infer-max-rounds=2"
    return Shell(warm_torch, tmp_path_factory.mktemp("shell"), options=options)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(tmp_path, model_folder, shell, number):
    (tmp_path / "conftest.py").write_text(BLOCKS[number].replace("path/to/your/model", str(model_folder())))
    (tmp_path / "test_it.py").write_text(TEST)
    (tmp_path / "prompts.toml").write_text('[[prompt]]\nname = "p"\ntext = "hello"\nmax_new_tokens = 8\n')
    done = shell.run("pytest test_it.py", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_page_has_both_ways():
    assert len(BLOCKS) == 2
