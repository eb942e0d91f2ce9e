"""Curves: known coefficients are found again, intervals are numpy's own fit's, and what does not show is said."""

import numpy as np
import pytest

from pytest_infer.analysis.sweep import curve
from pytest_infer.analysis.sweep.curve import Attention, Point
from pytest_infer.records import CurvePoint
from pytest_infer.report.sweep import curve as report
from pytest_infer.report.text import collected, console
from pytest_infer.storage.runs import Row
from pytest_infer.storage.schema import Values

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2032)
NOISE = (1.01, 0.99, 1.005, 1.0, 0.992, 1.004, 0.998, 1.002)


def times(constant, linear, quadratic, noise=(1.0,) * 8):
    return [(constant + linear * n + quadratic * n * n) * e for n, e in zip(LENGTHS, noise, strict=True)]


def test_known_coefficients_are_found_again():
    fit = curve.prefill_fit(LENGTHS, times(5e-3, 6e-5, 4e-8))
    assert (fit.constant.value, fit.linear.value, fit.quadratic.value) == pytest.approx((5e-3, 6e-5, 4e-8))
    # 6e-5 n = 4e-8 n² at n = 1500, which is shorter than the longest.
    assert fit.crossing.value == pytest.approx(1500)
    assert fit.attention is Attention.DOMINATES
    assert fit.share == pytest.approx(4e-8 * 2032**2 / (5e-3 + 6e-5 * 2032 + 4e-8 * 2032**2))
    assert fit.worst == pytest.approx(0, abs=1e-9)


def test_the_intervals_are_those_of_an_independent_fit():
    from scipy import stats

    measured = times(5e-3, 6e-5, 4e-8, NOISE)
    expected, covariance = np.polyfit(LENGTHS, measured, 2, w=1 / np.array(measured), cov=True)
    fit = curve.prefill_fit(LENGTHS, measured)
    t = stats.t.ppf(0.975, 5)
    for found, number in ((fit.quadratic, 0), (fit.linear, 1), (fit.constant, 2)):
        half = t * covariance[number, number] ** 0.5
        assert (found.value, found.low, found.high) == pytest.approx(
            (expected[number], expected[number] - half, expected[number] + half), rel=1e-6
        )


def test_the_crossing_is_where_the_difference_is_just_not_told_from_nothing():
    """Fieller's ends: there linear − ratio × quadratic is t standard errors from 0."""
    from scipy import stats

    measured = times(5e-3, 6e-5, 4e-8, NOISE)
    (quadratic, linear, _), covariance = np.polyfit(LENGTHS, measured, 2, w=1 / np.array(measured), cov=True)
    crossing = curve.prefill_fit(LENGTHS, measured).crossing
    assert crossing.value == pytest.approx(linear / quadratic)
    for end in (crossing.low, crossing.high):
        error = (covariance[1, 1] - 2 * end * covariance[0, 1] + end**2 * covariance[0, 0]) ** 0.5
        assert abs(linear - end * quadratic) / error == pytest.approx(stats.t.ppf(0.975, 5), rel=1e-5)


def test_attention_that_would_dominate_later_is_not_said_to_dominate():
    fit = curve.prefill_fit(LENGTHS, times(5e-3, 6e-5, 4e-9))
    assert fit.attention is Attention.BEYOND
    assert fit.crossing.value == pytest.approx(15000)


@pytest.mark.parametrize("quadratic", [0, -1e-9])
def test_a_range_that_shows_no_quadratic_part_says_so(quadratic):
    fit = curve.prefill_fit(LENGTHS, times(5e-3, 6e-5, quadratic, NOISE))
    assert (fit.attention, fit.crossing) == (Attention.NOT_SHOWN, None)


def test_a_quadratic_part_without_a_linear_one_is_not_said_not_to_show():
    rows = [row(n, ttft=time) for n, time in zip(LENGTHS, times(5e-3, 1e-9, 4e-7, NOISE), strict=True)]
    (found,) = curve.curves(rows)
    assert found.prefill.linear.low < 0 < found.prefill.quadratic.low
    assert (found.prefill.attention, found.prefill.crossing) == (Attention.DOMINATES, None)
    said = list(report.prefill(found))[1]
    assert said.startswith("attention, the quadratic part, is 99")
    assert said.endswith("no linear part shows, so nothing tells from which length on it dominates")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_too_few_lengths_are_not_fitted(count):
    assert curve.prefill_fit(LENGTHS[:count], times(5e-3, 6e-5, 4e-8)[:count]) is None


def test_decode_costs_more_with_depth():
    fit = curve.decode_fit(LENGTHS, [2e-3 + 3e-7 * n for n in LENGTHS])
    assert (fit.constant.value, fit.per_token.value) == pytest.approx((2e-3, 3e-7))


def row(tokens, *, ttft, tpot=2e-3, config=None, prompt="long"):
    config = {**(config or {}), "prompt-tokens": str(tokens)}
    part = "-".join(f"{axis}={value}" for axis, value in config.items())
    metrics = {
        "ttft_s": Values(value=ttft, rounds=(ttft, ttft * 1.2, ttft * 0.9)),
        "tpot_s": Values(value=tpot, rounds=(tpot, tpot, tpot)),
        "generated_tokens": Values(value=8),
    }
    point = CurvePoint(axis="prompt_tokens", value=tokens)
    return Row(
        test=f"t.py::t[{prompt}-{part}]", name=prompt, metrics=metrics,
        config=config, curve=point,
    )  # fmt: skip


def test_rows_become_a_curve_for_each_configuration_and_prompt():
    rows = [
        row(n, ttft=n * 1e-3, config={"attention": attention}, prompt=prompt)
        for n in (64, 16)
        for attention in ("eager", "sdpa")
        for prompt in ("a", "b")
    ]
    found = curve.curves([*rows, row(16, ttft=1, prompt="alone")])
    assert [(c.prompt, c.config) for c in found] == [
        ("a", {"attention": "eager"}),
        ("b", {"attention": "eager"}),
        ("a", {"attention": "sdpa"}),
        ("b", {"attention": "sdpa"}),
    ]
    # In the order of lengths; the median of three rounds; 8 tokens after 16 attend to 20 positions on average.
    assert found[0].points[0] == Point(tokens=16, ttft_s=16e-3, depth=20, tpot_s=2e-3)
    assert [point.tokens for point in found[0].points] == [16, 64]
    assert found[0].prefill is None


def shown(quadratic, noise=NOISE, prompt="long", lengths=8):
    rows = [
        row(n, ttft=ttft, tpot=2e-3 + 3e-7 * n)
        for n, ttft in zip(LENGTHS, times(5e-3, 6e-5, quadratic, noise), strict=True)
    ]
    (found,) = curve.curves(rows[:lengths])
    out = console(300, color=False)
    report.write(out, found)
    return collected(out)


def test_a_terminal_shows_points_and_what_they_say():
    text = shown(4e-8, noise=(1.0,) * 8)
    assert text.splitlines()[0] == "by prompt length: long"
    assert "outgrows the linear one from 1,500 [1,500, 1,500] tokens on" in text
    assert "decode: 1000 tokens more of context add 300 µs" in text
    lines = text.splitlines()
    # 5 ms + 2032 × 60 µs + 2032² × 40 ns = 292.1 ms, of which the quadratic part is 165.2 ms.
    (last,) = [line.split() for line in lines if line.strip().startswith("2032")]
    assert last == ["2032", "292", "6957", "56.5", "2036", "383"]


def test_attention_is_never_more_than_all_of_ttft():
    """A linear part below 0, which noise makes of none, takes nothing away from TTFT."""
    fit = curve.prefill_fit(LENGTHS, times(5e-3, -5e-6, 4e-8))
    assert fit.linear.value < 0 < fit.quadratic.low
    quadratic = 4e-8 * 2032**2
    assert fit.share == pytest.approx(quadratic / (quadratic + 5e-3)) == fit.share_at(2032)
    rows = [row(n, ttft=ttft, tpot=2e-3) for n, ttft in zip(LENGTHS, times(5e-3, -5e-6, 4e-8), strict=True)]
    out = console(300, color=False)
    report.write(out, *curve.curves(rows))
    (last,) = [line.split() for line in collected(out).splitlines() if line.strip().startswith("2032")]
    assert last[3] == "97.1"


def test_a_terminal_says_what_the_range_does_not_show():
    assert "dominates nowhere in this range; the fit, extrapolated" in shown(6e-9)
    assert "no quadratic part shows up to 2032 tokens" in shown(0)
    assert "no fit of TTFT: 4 lengths, and it takes 5" in shown(4e-8, lengths=4)


def test_a_prompts_name_cannot_write_to_the_terminal():
    (found,) = curve.curves([row(n, ttft=1e-3 * n, prompt="\x1b[31mred") for n in (16, 32)])
    out = console(100, color=False)
    report.write(out, found)
    assert "\x1b" not in collected(out)
