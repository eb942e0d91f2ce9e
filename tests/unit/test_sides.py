"""Both sides of a curve or sweep: from which length on a change shows, the fits' changes, and what is said of them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from pytest_infer.analysis.compare.comparison import RowPair
from pytest_infer.analysis.compare.stats import Student
from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.analysis.sweep import curve, from_length, shifts, sides
from pytest_infer.records import CurvePoint, Turns
from pytest_infer.report.html import sides as html
from pytest_infer.report.show import exports
from pytest_infer.report.sweep import exports as markdown
from pytest_infer.report.sweep import sides as report
from pytest_infer.report.text import collected, console
from pytest_infer.storage.runs import Row
from pytest_infer.storage.schema import Rounds, StoredAgainst, Values

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
LAUNCHES = 8


def judged(mid, se, df=7):
    """What a comparison says of a change: its interval, and its p-value."""
    estimate = Student(mid, se, df)
    low, high = estimate.interval(0.99)
    p = 2 * min(estimate.p_above(0), estimate.p_below(0))
    low, mid, high = map(math.expm1, (low, mid, high))
    return Judgement(test="t", name="n", metric_key="tpot_s", low=low, mid=mid, high=high, p=p)


def simulated(rng, change, se=0.003):
    """Judgements of eight launches at each length, which scatter so that their mean's standard error is about `se`."""
    found = []
    for tokens in LENGTHS:
        values = rng.normal(change(tokens), se * math.sqrt(LAUNCHES), LAUNCHES)
        found.append(judged(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(LAUNCHES)))
    return found


# from which length on


def test_where_nothing_changed_one_run_in_a_hundred_claims_anything():
    rng = np.random.default_rng(5)
    trials = 1500
    claimed = sum(
        any(one.claims for one in from_length.find([simulated(rng, lambda _: 0.0) for _ in range(2)]))
        for _ in range(trials)
    )
    # The bound is 1 %; so many or more would be seen once in a thousand times at that.
    assert claimed < 28


def test_a_change_that_grows_with_the_length_is_found_from_about_the_right_one_on():
    rng = np.random.default_rng(6)
    starts = []
    for _ in range(200):
        # 8 % at 2048 tokens, and half of it at each length before; the standard error is 0.3 % at each.
        (found, nothing) = from_length.find([simulated(rng, lambda n: 0.08 * n / 2048), simulated(rng, lambda _: 0.0)])
        (claim,) = found.claims
        assert claim.on
        assert claim.worse
        starts.append(LENGTHS[claim.numbers[0]])
        assert not nothing.claims
    # 2 % at 512 is seven standard errors, 1 % at 256 three; 0.3 % at 64 is not to be seen.
    assert np.mean([start in (256, 512) for start in starts]) > 0.9
    assert {*starts} <= {128, 256, 512, 1024}


def test_a_length_that_does_not_tell_ends_the_claim():
    clear, vague = judged(0.05, 0.002), judged(0.05, 0.05)
    (found,) = from_length.find([[clear, clear, vague, clear, clear]])
    assert [(claim.numbers, claim.on) for claim in found.claims] == [((3, 4), True), ((0, 1), False)]
    (found,) = from_length.find([[clear, clear, vague]])
    # The longest itself cannot be told: nothing holds "on".
    assert [(claim.numbers, claim.on) for claim in found.claims] == [((0, 1), False)]


def test_the_other_direction_ends_the_claim_and_is_one_of_its_own():
    slower, faster = judged(0.05, 0.002), judged(-0.05, 0.002)
    (found,) = from_length.find([[faster, slower, slower]])
    assert [(claim.numbers, claim.worse, claim.on) for claim in found.claims] == [
        ((1, 2), True, True),
        ((0,), False, False),
    ]


def test_changes_below_one_percent_are_nothing_to_tell_and_wide_intervals_are():
    (found,) = from_length.find([[judged(0.002, 0.0003)] * 5])
    assert (found.within, found.claims) == (True, ())
    (found,) = from_length.find([[judged(0.0, 0.001), judged(0.0, 0.01)]])
    assert (found.within, found.claims, found.widest) == (False, (), 1)
    assert found.bound == pytest.approx(math.expm1(0.01 * 3.4995), rel=1e-3)


def test_a_length_without_an_interval_is_unknown_and_never_within():
    unknown = Judgement(test="t", name="n", metric_key="tpot_s", verdict=Verdict.INCOMPARABLE, reason="differ: output")
    (found,) = from_length.find([[judged(0.0, 0.001), unknown]])
    assert (found.within, found.claims, found.unknown) == (False, (), (1,))


# rows of a run


def rows_of(
    rng, *, step=lambda _: 0.0, first=lambda _: 0.0, turns=True, config=None, noise=0.003, tokens=LENGTHS, against=None
):
    """The rows of a curve whose change is known: in turns of eight launches, or in 20 pairs of rounds."""
    found = []
    count = LAUNCHES if turns else 20
    for n in tokens:
        level = {"ttft_s": 2e-3 + 5e-5 * n + 2e-8 * n * n, "tpot_s": 2e-3 + 3e-7 * (n + 8)}
        change = {"ttft_s": first(n), "tpot_s": step(n)}
        scatter = 0.02 if turns else noise
        told, before, after = {}, {}, {}
        for key, name in (("ttft_s", "first"), ("tpot_s", "step")):
            sides_of = [level[key] * np.exp(shift + rng.normal(0, scatter, count)) for shift in (0, change[key])]
            for into, values in zip((before, after), sides_of, strict=True):
                into[key] = Values(value=float(np.median(values)), rounds=tuple(map(float, values)))
            told[name] = tuple(tuple(map(float, change[key] + rng.normal(0, noise, 4))) for _ in range(count))
        before["generated_tokens"] = after["generated_tokens"] = Values(value=16)
        swept = {**(config or {}), "prompt-tokens": str(n)}
        found.append(
            Row(
                test=f"t.py::test[p-{'-'.join(f'{a}={v}' for a, v in swept.items())}]",
                name="p",
                metrics=after,
                config=swept,
                curve=CurvePoint(axis="prompt_tokens", value=n),
                against=StoredAgainst(
                    rev="main",
                    commit="1234567890",
                    turns=Turns(every=1, cycles=1, seconds=1.0, ratios=told) if turns else None,
                    metrics=before,
                    **(against or {"differ": ()}),
                ),
            )
        )
    return found


@pytest.mark.parametrize("turns", [True, False])
def test_a_coefficient_that_grew_is_found_with_an_interval_that_holds_it(turns):
    # TPOT = 2e-3 + 3e-7 depth, of which the second part is 10 % more.
    found = sides.of(
        rows_of(
            np.random.default_rng(1), step=lambda n: math.log1p(3e-8 * (n + 8) / (2e-3 + 3e-7 * (n + 8))), turns=turns
        )
    )
    (one,) = found.curves
    decode = one.figures[1]
    fixed, position = decode.coefficients
    assert position.share.low < 0.1 < position.share.high
    assert position.share.low > 0
    assert fixed.change.low < 0 < fixed.change.high
    assert position.before.value == pytest.approx(3e-7, rel=0.1)
    assert position.after.value / position.before.value == pytest.approx(1.1, abs=0.05)
    for part in one.figures[0].coefficients:
        assert part.change.low < 0 < part.change.high


def test_the_intervals_of_coefficients_hold_none_as_often_as_they_say():
    rng, held, count = np.random.default_rng(3), 0, 0
    for _ in range(60):
        (one,) = sides.of(rows_of(rng)).curves
        for figure in one.figures:
            for part in figure.coefficients:
                count += 1
                held += part.change.low <= 0 <= part.change.high
    # 99 % of 300, of which five belong together.
    assert held / count > 0.96


def test_points_of_both_sides_are_apart_by_the_change():
    found = sides.of(rows_of(np.random.default_rng(1), step=lambda _: 0.1))
    (one,) = found.curves
    for before, after, judgement in zip(one.before.points, one.after.points, one.figures[1].judgements, strict=True):
        assert after.tpot_s / before.tpot_s == pytest.approx(1 + judgement.mid)
        assert judgement.mid == pytest.approx(math.expm1(0.1), abs=0.01)


def test_the_weights_of_a_fit_are_the_fit():
    times = [2e-3 + 5e-5 * n + 2e-8 * n * n for n in LENGTHS]
    fit = curve.prefill_fit(LENGTHS, times)
    assert curve.weights(LENGTHS, times, 2) @ np.asarray(times) == pytest.approx(
        [fit.constant.value, fit.linear.value, fit.quadratic.value]
    )


def test_other_work_is_left_out_and_says_why():
    rng = np.random.default_rng(1)
    rows = rows_of(rng, against={"differ": ("prompt 12 → 34",)}, tokens=(16,)) + rows_of(rng, tokens=LENGTHS[1:])
    found = sides.of(rows)
    assert found.left_out == ("p prompt-tokens=16: prompt 12 → 34",)
    assert [point.tokens for point in found.curves[0].after.points] == list(LENGTHS[1:])


def test_a_run_that_did_not_store_whether_the_work_differs_is_judged_by_its_figures():
    rows = rows_of(np.random.default_rng(1), against={"differ": None})
    other = Values(value="b" * 64)
    for number, row in enumerate(rows):
        row.metrics["output_sha256"] = Values(value="a" * 64)
        row.against.metrics["output_sha256"] = other if number == 7 else row.metrics["output_sha256"]
    (one,) = sides.of(rows).curves
    assert one.figures[1].finding.unknown == (7,)
    assert not one.figures[1].finding.claims


def test_disturbed_rounds_of_one_side_conclude_nothing():
    rows = rows_of(np.random.default_rng(1), step=lambda _: 0.05, turns=False)
    assert sides.of(rows).curves[0].figures[1].finding.claims
    # All of ours, none of theirs, and nothing tells how long ours waited: that may be the whole change.
    spoiled = [
        replace(
            row, disturbed=tuple(range(20)), timed=20, against=structs.replace(row.against, rounds=Rounds(timed=20))
        )
        for row in rows
    ]
    assert not sides.of(spoiled).curves[0].figures[1].finding.claims


@pytest.mark.parametrize("lacks", [(True, True), (True, False), (False, True)])
def test_disturbed_rounds_say_nothing_of_a_figure_that_a_side_lacks(lacks):
    # Of a single token there is no time per token.
    rows = rows_of(np.random.default_rng(1), first=lambda _: 0.05, turns=False)
    for row in rows:
        for metrics, left_out in zip((row.against.metrics, row.metrics), lacks, strict=True):
            if left_out:
                del metrics["tpot_s"]
    spoiled = [
        replace(
            row,
            disturbed=tuple(range(20)),
            timed=20,
            against=structs.replace(row.against, rounds=Rounds(timed=20)),
        )
        for row in rows
    ]
    first = sides.of(spoiled).curves[0].figures[0]
    assert (first.metric_key, first.finding.claims) == ("ttft_s", ())


def test_lengths_are_summed_over_the_launches_that_they_share():
    # Launch 3 came in the place of launch 1 between two lengths.
    pairs = []
    for numbers, steps in (((0, 1, 2), (0.01, 0.05, 0.02)), ((0, 2, 3), (0.03, 0.06, -0.05))):
        ratios = {"step": tuple((one,) for one in steps)}
        turns = Turns(every=1, cycles=1, seconds=1.0, ratios=ratios, launches=numbers)
        row = Row(test="t", name="p", metrics={})
        pairs.append(RowPair(before=row, after=row, paired=True, turns=turns))
    found = shifts.of(pairs, [judged(0.0, 0.1)] * 2)
    assert found.launches.tolist() == [[0.01, 0.03], [0.02, 0.06]]


def test_a_run_of_one_side_has_none():
    rows = [Row(test="t", name="p", metrics={}, config={"threads": "1"})]
    assert sides.of(rows) is None
    assert sides.of([]) is None


def both(rng, **change):
    """Two configurations, of which the second one is slower in decode."""
    return [
        *rows_of(rng, config={"threads": "1"}, **change),
        *rows_of(rng, config={"threads": "2"}, step=lambda _: 0.05, **change),
    ]


@pytest.mark.parametrize("turns", [True, False])
def test_the_configuration_that_changed_is_named(turns):
    found = sides.of(both(np.random.default_rng(2), turns=turns))
    first, second = found.configurations
    assert (first.config, second.label, second.workloads) == ({"threads": "1"}, "threads=2", 8)
    assert second.changes["tpot_s"].shown
    assert second.changes["tpot_s"].low < math.expm1(0.05) < second.changes["tpot_s"].high
    assert not any(change.shown for change in first.changes.values())
    said = list(report.of_configurations(found.configurations))
    assert said[0] == "TTFT: no configuration shows a change beyond 1 %"
    assert said[1].startswith("TPOT: slower with threads=2: +5.")


def test_what_no_number_of_rounds_would_rule_out_says_why():
    def said(rows):
        return next(iter(report.of_configurations(sides.of(rows).configurations)))

    rng = np.random.default_rng(2)
    sequential = both(rng, turns=False, against={"differ": (), "sequential": True})
    why = "one side after the other tells none over prompts: leave out --infer-against-sequential"
    assert said(sequential) == f"TTFT: no configuration shows a change, and none is ruled out: {why}"
    spoiled = [
        replace(
            row, disturbed=tuple(range(20)), timed=20, against=structs.replace(row.against, rounds=Rounds(timed=20))
        )
        for row in both(rng, turns=False)
    ]
    assert said(spoiled).endswith("which explains the change: end what else runs, and measure again")


# what is said


def test_what_a_curve_says():
    found = sides.of(rows_of(np.random.default_rng(4), step=lambda n: 0.03 * (n >= 512)))
    said = list(report.sentences(found.curves[0]))
    assert said[0].startswith("prefill: no length shows a change")
    assert said[1].startswith("decode: slower from 512 tokens on: +3.")
    assert said[1].endswith("] at 2048")
    found = sides.of(rows_of(np.random.default_rng(4), step=lambda n: -0.03 * (n <= 32)))
    assert list(report.sentences(found.curves[0]))[1].startswith("decode: faster at 16 and 32 tokens: −")
    found = sides.of(rows_of(np.random.default_rng(4), first=lambda _: 0.03))
    assert next(report.sentences(found.curves[0])).startswith("prefill: slower at every length: +3.")


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_holds_both_sides_in_its_columns(width):
    shown = console(width, color=False)
    report.write(shown, sides.of(both(np.random.default_rng(2))), drawn=True)
    text = collected(shown)
    assert max(map(len, text.splitlines())) <= width
    for part in ("○ main (12345678), fit ·   ● this checkout, fit ─   ◉ both", "a position", "TPOT by depth"):
        assert part in text
    assert "by configuration" in text


def test_many_curves_are_drawn_only_if_asked_for():
    rng = np.random.default_rng(2)
    found = sides.of([row for n in "123" for row in rows_of(rng, config={"threads": n})])
    for drawn in (True, False):
        shown = console(80, color=False)
        report.write(shown, found, drawn=drawn)
        assert ("┤" in collected(shown)) is drawn


def test_a_change_with_its_interval():
    assert report.change(0.031, 0.02, 0.042) == "+3.1 % [2.0, 4.2]"
    assert report.change(-0.0001, -0.013, 0.25) == "0.0 % [−1.3, 25]"
    assert report.change(0.5, None, None) == "+50 %"
    assert report.change(0.5, 0.1, None) == "+50 % [10, ∞]"
    assert report.change(None, None, None) == "—"
    # Equal in all rounds.
    assert report.change(0.0, 0.0, 0.0) == "0.0 %"
    assert report.change(1.0, 1.0, 1.0) == "+100 %"


def test_markdown_and_json_hold_both_sides():
    found = sides.of(both(np.random.default_rng(2)))
    text = markdown.as_markdown(found)
    assert "| prompt tokens | TTFT before, ms | after | change | TPOT before, ms | after | change |" in text
    assert "| TPOT a position |" in text
    assert "| threads=2 |" in text
    told = json.loads(exports.as_json(RunSummary(results=(), sides=found), run="run.json"))["sides"]
    assert [len(told["curves"][0][side]["points"]) for side in ("before", "after")] == [8, 8]
    assert told["curves"][0]["figures"][1]["coefficients"][1]["name"] == "a position"


def test_the_page_draws_two_point_sets_and_two_fits():
    found = sides.of(both(np.random.default_rng(2)))
    items = html.items(found)
    assert [len(item.charts) for item in items] == [2, 2, 0]
    for chart in items[0].charts:
        series = chart.data["series"]
        assert [one["name"] for one in series] == ["main (12345678)"] * 2 + ["this checkout"] * 2
        assert [one["look"] for one in series] == ["points", "strong"] * 2
        assert [len(one["values"]) for one in series] == [8, 61, 8, 61]
    drawn = [row[2].drawn for row in items[1].tables[1].rows]
    assert {one.look for one in drawn} == {"regressed"}
    sorts = [(before.sort, after.sort) for _, _, before, after, _ in items[1].tables[-1].rows]
    known = [part for figure in found.curves[1].figures for part in figure.coefficients]
    assert sorts == [(part.before.value, part.after.value) for part in known]


def test_a_few_lengths_have_no_fit_and_no_coefficients():
    found = sides.of(rows_of(np.random.default_rng(2), tokens=(16, 64)))
    (one,) = found.curves
    assert one.figures[0].coefficients == one.figures[1].coefficients == ()
    shown = console(80, color=False)
    report.write(shown, found, drawn=True)
    assert "fit" not in collected(shown)


def test_an_interval_that_tells_nothing_takes_no_more_room_than_that():
    assert report.change(0.031, 0.02, 0.042) == "+3.1 % [2.0, 4.2]"
    assert report.change(-0.43, -1.0, 66828631689.0) == "−43 % [−100, >999]"
    assert report.change(12.0, 9.0, None) == "+1200 % [900, ∞]"
