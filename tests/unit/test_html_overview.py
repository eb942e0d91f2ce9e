"""What the overview says first: each change once, with why and since when; commits lead to the repository."""

import re

import numpy as np
import pytest
from test_html_report import Page
from typer.testing import CliRunner

from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.cli.main import app
from pytest_infer.report.compare.headline import answers
from pytest_infer.report.html import compare, page
from pytest_infer.report.html.compare import Compared
from pytest_infer.storage.code import commit_address, web_address

REPOSITORY = "https://forge.example/team/engine"


def overview(found):
    return found.shown.partition("Skip to the report")[2].partition("The suite")[0]


@pytest.fixture
def history(storage, make_block):
    """Twelve runs of two prompts, decode a third slower since the seventh."""
    noise = np.random.default_rng(0)
    for number in range(12):
        step = 0.01 * (4 / 3 if number > 5 else 1.0)
        blocks = []
        for name in "ab":
            took = [step * one for one in noise.lognormal(0, 0.002, 3)]
            blocks.append(make_block(name, tpot_s=took, decode_throughput=[1 / one for one in took]))
        storage.add(blocks, commit=f"{number:040x}")
    return storage.load().runs


def regressed(before, after, said="", key="tpot_s", name="a"):
    change = {"before": 0.010, "after": 0.01325, "low": 0.3, "mid": 0.325, "high": 0.35, "p_adjusted": 1e-6}
    test = f"bench/t.py::t[{name}]"
    judged = Judgement(test=test, name=name, verdict=Verdict.REGRESSED, metric_key=key, **change)
    runs = {"before": before.label, "after": after.label, "earlier": before, "later": after}
    return Compared(judgements=(judged,), headline=said, **runs)


def test_a_lasting_change_of_the_history_is_on_the_overview_as_one_event(history):
    said = overview(Page(page.render(history[-1], history, repository=REPOSITORY)))
    assert "decode 33 % slower in all 2 prompts, for 6 runs now since 0007 00000000 (main)" in said
    assert "p < 0.001 for each figure, over 6 runs before it, 6 since" in said
    assert said.count("since 0007") == 1


@pytest.mark.parametrize(
    ("later", "cards", "lasted"),
    [
        (0.10, ["prefill 23 % faster, for 6 runs now"], ["6, until 0013", "6, and still does"]),
        (0.11, ["prefill 15 % faster, for 6 runs now"], ["6, until 0013", "6, and still does"]),
        (
            0.12,
            ["prefill 30 % slower, for 12 runs now", "prefill 7.7 % faster, for 6 runs now"],
            ["12, and still does", "6, and still does"],
        ),
        (
            0.20,
            ["prefill 54 % slower, for 6 runs now", "prefill 30 % slower, for 12 runs now"],
            ["12, and still does", "6, and still does"],
        ),
    ],
    ids=["back", "nearly back", "a little better", "worse still"],
)
def test_a_change_that_was_undone_is_in_the_history_alone(storage, make_block, later, cards, lasted):
    for value in [0.1] * 6 + [0.13] * 6 + [later] * 6:
        storage.add([make_block("a", ttft_s=[0.99 * value, value, 1.01 * value])])
    text = page.render(storage.load().runs[-1], storage.load().runs)
    said = overview(Page(text))
    assert re.findall(r"prefill [\d.]+ % \w+, for \d+ runs now", said) == cards
    assert "over 6 runs before it, 6 since" in said
    assert re.findall(r">(\d+, (?:until \d+|and still does))", text) == lasted


def test_runs_of_another_machine_count_in_no_event_and_no_trend(storage, make_block):
    for number in range(24):
        value = 0.1 if number < 12 else 0.13
        made = make_block("a", ttft_s=[0.99 * value, value, 1.01 * value], machine={"cpu": f"CPU {number % 2}"})
        storage.add([made])
    shown = Page(page.render(storage.load().runs[-1], storage.load().runs)).shown
    assert "prefill 30 % slower, for 6 runs now since 0014" in shown
    assert "over 6 runs before it, 6 since" in shown
    assert "Median of each of 12 runs" in shown


def branches(storage, make_block, *told):
    """Store runs of branches: their name, how many, and the time of their prefill."""
    for branch, many, value in told:
        for _ in range(many):
            storage.add([make_block("a", ttft_s=[0.99 * value, value, 1.01 * value])], branch=branch)
    return storage.load().runs


def test_what_another_branch_changed_is_told_there_alone(storage, make_block):
    ours = [("main", 10, 0.1), ("other", 2, 0.2), ("feature", 4, 0.13), ("other", 2, 0.2), ("main", 1, 0.1)]
    runs = branches(storage, make_block, *ours)
    text = page.render(runs[-1], runs)
    assert "prefill" not in overview(Page(text))
    assert "11 runs, oldest first; no change points" in Page(text).shown
    feature = next(run for run in reversed(runs) if run.branch == "feature")
    assert "prefill 30 % slower, for 4 runs now since 0013" in overview(Page(page.render(feature, runs)))
    command = ["history", "--change-points", "--metric=ttft", f"--storage={storage.folder}"]
    assert "no change points" in CliRunner().invoke(app, command).stdout
    # A branch that took another name goes on.
    runs = branches(storage, make_block, ("trunk", 6, 0.13))
    assert "prefill 30 % slower, for 6 runs now" in overview(Page(page.render(runs[-1], runs)))


def test_of_a_long_history_as_many_runs_count_whatever_other_machines_ran(storage, make_block, monkeypatch):
    for number in range(40):
        storage.add([make_block("a", machine={"cpu": f"CPU {number % 2}"})])
    monkeypatch.setattr("pytest_infer.report.html.history.MOST_RUNS", 16)
    runs = storage.load().runs
    assert "Median of each of 16 runs" in Page(page.render(runs[-1], runs)).shown


def test_a_comparison_says_since_when_and_the_event_is_told_there_alone(history):
    said = "decode 32 % slower [30, 35]: experts +3.10 ms of +3.20; the other prompt unchanged"
    text = page.render(history[-1], history, [regressed(history[0], history[-1], said)])
    told = overview(Page(text))
    assert "decode 32 % slower [30, 35] why experts +3.10 ms of +3.20 since 0007" in told
    assert "also the other prompt unchanged" in told
    assert "runs now" not in told


@pytest.mark.parametrize(
    ("runs", "figure", "since"),
    [
        ((0, 11), {}, True),
        ((0, 6), {}, True),
        ((8, 11), {}, False),
        ((0, 5), {}, False),
        ((0, 11), {"key": "total_s"}, True),
        ((0, 11), {"key": "itl_p99_s"}, True),
        ((0, 11), {"key": "ttft_s"}, False),
        ((0, 11), {"key": "peak_rss_bytes"}, False),
        ((0, 11), {"name": "c"}, False),
    ],
)
def test_a_comparison_names_an_event_between_its_runs_of_the_figure_it_found(history, runs, figure, since):
    said = "decode 32 % slower [30, 35]"
    one = regressed(*(history[number] for number in runs), said, **figure)
    told = overview(Page(page.render(history[-1], history, [one])))
    assert (f"{said} since 0007" in told) is since
    assert ("33 % slower in all 2 prompts, for 6 runs now" in told) is not since


@pytest.mark.parametrize(
    ("verdicts", "look", "said"),
    [
        ("", "incomparable", "Nothing could be compared"),
        ("new", "incomparable", "Nothing could be compared"),
        ("incomparable new", "incomparable", "Nothing could be compared"),
        ("incomparable unchanged", "incomparable", "No regression found, but not everything can be said"),
        ("incomparable improved", "incomparable", "No regression found, but not everything can be said"),
        ("unchanged new", "unchanged", "Nothing changed"),
    ],
)
def test_only_what_was_judged_to_be_unchanged_looks_like_it(verdicts, look, said):
    judged = [
        Judgement(test=f"t[{one}]", name=one, verdict=Verdict(one), metric_key="ttft_s") for one in verdicts.split()
    ]
    card = compare.card(Compared(before="a", after="b", judgements=tuple(judged)), 1)
    assert (card["look"], card["says"]) == (look, said)


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        ("no change beyond 1.2 %", ("no change beyond 1.2 %", "", ())),
        (
            "decode of a 5.1 % slower [4, 6]: experts +6.99 ms, the rest −1.10 ms; the other 8 prompts unchanged",
            (
                "decode of a 5.1 % slower [4, 6]",
                "experts +6.99 ms, the rest −1.10 ms",
                ("the other 8 prompts unchanged",),
            ),
        ),
        (
            "decode 5 % slower [4, 6], 8 of 9 prompts: 1 incomparable",
            ("decode 5 % slower [4, 6], 8 of 9 prompts: 1 incomparable", "", ()),
        ),
        (
            "decode 5 % slower [4, 6], 8 of 9 prompts: 1 missing: attention scores +4.1 µs of +9.0",
            ("decode 5 % slower [4, 6], 8 of 9 prompts: 1 missing", "attention scores +4.1 µs of +9.0", ()),
        ),
        (
            "decode 8 % slower [7, 9]; the other prompt unchanged; prefill of a 2 % slower [1, 3]; the other prompt "
            "inconclusive; cannot tell peak RSS below 20 %",
            (
                "decode 8 % slower [7, 9]",
                "",
                (
                    "the other prompt unchanged",
                    "prefill of a 2 % slower [1, 3]; the other prompt inconclusive",
                    "cannot tell peak RSS below 20 %",
                ),
            ),
        ),
        (
            "prefill 9 % slower [8, 10], all 9 prompts: every part alike, as another machine, clock rate or compiler "
            "flag does it",
            (
                "prefill 9 % slower [8, 10], all 9 prompts",
                "every part alike, as another machine, clock rate or compiler flag does it",
                (),
            ),
        ),
    ],
)
def test_a_headline_is_read_in_pieces(said, parts):
    assert answers(said) == parts


def test_medians_that_are_not_the_changes_quotient_say_which_is_which(history):
    text = page.render(history[-1], history, [regressed(history[0], history[-1])])
    assert "apart; the change compares rounds, or launches, with their partners" not in Page(text).shown
    judged = Judgement(
        test="t[a]", name="a", verdict=Verdict.REGRESSED, metric_key="tpot_s", before=0.01, after=0.0115, mid=0.325
    )
    text = page.render(history[-1], history, [Compared(before="x", after="y", judgements=(judged,))])
    assert "medians of all rounds, +15 % apart; the change compares" in Page(text).shown


def test_commits_lead_to_the_repository_and_nowhere_without_one(history):
    last, first = history[-1].commit, history[6].commit
    links = {
        given["href"] for tag, given in Page(page.render(history[-1], history, (), REPOSITORY)).attributes if tag == "a"
    }
    assert {f"{REPOSITORY}/commit/{commit}" for commit in (last, first)} <= links
    links = {given["href"] for tag, given in Page(page.render(history[-1], history)).attributes if tag == "a"}
    assert all(link.startswith("#") for link in links)


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://github.com/a/b.git", "https://github.com/a/b"),
        ("https://user:secret@github.com/a/b", "https://github.com/a/b"),
        ("git@github.com:a/b.git", "https://github.com/a/b"),
        ("ssh://git@gitlab.example:2222/group/sub/b.git", "https://gitlab.example/group/sub/b"),
        ("http://forge.local:3000/a/b/", "http://forge.local:3000/a/b"),
        ("git://host/a.b/c-d.git", "https://host/a.b/c-d"),
        ("/srv/repositories/b.git", None),
        ("../b", None),
        ("file:///srv/b.git", None),
        ("C:\\work\\b", None),
        ("javascript:alert(1)", None),
        ('https://host/a"onclick=x', None),
        ("", None),
    ],
)
def test_a_remote_is_found_as_a_browser_finds_it(remote, address):
    assert web_address(remote) == address


def test_each_forge_has_its_own_word_for_a_commit():
    commit = "a" * 40
    assert commit_address("https://github.com/a/b", commit) == f"https://github.com/a/b/commit/{commit}"
    assert commit_address("https://gitlab.com/a/b", commit) == f"https://gitlab.com/a/b/-/commit/{commit}"
    assert commit_address("https://bitbucket.org/a/b", commit) == f"https://bitbucket.org/a/b/commits/{commit}"
    assert commit_address("https://x.example/{commit}.html", commit) == f"https://x.example/{commit}.html"
    assert commit_address("https://github.com/a/b", "javascript:x") is None
    assert commit_address(None, commit) is None


def test_a_change_is_drawn_within_its_column(history):
    """The scale of a column's drawings holds every change that was found."""
    few = {"verdict": Verdict.UNCHANGED, "metric_key": "ttft_s", "low": -0.01, "mid": 0.0, "high": 0.01, "p": 0.5}
    rows = [Judgement(test=f"t[{n}]", name=str(n), **few) for n in range(9)]
    big = {"verdict": Verdict.REGRESSED, "metric_key": "tpot_s", "low": 0.5, "mid": 0.6, "high": 0.7, "p": 1e-6}
    rows.append(Judgement(test="t[x]", name="x", **big))
    text = page.render(history[-1], history, [Compared(before="b", after="a", judgements=tuple(rows))])
    comparison = text.partition('id="comparison"')[2].partition("</section>")[0]
    assert 'drawn</a> <span class="unit">± 79.2 %' in comparison
