"""The code of docs/engines.md runs as it stands there, on a tiny model."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(pytester, model_folder, monkeypatch, number):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pytester.makeconftest(BLOCKS[number].replace("path/to/your/model", str(model_folder())))
    pytester.makepyfile(
        test_it="""
        def test_prompt(infer, prompt):
            record = infer(prompt)
            assert len(record.rounds[0].trace.token_ids) == 8
            assert record.output.equal
            assert record.profile.experts.check == "passed"
        """
    )
    pytester.path.joinpath("prompts.toml").write_text('[[prompt]]\nname = "p"\ntext = "hello"\nmax_new_tokens = 8\n')
    pytester.runpytest_subprocess("--infer-ignore-eos").assert_outcomes(passed=1)


def test_the_page_has_both_ways():
    assert len(BLOCKS) == 2
