"""Accepted regressions: what is read between two commits, what it means, and what becomes of a gate's verdicts."""

import dataclasses
import re
import subprocess
from types import SimpleNamespace

import pytest
from planted import NAMES, Suites

from pytest_infer.analysis.compare import accepted, gate, rules
from pytest_infer.analysis.compare.comparison import RowPair
from pytest_infer.checkouts import accepted as written
from pytest_infer.checkouts.accepted import Written
from pytest_infer.errors import OptionError
from pytest_infer.pytest_face.accepted import Acceptances
from pytest_infer.report.compare import accepted as words
from pytest_infer.report.compare import exports, headline
from pytest_infer.report.html import compare

TOML = """
[[accept]]
metric = "decode"
prompt = "story"
bound = "7.5%"
reason = "exact softmax"
{more}
"""


class Checkout:
    def __init__(self, path):
        self.path = path
        path.joinpath("bench").mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *args):
        who = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *who, *args], cwd=self.path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, message="a commit", text=None):
        if text is not None:
            self.path.joinpath("bench", "accepted.toml").write_text(text)
            self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def read(self, base, **more):
        return written.read(self.path, None, base, **more)


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def texts(found):
    return [(one.text, one.where, one.reason) for one in found.written if one.expired is None]


# reading


def test_messages_between_two_commits_are_read_and_no_others(checkout):
    checkout.commit("before [infer-accept: ttft 1%: old]")
    base = checkout.commit()
    body = "It costs a pass. [infer-accept: decode[story*] 5 %: the exact\nsoftmax] [INFER-accept: output: new]"
    first = checkout.commit(f"Exact softmax\n\n{body}")
    checkout.commit('Revert "Exact softmax [infer-accept: tpot 9%: quoted]"\n\nThis reverts commit 1234567.')
    where = f"commit {first[:8]}"
    assert texts(checkout.read(base)) == [("decode[story*] 5 %", where, "the exact softmax"), ("output", where, "new")]
    assert texts(checkout.read(base, head=base)) == []
    assert texts(checkout.read(None)) == []


def test_a_message_that_is_no_text_can_be_stored():
    (one,) = written.of_message("[infer-accept: tpot 5%: d\udce9ja vu]", "commit 12")
    assert one.reason.encode() == b"d?ja vu"


def test_where_the_base_is_not_in_the_clone_nothing_is_accepted(checkout, tmp_path_factory):
    base = checkout.commit(text=TOML.format(more=""))
    head = checkout.commit("[infer-accept: ttft 1%: new]")
    shallow = Checkout(tmp_path_factory.mktemp("clone"))
    shallow.git("fetch", "-q", "--depth=1", checkout.path.as_uri(), "main")
    shallow.git("reset", "-q", "--hard", "FETCH_HEAD")
    found = shallow.read(base, head=head)
    assert texts(found) == []
    assert [one.expired for one in found.written] == ["the base may have this entry already"]
    assert found.unread == f"git does not find {base}..{head} here (git fetch --unshallow, or fetch-depth: 0)"
    # The candidate of a stored gate may be of a commit that is not here either.
    gone = checkout.read(base, head="1" * 40)
    assert texts(gone) == []
    # No further fetch brings what no branch holds.
    assert gone.unread.endswith("here (compare with a run whose commit is here)")
    assert [one.expired for one in shallow.read(head).written] == ["the base has this entry already: remove it"]


def test_without_a_checkout_an_entry_counts_only_where_there_is_no_base(tmp_path):
    tmp_path.joinpath("bench").mkdir()
    tmp_path.joinpath("bench", "accepted.toml").write_text(TOML.format(more=""))
    assert len(texts(written.read(tmp_path, None, None))) == 1
    assert texts(written.read(tmp_path, None, "1" * 40)) == []


@pytest.mark.parametrize("text", ["decode 5%", "[infer-accept]", "[infer-accept: decode 5%]", "[infer-accept: : why]"])
def test_what_only_begins_like_it_is_refused(text):
    message = text if text.startswith("[") else f"[infer-accept: {text}"
    with pytest.raises(OptionError, match=r"commit 12: .* cannot be read; write "):
        list(written.of_message(f"A subject {message}", "commit 12"))


def test_an_entry_of_the_file_counts_until_the_base_has_it(checkout):
    checkout.commit()
    base = checkout.commit()
    head = checkout.commit(text=TOML.format(more=""))
    assert texts(checkout.read(base)) == [("decode[story] 7.5%", "bench/accepted.toml", "exact softmax")]
    (spent,) = checkout.read(head).written
    assert spent.expired == "the base has this entry already: remove it"
    # One that merely lasts longer is no new one; one with a reason of its own is.
    checkout.commit(text=TOML.format(more='until = "v2"'))
    assert texts(checkout.read(head)) == []
    checkout.commit(text=TOML.format(more="").replace("exact softmax", "another"))
    assert len(texts(checkout.read(head))) == 1


def test_a_byte_order_mark_is_no_part_of_the_file_nor_of_the_bases(checkout):
    base = checkout.commit()
    head = checkout.commit(text="\ufeff" + TOML.format(more=""))
    assert len(texts(checkout.read(base))) == 1
    assert [one.expired for one in checkout.read(head).written] == ["the base has this entry already: remove it"]


def test_an_entry_counts_until_its_commit_is_reached(checkout):
    base = checkout.commit()
    head = checkout.commit(text=TOML.format(more='until = "v2"'))
    assert len(texts(checkout.read(base))) == 1, "the tag is not made yet"
    checkout.git("tag", "v2")
    assert [one.expired for one in checkout.read(base).written] == ["v2 is reached: remove it"]
    checkout.git("checkout", "-q", base)
    checkout.path.joinpath("bench").mkdir(exist_ok=True)
    checkout.path.joinpath("bench", "accepted.toml").write_text(TOML.format(more=f'until = "{head}"'))
    assert len(texts(checkout.read(base))) == 1, "this commit does not contain it"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            '[[accept]]\nmetric = "decode"\n',
            "entry 1: Object missing required field `reason`; it takes metric,",
        ),
        (TOML.format(more='untill = "v2"'), "entry 1: Object contains unknown field `untill`; it takes"),
        (TOML.format(more="").replace('"7.5%"', "0.075"), "entry 1: Expected `str | null`, got `float` - at `$.bound`"),
        (TOML.format(more="").replace("exact softmax", " "), "entry 1: its reason is empty"),
        ("[accept]\n", "it holds tables \\[\\[accept\\]\\]"),
        ("decode = 5\n", "it holds tables"),
        ("[[accept]\n", "Expected|expected"),
        (TOML.format(more='until = "\\u0000"'), "until = .* is no commit, tag or branch"),
        (TOML.format(more='until = "1234567"'), "until = '1234567': git finds no such commit"),
    ],
)
def test_a_bad_file_is_one_line(checkout, text, why):
    checkout.commit(text=text)
    with pytest.raises(OptionError, match=f"^bench/accepted.toml: .*{why}") as refused:
        checkout.read(None)
    assert "\n" not in str(refused.value)


def test_a_named_file_must_be_there(tmp_path):
    with pytest.raises(OptionError, match=r"no\.toml: No such file"):
        written.read(tmp_path, tmp_path / "no.toml", None)
    assert written.read(tmp_path, None, None).written == ()


def test_a_merge_brings_what_its_branch_accepts(checkout):
    base = checkout.commit()
    checkout.git("switch", "-q", "-c", "side")
    checkout.commit("[infer-accept: tpot 5%: of the branch]")
    checkout.git("switch", "-q", "main")
    checkout.commit("[infer-accept: ttft 5%: of main]")
    checkout.git("merge", "-q", "--no-ff", "-m", "Merge side into main", "side")
    assert {text for text, _, _ in texts(checkout.read(base))} == {"tpot 5%", "ttft 5%"}
    assert {text for text, _, _ in texts(checkout.read("main~1"))} == {"tpot 5%"}


@pytest.mark.parametrize("known", [True, False], ids=["known", "found in the end"])
def test_a_bad_message_costs_no_measurement_where_the_base_is_found_in_the_end(checkout, known):
    base = checkout.commit()
    checkout.commit("[infer-accept: dcode 5%: why]", text=TOML.format(more=""))
    notes = []
    found = Acceptances(SimpleNamespace(accepts=True, accepted=None), checkout.path, notes.append)
    if known:
        with pytest.raises(OptionError, match="unknown metric 'dcode'"):
            found.read(base)
        return
    found.read(None)
    # Which entries of the file are spent was not known before.
    assert found.since(SimpleNamespace(commit=base)) == ()
    (note,) = notes
    assert re.fullmatch(r"! gate: nothing is accepted: commit .{8}: 'dcode 5%' cannot be accepted: unknown .*", note)
    checkout.commit("Mend it")
    assert Acceptances(SimpleNamespace(accepts=False, accepted=None), checkout.path, notes.append).found == ()


# meaning


def entry(text, **more):
    return next(written.of_message(f"[infer-accept: {text}: why]", more.get("where", "commit 12")))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("dcode 5%", "unknown metric 'dcode'"),
        ("decode", "give a bound, as 5%"),
        ("ttft", "no two times are the same"),
        ("output 5%", "has no noise"),
        ("kl 5%", "has no change: give a bound"),
        ("mfu 5%", "moves from run to run"),
        ("decode 5", "the bound is a share"),
        (f"decode {'9' * 400}%", "more than a number can hold"),
        ("missing 5%", "leave out '5%'"),
    ],
)
def test_what_is_no_change_of_a_figure_is_one_line(text, why):
    with pytest.raises(OptionError, match=f"^commit 12: .*{why}"):
        accepted.parse([entry(text)])


def test_a_name_of_headlines_stands_for_all_that_tell_the_same():
    (decode,) = accepted.parse([entry("decode 5%")])
    assert {"tpot_s", "decode_throughput"} <= {rule.metric.key for rule in decode.rules}
    (tpot,) = accepted.parse([entry("tpot 5%")])
    assert [rule.metric.key for rule in tpot.rules] == ["tpot_s"]


def test_only_one_that_counts_must_be_about_a_prompt():
    there, gone = entry("tpot[story] 5%"), entry("tpot[stroy] 5%")
    accepted.check_covered(accepted.parse([there]), {"story"})
    with pytest.raises(OptionError, match=r"'tpot\[stroy\] 5%' is about no prompt; near it: story"):
        accepted.check_covered(accepted.parse([gone]), {"story"})
    old = Written(where="a", metric="tpot", reason="b", prompt="stroy", bound="5%", expired="reached")
    accepted.check_covered(accepted.parse([old]), {"story"})


# verdicts


@pytest.fixture
def judged(make_row):
    def judge(*texts, pairs=None, rule="tpot:3%", **more):
        pairs = Suites(make_row).rounds(decode=1.1, of=NAMES[:2]) if pairs is None else pairs
        accepting = accepted.parse(entry(text) if isinstance(text, str) else text for text in texts)
        return gate.judge(pairs, rules.parse([rule]), accepted=accepting, **more)

    return judge


def verdicts(found):
    return [j.verdict.value for j in found.judgements]


def test_a_regression_within_the_bound_is_accepted_and_counted(judged):
    plain, found = judged(), judged("decode 12%")
    assert (verdicts(plain)[:3], plain.exit.word) == (["regressed", "regressed", "unchanged"], "regressed")
    assert (verdicts(found)[:3], found.exit.word) == (["accepted", "accepted", "unchanged"], "passed")
    first = found.judgements[0]
    assert (first.threshold, first.reason) == (pytest.approx(0.12), "commit 12: why")
    assert [(one.accepted.written.text, one.times) for one in found.accepted] == [("decode 12%", 2)]
    # What it is is still said.
    assert headline.in_words(found.headline, found.judgements).startswith("decode of story and chat 9.9 % slower")
    assert headline.in_words(found.headline, found.judgements).endswith("; accepted")
    shown = exports.gate_as_markdown(found, [])
    assert "🟠 2 accepted, ⚪ 7 unchanged" in shown
    assert "accepted (up to 12 %)" in shown
    assert "::notice title=story%3A tpot%3A3%25::" in exports.github_annotations(found.judgements)


def test_of_the_suite_as_much_is_accepted_as_of_its_prompts(judged, make_row):
    found = judged("decode 12%", "decode[story] 20%", pairs=Suites(make_row).rounds(decode=1.1))
    told = [(one.judgement.verdict.value, one.judgement.threshold) for one in found.suite]
    assert told == [("accepted", pytest.approx(0.2))]


def test_the_report_shows_it_among_what_changed(judged):
    found = judged("decode 12%")
    shown = compare.Compared(before="a", after="b", judgements=found.judgements, suite=found.suite)
    told = compare.card(shown, 1)
    assert (told["look"], told["says"]) == ("accepted", "2 accepted, nothing else regressed")
    assert ("accepted", 2) in told["counts"]
    assert told["table"] is not None


def test_only_the_prompts_that_it_names(judged):
    found = judged("decode[story] 12%")
    assert (verdicts(found)[:2], found.exit.word) == (["accepted", "regressed"], "regressed")
    assert headline.in_words(found.headline, found.judgements).endswith("; accepted in part")


def test_a_change_beyond_the_bound_fails(judged):
    found = judged("decode 5%")
    assert verdicts(found)[:2] == ["regressed", "regressed"]
    assert found.judgements[0].reason == "beyond the 5 % accepted (commit 12: why)"
    assert words.how(found) == ["to accept it, in a commit message:", "  [infer-accept: tpot 11%: WHY]"]
    assert "\n```text\n[infer-accept: tpot 11%: WHY]\n```\n" in exports.gate_as_markdown(found, [])


def test_a_bound_within_the_interval_decides_nothing(judged):
    found = judged("decode 10%")
    assert verdicts(found)[0] == "inconclusive"
    assert found.judgements[0].reason == "the interval reaches beyond the 10 % accepted (commit 12: why)"


def test_what_the_rule_cannot_tell_is_accepted_where_the_bound_is_beyond_all_of_it(judged, make_row):
    near = Suites(make_row).rounds(decode=1.03, of=NAMES[:1])
    assert verdicts(judged(pairs=near))[0] == "inconclusive"
    assert verdicts(judged("decode 5%", pairs=near))[0] == "accepted"
    assert verdicts(judged("decode 3%", pairs=near))[0] == "inconclusive"


@pytest.mark.parametrize("factor", [1.07, 1.29, 1.5, 2, 3, 8, 200])
@pytest.mark.parametrize("before", [1000, 4096, 12288, 999_999])
def test_the_bound_that_a_gate_suggests_accepts_a_figure_without_noise(judged, make_row, factor, before):
    sides = [make_row("story", only=(), kv_cache_bytes=size) for size in (before, before * factor)]
    pairs = [RowPair(before=sides[0], after=sides[1], paired=True)]
    plain = judged(pairs=pairs, rule="kv_cache:1%")
    (line,) = accepted.suggested(plain.judgements)
    text = line.removeprefix("[infer-accept: ").removesuffix(": WHY]").replace("[story]", "")
    assert verdicts(judged(text, pairs=pairs, rule="kv_cache:1%")) == ["accepted"]


def test_a_configuration_of_a_sweep_is_named_as_in_a_rule(judged, make_row):
    pairs = Suites(make_row).rounds(decode=1.1, of=NAMES[:2], names=NAMES[:2])
    swept = [dataclasses.replace(p, after=dataclasses.replace(p.after, config={"threads": "2"})) for p in pairs]
    assert verdicts(judged("decode[story-threads=2] 12%", pairs=swept)) == ["accepted", "regressed"]
    assert verdicts(judged("decode[story-threads=4] 12%", pairs=swept)) == ["regressed", "regressed"]
    assert verdicts(judged("decode[*threads=2] 12%", pairs=swept)) == ["accepted", "accepted"]


def test_the_wider_bound_holds_and_one_below_the_rule_changes_nothing(judged):
    assert verdicts(judged("decode 5%", "tpot 12%", "tpot 1%"))[0] == "accepted"
    assert verdicts(judged("tpot 1%"))[0] == "regressed"


def test_an_expired_one_and_one_that_nothing_came_to_are_told(judged, make_row):
    old = Written(where="bench/accepted.toml", metric="decode", reason="old", bound="50%", expired="v2 is reached")
    found = judged(old, "ttft 5%")
    assert verdicts(found)[0] == "regressed"
    assert words.lines(found)[:2] == [
        "no longer accepted: decode 50% (bench/accepted.toml: old): v2 is reached",
        "accepted, but nothing came to it: ttft 5% (commit 12: why)",
    ]
    quiet = judged("decode 50%", pairs=Suites(make_row).rounds())
    assert set(verdicts(quiet)) == {"unchanged"}, "what is no regression is not accepted"


def test_a_stored_gate_without_history_passes_nothing_by_it(judged, make_row):
    pairs = Suites(make_row).stored(decode=1.5, runs=2)
    assert set(verdicts(judged("decode 1000%", pairs=pairs))) == {"inconclusive"}
    pairs = Suites(make_row).stored(decode=1.5, runs=10)
    assert set(verdicts(judged(pairs=pairs))) == {"regressed"}
    assert set(verdicts(judged("decode 60%", pairs=pairs))) == {"accepted"}


def test_of_few_stored_runs_a_bound_is_said_to_be_of_no_use_and_none_is_suggested(judged, make_row):
    pairs = Suites(make_row).stored(decode=2.0, of=NAMES[:1], names=NAMES[:2], runs=2)
    plain = judged(pairs=pairs)
    assert verdicts(plain)[0] == "regressed"
    assert words.how(plain) == []
    found = judged("decode 200%", pairs=pairs)
    first = found.judgements[0]
    # The interval lies below 200 %.
    assert first.high < 2
    assert (first.verdict.value, first.reason) == (
        "inconclusive",
        "2 comparable runs, and 5 tell the spread from run to run: use --infer-against",
    )
    assert words.lines(found) == []
    # Of one that the interval reaches beyond that is said all the same.
    found = judged("decode 110%", pairs=pairs)
    assert found.judgements[0].reason == "the interval reaches beyond the 110 % accepted (commit 12: why)"


def test_what_is_beyond_a_bound_came_to_it(judged):
    found = judged("decode 5%")
    assert [one.times for one in found.accepted] == [2]
    assert words.lines(found) == []


def test_other_output_and_a_missing_test_are_accepted_by_name(judged, make_row):
    pairs = Suites(make_row).rounds(names=NAMES[:1])
    pairs[0].after.metrics["output_sha256"] = pairs[0].before.metrics["peak_rss_bytes"].__class__(value="f" * 64)
    assert verdicts(judged(pairs=pairs, rule="output:exact")) == ["regressed"]
    assert verdicts(judged("output", pairs=pairs, rule="output:exact")) == ["accepted"]
    gone = judged(pairs=pairs, missing=["bench/t.py::t[gone]"], unfit={"bench/t.py::t[bad]": "failed in this run"})
    assert words.how(gone) == ["to accept it, in a commit message:", "  [infer-accept: missing: WHY]"]
    found = judged("missing", missing=["a::gone"], unfit={"a::bad": "failed in this run"})
    assert sorted(j.verdict.value for j in found.judgements if j.rule is None) == ["accepted", "missing"]
    assert judged("missing[*other*]", missing=["a::gone"]).exit.word == "regressed"


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("story", "story"),
        ("sto*", "story"),
        ("story-threads=2", "story-threads=2"),
        ("story-dtype=bf16", "story-dtype=bfloat16"),
    ],
)
def test_a_missing_test_is_named_as_in_a_rule(judged, make_row, prompt, inside):
    test = f"bench/t.py::t[{inside}]"
    config = dict([inside.removeprefix("story-").split("=")]) if "=" in inside else {}
    # Of another commit the node id is known, of a stored run the row.
    for missing in (test, dataclasses.replace(make_row("story", test=test), config=config)):
        assert verdicts(judged(f"missing[{prompt}]", missing=[missing], pairs=[])) == ["accepted"]
        assert verdicts(judged(f"missing[{prompt}-other]", missing=[missing], pairs=[])) == ["missing"]


def test_a_gate_of_which_only_missing_tests_are_left_has_nothing_to_compare(judged, make_row):
    found = judged("missing", pairs=[], missing=["a.py::t[story]"], new=[make_row("story", test="b.py::t[story]")])
    assert (verdicts(found), found.exit.word) == (["new", "accepted"], "nothing to compare")
    pairs = Suites(make_row).rounds(names=NAMES[:1])
    assert judged("missing", pairs=pairs, missing=["a.py::t[story]"]).exit.word == "passed"


def test_a_bound_of_the_rule_itself_is_not_accepted_away(judged):
    found = judged("decode_throughput 90%", rule="decode_throughput>=100")
    assert set(verdicts(found)) == {"regressed"}
    assert words.how(found) == []
