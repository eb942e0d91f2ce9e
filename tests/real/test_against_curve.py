"""A curve and a sweep of the bundled model on both sides of a comparison, in turns of a token."""

import json

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPT = '[[prompt]]\nname = "p"\ntext = "It was a bright cold day"\nmax_new_tokens = 8\n'
QUICK = (
    "--infer-against=self", "--infer-gate=off", "--infer-turns=token", "--infer-launches=2", "--infer-time=2s",
    "--infer-rounds=2", "--infer-warmup=1", "--infer-no-profile", "--benchmark-autosave",
)  # fmt: skip


@pytest.fixture
def bench(forked):
    forked.makepyfile("def test_prompt(infer, prompt):\n    infer(prompt)\n")
    forked.path.joinpath("prompts.toml").write_text(PROMPT, encoding="utf-8")
    return forked


def blocks(pytester):
    (path,) = pytester.path.glob(".benchmarks/*/*.json")
    rows = json.loads(path.read_text())["benchmarks"]
    return [row["extra_info"]["pytest_infer"] for row in rows if row["params"]["phase"] == "total"]


def test_a_curve_has_both_sides_and_their_fits(bench):
    result = bench.runpytest_subprocess(*QUICK, "--infer-threads=1", "--infer-curve=8,16,32,64,128")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(
        [
            "by prompt length, self* and this checkout: p",
            "○ self*, fit ·   ● this checkout, fit ─   ◉ both",
            "*a token²*",
            "*a position*",
            "prefill: *",
            "decode: *",
        ]
    )
    found = blocks(bench)
    assert [block["curve"]["value"] for block in found] == [8, 16, 32, 64, 128]
    for block in found:
        against = block["against"]
        sizes = {name: len(launches) for name, launches in against["turns"]["ratios"].items()}
        assert sizes["first"] == sizes["step"] == 2
        # Disturbed steps may add their sums.
        assert set(sizes) <= {"first", "step", "steps"}
        assert against["metrics"]["prompt_tokens"]["value"] == block["metrics"]["prompt_tokens"]["value"]
        assert against["metrics"]["output_sha256"]["value"] == block["metrics"]["output_sha256"]["value"]
        assert against["differ"] == []


def test_a_sweep_loads_each_dtype_on_both_sides(bench):
    result = bench.runpytest_subprocess(*QUICK, "--infer-sweep=dtype=float32,bfloat16", "--infer-sweep=threads=1,2")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["this checkout against self*, by configuration", "dtype=float*%*"])
    sizes = {}
    for block in blocks(bench):
        theirs, ours = (of["metrics"]["model_bytes"]["value"] for of in (block["against"], block))
        assert theirs == ours
        assert block["model"]["threads"] == int(block["config"]["threads"])
        sizes[block["config"]["dtype"]] = ours
    assert sizes["float32"] > 1.9 * sizes["bfloat16"]
