"""A sweep's configurations by how far they are from the first: their table, and the Pareto set with that as an axis."""

import itertools
from dataclasses import replace

import msgspec
import pytest
from test_recommend import row

from pytest_infer.analysis.fidelity import closeness
from pytest_infer.analysis.sweep import distances
from pytest_infer.analysis.sweep.recommend import DECODE, recommend
from pytest_infer.records import Fidelity
from pytest_infer.report.html import sweep as html
from pytest_infer.report.sweep import terminal as report
from pytest_infer.report.text import collected, console
from pytest_infer.storage.schema import Model, StoredAgainst


def at(kl, *, positions=60, top1=98.0, exact=False):
    return Fidelity(
        reference="dtype=float32",
        positions=positions,
        of=positions,
        length=positions,
        exact=exact,
        kl_mean=kl,
        kl_p99=4 * kl,
        top1=top1,
        logprob_rms=kl**0.5,
    )


def swept(dtype, kl=None, *, speed=1.0, memory=100, prompt="chat", **more):
    fast = [10 * speed, 10.1 * speed, 9.9 * speed]
    slow = [1 / one for one in fast]
    made = row({"dtype": dtype}, prompt=prompt, decode=fast, ttft=slow, peak=[memory] * 3)
    model = Model(dtype=dtype)
    return replace(made, model=model, fidelity=None if kl is None else at(kl, **more))


def pareto(*rows):
    return [one.label.partition("=")[2] for one in recommend(rows).configurations if one.pareto]


def test_a_configuration_that_is_faster_and_further_beats_nobody():
    exact, coarse = swept("float32"), swept("bfloat16", 0.002, speed=2, memory=50)
    assert pareto(exact, coarse) == ["float32", "bfloat16"]
    # Without a distance only speed and memory count.
    assert pareto(exact, replace(coarse, fidelity=None)) == ["bfloat16"]


def test_a_configuration_that_is_no_faster_and_further_is_beaten():
    rows = swept("float32"), swept("bfloat16", 0.002, speed=2, memory=50), swept("int8", 0.02, speed=2, memory=50)
    assert pareto(*rows) == ["float32", "bfloat16"]


def test_what_rounding_brings_is_no_distance():
    rows = (
        swept("float32"),
        replace(swept("sdpa", closeness.BOUNDS["float32"] / 2, speed=2), model=Model(dtype="float32")),
    )
    assert pareto(*rows) == ["sdpa"]


def test_the_distance_is_over_all_positions_of_all_prompts():
    rows = [swept("bfloat16", 0.001, positions=90, top1=100.0), swept("bfloat16", 0.005, positions=30, top1=90.0)]
    first, second = distances.of([[swept("float32")], rows])
    assert (first.kl, first.top1) == (0, 100)
    assert (second.kl, second.top1) == pytest.approx((0.002, 97.5))


def test_what_the_other_side_of_a_comparison_generated_is_no_configuration():
    both = replace(swept("bfloat16", 0.002), against=StoredAgainst(rev="main"))
    assert distances.of([[swept("float32")], [both]]) == [None, None]


def test_distances_of_two_models_are_not_compared():
    def of(model, dtype, kl=None, speed=1.0):
        made = swept(dtype, kl, speed=speed)
        config = {"model": model, "dtype": dtype}
        known = None if kl is None else replace(made.fidelity, reference=f"model={model} dtype=float32")
        return replace(made, config=config, fidelity=known)

    rows = [of("a", "float32"), of("a", "bfloat16", 0.2), of("b", "float32"), of("b", "bfloat16", 0.001)]
    found = distances.of([[row] for row in rows])
    assert [one.kl for one in found] == [0, 0.2, 0, 0.001]
    assert [one.reference for one in found][::2] == ["itself", "itself"]
    assert found[0].comparable(found[1])
    assert not found[1].comparable(found[3])


def interleaved(dtype, threads, prompt):
    """Return a test of threads and dtypes, of which each prompt begins with another number of threads."""
    first = {"chat": 1, "code": 2}[prompt]
    kl = 0.002 if dtype == "bfloat16" else None if threads == first else 1e-12
    made = swept(dtype, kl, prompt=prompt, speed=2 if dtype == "bfloat16" else 1)
    known = None if kl is None else replace(made.fidelity, reference=f"threads={first} dtype=float32")
    return replace(made, config={"threads": str(threads), "dtype": dtype}, fidelity=known)


def test_prompts_that_begin_with_one_configuration_each_are_compared_by_distance_too():
    every = itertools.product(("float32", "bfloat16"), (1, 2), ("chat", "code"))
    found = recommend(interleaved(*of) for of in every)
    assert [one.pareto for one in found.configurations] == [True] * 4
    out = console(120, color=False)
    report.write(out, found)
    assert "KL: in each prompt from the configuration of its model that was measured first, on its tokens" in " ".join(
        collected(out).split()
    )


def test_without_any_distance_there_is_none():
    assert distances.of([[swept("float32")], [swept("bfloat16")]]) == [None, None]
    assert distances.of([[swept("float32")], [swept("bfloat16")], [swept("int8", 0.1)]])[1] is None


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_speed_memory_and_fidelity(width):
    rows = [swept("float32"), swept("bfloat16", 0.002, speed=1.9, memory=50), swept("int8", 0.03, speed=1.5)]
    found = recommend(rows)
    out = console(width, color=False)
    report.write(out, found)
    text = collected(out)
    lines = text.splitlines()
    assert lines[0].split()[-2:] == ["KL", "top-1"]
    assert next(line for line in lines if line.startswith("dtype=float32")).split()[-2:] == ["0", "100"]
    assert next(line for line in lines if line.startswith("dtype=bfloat16 *")).split()[-3:] == [
        "0.500",
        "≥0.0020",
        "98.0",
    ]
    joined = " ".join(text.split())
    assert "KL: from dtype=float32, on its tokens" in joined
    assert "dtype=bfloat16: 1.90× decode, 0.526× TTFT, 0.500× memory, KL ≥ 0.0020, top-1 98.0 %" in joined
    assert "dtype=int8: " not in joined
    assert all(len(line) <= width for line in lines)
    msgspec.json.encode(msgspec.to_builtins(found))


def test_on_a_narrow_terminal_configurations_keep_their_names_and_figures():
    out = console(50, color=False)
    report.write(out, recommend([swept("float32"), swept("bfloat16", 0.002, speed=1.9, memory=50)]))
    lines = collected(out).splitlines()
    assert lines[:5] == [
        "dtype=float32 *",
        "  decode 10.0 tok/s (1.00×) · TTFT 100 ms (1.00×)",
        "  peak memory 100 GiB (1.00×) · KL 0 nats",
        "  top-1 100 %",
        "dtype=bfloat16 *",
    ]
    assert all(len(line) <= 50 and "…" not in line for line in lines)


def test_the_report_draws_speed_by_fidelity():
    found = recommend([swept("float32"), swept("bfloat16", 0.002, speed=1.9, memory=50)])
    chart = next(one for item in html._items(found) for one in item.charts if one.key == "fidelity")
    first, second = chart.data["points"]
    assert first["x"] == pytest.approx(closeness.BOUNDS["float32"], rel=1e-3)
    assert second["x"] == pytest.approx(0.002)
    assert not any(
        one.key == "fidelity" for item in html._items(recommend([swept("a"), swept("b", 0.0)])) for one in item.charts
    )


def test_where_nothing_was_decoded_no_chart_says_that_up_is_better():
    rows = [swept("float32"), swept("bfloat16", 0.002, speed=1.9, memory=50)]
    assert [one.key for item in html._items(recommend(rows)) for one in item.charts] == ["pareto", "fidelity"]
    for one in rows:
        one.metrics.pop(DECODE)
    (item,) = html._items(recommend(rows))
    assert item.charts == ()
