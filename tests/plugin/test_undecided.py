"""What a gate could not tell is listed, and measured again alone."""

import pytest
from scratch import CONFTEST, PROMPTS, History
from typer.testing import CliRunner

from pytest_infer.cli.main import app

OWN = ("--infer-turns=round", "--infer-no-profile", "--infer-gate=tpot:3%", "--benchmark-autosave")


@pytest.mark.slow
def test_only_those_are_measured_again(suite, pytester, monkeypatch):
    made = History(suite(engine=CONFTEST, prompts=PROMPTS, virtual=True).path)
    made.commit(decode=0.01)
    made.commit()
    few = ("--infer-max-rounds=4", "--infer-min-pairs=4", "-k", "second")
    assert pytester.runpytest_subprocess("--infer-against=HEAD~1", *OWN, *few).ret == 10
    monkeypatch.chdir(made.path)
    listed = CliRunner().invoke(app, ["undecided"]).stdout.splitlines()
    assert listed == ["test_suite.py::test_prompt[second]"]
    again = pytester.runpytest_subprocess(*listed, "--infer-against=HEAD~1", *OWN)
    assert again.ret == 0
    again.assert_outcomes(passed=1)
