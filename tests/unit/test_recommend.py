"""What a sweep recommends: worked out by hand on rows with known figures."""

import dataclasses
import math
import random

import msgspec
import pytest
from scipy import stats as reference

from pytest_infer.analysis.sweep import ratios
from pytest_infer.analysis.sweep.recommend import DECODE, PEAK, TOTAL_DECODE, TTFT, recommend
from pytest_infer.records import Drift
from pytest_infer.report.html import sweep as html
from pytest_infer.report.sweep import terminal as report
from pytest_infer.report.text import collected, console
from pytest_infer.storage.runs import Row
from pytest_infer.storage.schema import Model, Values


def row(config, *, prompt="chat", decode=(), ttft=(), peak=(), test=None, **more):
    config = {axis: str(value) for axis, value in config.items()}
    part = "-".join(f"{axis}={value}" for axis, value in config.items())
    figures = {DECODE: decode, TTFT: ttft, PEAK: [gib * 2**30 for gib in peak], **more}
    return Row(
        test=test or f"bench/t.py::t[{prompt}-{part}]",
        name=prompt,
        metrics={k: Values(value=sorted(v)[len(v) // 2], rounds=tuple(v)) for k, v in figures.items() if v},
        config=config,
    )


def test_nothing_to_compare_is_no_recommendation():
    assert recommend([]) is None
    assert recommend([row({"threads": 1}, decode=[10, 11])]) is None
    assert recommend([row({}, decode=[10, 11]), row({}, prompt="b", decode=[1, 2])]) is None
    # Lengths are what is asked for: two of them are one configuration.
    assert recommend([row({"prompt-tokens": n}, decode=[10, 11]) for n in (1, 2)]) is None


def test_models_of_tests_own_are_told_together():
    def of(model, threads, rate):
        made = row({"threads": threads}, prompt=model, decode=[rate, rate * 1.01, rate * 0.99])
        return dataclasses.replace(made, model=Model(name=model))

    def text(found):
        out = console(120, color=False)
        report.write(out, found)
        return collected(out)

    both = recommend([of("small", 1, 10), of("large", 1, 1), of("small", 2, 20), of("large", 2, 1.5)])
    assert both.models == ("large", "small")
    line = "of 2 models together (large, small): -k takes the tests of one"
    assert line in text(both)
    (item,) = html._items(both)
    assert line in item.text
    alone = recommend([of("small", 1, 10), of("small", 2, 20)])
    assert alone.models == ()
    assert "together" not in text(alone)


def test_the_best_of_each_and_how_they_compare():
    found = recommend(
        [
            row({"threads": 1}, decode=[10, 10.1, 9.9], ttft=[2.0, 2.01, 1.99], peak=[100, 100, 100]),
            row({"threads": 2}, decode=[20, 20.1, 19.9], ttft=[1.0, 1.01, 0.99], peak=[110, 110, 110]),
        ]
    )
    assert [(goal.metric, goal.best, goal.ties) for goal in found.goals] == [
        (DECODE, 1, ()),
        (TTFT, 1, ()),
        (PEAK, 0, ()),
    ]
    assert found.options == "--infer-threads 2"
    one, two = found.configurations
    assert one.figures[DECODE].ratio.value == 1
    assert two.figures[DECODE].value == pytest.approx((20 * 20.1 * 19.9) ** (1 / 3))
    assert two.figures[DECODE].ratio.value == pytest.approx(2, rel=1e-4)
    assert two.figures[DECODE].ratio.low < 2 < two.figures[DECODE].ratio.high
    assert two.figures[PEAK].ratio == ratios.Ratio(
        value=pytest.approx(1.1), low=pytest.approx(1.1, rel=1e-3), high=pytest.approx(1.1, rel=1e-3)
    )
    # Fewer bytes against more speed: neither beats the other.
    assert (one.pareto, two.pareto) == (True, True)
    assert found.left_out == ()
    msgspec.json.encode(msgspec.to_builtins(found))


def test_one_prompts_interval_is_welchs():
    before, after = [10.0, 11.0, 10.5, 9.8], [12.0, 13.1, 12.2, 12.4]
    logs = [[math.log(x) for x in side] for side in (after, before)]
    low, high = reference.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    ratio = ratios.ratio_of({("a",): tuple(before)}, {("a",): tuple(after)})
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(low), math.exp(high)))


def test_prompts_that_disagree_widen_the_interval():
    steady = (1.0, 1.001, 0.999)
    factors = (1.0, 1.2, 1.5)
    before = {(str(n),): steady for n in range(3)}
    after = {(str(n),): tuple(ratio * x for x in steady) for n, ratio in enumerate(factors)}
    found = ratios.ratio_of(before, after)
    logs = [math.log(ratio) for ratio in factors]
    low, high = reference.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(math.prod(factors) ** (1 / 3))
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)), rel=1e-3)
    assert not found.distinct


def test_drift_between_loads_is_an_error_with_a_degree_of_freedom_a_load():
    before, after = {("a",): (2.0, 2.0)}, {("a",): (3.0, 3.0)}
    drift = (1.1, 0.95, 1.02)
    ratio = ratios.ratio_of(before, after, drift)
    error = math.sqrt(sum(math.log(d) ** 2 for d in drift) / 3)
    low, high = reference.t.interval(0.95, 3, loc=math.log(1.5), scale=error)
    assert ratio.value == pytest.approx(1.5)
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(low), math.exp(high)))
    # A machine that stood still widens nothing.
    assert ratios.ratio_of(before, after, (1.0, 1.0)) == ratios.ratio_of(before, after)


def test_drift_and_noise_add_as_variances_with_satterthwaites_degrees_of_freedom():
    before, after = [10.0, 11.0, 10.5, 9.8], [12.0, 13.1, 12.2, 12.4]
    logs = [[math.log(x) for x in side] for side in (after, before)]
    welch = reference.ttest_ind(*logs, equal_var=False)
    noise = ((sum(logs[0]) - sum(logs[1])) / 4 / welch.statistic) ** 2
    drifted = (math.log(1.05) ** 2 + math.log(0.97) ** 2) / 2
    df = (noise + drifted) ** 2 / (noise**2 / welch.df + drifted**2 / 2)
    half = reference.t.ppf(0.975, df) * math.sqrt(noise + drifted)
    ratio = ratios.ratio_of({("a",): tuple(before)}, {("a",): tuple(after)}, (1.05, 0.97))
    assert math.log(ratio.high / ratio.low) / 2 == pytest.approx(half)


def drifting_sweep(rng, *, loads, prompts, memory, sd=0.05, noise=0.03):
    """Return each load's samples and what going back told, of equal configurations on a machine that drifts by `sd`.

    Drift is an Ornstein-Uhlenbeck process that forgets within `memory` tests; each load runs two configurations.
    """
    samples, told, drift = [], [], rng.gauss(0, sd)

    def rounds():
        nonlocal drift
        drift = math.exp(-1 / memory) * drift + rng.gauss(0, sd * math.sqrt(1 - math.exp(-2 / memory)))
        return tuple(math.exp(drift + rng.gauss(0, noise)) for _ in range(5))

    for _ in range(loads):
        own = {}
        for prompt in range(prompts):
            own[(str(prompt),)] = rounds()
            rounds()
        again = rounds()
        samples.append(own)
        told.append(math.exp(ratios.mean_log(again) - ratios.mean_log(own[("0",)])))
    return samples, told


@pytest.mark.parametrize("loads", [2, 4])
@pytest.mark.parametrize("memory", [1, 5, 20])
def test_intervals_between_loads_hold_the_truth_although_the_machine_drifts(loads, memory):
    rng = random.Random(4)
    runs, held, held_without = 200, 0, 0
    for _ in range(runs):
        (one, other, *_), told = drifting_sweep(rng, loads=loads, prompts=5, memory=memory)
        ratio, without = ratios.ratio_of(one, other, told), ratios.ratio_of(one, other)
        held += ratio.low <= 1 <= ratio.high
        held_without += without.low <= 1 <= without.high
    assert held / runs >= 0.95
    assert held_without / runs <= held / runs
    if memory > 1:
        assert held_without / runs <= 0.85


def test_only_configurations_of_different_loads_drift_and_memory_never():
    def of(threads, dtype, decode, **more):
        figures = [decode, decode * 1.001, decode * 0.999]
        return row({"threads": threads, "dtype": dtype}, decode=figures, peak=[100, 100], **more)

    drifts = [Drift(test="first", apart_s=60, ratios={DECODE: ratio, TTFT: 1 / ratio}) for ratio in (1.12, 0.9)]
    rows = [of(1, "float32", 10), of(2, "float32", 10.1), of(1, "bfloat16", 11), of(2, "bfloat16", 11.1)]
    still = recommend(rows)
    assert (still.loads, still.drift) == (2, {})
    assert [c.figures[DECODE].ratio.distinct for c in still.configurations] == [False, True, True, True]
    assert still.goals[0].ties == ()
    rows[1], rows[3] = (dataclasses.replace(r, drift=d) for r, d in zip((rows[1], rows[3]), drifts, strict=True))
    found = recommend(rows)
    assert found.drift == {DECODE: (1.12, 0.9), TTFT: (1 / 1.12, 1 / 0.9)}
    # float32 with 2 threads is of the first one's load; bfloat16's 10 % are less than the machine drifted.
    assert [c.figures[DECODE].ratio.distinct for c in found.configurations] == [False, True, False, False]
    assert found.goals[0].ties == (0, 1)
    assert [c.figures[PEAK].ratio.low for c in found.configurations] == pytest.approx([1, 1, 1, 1], rel=1e-3)


def test_a_batch_drifts_as_one_sequence_does():
    drift = Drift(test="first", apart_s=60, ratios={DECODE: 1.1})
    rows = [
        row({"batch": 4, "dtype": dtype}, decode=[6, 6.1], **{TOTAL_DECODE: [24, 24.4]})
        for dtype in ("float32", "bfloat16")
    ]
    assert recommend([rows[0], dataclasses.replace(rows[1], drift=drift)]).drift == {TOTAL_DECODE: (1.1,)}


NONE_WITHIN = "with fewer than 3 prompts no interval within a load holds drift"


@pytest.mark.parametrize(
    ("prompts", "ratios", "said"),
    [
        (
            3,
            (1.031, 0.98, 1.0),
            "drift: the first test of each load, again after its last: decode -2.0 % to +3.1 %; "
            "intervals between loads hold it",
        ),
        (
            3,
            (1.031, 1.031),
            "drift: the first test of 2 of 3 loads, again after its last: decode +3.1 %; "
            "intervals between loads hold it",
        ),
        (3, (), "drift between loads was not measured: no interval holds it"),
        (2, (), f"drift between loads was not measured: no interval holds it; {NONE_WITHIN}"),
    ],
)
def test_the_drift_is_told_where_there_were_several_loads(prompts, ratios, said):
    names = [f"p{number}" for number in range(prompts)]
    rows = [
        row({"dtype": dtype}, prompt=name, decode=[1, 1.1])
        for name in names
        for dtype in ("float32", "bfloat16", "float16")
    ]
    drifts = [Drift(test="first", apart_s=60, ratios={DECODE: ratio}) for ratio in ratios]
    rows[: len(drifts)] = [dataclasses.replace(r, drift=d) for r, d in zip(rows, drifts, strict=False)]
    assert report.drift(recommend(rows)) == said


@pytest.mark.parametrize(("prompts", "said"), [(2, NONE_WITHIN), (3, None)])
def test_within_one_load_it_takes_prompts_to_hold_drift(prompts, said):
    rows = [row({"threads": n}, prompt=str(p), decode=[1, 1.1]) for n in (1, 2) for p in range(prompts)]
    assert report.drift(recommend(rows)) == said


def test_a_best_is_best_over_the_prompts_that_it_shares_with_the_next_best():
    steady = (1.0, 1.001)
    rates = {("1", "short"): 10, ("1", "long"): 10, ("2", "short"): 20, ("2", "long"): 11, ("64", "short"): 19}
    rows = [row({"threads": n}, prompt=p, decode=[rate * s for s in steady]) for (n, p), rate in rates.items()]
    found = recommend(rows)
    # 64 threads failed on the long prompt: twice the first one's rate on the short one, less than 2 threads have there.
    assert [c.figures[DECODE].ratio.value for c in found.configurations] == pytest.approx([1, 2.2**0.5, 1.9])
    assert found.goals[0].best == 1


@pytest.mark.parametrize("told", [(), ("other",)])
def test_a_figure_that_the_first_configuration_lacks_is_no_goal(told):
    rows = [
        # The first ends at its first token, in all prompts or in the one that the other decodes in.
        row({"model": "a"}, ttft=[1.0, 1.01, 1.02]),
        row({"model": "b"}, ttft=[0.5, 0.51, 0.52], decode=[10, 11, 12]),
        *(row({"model": "a"}, prompt=prompt, ttft=[1.0, 1.01, 1.02], decode=[5, 6, 7]) for prompt in told),
        *(row({"model": "b"}, prompt=prompt, ttft=[0.5, 0.51, 0.52]) for prompt in told),
    ]
    found = recommend(rows)
    assert [(goal.metric, goal.best) for goal in found.goals] == [*([(DECODE, 0)] if told else []), (TTFT, 1)]
    assert [report.sentence(found, goal) for goal in found.goals][-1].startswith("best TTFT: model=b, ")


def test_a_few_mebibytes_of_peak_are_the_libraries_and_decide_nothing():
    def of(name, decode, mebibytes):
        return row({"dtype": name}, decode=[decode, decode * 1.2, decode * 0.8], peak=[mebibytes / 1024] * 3)

    found = recommend([of("float32", 10, 300), of("bfloat16", 10.5, 319), of("float16", 10.5, 400)])
    assert [c.pareto for c in found.configurations] == [True, True, False]
    assert found.goal(PEAK).ties == (1,)
    ratio = found.configurations[2].figures[PEAK].ratio
    assert (ratio.low, ratio.high) == pytest.approx((400 / 300 - 20 / 300, 400 / 300 + 20 / 300))


def test_a_single_round_has_a_ratio_and_no_interval():
    ratio = ratios.ratio_of({("a",): (1.0,)}, {("a",): (2.0,)})
    assert ratio == ratios.Ratio(value=2.0)
    assert not ratio.distinct


def test_what_cannot_be_told_apart_is_named():
    noisy = [10.0, 12.0, 8.0]
    found = recommend(
        [
            row({"threads": 1}, decode=noisy),
            row({"threads": 2}, decode=[10.1, 12.1, 8.1]),
            row({"threads": 4}, decode=[1, 1, 1.01]),
        ]
    )
    assert (found.goals[0].best, found.goals[0].ties) == (1, (0,))
    assert [c.pareto for c in found.configurations] == [True, True, False]


def test_what_cannot_be_told_from_the_first_is_not_recommended():
    noisy = [10.0, 12.0, 8.0]
    found = recommend([row({"threads": 1}, decode=noisy), row({"threads": 2}, decode=[n + 0.1 for n in noisy])])
    assert found.undecided
    assert report.advised(found) == "no difference found in decode: keep threads=1"
    clear = recommend([row({"threads": 1}, decode=[10, 10.1]), row({"threads": 2}, decode=[20, 20.1])])
    assert not clear.undecided
    assert report.advised(clear) == "use the best decode: --infer-threads 2"
    first = recommend([row({"threads": 2}, decode=[20, 20.1]), row({"threads": 1}, decode=[10, 10.1])])
    assert report.advised(first) == "use the best decode: --infer-threads 2"


def test_what_to_keep_is_said_although_the_other_would_need_no_option():
    on, off = ({"compile": value} for value in ("on", "off"))
    found = recommend([row(on, decode=[10.0, 12.0, 8.0]), row(off, decode=[10.1, 12.1, 8.1])])
    assert (found.options, report.advised(found)) == ("", "no difference found in decode: keep compile=on")
    clear = recommend([row(on, decode=[10, 10.1]), row(off, decode=[20, 20.1])])
    assert report.advised(clear) == "use the best decode: compile=off, which needs no option"


@pytest.mark.parametrize(
    ("figure", "title", "noun"),
    [("ttft", "best TTFT", "TTFT"), ("peak", "least memory", "memory")],
)
def test_what_is_advised_is_named_where_nothing_was_decoded(figure, title, noun):
    def of(threads, *rounds):
        return row({"threads": threads}, **{figure: rounds})

    found = recommend([of(1, 2.0, 2.01), of(2, 1.0, 1.01)])
    assert report.advised(found) == f"use the {title}: --infer-threads 2"
    noisy = recommend([of(1, 1.0, 1.2, 0.8), of(2, 0.99, 1.19, 0.79)])
    assert report.advised(noisy) == f"no difference found in {noun}: keep threads=1"


def test_what_is_behind_in_all_columns_has_no_star_although_nothing_is_distinct():
    noisy = (0.5, 1, 2)
    found = recommend(
        [
            row({"threads": n}, decode=[rate * k for k in noisy], ttft=[time * k for k in noisy], peak=[1, 1, 1])
            for n, rate, time in ((1, 10, 1), (2, 9, 2), (4, 11, 3))
        ]
    )
    assert [c.pareto for c in found.configurations] == [True, True, True]
    worse = [row({"threads": n}, decode=[n * k for k in noisy], ttft=[k / n for k in noisy]) for n in (2, 1, 4)]
    assert [c.pareto for c in recommend(worse).configurations] == [False, False, True]


def test_dominated_by_one_that_is_better_in_all():
    found = recommend(
        [
            row({"dtype": "float32"}, decode=[10, 10.1], ttft=[2, 2.01], peak=[200, 200]),
            row({"dtype": "bfloat16"}, decode=[20, 20.1], ttft=[1, 1.01], peak=[100, 100]),
            row({"dtype": "float16"}, decode=[5, 5.1], ttft=[3, 3.01], peak=[90, 90]),
        ]
    )
    assert [c.pareto for c in found.configurations] == [False, True, True]


def test_the_fastest_is_not_beaten_by_what_is_merely_not_distinct_and_smaller():
    noisy = (0.5, 1, 2)
    found = recommend(
        [
            row({"dtype": "float32"}, decode=[10 * n for n in noisy], ttft=[2 * n for n in noisy], peak=[1, 1, 1]),
            row({"dtype": "bfloat16"}, decode=[20 * n for n in noisy], ttft=[1 * n for n in noisy], peak=[2, 2, 2]),
            row({"dtype": "float16"}, decode=[15 * n for n in noisy], ttft=[1.5 * n for n in noisy], peak=[3, 3, 3]),
        ]
    )
    assert [goal.ties for goal in found.goals] == [(0, 2), (0, 2), ()]
    # float16 takes distinctly more memory than bfloat16 and is behind in all.
    assert [c.pareto for c in found.configurations] == [True, True, False]


def test_a_batch_is_judged_by_the_rate_of_all_its_sequences():
    rows = [
        row({"batch": 1}, decode=[10, 10.1]),
        row({"batch": 4}, decode=[6, 6.1], **{TOTAL_DECODE: [24, 24.4]}),
    ]
    found = recommend(rows)
    assert found.goals[0].metric == TOTAL_DECODE
    assert found.goals[0].best == 1
    assert found.configurations[0].figures[TOTAL_DECODE].value == pytest.approx(math.sqrt(10 * 10.1))


def test_only_the_same_work_is_compared():
    rows = [
        row({"threads": 1, "prompt-tokens": 16}, ttft=[1, 1.01]),
        row({"threads": 1, "prompt-tokens": 64}, ttft=[4, 4.01]),
        row({"threads": 2, "prompt-tokens": 64}, ttft=[2, 2.01]),
    ]
    found = recommend(rows)
    assert found.configurations[1].figures[TTFT].ratio.value == pytest.approx(0.5, rel=0.01)
    assert found.configurations[1].workloads == 1
    assert found.options == "--infer-threads 2"


def test_a_prompt_that_failed_in_one_configuration_counts_in_neither():
    rows = [
        row({"threads": 1}, prompt="a", decode=[10, 10.1]),
        row({"threads": 1}, prompt="b", decode=[100, 100.1]),
        row({"threads": 2}, prompt="a", decode=[20, 20.2]),
    ]
    second = recommend(rows).configurations[1]
    assert second.figures[DECODE].ratio.value == pytest.approx(2)
    assert second.workloads == 1


def test_a_configuration_without_a_common_prompt_is_left_out_by_name():
    rows = [
        row({"threads": 1}, prompt="a", decode=[10, 10.1]),
        row({"threads": 2}, prompt="a", decode=[11, 11.1]),
        row({"threads": 3}, prompt="b", decode=[99, 99.1]),
    ]
    found = recommend(rows)
    assert [c.label for c in found.configurations] == ["threads=1", "threads=2"]
    assert found.left_out == ("threads=3",)


def test_the_same_prompt_in_two_tests_is_two_workloads():
    rows = [
        row({"threads": n}, test=f"t.py::{t}[chat-threads={n}]", decode=[n * 10, n * 10.1])
        for n in (1, 2)
        for t in ("x", "y")
    ]
    assert recommend(rows).configurations[1].workloads == 2


@pytest.mark.parametrize("prompts", [1, 2, 5])
def test_the_interval_holds_the_truth_as_often_as_it_says(prompts):
    """Five rounds a prompt with the noise of a quiet machine: 95 % intervals, give or take what 2000 runs tell."""
    noise, held, runs = random.Random(7), 0, 2000
    for _ in range(runs):
        sides = [
            {(str(n),): tuple(scale * noise.lognormvariate(0, 0.02) for _ in range(5)) for n in range(prompts)}
            for scale in (1.0, 1.3)
        ]
        ratio = ratios.ratio_of(*sides)
        held += ratio.low <= 1.3 <= ratio.high
    assert 0.935 <= held / runs <= 0.985


# what the terminal shows


def shown(rows, width=80):
    out = console(width, color=False)
    report.write(out, recommend(rows))
    return collected(out)


def test_a_terminal_shows_every_configuration_the_best_and_how_to_use_it():
    rows = [
        row({"threads": n, "dtype": d}, decode=[rate, rate * 1.01], ttft=[1 / rate, 1.01 / rate], peak=[1, 1])
        for n, d, rate in ((1, "float32", 10), (2, "float32", 14), (1, "bfloat16", 13), (2, "bfloat16", 20))
    ]
    text = " ".join(shown(rows).split())
    assert "threads=2 dtype=bfloat16 *" in text
    assert "best decode: threads=2 dtype=bfloat16, 20.1 tok/s, 2.00× [1.94, 2.06] as fast as threads=1" in text
    assert "best TTFT: threads=2 dtype=bfloat16, 50.2 ms, 2.00× [1.94, 2.06] as fast as threads=1" in text
    # All take the same memory: the first of them, and no other is distinct from it.
    assert "least memory: threads=1 dtype=float32, 1.00 GiB; not distinct from threads=2 dtype=float32," in text
    assert "use the best decode: --infer-threads 2 --infer-dtype bfloat16" in text
    assert "[1.94, 2.06]" not in shown(rows).partition("geometric")[0]
    assert "2.00 [1.94, 2.06]" in shown(rows, width=160).partition("geometric")[0]


def test_a_ratio_without_noise_stands_alone():
    # Equal in all rounds of a side.
    exact = ratios.ratio_of({("p",): (2.0, 2.0)}, {("p",): (3.0, 3.0)})
    assert (report.interval(exact), report.interval(exact, invert=True)) == ("1.50×", "0.667×")


def test_of_many_that_cannot_be_told_apart_two_are_named():
    rows = [row({"threads": n}, decode=[10, 12, 8]) for n in range(1, 6)]
    found = recommend(rows)
    assert report.sentence(found, found.goals[0]).endswith("; not distinct from threads=2, threads=3, 2 others")


def test_a_configuration_is_as_fast_as_itself_without_an_interval():
    rows = [row({"threads": n}, decode=[10 * n, 10.1 * n]) for n in (1, 2)]
    first, second = (line for line in shown(rows, width=160).splitlines() if line.startswith("threads"))
    assert "[" not in first
    assert "[" in second


def test_a_configurations_name_cannot_write_to_the_terminal():
    rows = [row({"model": m}, decode=[10, 11]) for m in ("\x1b[31mred", "\u202emirrored")]
    text = shown(rows)
    assert "\x1b" not in text
    assert "\u202e" not in text
