"""What a history says where it finds no change point: that nothing changed, or that nobody can tell."""

import pytest
from test_html_report import Page
from typer.testing import CliRunner

from pytest_infer.analysis.history.trends import leading_to
from pytest_infer.cli.main import app
from pytest_infer.report.compare.words import PRIMARY
from pytest_infer.report.html import page

STEADY = "no change points: every metric has stayed at its level"


@pytest.fixture
def history(storage):
    def run(*more):
        command = ["history", "--change-points", f"--storage={storage.folder}", *more]
        done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
        return done.exit_code, done.stdout.splitlines(), done.stderr.replace("pytest-infer: ", "").splitlines()

    return run


def add(storage, make_block, many, **figures):
    figures = {key: value if isinstance(value, list) else [value] * many for key, value in figures.items()}
    for number in range(many):
        storage.add([make_block("a", **{key: values[number] for key, values in figures.items()})])


def test_enough_runs_say_that_nothing_changed(storage, make_block, history):
    add(storage, make_block, 6)
    assert history() == (0, [STEADY], [])
    assert history("--metric=all", "-k[a]")[:2] == (0, [STEADY])


@pytest.mark.parametrize("many", [1, 5])
def test_too_few_runs_say_how_many_there_are(storage, make_block, history, many):
    add(storage, make_block, many)
    said = ["no change points: nothing can be judged yet", f"not judged: 1 figure, too few runs, {many} of 6"]
    assert history("--metric=ttft") == (0, said, [])
    if many > 1:
        shown = Page(page.render(storage.load().runs[-1], storage.load().runs)).shown
        assert "No change points: nothing can be judged yet. Not judged: " in shown
        assert "oldest first; not judged: 1 figure, too few runs, 5 of 6. " in shown
        assert "stayed at its level" not in shown


def test_one_measurement_that_runs_took_from_each_other_is_one_run(storage, make_block, history):
    for number in range(6):
        block = make_block("a")
        block["rounds"]["resumed"] = bool(number)
        storage.add([block])
    assert history("--metric=ttft")[1][1] == "not judged: 1 figure, too few runs, 1 of 6"


def test_a_newest_run_of_another_machine_is_alone(storage, make_block, history):
    add(storage, make_block, 8)
    add(storage, make_block, 1, machine={"cpu": "another"})
    assert history("--metric=ttft")[1][1] == "not judged: 1 figure, too few runs, 1 of 6"


@pytest.mark.parametrize(
    ("told", "led"),
    [
        ("main*10 ?*1 main*20 ?*1", "main*30"),  # a detached head is no branch that left the trunk
        ("main*3 ?*9 main*2 side*1", "main*5"),
        ("?*4 main*2", "?*4 main*1"),
        ("?*6", "?*5"),
    ],
)
def test_a_run_without_a_branch_follows_the_one_that_most_are_of(storage, make_block, told, led):
    def branches(told):
        return [
            None if name == "?" else name
            for name, _, many in (w.partition("*") for w in told.split())
            for _ in range(int(many))
        ]

    for branch in branches(told):
        storage.add([make_block()], branch=branch or "(detached head)")
    runs = storage.load().runs
    assert [run.branch for run in leading_to(runs[-1], runs)][:-1] == branches(led)


def test_what_has_no_ratios_is_not_judged_and_what_is_always_0_has_stayed_there(storage, make_block, history):
    add(storage, make_block, 8, peak_rss_bytes=0, major_faults=[0, 0, 0, 0, 3, 0, 0, 0])
    assert history("--metric=peak_rss") == (0, [STEADY], [])
    names = ["--metric=peak_rss", "--metric=major_faults"]
    level = "no change points: of the figures that can be judged, each has stayed at its level"
    assert history(*names)[1] == [level, "not judged: 1 figure, one is 0, of which there are no ratios"]


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["-ktypo"], 11, "no test of 0006 cccccccc (main) has 'typo' in its name"),
        (["--metric=kl"], 11, "no run has KL"),
        (["--metric=output"], 2, "--metric output_sha256: a text is at no level; see it with pytest-infer compare"),
    ],
)
def test_what_chooses_nothing_is_one_line(storage, make_block, history, more, code, said):
    add(storage, make_block, 6, kl=None)
    assert history(*more) == (code, [], [said])


def test_a_metric_that_no_run_has_is_named_beside_others(storage, make_block, history):
    add(storage, make_block, 6, kl=None)
    assert history("--metric=kl", "--metric=ttft") == (0, [STEADY], ["no run has KL"])


def test_of_runs_that_cannot_be_read_nothing_is_told(storage, make_block, history):
    for _ in range(2):
        storage.add([make_block("a", ttft_s="fast")])
    code, out, err = history()
    assert (code, out, err[-1]) == (11, [], "none of the runs can be read")


def test_a_newest_run_without_figures_says_so(storage, make_block, history):
    add(storage, make_block, 6)
    storage.add([], failed={"bench/t.py::t[a]": {}})
    assert history() == (11, [], ["0007 cccccccc (main): every test measured with `infer` failed"])
    storage.add([])
    assert history("-kt") == (11, [], ["0008 cccccccc (main): no test was measured"])
    storage.add([make_block("b", **dict.fromkeys(PRIMARY))])
    assert history("-k[b]") == (11, [], ["no run has any of the figures: choose others with --metric"])


def test_figures_are_chosen_for_change_points_alone(storage, make_block):
    add(storage, make_block, 1)
    for more in ("--metric=ttft", "-ka"):
        done = CliRunner().invoke(app, ["history", more, f"--storage={storage.folder}"])
        assert (done.exit_code, done.stderr.count("--change-points")) == (2, 1)
