"""The story of docs/breakdown.md as it stands there: what is left in the router is found in the router's time."""

import re
from pathlib import Path

import pytest
from shell import Shell

pytestmark = pytest.mark.real

PAGE = Path(__file__).parents[2] / "docs" / "breakdown.md"
(CONFTEST,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
TEST = """
def test_prompt(infer, prompt):
    record = infer(prompt)
    took = {one.role: sum(one.self_ns) for one in record.breakdown.decode.roles}
    with open("took.txt", "a") as file:
        file.write(f"{took['router'] / sum(took.values())} {record.output.sha256}\\n")
"""


def test_what_the_story_plants_is_router_time_and_changes_no_output(tmp_path, warm_torch, tmp_path_factory):
    options = "--infer-ignore-eos --infer-no-probe --infer-rounds=2 --infer-max-rounds=2 --infer-threads=1"
    shell = Shell(warm_torch, tmp_path_factory.mktemp("shell"), options=options)
    (tmp_path / "test_it.py").write_text(TEST)
    (tmp_path / "prompts.toml").write_text('[[prompt]]\nname = "p"\ntext = "hello"\nmax_new_tokens = 24\n')
    for conftest in ("", CONFTEST.replace("no_nan(router, arguments, returned):", f"{SLOW}")):
        (tmp_path / "conftest.py").write_text(conftest)
        done = shell.run("pytest test_it.py --infer-breakdown", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    before, after = (line.split() for line in (tmp_path / "took.txt").read_text().splitlines())
    assert before[1] == after[1]
    assert float(after[0]) > float(before[0])


SLOW = """no_nan(router, arguments, returned):
    for _ in range(50):
        check(router, arguments, returned)


def check(router, arguments, returned):"""
"""The story's check fifty times, so that no disturbance hides it."""
