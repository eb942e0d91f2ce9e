"""Comparisons and gates that know how far predictions are apart: verdicts, words, and what stays incomparable."""

import json
from dataclasses import replace

import msgspec
import pytest
import scored
from typer.testing import CliRunner

from pytest_infer.analysis.compare import gate, headline, rules
from pytest_infer.analysis.compare.comparison import RowPair, all_metrics, judge
from pytest_infer.analysis.compare.verdicts import Exit, Verdict
from pytest_infer.analysis.fidelity import measured, stored
from pytest_infer.analysis.fidelity.measured import Told
from pytest_infer.cli.main import app
from pytest_infer.records import Quality, TextScore
from pytest_infer.report.compare import headline as headlines
from pytest_infer.storage import block, runs, sidecar
from pytest_infer.storage.runs import row_of
from pytest_infer.storage.schema import StoredLimits, StoredReference, Values

LOGITS = scored.logits()
TEST = "bench/t.py::t[guide]"
ROUNDING, FAULT, OTHER = 1e-7, 0.01, 2.0
SHORTER = {"limits": StoredLimits(max_new_tokens=16)}


def rows(by, *, forced, timed=True, kl=None, logits=LOGITS):
    """Return both sides' rows: the candidate's logits are so many nats off."""
    base = scored.record(logits, test=TEST)
    moved = scored.around(logits, by)
    followed = {"reference": logits, "free": scored.greedy(moved), "timed": timed, "kl": kl} if forced else {}
    ours = scored.record(moved, test=TEST, **followed)
    return tuple(row_of(TEST, TEST, block.build(one)) for one in (base, ours))


def judged(pair, *lines):
    found = gate.judge([pair], rules.parse(lines))
    return {j.rule: j for j in found.judgements}, found


def near_tie():
    """Return logits of which rounding changes the likeliest token at position 7."""
    logits = LOGITS.copy()
    first, second = logits[0, 7].argsort()[::-1][:2]
    logits[0, 7, second] = logits[0, 7, first] - 1e-9
    return logits


def test_forced_work_is_comparable_and_the_difference_has_its_own_line():
    before, after = rows(ROUNDING, forced=True, logits=near_tie())
    pair = RowPair(before=before, after=after)
    judgements = {j.metric_key: j for j in judge([pair], lambda _row: all_metrics())}
    assert before.metrics["output_sha256"] != after.metrics["output_sha256"]
    assert judgements["ttft_s"].verdict is not Verdict.INCOMPARABLE
    output = judgements["output_sha256"]
    assert output.verdict is None
    assert output.note.startswith("differs from token 8 (")
    assert output.note.endswith(": arithmetic")
    assert judgements["kl"].before is None
    assert judgements["kl"].verdict is None
    assert judgements["kl"].after < 1e-12
    said = headlines.in_words(headline.of([pair], list(judgements.values()), ()), judgements.values())
    assert "output differs from token 8 (" in said


def test_free_work_is_incomparable_whatever_the_scores_say():
    before, after = rows(OTHER, forced=False)
    found = {j.metric_key: j for j in judge([RowPair(before=before, after=after)], lambda _row: all_metrics())}
    assert found["ttft_s"].verdict is Verdict.INCOMPARABLE
    assert found["output_sha256"].verdict is Verdict.INCOMPARABLE
    assert found["output_sha256"].reason == "differs, and must not"


def test_forced_but_not_timed_is_other_work():
    before, after = rows(OTHER, forced=True, timed=False)
    found = {j.metric_key: j for j in judge([RowPair(before=before, after=after)], lambda _row: all_metrics())}
    assert found["ttft_s"].verdict is Verdict.INCOMPARABLE
    assert found["output_sha256"].note.endswith("another model")


@pytest.mark.parametrize(
    ("by", "rule", "verdict"),
    [
        (ROUNDING, "output:close", Verdict.UNCHANGED),
        (FAULT, "output:close", Verdict.REGRESSED),
        (OTHER, "output:close", Verdict.REGRESSED),
        (OTHER, "output:exact", Verdict.REGRESSED),
        (ROUNDING, "kl<=1e-9", Verdict.UNCHANGED),
        (FAULT, "kl<=1e-9", Verdict.REGRESSED),
        (FAULT, "kl<=0.001", Verdict.UNCHANGED),
        (OTHER, "kl_p99<=0.001 nats", Verdict.REGRESSED),
        (ROUNDING, "top1>=99%", Verdict.UNCHANGED),
        (OTHER, "top1>=99%", Verdict.REGRESSED),
        (FAULT, "logprob_rms<=0.02", Verdict.UNCHANGED),
        (ROUNDING, "nll:0.1%", Verdict.UNCHANGED),
        (OTHER, "nll:0.1%", Verdict.REGRESSED),
        (OTHER, "first_divergence>=20", Verdict.REGRESSED),
        (ROUNDING, "first_divergence>=20", Verdict.UNCHANGED),
    ],
)
def test_rules(by, rule, verdict):
    before, after = rows(by, forced=True)
    found, gated = judged(RowPair(before=before, after=after), rule)
    assert found[rule].verdict is verdict
    assert gated.exit is (Exit.REGRESSED if verdict is Verdict.REGRESSED else Exit.PASSED)


def apart(**changes):
    """Return both sides' rows, forced, whose distance is this."""
    before, after = rows(ROUNDING, forced=True)
    return RowPair(before=before, after=stored.with_figures(after, replace(after.fidelity, **changes)))


@pytest.mark.parametrize(
    ("found", "rule", "verdict"),
    [
        # A lower bound found at least 0.4 of KL wherever both were known.
        ({"kl_mean": 3.9e-4, "exact": False}, "kl<=0.001", Verdict.UNCHANGED),
        ({"kl_mean": 4.1e-4, "exact": False}, "kl<=0.001", Verdict.INCONCLUSIVE),
        ({"kl_mean": 1.1e-3, "exact": False}, "kl<=0.001", Verdict.REGRESSED),
        ({"kl_mean": 9.9e-4, "exact": True}, "kl<=0.001", Verdict.UNCHANGED),
        # What that of a percentile found was never measured.
        ({"kl_p99": 1e-4, "exact": False}, "kl_p99<=0.001", Verdict.INCONCLUSIVE),
        ({"kl_p99": 2e-3, "exact": False}, "kl_p99<=0.001", Verdict.REGRESSED),
        ({"kl_p99": 0.0, "exact": False}, "kl_p99<=0.001", Verdict.UNCHANGED),
        ({"kl_mean": 8e-4, "exact": False}, "kl>=0.001", Verdict.INCONCLUSIVE),
        ({"kl_mean": 3.9e-10, "exact": False}, "output:close", Verdict.UNCHANGED),
        ({"kl_mean": 8e-10, "exact": False}, "output:close", Verdict.INCONCLUSIVE),
        ({"kl_mean": 1.1e-9, "exact": False}, "output:close", Verdict.REGRESSED),
        ({"kl_mean": 8e-10, "exact": True}, "output:close", Verdict.UNCHANGED),
        # Identical outputs diverge nowhere, however short they are, if all of them was compared.
        ({"length": 17, "positions": 17, "of": 17, "split": None}, "first_divergence>=20", Verdict.UNCHANGED),
        ({"length": 17, "positions": 17, "of": 60, "split": None}, "first_divergence>=20", Verdict.INCONCLUSIVE),
        ({"length": 20, "positions": 20, "of": 60, "split": None}, "first_divergence>=20", Verdict.UNCHANGED),
    ],
)
def test_what_is_known_only_in_part_passes_where_that_tells(found, rule, verdict):
    judgements, _ = judged(apart(**found), rule)
    assert judgements[rule].verdict is verdict
    assert (judgements[rule].reason is None) == (verdict is Verdict.UNCHANGED)


def test_a_lower_bound_too_near_says_how_to_know_more():
    pair = apart(kl_mean=8e-10, exact=False)
    found, _ = judged(pair, "output:close", "kl<=1e-9")
    assert found["output:close"].reason.endswith("--infer-against tells it")
    assert found["output:close"].note.endswith("perhaps more than arithmetic")
    assert found["kl<=1e-9"].reason == "a lower bound, too near to <= 1e-09: --infer-against tells it exactly"
    assert not pair.alike
    assert apart(kl_mean=3e-10, exact=False).alike


def test_a_counter_that_is_a_lower_bound_passes_no_upper_one():
    before, after = rows(ROUNDING, forced=True)
    least = Values(value=2.0**30, quality=Quality.BOUND)
    pair = RowPair(before=before, after=replace(after, metrics=after.metrics | {"peak_rss_bytes": least}))
    found, _ = judged(pair, "peak_rss<=2GiB", "peak_rss<=0.5GiB", "peak_rss>=0.5GiB")
    assert [j.verdict for j in found.values()] == [Verdict.INCONCLUSIVE, Verdict.REGRESSED, Verdict.UNCHANGED]


def test_the_same_tokens_by_another_distribution_are_told():
    sure = LOGITS.copy()
    sure[0, range(sure.shape[1]), sure[0].argmax(axis=1)] += 20
    before, after = rows(FAULT, forced=True, logits=sure * 0.2)
    assert before.metrics["output_sha256"] == after.metrics["output_sha256"]
    found, gated = judged(RowPair(before=before, after=after), "output:exact", "output:close")
    assert found["output:exact"].verdict is Verdict.UNCHANGED
    assert found["output:exact"].note.startswith("has the same tokens, but KL ")
    assert found["output:close"].verdict is Verdict.REGRESSED
    assert "output has the same tokens, but" in headlines.in_words(gated.headline, gated.judgements)


@pytest.mark.parametrize(("long", "short"), [(30, 12), (12, 30), (30, 1)])
def test_an_output_that_only_ends_elsewhere_is_not_told_as_another(long, short):
    before, after = (ended(tokens) for tokens in (long, short))
    ours, theirs = (Told(scores=scored.record(LOGITS[:, :n]).profile.scores, pieces={}) for n in (long, short))
    found = measured.between(ours, theirs, "the other")
    pair = RowPair(before=before, after=replace(after, fidelity=found))
    told = f"has {short} token{'s' if short > 1 else ''}, not {long}, the same as far as both go: KL ≥ 0, top-1 100 %"
    assert pair.told == f"{told}: arithmetic"
    # What it was scored on is not what it generated: nothing tells how that begins.
    followed = StoredReference(name="1", tokens=short, sha256="another")
    assert RowPair(before=before, after=replace(pair.after, reference=followed)).told.startswith("differs: ")


def ended(tokens):
    """Return a row that generated so many tokens."""
    row = row_of(TEST, TEST, block.build(scored.record(LOGITS[:, :tokens], test=TEST)))
    return replace(row, metrics=row.metrics | {"generated_tokens": Values(value=tokens)})


def test_a_gate_without_a_rule_about_output_says_that_it_differs():
    before, after = rows(OTHER, forced=True)
    _, gated = judged(RowPair(before=before, after=after), "peak_rss:5%")
    assert gated.exit is Exit.PASSED
    assert "output differs from token" in headlines.in_words(gated.headline, gated.judgements)
    assert "another model" in headlines.in_words(gated.headline, gated.judgements)


def test_bounds_of_distances_need_something_to_compare_with():
    assert gate.needs_baseline(rules.parse(["kl<=0.001"]))
    assert not gate.needs_baseline(rules.parse(["perplexity<=12"]))


def distance(logits, by=ROUNDING):
    sides = [scored.record(one).profile.scores for one in (logits, scored.around(logits, by))]
    return measured.between(*(Told(scores=one, pieces={}) for one in sides), "the earlier run")


@pytest.mark.parametrize(
    ("asked", "fidelity", "verdict", "reason"),
    [
        ({}, distance(LOGITS), Verdict.REGRESSED, "differs, and must not"),
        (SHORTER, distance(LOGITS), Verdict.INCOMPARABLE, "differ: limits "),
        (SHORTER, None, Verdict.INCOMPARABLE, "differ: limits "),
        (SHORTER, distance(near_tie()), Verdict.REGRESSED, "differs, and must not"),
        ({"content_sha256": "e" * 64}, None, Verdict.INCOMPARABLE, "differ: prompt "),
        (SHORTER, distance(LOGITS, FAULT), Verdict.INCOMPARABLE, "differ: limits "),
    ],
    ids=["same work", "shorter", "not scored", "parted before the shorter ends", "edited", "shorter and far"],
)
def test_output_of_other_work_is_no_regression_unless_it_parts(asked, fidelity, verdict, reason):
    before, after = rows(ROUNDING, forced=False)
    output = {"output_sha256": Values(value="d" * 64)}
    prompt = msgspec.structs.replace(after.prompt, **asked)
    after = replace(after, prompt=prompt, metrics=after.metrics | output, fidelity=fidelity)
    found = judged(RowPair(before=before, after=after), "output:exact")[0]["output:exact"]
    assert found.verdict is verdict
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({}, Verdict.REGRESSED, None),
        ({"name": "copy.txt"}, Verdict.REGRESSED, None),
        ({"sha256": "b" * 64}, Verdict.INCOMPARABLE, "differ: text aaaaaaaa → bbbbbbbb"),
        ({"tokens": 8}, Verdict.INCOMPARABLE, "differ: text tokens 9 → 8"),
        ({"window": 256, "stride": 128}, Verdict.INCOMPARABLE, "differ: windows 512/256 → 256/128"),
    ],
)
def test_the_perplexity_of_another_text_is_incomparable(changes, verdict, reason):
    text = TextScore(name="a.txt", sha256="a" * 64, tokens=9, nll=2.0, window=512, stride=256)
    both = []
    for one in (text, replace(text, nll=2.5, **changes)):
        record = scored.record(LOGITS, test=TEST)
        made = block.build(replace(record, profile=replace(record.profile, text=one)))
        both.append(row_of(TEST, TEST, json.loads(json.dumps(made))))
    before, after = both
    found = judged(RowPair(before=before, after=after), "perplexity:1%")[0]["perplexity:1%"]
    assert (found.verdict, found.reason) == (verdict, reason)


def test_the_perplexity_is_judged_where_the_outputs_differ():
    before, after = (
        replace(row, metrics=row.metrics | {"perplexity": Values(value=value)})
        for row, value in zip(rows(OTHER, forced=False), (12.0, 13.0), strict=True)
    )
    found, _ = judged(RowPair(before=before, after=after), "perplexity:1%", "nll:1%", "ttft:1%")
    assert [found[rule].verdict for rule in ("perplexity:1%", "nll:1%", "ttft:1%")] == [
        Verdict.REGRESSED,
        Verdict.INCOMPARABLE,
        Verdict.INCOMPARABLE,
    ]


def test_unequal_hashes_without_scores_stay_what_they_were():
    before, after = rows(OTHER, forced=False)
    pair = RowPair(before=before, after=replace(after, fidelity=None), unscored="this run: switched off")
    found, _ = judged(pair, "output:exact", "output:close", "kl<=0.001", "ttft:5%")
    assert (found["output:exact"].verdict, found["output:exact"].reason) == (Verdict.REGRESSED, "differs, and must not")
    assert found["output:close"].verdict is Verdict.INCOMPARABLE
    assert found["output:close"].reason == "differs, and how far is not known: this run: switched off"
    assert (found["kl<=0.001"].verdict, found["kl<=0.001"].reason) == (Verdict.INCOMPARABLE, "this run: switched off")
    assert found["ttft:5%"].verdict is Verdict.INCOMPARABLE


def test_output_that_is_accepted_may_be_far():
    before, after = rows(OTHER, forced=True)
    found = gate.judge([RowPair(before=before, after=after)], rules.parse(["output:close"]), allowed=["output"])
    assert [j.verdict for j in found.judgements] == [None]


def test_a_dense_model_has_no_experts_that_could_change():
    before, after = rows(ROUNDING, forced=True)
    found, gated = judged(RowPair(before=before, after=after), "experts_changed<=1%", "gate_shift<=0.1")
    assert gated.exit is Exit.NOTHING
    assert "not recorded token by token" in found["experts_changed<=1%"].reason


# stored runs


@pytest.fixture
def infer(storage, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        result = CliRunner().invoke(app, [*arguments, f"--storage={storage.folder}"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def add(storage):
    def run(*records):
        path = storage.add([block.build(record) for record in records])
        sidecar.write(path, records)
        return path

    return run


def test_stored_runs_are_compared_by_their_scores(infer, add):
    add(scored.record(LOGITS, test=TEST))
    moved = scored.around(LOGITS, ROUNDING)
    add(scored.record(moved, test=TEST))
    add(scored.record(scored.around(LOGITS, OTHER), test=TEST, reference=LOGITS, free=(3, 4), timed=True))
    assert "output" not in infer("compare", "1", "2").stdout.splitlines()[0]
    text = infer("compare", "1", "3").stdout
    assert "output differs from token 1 (" in text.splitlines()[0]
    assert "another model" in text
    result = infer("gate", "3", "--against=1", "--rule=output:close", "--rule=kl<=0.001", "--no-mark")
    assert result.exit_code == 1
    assert "regressed: further apart than rounding explains" in result.stdout
    assert infer("gate", "2", "--against=1", "--rule=output:close", "--rule=kl<=0.001", "--no-mark").exit_code == 0
    rows_ = json.loads(infer("compare", "1", "3", "--format=json").stdout)["judgements"]
    known = {row["metric"]: row for row in rows_}
    assert known["kl"]["after"] > 0.5
    assert known["output_sha256"]["note"].startswith("differs from token 1 (")
    assert "another model" in infer("compare", "1", "3", "--format=markdown").stdout
    (shown,) = json.loads(infer("show", "3", "--format=json").stdout)["tests"]
    assert shown["fidelity"]["reference"] == "0001 base"
    assert shown["fidelity"]["split"]["candidate"]["id"] == 3
    assert "guide: output differs from token 1 (" in " ".join(infer("show", "3").stdout.split())


def test_another_prompt_under_the_same_name_has_no_distance(infer, add):
    first = scored.record(LOGITS, test=TEST)
    add(first)
    edited = replace(first.prompt, content_sha256="b" * 64)
    add(scored.record(scored.around(LOGITS, OTHER), test=TEST, prompt=edited))
    result = infer("gate", "2", "--against=1", "--rule=kl<=0.001", "--rule=output:close", "--no-mark")
    assert result.exit_code == Exit.NOTHING.value
    assert "how far is not known: the prompts are not the same text" in result.stdout
    assert "incomparable: the prompts are not the same text" in result.stdout


@pytest.mark.parametrize(("dtype", "like"), [("bfloat16", "arithmetic"), (None, "more than arithmetic")])
def test_a_run_that_followed_a_coarser_one_has_the_bound_of_that(infer, add, dtype, like):
    made = scored.record(scored.around(LOGITS, FAULT), reference=LOGITS, test=TEST)
    made = replace(made, reference=replace(made.reference, dtype=dtype))
    made = replace(made, fidelity=measured.of_record(made))
    path = add(made)
    assert f": {like}" in infer("show", "1").stdout
    (row,) = runs.read(path).rows
    assert stored.Scored().beside(row, None).told.endswith(f": {like}")


def test_a_sidecar_that_is_gone_leaves_the_reason(infer, add):
    path = add(scored.record(LOGITS, test=TEST))
    add(scored.record(scored.around(LOGITS, OTHER), test=TEST, reference=LOGITS))
    sidecar.path_for(path).unlink()
    result = infer("gate", "2", "--against=1", "--rule=kl<=0.001", "--no-mark")
    assert result.exit_code == Exit.NOTHING.value
    assert "the earlier run: " in result.stdout
    assert "holds no scores of it" in result.stdout
    sidecar.path_for(path).write_bytes(b"no archive")
    result = infer("gate", "2", "--against=1", "--rule=kl<=0.001", "--no-mark")
    assert "cannot be read" in result.stdout
