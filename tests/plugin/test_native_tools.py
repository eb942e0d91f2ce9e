"""pytest-benchmark's own tools on our rows: JSON, histograms, CSV."""

import csv
import json
import re
import sys
from importlib.util import find_spec

import pytest

NASTY = """
[[prompt]]
name = "first"
text = "one two three"
max_new_tokens = 3

[[prompt]]
name = "</text><script>alert(1)</script>"
group = "a/b"
text = "four five"
max_new_tokens = 3
"""
DELAYS = {"ttft": 0.02, "tpot": 0.01, "total": 0.04}
"""Seconds that the scripted engine lets pass, on its own clock."""


@pytest.fixture
def run(suite):
    pytester = suite(engine="Scripted.delays = [0.02, 0.01, 0.01]", prompts=NASTY, virtual=True)
    conftest = pytester.path / "conftest.py"
    hooks = "from pytest_infer.storage.native import pytest_benchmark_group_stats, pytest_benchmark_scale_unit\n"
    conftest.write_text(hooks + conftest.read_text())
    return pytester


# In a process of its own: pygal imports importlib_metadata, which takes the standard library's place in finding
# packages. That pytester undoes by half, and the plugins of all later tests would not be found; `importorskip` would
# import it too.
@pytest.mark.skipif(find_spec("pygal") is None, reason="pytest-benchmark[histogram] is not installed")
def test_json_histograms_and_csv(run):
    options = ("--benchmark-json=run.json", "--benchmark-histogram=plots/run", "--benchmark-autosave")
    run.runpytest_subprocess(*options, "--infer-rounds=3", "--infer-no-profile").assert_outcomes(passed=2)

    rows = json.loads((run.path / "run.json").read_text())["benchmarks"]
    assert len(rows) == 6
    for row in rows:
        assert row["stats"]["rounds"] == 3
        assert row["stats"]["median"] == pytest.approx(DELAYS[row["params"]["phase"]], rel=0.05)

    plots = {path.name: path.read_text() for path in (run.path / "plots").iterdir()}
    # A group each: of the phases, and of those in the prompt's own group, whose name is no path.
    assert len(plots) == 6
    assert all(text.startswith("<?xml") and "3 rounds" in text for text in plots.values())
    assert not any("<script>alert" in text for text in plots.values())
    (ttft,) = (text for name, text in plots.items() if name == "run-ttft.svg")
    # Milliseconds: the box's median.
    medians = [float(value) for value in re.findall(r"Median: ([\d.]+)", ttft)]
    assert medians
    assert all(value == pytest.approx(20, rel=0.05) for value in medians)

    done = run.run(sys.executable, "-m", "pytest_benchmark", "compare", "--csv=table.csv", "--columns=median,rounds")
    assert done.ret == 0
    with (run.path / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 6
    # Seconds, each beside its row's phase.
    for cells in table:
        assert float(cells["median"]) == pytest.approx(DELAYS[cells["param:phase"]], rel=0.05)
        assert cells["rounds"] == "3"
