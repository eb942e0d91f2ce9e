"""What `pytest-infer compare` prints, against goldens that were looked at; UPDATE_GOLDENS=1 writes them anew."""

import os
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from pytest_infer.cli.main import app

DATA = Path(__file__).parents[1] / "data"
STEADY = (1.0, 1.004, 0.996, 1.002, 0.998, 1.001)
ROUNDS = (1.0, 1.001, 0.999, 1.002, 0.998, 1.0)
LONG = "a long story about a rabbit, a watch and a very deep well that never seems to end at all"


def figures(ttft, tpot, peak, *, wobble=1.0):
    def rounds(middle):
        return [middle * (1 + (r - 1) * wobble) for r in ROUNDS]

    return {
        "ttft_s": rounds(ttft),
        "tpot_s": rounds(tpot),
        "itl_p99_s": rounds(tpot * 1.4),
        "total_s": rounds(ttft + 4 * tpot),
        "decode_throughput": rounds(1 / tpot),
        "peak_rss_bytes": rounds(peak),
    }


KEPT = ("prompt_tokens", "output_sha256", "cores_used")


@pytest.fixture
def compared(storage, make_block):
    """Six like runs; then one that is slower in one prompt, and one with other output, a test gone and one new."""

    def block(name, **changes):
        return make_block(name, only=KEPT, **changes)

    for factor in STEADY:
        storage.add(
            [
                block("story", **figures(0.2 * factor, 0.05 * factor, 3e8)),
                block(LONG, **figures(2 * factor, 0.055 * factor, 4e8)),
                block("chat", **figures(0.1 * factor, 0.04 * factor, 3.5e8)),
                block("old", **figures(0.1 * factor, 0.04 * factor, 3e8)),
            ]
        )
    storage.add(
        [
            block("story", **figures(0.2, 0.0561, 3e8)),
            block(LONG, **figures(2.3, 0.0551, 3.2e8)),
            block("chat", **figures(0.1, 0.04, 3.5e8), output_sha256="c" * 64),
            block("new", **figures(0.1, 0.04, 3e8)),
        ],
        commit="dddddddd" * 5,
        branch="topic",
    )
    storage.add(
        [block("story", **figures(0.15, 0.04, 3e8, wobble=40)), block("chat", **figures(0.1, 0.041, 3.5e8))],
        commit="eeeeeeee" * 5,
        dirty=True,
    )
    return storage


@pytest.mark.parametrize("width", [120, 72])
@pytest.mark.parametrize(
    ("golden", "arguments"),
    [
        ("compare", ("6", "7")),
        ("compare-by-metric", ("6", "7", "--by-metric", "--metric=ttft", "--metric=tpot")),
        ("compare-many", ("6", "7", "8", "--metric=ttft", "--metric=tpot", "--metric=output")),
        ("history", ()),
    ],
)
def test_terminal(compared, golden, arguments, width):
    command = ["history" if golden == "history" else "compare", *arguments, f"--storage={compared.folder}"]
    result = CliRunner().invoke(app, command, env={"COLUMNS": str(width)})
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line for line in lines if cell_len(line) > width] == []
    assert [line for line in lines if re.search(r"\s$", line)] == []
    path = DATA / f"{golden}-{width}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(result.stdout, encoding="utf-8")
    assert result.stdout == path.read_text(encoding="utf-8")
