"""docs/tutorial.md, followed from its first command to its last in an empty folder."""

import json
import re
import sys
from pathlib import Path

import pytest
from shell import Shell, commands_of

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
JUDGED = ("gate", "--infer-against")
"""Commands whose exit code says what they found: regressed by the machine's noise, or too little history."""

pytestmark = [pytest.mark.real, pytest.mark.skipif(not PAGE.exists(), reason="the wheel is tested without docs/")]


@pytest.mark.slow
def test_it_can_be_followed(tmp_path, warm_torch):
    text = PAGE.read_text(encoding="utf-8")
    commands = commands_of(text)
    assert commands[0] == "pytest-infer init"
    assert len(commands) >= 20
    folder, scratch = tmp_path / "empty", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    shell = Shell(warm_torch, scratch, options="--infer-launches=2 --infer-time=5s")
    for command in commands:
        if "--infer-load " in command:
            # Followed in test_load_tutorial.py: it needs the load generator.
            continue
        # The interpreter of this environment, whichever is on the path.
        done = shell.run(command.replace("python -m", f"{sys.executable} -m"), folder)
        assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"
        fine = (0, 1, 10) if any(word in command for word in JUDGED) else (0,)
        assert done.returncode in fine, f"{command}\n{done.stdout}\n{done.stderr}"
        if command == "pytest-infer init":
            (shown,) = re.findall(r"```text\n(wrote .*?)```", text, flags=re.DOTALL)
            assert done.stdout == shown
        if command == "pytest-infer history":
            # What was saved is found without being told where.
            assert "0001" in done.stdout
    assert len(list(folder.glob("results/*/*.json"))) == 2
    assert json.loads((folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()[0])["run"] == "0002"


def test_what_is_not_run_says_why():
    text = PAGE.read_text(encoding="utf-8")
    left_out = re.findall(r"<!-- not run: (.+?) -->\n```(?:sh|console)\n(.*?)```", text, flags=re.DOTALL)
    assert len(left_out) == text.count("<!-- not run: ")
    assert not {command for _, block in left_out for command in block.splitlines()} & set(commands_of(text))
