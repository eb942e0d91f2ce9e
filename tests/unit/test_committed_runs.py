"""The runs of releases, committed in results/: every later version reads them, with its own commands and natively."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pytest_infer.cli.main import app
from pytest_infer.storage import runs

RESULTS = Path(__file__).parents[2] / "results"
RELEASES = sorted(RESULTS.glob("*/*_v*.json"))

pytestmark = pytest.mark.skipif(not RESULTS.exists(), reason="the wheel's tests run without the repository")


def test_there_is_a_run_to_look_at_in_a_fresh_clone():
    assert RELEASES


@pytest.mark.parametrize("path", RELEASES, ids=lambda path: path.stem)
def test_a_release_is_read(path, tmp_path):
    run = runs.read(path)
    assert len(run.rows) > 5
    assert all(row.metrics["ttft_s"].value > 0 and row.metrics["output_sha256"].value for row in run.rows)
    assert not run.gate
    later = tmp_path / "later.json"
    later.write_text(json.dumps(json.loads(path.read_text()) | {"datetime": "2100-01-01T00:00:00+00:00"}))
    for command in (["show", str(path)], ["compare", str(path), str(later)], ["experts", str(path)]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    report = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", str(path), "--output", str(report)])
    assert done.exit_code == 0, done.output
    assert 'id="prompt-' in report.read_text()


def test_pytest_benchmark_reads_them_with_its_own_command():
    command = [sys.executable, "-m", "pytest_benchmark", "--storage", RESULTS.as_uri(), "compare", *map(str, RELEASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=RESULTS.parent)
    assert done.returncode == 0, done.stderr
    assert "test_prompt" in done.stdout
