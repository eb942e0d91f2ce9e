"""The suite's change: geometric means whose intervals hold the truth, whatever the prompts share."""

import dataclasses
import math

import numpy as np
import pytest
from planted import NAMES, Suites

from pytest_infer.analysis.compare import comparison, gate, rules, suite
from pytest_infer.analysis.compare.comparison import RowPair, Wanted
from pytest_infer.analysis.compare.suite import Figure, Member
from pytest_infer.analysis.compare.verdicts import Exit, Judgement, Verdict
from pytest_infer.metrics import by_key
from pytest_infer.records import Turns

TPOT = by_key("tpot_s")


@pytest.fixture
def suites(make_row):
    return Suites(make_row)


def judged(pairs, *lines):
    gated = gate.judge(pairs, rules.parse(lines or ["tpot:1%"]))
    return {change.judgement.metric_key: change for change in gated.suite}


def figure(pairs):
    """Return the figure of all pairs, which are comparable, without judging them one by one."""
    members = [Member(pair=p, judgement=Judgement(test=p.after.test, name=p.after.name)) for p in pairs]
    return Figure(metric=TPOT, threshold=0.01, rule=None, members=tuple(members), left_out={})


def held(pairs, change, confidence=0.95):
    (found,) = suite.of_figures([figure(pairs)], confidence)
    return found.judgement.low < math.expm1(change) < found.judgement.high


def at_least(count, trials, confidence=0.95):
    # Binomial, 4 standard errors below.
    return count / trials > confidence - 4 * math.sqrt(confidence * (1 - confidence) / trials)


# turns of a token: the launch is what the prompts share


def taking_turns(pairs, steps):
    """Give each pair the launch means of one row of `steps`."""
    return [
        dataclasses.replace(
            pair, turns=Turns(every=1, cycles=1, seconds=1.0, ratios={"step": tuple((float(x),) for x in row)})
        )
        for pair, row in zip(pairs, steps, strict=True)
    ]


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_launches_that_shift_all_prompts_alike_do_not_make_the_interval_too_narrow(suites, shared):
    rng, trials, prompts, launches = np.random.default_rng(5), 500, 5, 8
    pairs = suites.rounds(names=NAMES[:prompts])
    count = 0
    for _ in range(trials):
        common = rng.normal(0, 0.005 * math.sqrt(shared), launches)
        own = rng.normal(0, 0.005 * math.sqrt(1 - shared), (prompts, launches))
        count += held(taking_turns(pairs, 0.02 + common + own), 0.02)
    assert at_least(count, trials)


def test_the_mean_over_launches_by_hand(suites):
    steps = [[0.01, 0.02, 0.03], [0.03, 0.04, 0.05]]
    (found,) = suite.of_figures([figure(taking_turns(suites.rounds(names=NAMES[:2]), steps))], 0.95)
    # The launches' means over both prompts are 0.02, 0.03, 0.04: t with 2 degrees of freedom.
    assert math.log1p(found.judgement.mid) == pytest.approx(0.03)
    assert math.log1p(found.judgement.high) == pytest.approx(0.03 + 4.30265 * 0.01 / math.sqrt(3), rel=1e-5)
    assert (found.how, found.spread, found.prompts, found.of) == ("3 launches", True, 2, 2)


def with_earlier(pairs, variance):
    return [
        dataclasses.replace(p, turns=dataclasses.replace(p.turns, earlier={"step": (variance, 30.0)})) for p in pairs
    ]


def test_of_few_launches_earlier_runs_tell_the_spread(suites):
    pairs = taking_turns(suites.rounds(names=NAMES[:2]), [[0.01, 0.03], [0.02, 0.04]])
    (alone,) = suite.of_figures([figure(pairs)], 0.95)
    # Both prompts have the same deviations, and the variance 0.0002 with one degree of freedom.
    assert math.log1p(alone.judgement.high) == pytest.approx(0.025 + 12.7062 * math.sqrt(0.0002 / 2), rel=1e-4)
    (found,) = suite.of_figures([figure(with_earlier(pairs, 0.0002))], 0.95)
    assert math.log1p(found.judgement.high) == pytest.approx(0.025 + 2.0395 * math.sqrt(0.0002 / 2), rel=1e-4)


@pytest.mark.parametrize("first", [0.0001, 0.0003])
def test_earlier_runs_of_each_prompt_count_whichever_is_first(suites, first):
    pairs = taking_turns(suites.rounds(names=NAMES[:2]), [[0.01, 0.03], [0.02, 0.04]])
    unlike = [with_earlier([pair], value)[0] for pair, value in zip(pairs, (first, 0.0004 - first), strict=True)]
    (found,) = suite.of_figures([figure(unlike)], 0.95)
    assert math.log1p(found.judgement.high) == pytest.approx(0.025 + 2.0395 * math.sqrt(0.0002 / 2), rel=1e-4)
    # One that has none tells that the others are not all.
    (alone,) = suite.of_figures([figure([unlike[0], pairs[1]])], 0.95)
    assert math.log1p(alone.judgement.high) == pytest.approx(0.025 + 12.7062 * math.sqrt(0.0002 / 2), rel=1e-4)


def test_memory_is_told_by_the_whole_rounds_of_each_launch(suites):
    pairs = suites.rounds(names=NAMES[:3])
    turns = Turns(every=0, cycles=0, seconds=1.0, ratios={}, rounds=2)
    found = judged([dataclasses.replace(p, turns=turns) for p in pairs], "peak_rss:1%")["peak_rss_bytes"]
    assert (found.how, found.spread) == ("7 launches", True)


def with_restless(turns, number):
    """Let one launch scatter a hundred times as much as it did, around a place of its own."""
    ratios = {part: list(values) for part, values in turns.ratios.items()}
    ratios["step"][number] = (0.5, -0.5, 0.9, -0.9)
    return dataclasses.replace(turns, ratios={part: tuple(values) for part, values in ratios.items()})


def test_launches_that_were_restless_in_one_prompt_are_left_out_in_all(suites):
    first, *others = suites.turns(decode=1.02)
    first = dataclasses.replace(first, turns=with_restless(first.turns, 3))
    found = judged([first, *others])["tpot_s"]
    assert found.how == "7 of 8 launches, told and calm in every prompt"
    assert found.judgement.low < 0.02 < found.judgement.high


def test_launches_that_had_no_time_for_one_prompt_are_left_out_in_all(suites):
    first, *others = suites.turns(decode=1.02)
    short = {part: (*values[:5], (), (), ()) for part, values in first.turns.ratios.items()}
    first = dataclasses.replace(first, turns=dataclasses.replace(first.turns, ratios=short))
    found = judged([first, *others])["tpot_s"]
    assert found.how == "5 of 8 launches, told and calm in every prompt"
    assert found.judgement.low < 0.02 < found.judgement.high
    # Where no prompt had more, these are all there were.
    ratios = {part: (*values[:3], *[()] * 5) for part, values in first.turns.ratios.items()}
    few = [dataclasses.replace(p, turns=dataclasses.replace(p.turns, ratios=ratios)) for p in (first, *others)]
    assert judged(few)["tpot_s"].how == "3 launches"


def test_memory_is_told_by_the_launches_that_had_time_for_whole_rounds_of_every_prompt(suites):
    made = suites.turns(names=NAMES[:3])
    pairs = [dataclasses.replace(p, turns=dataclasses.replace(p.turns, rounds=2)) for p in made]
    before, after = (suites.row(NAMES[2], rounds=10) for _ in range(2))
    pairs[2] = dataclasses.replace(pairs[2], before=before, after=after)
    assert [p.by_launch("peak_rss_bytes").ran for p in pairs] == [7, 7, 5]
    assert judged(pairs, "peak_rss:1%")["peak_rss_bytes"].how == "5 of 7 launches, told and calm in every prompt"


def test_where_no_launch_is_calm_in_all_prompts_each_has_its_own_and_the_interval_is_the_widest(suites):
    pairs = suites.turns(decode=1.02)
    calm = judged(pairs)["tpot_s"].judgement
    pairs = [dataclasses.replace(p, turns=with_restless(p.turns, n % 8)) for n, p in enumerate(pairs)]
    found = judged(pairs)["tpot_s"]
    assert found.how == "each prompt's own calm launches of 8, as if they shifted all prompts alike"
    assert found.judgement.low < 0.02 < found.judgement.high
    assert found.judgement.high - found.judgement.low > calm.high - calm.low


def in_launches(pairs, *numbers):
    """Give the launches of each pair their numbers in the run."""
    told = zip(pairs, numbers, strict=True)
    return [dataclasses.replace(p, turns=dataclasses.replace(p.turns, launches=tuple(own))) for p, own in told]


def test_a_launch_that_followed_one_that_died_is_not_lined_up_with_it(suites):
    # Launch 4 came in the place of launch 1, which was as far off in the first prompt as it is in the second.
    shift = {0: 0.01, 1: 0.05, 2: 0.02, 3: 0.03, 4: -0.05}
    numbers = ((0, 1, 2, 3), (0, 2, 3, 4))
    pairs = taking_turns(suites.rounds(names=NAMES[:2]), [[shift[n] for n in own] for own in numbers])
    (found,) = suite.of_figures([figure(in_launches(pairs, *numbers))], 0.95)
    assert found.how == "3 of 4 launches, told and calm in every prompt"
    assert math.log1p(found.judgement.mid) == pytest.approx(0.02)
    assert math.log1p(found.judgement.high) == pytest.approx(0.02 + 4.30265 * 0.01 / math.sqrt(3), rel=1e-5)
    # With too few in common each has its own.
    (found,) = suite.of_figures([figure(in_launches(pairs, (0, 1, 2, 3), (3, 4, 5, 6)))], 0.95)
    assert found.how.startswith("each prompt's own calm launches of 4")


def test_whole_rounds_are_of_the_launches_with_these_numbers(suites):
    pairs = suites.rounds(names=NAMES[:3])
    turns = Turns(every=0, cycles=0, seconds=1.0, ratios={}, rounds=2)
    pairs = in_launches([dataclasses.replace(p, turns=turns) for p in pairs], range(7), range(7), (0, 1, 3, 4, 5, 6, 7))
    assert pairs[2].by_launch("peak_rss_bytes").numbers == (0, 1, 3, 4, 5, 6, 7)
    found = judged(pairs, "peak_rss:1%")["peak_rss_bytes"]
    assert found.how == "6 of 7 launches, told and calm in every prompt"


@pytest.mark.parametrize("prompts", [2, 6])
def test_the_interval_holds_the_truth_where_launches_die_and_shift_all_prompts_alike(suites, prompts):
    rng, trials, launches = np.random.default_rng(8), 300, 8
    pairs = suites.rounds(names=NAMES[:prompts])
    # After half of the prompts the first one died: place by place each would be that of two launches.
    numbers = [range(launches) if n < prompts / 2 else range(1, launches + 1) for n in range(prompts)]
    count = 0
    for _ in range(trials):
        shifts = rng.normal(0, 0.005, launches + 1)
        made = taking_turns(pairs, [shifts[list(own)] + rng.normal(0, 1e-4, launches) for own in numbers])
        count += held(in_launches(made, *numbers), 0.0)
    assert at_least(count, trials)


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_the_widest_interval_holds_the_truth_too(suites, shared):
    rng, trials, prompts, launches = np.random.default_rng(6), 300, 4, 6
    pairs = suites.rounds(names=NAMES[:prompts])
    count = 0
    for _ in range(trials):
        common = rng.normal(0, 0.005 * math.sqrt(shared), launches)
        steps = [list(row) for row in common + rng.normal(0, 0.005 * math.sqrt(1 - shared) + 1e-9, (prompts, launches))]
        count += held(taking_turns(pairs, [steps[0][:-1], *steps[1:]]), 0.0)
    assert at_least(count, trials)


def test_one_launch_tells_no_interval(suites):
    pairs = taking_turns(suites.rounds(names=NAMES[:2]), [[0.01], [0.02]])
    found = judged(pairs)["tpot_s"].judgement
    assert (found.verdict, found.mid) == (Verdict.INCONCLUSIVE, None)
    assert "--infer-launches" in found.reason
    known = with_earlier(pairs, 1e-6)
    assert judged(known)["tpot_s"].judgement.low == pytest.approx(0.015 - 2.75 * 0.001, abs=2e-4)


# pairs of whole rounds: prompts are independent


def test_pairs_of_rounds_hold_the_truth(suites):
    rng, trials, prompts = np.random.default_rng(8), 500, 4
    pairs = suites.rounds(names=NAMES[:prompts])
    count = 0
    for _ in range(trials):
        made = []
        for spread, pair in zip((0.01, 0.02, 0.05, 0.08), pairs, strict=True):
            sides = [0.05 * np.exp(rng.normal(shift, spread, 6)) for shift in (0.0, 0.03)]
            rows = [with_rounds(row, values) for row, values in zip((pair.before, pair.after), sides, strict=True)]
            made.append(dataclasses.replace(pair, before=rows[0], after=rows[1]))
        count += held(made, 0.03)
    assert at_least(count, trials)


def with_rounds(row, values):
    numbers = tuple(map(float, values))
    figure = type(row.metrics["tpot_s"])(value=float(np.median(values)), rounds=numbers)
    return dataclasses.replace(row, metrics={**row.metrics, "tpot_s": figure})


def test_pairs_by_hand(suites):
    one, other = suites.rounds(names=NAMES[:2])
    one = dataclasses.replace(
        one, before=with_rounds(one.before, [1, 1, 1]), after=with_rounds(one.after, np.exp([0.01, 0.02, 0.03]))
    )
    other = dataclasses.replace(
        other, before=with_rounds(other.before, [1, 1]), after=with_rounds(other.after, np.exp([0.03, 0.05]))
    )
    (found,) = suite.of_figures([figure([one, other])], 0.95)
    # Means 0.02 and 0.04; squared errors 0.01²/3 with 2 and 0.02²/4 with 1 degree of freedom, each weighed with 1/4.
    first, second = 0.01**2 / 3 / 4, 0.02**2 / 2 / 2 / 4
    df = (first + second) ** 2 / (first**2 / 2 + second**2)
    from scipy import stats as scipy_stats

    half = scipy_stats.t.ppf(0.975, df) * math.sqrt(first + second)
    assert math.log1p(found.judgement.mid) == pytest.approx(0.03)
    assert math.log1p(found.judgement.high) - 0.03 == pytest.approx(half, rel=1e-6)
    assert (found.how, found.spread) == ("pairs of rounds", False)


# stored runs: what runs differ by, and the rounds


def test_the_suites_of_earlier_runs_tell_the_spread(suites):
    pairs = suites.stored(decode=1.05)
    found = judged(pairs, "tpot:2%")["tpot_s"]
    assert found.how == "8 earlier runs"
    assert found.judgement.verdict is Verdict.REGRESSED
    history = [pair.history for pair in pairs]
    logs = [np.mean([math.log(rows[run].metrics["tpot_s"].value) for rows in history]) for run in range(8)]
    new = np.mean([math.log(pair.after.metrics["tpot_s"].value) for pair in pairs])
    between = np.std(logs, ddof=1) * math.sqrt(1 + 1 / 8)
    # t with 7 degrees of freedom, 99 %.
    assert math.log1p(found.judgement.high) >= new - np.mean(logs) + 3.4994 * between


def test_only_runs_with_the_same_prompts_count(suites):
    first, *others = suites.stored()
    assert judged([first, *others], "tpot:2%")["tpot_s"].judgement.verdict is Verdict.UNCHANGED
    few = dataclasses.replace(first, history=first.history[-4:])
    found = judged([few, *others], "tpot:2%")["tpot_s"]
    assert found.how == "4 earlier runs"
    assert found.judgement.verdict is Verdict.INCONCLUSIVE
    assert "4 comparable runs, and 5 tell the spread" in found.judgement.reason


@pytest.mark.parametrize(("apart", "verdict"), [(1.05, Verdict.REGRESSED), (2.0, Verdict.INCONCLUSIVE)])
def test_of_few_runs_the_prompts_changes_tell_the_spread(make_row, apart, verdict):
    calm = [0.1, 0.1001, 0.0999, 0.1]
    pairs = [
        RowPair(before=make_row(tpot_s=calm), after=make_row(tpot_s=[x * factor for x in calm]), history=())
        for factor in (1.25, 1.25 / apart, 1.25 * apart, 1.25 / apart, 1.25 * apart, 1.25)
    ]
    (found,) = suite.of_figures([figure(pairs)], 0.99)
    assert found.judgement.verdict is verdict


def test_rows_of_a_stored_run_know_it(storage, make_block):
    path = storage.add([make_block()])
    assert storage.load().runs[0].rows[0].run == path


def test_blocks_of_rounds_hold_the_difference_between_a_sides_own(suites):
    pairs = [dataclasses.replace(p, paired=False, block_spread={"tpot_s": 0.03}) for p in suites.rounds(decode=1.05)]
    found = judged(pairs, "tpot:2%")["tpot_s"]
    assert (found.how, found.spread) == ("blocks of rounds", False)
    assert found.judgement.low == pytest.approx(math.exp(math.log(1.05) - 0.03) - 1, abs=0.002)
    unknown = [dataclasses.replace(p, block_spread={}) for p in pairs]
    assert judged(unknown, "tpot:2%")["tpot_s"].judgement.reason == "a single figure a side: there is no interval"


# which prompts are in it


def test_only_comparable_prompts_are_in_it_and_the_others_are_counted(suites, make_row):
    pairs = suites.rounds(decode=1.05)
    other = dataclasses.replace(pairs[0], after=suites.row(NAMES[0], decode=9.0, output_sha256="e" * 64))
    without = dataclasses.replace(pairs[1], after=suites.row(NAMES[1]))
    without.after.metrics.pop("tpot_s")
    found = judged([other, without, *pairs[2:]], "tpot:2%")["tpot_s"]
    assert (found.prompts, found.of, found.left_out) == (7, 9, {"incomparable": 1, "missing": 1})
    assert found.judgement.mid == pytest.approx(0.05, abs=0.002)


def test_prompts_whose_rounds_were_disturbed_are_not_in_it(suites):
    pairs = [dataclasses.replace(p, paired=False, block_spread={"tpot_s": 0.001}) for p in suites.rounds(decode=1.05)]
    busy = dataclasses.replace(pairs[0].after, disturbed=(0, 1, 2, 3, 4, 5), timed=6)
    pairs[0] = dataclasses.replace(pairs[0], after=busy)
    found = judged(pairs, "tpot:2%")["tpot_s"]
    assert (found.prompts, found.of, found.left_out) == (8, 9, {"disturbed": 1})
    calm = judged([dataclasses.replace(p, paired=True, block_spread=None) for p in suites.rounds(decode=1.05)])
    assert calm["tpot_s"].left_out == {}


def test_what_fails_its_own_rule_in_spite_of_disturbed_rounds_is_in_it(suites):
    pairs = suites.rounds(decode=1.015)
    one, waited = pairs[0], suites.row(NAMES[0], run_queue_wait_s=[0.4] * 6, cpu_s=[1.0] * 6)
    names = ("run_queue_wait_s", "cpu_s")
    metrics = {**one.before.metrics, **{name: waited.metrics[name] for name in names}}
    before = dataclasses.replace(one.before, metrics=metrics, disturbed=(0, 1, 2, 3, 4, 5), timed=6)
    after = dataclasses.replace(one.after, disturbed=(), timed=6)
    pairs[0] = dataclasses.replace(one, before=before, after=after)
    gated = gate.judge(pairs, rules.parse(["tpot:1%"]))
    assert {j.verdict for j in gated.judgements} == {Verdict.REGRESSED}
    (found,) = gated.suite
    assert (found.prompts, found.of, found.left_out) == (9, 9, {})


def test_what_is_not_the_codes_is_no_figure_of_the_suite(make_row):
    pairs = [
        RowPair(before=make_row(name, steal_s=[1.0] * 3, mbu=[0.2] * 3), after=make_row(name, steal_s=[9.0] * 3))
        for name in NAMES[:3]
    ]
    wanted = comparison.all_metrics([by_key("steal_s"), by_key("mbu")])
    assert suite.changes(pairs, comparison.judge(pairs, lambda _row: wanted)) == ()


def test_a_suite_of_one_prompt_is_that_prompt(suites):
    assert judged(suites.rounds(names=NAMES[:1])) == {}


def test_exact_rules_bounds_and_text_have_no_mean(suites):
    assert judged(suites.rounds(), "output:exact", "tpot<=9", "peak_rss:exact") == {}


def test_the_strictest_of_several_rules_is_the_suites(suites):
    found = judged(suites.rounds(), "tpot:5%", "tpot[s*]:2%")["tpot_s"]
    assert (found.of, found.judgement.threshold, found.judgement.rule) == (9, 0.02, "tpot[s*]:2%")


def test_more_of_a_rate_is_better(suites):
    found = judged(suites.rounds(decode=1.05), "decode_throughput:2%")["decode_throughput"].judgement
    assert found.verdict is Verdict.REGRESSED
    assert found.mid == pytest.approx(1 / 1.05 - 1, abs=0.002)


def test_figures_without_noise(suites):
    pairs = suites.rounds(names=NAMES[:2])
    for pair, value in zip(pairs, (1000, 1000), strict=True):
        figure = type(pair.before.metrics["tpot_s"])
        pair.before.metrics["kv_cache_bytes"] = figure(value=value)
        pair.after.metrics["kv_cache_bytes"] = figure(value=value * 2)
    found = judged(pairs, "kv_cache:1%")["kv_cache_bytes"].judgement
    assert (found.low, found.mid, found.high) == pytest.approx((1, 1, 1))
    assert found.verdict is Verdict.REGRESSED


# it changes nothing else


def test_the_gate_ends_as_its_prompts_do(suites):
    """A suite that is slower beyond doubt, of prompts none of which is: the gate stays inconclusive."""
    pairs = suites.rounds(decode=1.03, spread=0.04)
    gated = gate.judge(pairs, rules.parse(["tpot:1%"]))
    assert {j.verdict for j in gated.judgements} == {Verdict.INCONCLUSIVE}
    assert gated.suite[0].judgement.verdict is Verdict.REGRESSED
    assert gated.exit is Exit.INCONCLUSIVE


def test_the_prompts_judgements_are_those_without_a_suite(suites):
    pairs = suites.turns(decode=1.02)
    wanted = [Wanted(metric=TPOT, threshold=0.01, rule="tpot:1%")]
    assert list(gate.judge(pairs, rules.parse(["tpot:1%"])).judgements) == comparison.judge(pairs, lambda _: wanted)


def test_suites_judgements_are_corrected_for_their_own_number(suites):
    found = judged(suites.rounds(spread=0.02), "tpot:1%", "ttft:1%", "peak_rss:1%")
    smallest = min(found.values(), key=lambda change: change.judgement.p)
    assert smallest.judgement.p_adjusted == pytest.approx(min(1, 3 * smallest.judgement.p))
