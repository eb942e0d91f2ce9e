"""The headline: which phase of which prompts moved, what cannot be told, or that nothing changed."""

import dataclasses
import math
import re

import pytest
from planted import NAMES, Suites

from pytest_infer.analysis.compare import comparison, gate, headline, rules, suite
from pytest_infer.analysis.compare.verdicts import Verdict
from pytest_infer.records import RoleTurns, Turns
from pytest_infer.report.compare.headline import in_words
from pytest_infer.storage.schema import Values

RULES = ("output:exact", "ttft:2%", "tpot:2%", "peak_rss:2%")
WAYS = ("turns", "rounds", "stored")


@pytest.fixture
def suites(make_row):
    return Suites(make_row)


def said(pairs, *lines, **more):
    gated = gate.judge(pairs, rules.parse(lines or RULES), **more)
    return in_words(gated.headline, gated.judgements)


def numbers(text):
    """Return the estimate and the interval of a headline's only change."""
    ((mid, low, high),) = re.findall(r"([\d.]+) % (?:slower|faster|higher|lower) \[([−\d.]+), ([\d.]+)\]", text)
    return tuple(float(x.replace("−", "-")) for x in (mid, low, high))


# planted in one phase, in one prompt


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(("factor", "word"), [(1.05, "slower"), (0.95, "faster")])
def test_a_phase_that_alone_moved_is_named_with_all_prompts(suites, way, phase, factor, word):
    text = said(getattr(suites, way)(**{phase: factor}))
    assert re.fullmatch(rf"{phase} [\d.]+ % {word} \[[\d.]+, [\d.]+\], all 9 prompts", text), text
    mid, low, high = numbers(text)
    assert low <= 5.0 <= high
    assert low <= mid <= high


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_prompt_that_alone_moved_is_named_with_its_phase(suites, way, phase):
    text = said(getattr(suites, way)(**{phase: 1.05, "of": ("story",)}))
    assert re.fullmatch(rf"{phase} of story [\d.]+ % slower \[[\d.]+, [\d.]+\]; the other 8 prompts unchanged", text), (
        text
    )
    mid, low, high = numbers(text)
    assert low <= mid <= high
    assert mid == pytest.approx(5, abs=1.5)


@pytest.mark.parametrize("way", WAYS)
def test_both_phases_are_named_if_both_moved(suites, way):
    text = said(getattr(suites, way)(prefill=1.08, decode=1.05))
    assert re.fullmatch(r"prefill .*slower.*, all 9 prompts; decode .* slower .*, all 9 prompts", text), text


def test_the_largest_change_is_told_first_and_worse_before_better(suites):
    assert said(suites.turns(prefill=1.04, decode=1.2)).startswith("decode ")
    assert said(suites.turns(prefill=1.2, decode=1.04)).startswith("prefill ")
    assert said(suites.turns(prefill=0.7, decode=1.04)).startswith("decode ")


@pytest.mark.parametrize("way", WAYS)
def test_where_nothing_moved_the_widest_interval_is_told(suites, way):
    pairs = getattr(suites, way)()
    gated = gate.judge(pairs, rules.parse(RULES))
    timed = [j for j in gated.judgements if j.metric_key in ("ttft_s", "tpot_s")]
    widest = max(abs(end) for j in timed for end in (j.low, j.high))
    text = in_words(gated.headline, gated.judgements)
    found = re.fullmatch(r"no change beyond ([\d.]+) %", text)
    assert found, text
    assert widest <= float(found[1]) / 100 < widest + 0.001


@pytest.mark.parametrize("way", ["turns", "rounds"])
def test_some_prompts_are_named_and_the_rest_counted(suites, way):
    text = said(getattr(suites, way)(decode=1.06, of=NAMES[:5]))
    assert re.fullmatch(
        r"decode of story, chat, code and 2 more [\d.]+ % slower \[.*\]; the other 4 prompts unchanged", text
    ), text


def test_a_large_change_of_some_is_not_told_as_one_of_all_though_the_others_moved_a_little(suites):
    still = {"launch": 0.0005, "within": 0.0002}
    loud = suites.turns(decode=1.06, names=NAMES[:5], **still)
    quiet = suites.turns(decode=1.005, names=NAMES[5:], **still)
    text = said([*loud, *quiet], "tpot:2%")
    assert re.fullmatch(r"decode of story, chat, code and 2 more .* slower .*; the other 4 prompts unchanged", text), (
        text
    )


def test_tests_with_one_prompt_are_named_by_what_tells_them_apart(suites, make_row):
    def named(*tests):
        pairs = suites.rounds(decode=1.06, of=NAMES[:1], names=NAMES[: len(tests)])
        return said([renamed(pair, test) for pair, test in zip(pairs, tests, strict=True)], "tpot:2%")

    def renamed(pair, test):
        before, after = (dataclasses.replace(row, test=test, name="a") for row in (pair.before, pair.after))
        return dataclasses.replace(pair, before=before, after=after)

    one, other = (f"bench/a_folder_with_a_long_name/{file}.py::t[a]" for file in ("one", "two"))
    assert named("t.py::t[a-threads=1]", "t.py::t[a-threads=2]").startswith("decode of a-threads=1 ")
    assert named(one, other).startswith("decode of …th_a_long_name/one.py::t[a] ")


def test_prompts_that_moved_in_either_direction_are_both_named(suites):
    pairs = suites.rounds(decode=1.06, of=("story",), names=NAMES[:1]) + suites.rounds(
        decode=0.9, of=("chat",), names=NAMES[1:]
    )
    text = said(pairs, "tpot:2%")
    assert re.fullmatch(
        r"decode of story [\d.]+ % slower \[.*\], of chat [\d.]+ % faster \[.*\]; the other 7 prompts unchanged", text
    ), text


def test_a_single_prompt_needs_no_name(suites):
    text = said(suites.rounds(decode=1.06, names=("story",)), "tpot:2%")
    assert re.fullmatch(r"decode [\d.]+ % slower \[[\d.]+, [\d.]+\]", text), text


# what only the suite shows


def test_a_change_that_no_prompt_shows_for_itself(suites):
    pairs = suites.rounds(decode=1.03, spread=0.04)
    gated = gate.judge(pairs, rules.parse(["tpot:1%"]))
    assert {j.verdict for j in gated.judgements} == {Verdict.INCONCLUSIVE}
    text = in_words(gated.headline, gated.judgements)
    assert re.fullmatch(r"decode [\d.]+ % slower \[[\d.]+, [\d.]+\], all 9 prompts", text), text


def test_prompts_that_show_it_speak_for_the_others_where_these_show_it_together(suites):
    """Five that are slower beyond doubt, and four that are so together: it is one change of all."""
    loud, quiet = suites.rounds(decode=1.05, names=NAMES[:5]), suites.rounds(decode=1.05, names=NAMES[5:], spread=0.06)
    gated = gate.judge([*loud, *quiet], rules.parse(["tpot:1%"]))
    assert {j.verdict for j in gated.judgements[5:]} == {Verdict.INCONCLUSIVE}
    assert in_words(gated.headline, gated.judgements).endswith("all 9 prompts")


def in_launches(pairs, *means):
    """Give each pair launches whose steps changed by so much on average, and scatter by a hundredth."""
    apart = (-0.012, -0.008, -0.004, 0.0, 0.0, 0.004, 0.008, 0.012)
    for pair, mean in zip(pairs, means, strict=True):
        turns = Turns(every=1, cycles=1, seconds=1.0, ratios={"step": tuple((mean + one,) for one in apart)})
        yield dataclasses.replace(pair, turns=turns)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (0.037, "all 2 prompts"),  # reaches beyond the threshold, and is slower beyond doubt
        (0.015, "the other prompt unchanged"),  # is slower, too, but by less
        (0.005, "the other prompt unchanged"),
        (-0.04, "of chat"),  # is faster
    ],
)
def test_a_single_other_prompt_speaks_for_itself(suites, other, told):
    pairs = list(in_launches(suites.rounds(names=NAMES[:2]), 0.052, other))
    gated = gate.judge(pairs, rules.parse(["tpot:4%"]))
    assert gated.judgements[0].verdict is Verdict.REGRESSED
    assert gated.judgements[1].verdict is not Verdict.REGRESSED
    assert told in in_words(gated.headline, gated.judgements)


@pytest.mark.parametrize(("less", "told"), [(0.0, "all 2 prompts"), (0.045, "decode of story")])
def test_a_single_other_prompt_of_whole_rounds_is_corrected_for_itself_alone(suites, less, told):
    shifts = (0.08, 0.07, 0.06, 0.09, 0.05, 0.1, 0.03, 0.04, 0.055, 0.065, 0.02, -0.045, -0.035, 0.01)
    (story,) = suites.rounds(decode=1.05, names=NAMES[:1])
    before, after = suites.row("chat"), suites.row("chat")
    took = zip(before.metrics["tpot_s"].rounds, shifts, strict=True)
    after.metrics["tpot_s"] = Values(value=0.05, rounds=tuple(a * math.exp(one - less) for a, one in took))
    chat = dataclasses.replace(story, before=before, after=after)
    # Among the figures that did not change it shows nothing.
    gated = gate.judge([story, chat], rules.parse(["tpot:1%", "ttft:1%"]))
    assert gated.judgements[2].verdict is Verdict.INCONCLUSIVE
    assert told in in_words(gated.headline, gated.judgements)


def test_within_the_rule_launches_can_tell_what_one_pair_of_processes_cannot(suites):
    """A suite that differs by 1 % is no finding of one pair of processes: two of equal code differ by that."""
    text = said(suites.turns(decode=1.01, launch=0.001, within=0.0005), "tpot:3%")
    assert re.fullmatch(r"decode [\d.]+ % slower \[.*\], all 9 prompts \(within the 3 % allowed\)", text), text
    assert said(suites.rounds(decode=1.01), "tpot:3%").startswith("no change beyond 1")
    stored = suites.stored(decode=1.01, apart=0.0005)
    assert said(stored, "tpot:3%").startswith("no change beyond 1")
    assert re.match(r"decode [\d.]+ % slower", said(stored, "tpot:0.3%"))


def test_an_estimate_alone_moves_nothing(suites):
    text = said(suites.rounds(decode=1.02, spread=0.1, names=NAMES[:3]), "tpot:1%")
    assert text.startswith("cannot tell below ")


# what cannot be told


def test_the_largest_suspect(suites):
    pairs = suites.rounds(names=NAMES[1:]) + suites.rounds(names=("story",), spread=0.05)
    gated = gate.judge(pairs, rules.parse(["tpot:2%", "ttft:30%"]))
    (open_,) = (j for j in gated.judgements if j.verdict is Verdict.INCONCLUSIVE)
    text = in_words(gated.headline, gated.judgements)
    found = re.fullmatch(r"cannot tell below ([\d.]+) %: largest suspect decode of story \[(\S+), \+(\S+)\]", text)
    assert found, text
    assert float(found[1]) >= 100 * open_.high > float(found[1]) - 0.1
    assert float(found[3]) == pytest.approx(100 * open_.high, abs=0.051)


def test_a_suspect_of_a_rate_has_the_sign_of_slower(suites):
    text = said(suites.rounds(names=("story",), spread=0.05), "decode_throughput:1%")
    assert re.search(r"suspect decode of story \[.*, \+[\d.]+\]", text), text


def test_too_few_pairs_for_any_interval(suites):
    pairs = [
        dataclasses.replace(p, before=short(p.before), after=short(p.after)) for p in suites.rounds(names=("story",))
    ]
    assert said(pairs, "tpot:2%") == "cannot tell decode: more pairs of rounds are needed (--infer-max-rounds)"


def short(row):
    figures = {key: type(f)(value=f.value, rounds=f.rounds[:3]) for key, f in row.metrics.items()}
    return dataclasses.replace(row, metrics={**row.metrics, "tpot_s": figures["tpot_s"]})


def test_beside_what_moved_it_is_said_what_cannot_be_told(suites):
    pairs = suites.rounds(decode=1.06, spread=0.004)
    noisy = [dataclasses.replace(p, after=dataclasses.replace(p.after, metrics=wild(suites, p.after))) for p in pairs]
    text = said(noisy, "tpot:2%", "ttft:2%")
    assert re.fullmatch(r"decode .* slower .*, all 9 prompts; cannot tell prefill below [\d.]+ %", text), text


def wild(suites, row):
    return {**row.metrics, "ttft_s": suites.row("x", spread=0.1).metrics["ttft_s"]}


# memory, output, bounds, tests


def test_memory(suites):
    pairs = [dataclasses.replace(p, after=suites.row(p.after.name, peak=3.1e8)) for p in suites.rounds()]
    assert re.fullmatch(r"peak RSS 3\.\d % higher \[3\.\d, 3\.\d\], all 9 prompts", said(pairs)), said(pairs)


def test_output_that_differs(suites):
    pairs = suites.rounds()
    other = [
        dataclasses.replace(p, after=suites.row(p.after.name, output_sha256="e" * 64)) if n < 2 else p
        for n, p in enumerate(pairs)
    ]
    assert said(other) == "output differs in 2 of 9 prompts"
    slow = [dataclasses.replace(p, after=suites.row(p.after.name, decode=1.1)) for p in other[2:]]
    text = said([*other[:2], *slow])
    assert re.fullmatch(
        r"decode .* slower \[.*\], 7 of 9 prompts: 2 incomparable; output differs in 2 of 9 prompts", text
    ), text
    without = said([*other[:2], *pairs[2:]], "tpot:2%")
    assert re.fullmatch(r"no change beyond [\d.]+ %, 7 of 9 prompts: 2 incomparable", without), without


def test_where_no_prompt_is_comparable_it_is_said_why(suites):
    pairs = [dataclasses.replace(p, after=suites.row(p.after.name, output_sha256="e" * 64)) for p in suites.rounds()]
    assert said(pairs, "tpot:2%").startswith("nothing to compare: differ: output ")


def test_bounds_and_missing_tests(suites):
    pairs = suites.rounds(names=NAMES[:3])
    assert said(pairs, "decode_throughput>=30") == "decode_throughput>=30 does not hold in 3 of 3 prompts"
    assert said(pairs, "decode_throughput>=3") == "nothing got worse"
    text = said(pairs, "tpot:2%", missing=["t::gone"])
    assert text == "1 test missing"
    unfit = {
        "t::one": "failed in this run",
        "t::two": "not measured in this run",
        pairs[0].after.test: "cannot be judged",
    }
    assert said(pairs[1:], "tpot:2%", missing=["t::gone"], unfit=unfit) == "2 tests missing; 2 tests failed"
    assert said([], "tpot:2%") == ""


def test_more_of_any_other_figure_is_higher(suites):
    pairs = suites.rounds()
    for pair in pairs:
        figure = type(pair.before.metrics["tpot_s"])
        for row, value in ((pair.before, 2.0), (pair.after, 2.4)):
            rounds = tuple(value + n * 1e-3 for n in range(10))
            row.metrics["cpu_s"] = figure(value=value, rounds=rounds)
    assert re.fullmatch(r"CPU time 20 % higher( \[20, 20\])?, all 9 prompts", said(pairs, "cpu:2%")), said(
        pairs, "cpu:2%"
    )


def test_a_total_moves_because_a_part_of_it_does(suites):
    pairs = suites.rounds(decode=1.06)
    assert "total" not in said(pairs, "tpot:2%", "total:2%")
    assert re.fullmatch(r"total [\d.]+ % slower .*, all 9 prompts", said(pairs, "total:2%", "ttft:2%"))


@pytest.mark.parametrize("rule", ["itl_p50:2%", "decode:2%", "total_decode_throughput:2%"])
def test_any_figure_of_a_fact_tells_it(suites, rule):
    pairs = suites.turns(decode=1.06)
    metric = rules.parse([rule])[0].metric.key
    for pair in pairs:
        for row in (pair.before, pair.after):
            row.metrics[metric] = row.metrics["decode_throughput" if "throughput" in metric else "tpot_s"]
    assert re.fullmatch(r"decode [\d.]+ % slower .*, all 9 prompts", said(pairs, rule)), said(pairs, rule)


def test_long_names_are_cut_and_control_characters_shown(suites):
    name = "a long story about a rabbit and a \x1b[31mwatch"
    pairs = suites.rounds(decode=1.06, of=(name,), names=(name, *NAMES))
    assert said(pairs, "tpot:2%").startswith("decode of a long story about a rabbit… ")


# comparisons without rules


def compared(pairs, only=None):
    wanted = comparison.all_metrics(only)
    found = comparison.judge(pairs, lambda _: wanted)
    return in_words(headline.of(pairs, found, suite.changes(pairs, found)), found)


def test_a_comparison_is_about_prefill_decode_and_memory(suites):
    assert re.fullmatch(r"decode [\d.]+ % slower .*, all 9 prompts", compared(suites.rounds(decode=1.05)))


def test_other_times_that_got_worse_are_named(suites):
    pairs = suites.rounds()
    for pair in pairs:
        pair.before.metrics["itl_p99_s"] = pair.before.metrics["tpot_s"]
        pair.after.metrics["itl_p99_s"] = suites.row("x", decode=1.2).metrics["tpot_s"]
    text = compared(pairs)
    assert re.fullmatch(r"no change beyond [\d.]+ %; also worse: ITL p99", text), text


def test_a_tail_that_grew_as_all_steps_did_is_not_told_twice(suites):
    pairs = suites.rounds(decode=1.05)
    for pair in pairs:
        for row in (pair.before, pair.after):
            row.metrics["itl_p99_s"] = row.metrics["tpot_s"]
    assert re.fullmatch(r"decode [\d.]+ % slower .*, all 9 prompts", compared(pairs))


# where a step changed

MS = 1_000_000


def with_parts(pairs, more, tokeniser=0):
    """Return the pairs with steps of 10 ms taken apart in eight launches, of which experts, a head and a tokeniser took
    `more` nanoseconds, each its own."""

    def role(name, took):
        before = tuple(took + (n % 3) * 1000 for n in range(8))
        after = tuple(at + more.get(name, 0) + (n % 2) * 900 for n, at in enumerate(before))
        return RoleTurns(role=name, before_ns=before, after_ns=after)

    extra = (0.3 * MS, 0.3 * MS + tokeniser)
    parts = {
        "decode": (role("experts", 7 * MS), role("head", 3 * MS)),
        "tokenise": (
            RoleTurns(
                role="tokeniser",
                before_ns=tuple(round(extra[0]) + n * 500 for n in range(8)),
                after_ns=tuple(round(extra[1]) + (7 - n) * 500 for n in range(8)),
            ),
        ),
    }
    return [dataclasses.replace(pair, turns=dataclasses.replace(pair.turns, parts=parts)) for pair in pairs]


def test_the_role_that_carries_a_change_stands_behind_it(suites):
    text = said(with_parts(suites.turns(decode=1.05), {"experts": MS // 2}))
    assert re.fullmatch(r"decode .* slower \[.*\], all 9 prompts: experts \+50\d µs of \+50\d", text), text
    text = said(with_parts(suites.turns(decode=1.05, of=("story",)), {"head": MS // 2}))
    assert re.fullmatch(r"decode of story .* slower \[.*\]: head \+50\d µs of \+50\d; the other 8 .*", text), text


def test_all_parts_alike_is_said(suites):
    text = said(with_parts(suites.turns(decode=1.05), {"experts": 350_000, "head": 150_000}))
    assert text.endswith("all 9 prompts: every part alike, as another machine, clock rate or compiler flag does it"), (
        text
    )


def test_parts_that_did_not_change_as_the_figure_did_say_nothing(suites):
    assert said(with_parts(suites.turns(decode=1.05), {"experts": -MS // 2})).endswith("all 9 prompts")
    assert said(with_parts(suites.turns(decode=1.05), {})).endswith("all 9 prompts")


def test_a_tokeniser_that_became_slower_is_told_beside_the_steps(suites):
    text = said(with_parts(suites.turns(), {}, tokeniser=9 * MS))
    assert re.fullmatch(r"no change beyond [\d.]+ %; outside the steps: tokeniser \+9.00 ms a prompt", text), text
    assert "tokeniser" not in said(with_parts(suites.turns(), {}))


@pytest.mark.parametrize("names", [NAMES, NAMES[:1]])
def test_times_of_disturbed_rounds_are_told_as_such_whatever_else_is_known(suites, names):
    pairs = suites.stored(prefill=12.0, decode=12.0, names=names)
    busy = [dataclasses.replace(p, after=dataclasses.replace(p.after, disturbed=range(14), timed=14)) for p in pairs]
    told = "cannot tell prefill and decode: most rounds were disturbed"
    # Of memory too nothing can be told, and it has an interval.
    few = [dataclasses.replace(pair, history=pair.history[:2]) for pair in busy]
    assert said(busy) == said(few) == told


def test_of_single_rounds_the_times_are_named(make_row):
    """Memory cannot be told there either, and a line of all has no room in a terminal."""
    rows = [make_row("a", ttft_s=[0.1 * x], tpot_s=[0.01 * x], peak_rss_bytes=[3e8 * x]) for x in (1.0, 1.01)]
    pair = comparison.RowPair(before=rows[0], after=rows[1], history=())
    assert said([pair]).startswith("cannot tell prefill and decode: 0 comparable runs, and 5 tell the spread")


def test_one_disturbed_prompt_of_many_is_counted(suites):
    first, *others = suites.stored()
    busy = dataclasses.replace(first, after=dataclasses.replace(first.after, disturbed=range(14), timed=14))
    assert re.fullmatch(r"no change beyond [\d.]+ %, 8 of 9 prompts: 1 disturbed", said([busy, *others]))


@pytest.mark.parametrize(("factor", "told"), [(0.9998, False), (1.0002, False), (0.99, True), (1.005, True)])
def test_a_change_that_rounds_to_nothing_is_none_however_sure_it_is(suites, factor, told):
    text = said(suites.turns(prefill=factor, decode=1.05, launch=1e-5, within=1e-5))
    assert text.startswith("decode 5.0 % slower [5.0, 5.0], all 9 prompts")
    assert (re.search(r"; prefill [\d.]+ % .* \(within the 2 % allowed\)$", text) is not None) is told, text
    assert ("prefill" in text) is told
