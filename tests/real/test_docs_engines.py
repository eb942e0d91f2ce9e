"""The code of docs/engines.md runs as it stands there, on a tiny model."""

import re
from pathlib import Path

import pytest
from shell import Shell

from pytest_infer.cli.init import files
from pytest_infer.storage import runs, sidecar

pytestmark = pytest.mark.real

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"
SUITE = dict(files(Path(), ini=False, ci=None))["bench/prompts.toml"].replace("= 64", "= 8")
"""What `pytest-infer init` writes: texts and a dialogue."""
BLOCKS = [
    block
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    if "TEXT_SERVER" not in block  # tests/plugin/test_text_engines.py runs it
]
TEST = """
from dataclasses import replace

from pytest_infer.analysis.breakdown import shares
from pytest_infer.engines.transformers import work
from pytest_infer.metrics import breakdown, summarize
from pytest_infer.metrics.result import of_record
from pytest_infer.records import MachineProbe


def test_prompt(infer, prompt, engine):
    record = infer(prompt)
    assert len(record.rounds[0].trace.token_ids) == 8
    assert record.output.equal
    assert record.model.dtype in ("float32", "bfloat16")
    assert "sampling" in {one.role for one in record.breakdown.decode.roles}
    if record.model.name == "telling":
        assert {one.role for one in record.breakdown.decode.roles} == {"body", "head", "sampling", "generation loop"}
        told, counted = record.model.work, work.of(engine.model)
        for field in ("read_bytes", "parameters", "head_parameters", "expert_parameters", "pair_flops"):
            assert getattr(told, field) == getattr(counted, field), field
        # On a machine whose limits are known there is a roofline, by role too.
        probe = MachineProbe(
            threads=1, read_bandwidth=1e12, read_bandwidth_spread=0.0, flops={"float32": 1e15}, caches={}, at_ns=1
        )
        record = replace(record, machine=replace(record.machine, probe=probe, probe_absent=None))
        figures = summarize(record)
        for key in ("mbu", "mfu", "decode_ceiling", "step_bytes"):
            assert figures[key].value, figures[key].reason
        assert sum(breakdown.step_bytes(record).values()) == figures["step_bytes"].value
        used = {one.role: one.used for one in shares.of([of_record(record)], "decode").model}
        assert 0 < used["body"] < 1 and 0 < used["head"] < 1
    else:
        assert record.profile.experts.check == "passed"
        assert "experts" in {one.role for one in record.breakdown.decode.roles}
"""


@pytest.fixture(scope="module")
def shell(warm_torch, tmp_path_factory):
    options = "--infer-ignore-eos --infer-no-probe --infer-rounds=2 --infer-max-rounds=2"
    return Shell(warm_torch, tmp_path_factory.mktemp("shell"), options=options)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(tmp_path, model_folder, shell, number):
    # The second is added to the first.
    code = BLOCKS[0] + BLOCKS[1] if number == 1 else BLOCKS[number]
    # Most of them route to experts; the one that counts its work is dense.
    kind = "llama" if "class Telling" in code else "mixtral"
    (tmp_path / "conftest.py").write_text(code.replace("path/to/your/model", str(model_folder(kind))))
    (tmp_path / "test_it.py").write_text(TEST)
    (tmp_path / "prompts.toml").write_text(SUITE)
    done = shell.run("pytest test_it.py", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_the_page_has_all_ways():
    assert len(BLOCKS) == 4


def test_the_second_is_scored_and_follows(tmp_path, model_folder, shell):
    """Twice the same suite: the second run replays the first, whose tokens another model has generated."""
    (tmp_path / "test_it.py").write_text("def test_prompt(infer, prompt):\n    infer(prompt)\n")
    (tmp_path / "prompts.toml").write_text('[[prompt]]\nname = "p"\ntext = "hello"\nmax_new_tokens = 8\n')
    for kind, more in (("mixtral", ""), ("llama", "--infer-replay=latest --infer-text=test_it.py")):
        code = (BLOCKS[0] + BLOCKS[1]).replace("path/to/your/model", str(model_folder(kind)))
        (tmp_path / "conftest.py").write_text(code)
        done = shell.run(f"pytest test_it.py --benchmark-autosave {more}", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    first, second = sorted(tmp_path.glob(".benchmarks/*/*.json"))
    (row,) = runs.rows(second)
    assert (row.reference.timed, row.reference.tokens, row.scores.positions) == (True, 8, 8)
    before, after = (sidecar.read(path) for path in (first, second))
    key = row.test
    assert after[f"{key}|scores|tokens"].tolist() == before[f"{key}|scores|tokens"].tolist()
    assert after[f"{key}|0|token_ids"].tolist() == before[f"{key}|0|token_ids"].tolist()
    assert after[f"{key}|scores|top"].shape == (1, 8, 64)
