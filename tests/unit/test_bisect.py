"""`pytest-infer bisect` with faked runs and real git repositories: what it asks for, what it does with answers."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pytest_infer.analysis.compare import rules
from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.checkouts.worktree import Repository, Worktree
from pytest_infer.cli.bisect import command as command_module
from pytest_infer.cli.bisect import lines, runs
from pytest_infer.cli.bisect.halving import Ends, Halving, Mark, described
from pytest_infer.cli.bisect.runs import Measured, Plan
from pytest_infer.cli.bisect.search import Search, Step, decisive, of_parents, others
from pytest_infer.cli.bisect.suite import Suite, shared
from pytest_infer.cli.main import app
from pytest_infer.errors import AgainstError, OptionError, UnknownCommitError

PAGE = Path(__file__).parents[2] / "docs" / "bisect.md"
RULE = "tpot:1%"
INTERVALS = {
    Verdict.REGRESSED: (0.018, 0.02, 0.022),
    Verdict.UNCHANGED: (-0.002, 0.0, 0.002),
    Verdict.INCONCLUSIVE: (-0.02, 0.01, 0.04),
}
CODES = {Verdict.UNCHANGED: 0, Verdict.IMPROVED: 0, Verdict.REGRESSED: 1}
PLAN = Plan(arguments=("-q",), longer=("--infer-time=9s",), selected=("t.py::t[story]", "t.py::t[chat]"),
            rules=rules.parse([RULE, "ttft:3%"]),
            here=Path(), root=Path())  # fmt: skip


def judged(verdict, *, name="story", rule=RULE, reason=None, interval=None):
    low, mid, high = interval or INTERVALS.get(verdict, (None, None, None))
    return Judgement(
        test=f"t.py::t[{name}]", name=name, metric_key="tpot_s", rule=rule, verdict=verdict,
        low=low, mid=mid, high=high, p=0.5, threshold=0.01, reason=reason,
    )  # fmt: skip


def answer(verdict, **more):
    reason = "the interval reaches beyond" if verdict is Verdict.INCONCLUSIVE else None
    return Measured(code=CODES.get(verdict, 125), judgements=(judged(verdict, reason=reason, **more),))


BAD, GOOD, UNSURE = answer(Verdict.REGRESSED), answer(Verdict.UNCHANGED), answer(Verdict.INCONCLUSIVE)
BROKEN = Measured(code=125, why="ImportError while importing test module")


def git(folder, *args):
    who = ("-c", "user.name=A Name", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *who, *args], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder, subject, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", subject)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    return folder


class Faked:
    """Answers for commits: with a function of the commit, or with a list of answers, one a run."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def measure(self, commit, plan, *, more=False):
        self.asked.append((commit, plan, more))
        found = self.answers(commit) if callable(self.answers) else self.answers[commit]
        return found.pop(0) if isinstance(found, list) else found


class Bisection:
    """A search over a real repository, with faked runs; `log` holds the lines of its steps."""

    def __init__(self, folder, good, bad, answers, **more):
        self.repository = Repository.of(folder)
        self.worktree = Worktree(self.repository, good)
        self.ends = Ends.of(self.repository, good, bad)
        self.halving = Halving(self.worktree.path, self.ends, **more)
        self.runs, self.log = Faked(answers), []
        self.search = Search(bad=self.ends.bad, plan=PLAN, runs=self.runs, starting=lambda _: None, told=self.told)

    def told(self, step, left):
        (known,) = described(self.repository, [step.commit])
        self.log.append(lines.step(step, known, left, 80))

    def run(self):
        try:
            assert self.search.confirm().mark is Mark.BAD
            return self.search.halve(self.halving)
        finally:
            self.worktree.remove()


@pytest.fixture(scope="module")
def _thirty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thirty")
    git(folder, "init", "-q", "-b", "main")
    return folder, [commit(folder, f"change {number}", code_dot_py=str(number)) for number in range(30)]


@pytest.fixture
def thirty(checkout, _thirty):
    """The thirty commits that are made once for all tests, in a checkout of the test's own."""
    folder, made = _thirty
    shutil.copytree(folder, checkout, dirs_exist_ok=True)
    git(checkout, "status")  # the copies are other files than those of the index
    return list(made)


@pytest.mark.parametrize("first", [1, 2, 14, 15, 28, 29])
def test_the_first_bad_of_thirty_is_found_in_as_few_steps_as_git_needs(checkout, thirty, first):
    bisection = Bisection(checkout, thirty[0], thirty[-1], lambda c: BAD if thirty.index(c) >= first else GOOD)
    assert bisection.run() == [thirty[first]]
    assert len(bisection.runs.asked) <= 6
    assert bisection.runs.asked[0][0] == thirty[-1]


def test_a_line_a_step_says_commit_interval_verdict_and_what_is_left(checkout, thirty):
    bisection = Bisection(checkout, thirty[0], thirty[-1], lambda c: BAD if thirty.index(c) >= 20 else GOOD)
    bisection.run()
    short = git(checkout, "rev-parse", "--short", thirty[14])
    assert bisection.log[1].startswith(f"{short} change 14 ")
    assert bisection.log[1].endswith("  [−0.2 % 0.0 % +0.2 %] unchanged, 4 steps left")
    assert all(len(line) == 80 for line in bisection.log[1:])


def test_only_the_clearest_figure_is_followed(checkout, thirty):
    clear = judged(Verdict.REGRESSED, interval=(0.019, 0.02, 0.021))
    vague = judged(Verdict.REGRESSED, name="chat", rule="ttft:3%", interval=(0.03, 0.3, 0.7))
    said = {thirty[-1]: Measured(code=1, judgements=(vague, clear))}
    bisection = Bisection(checkout, thirty[0], thirty[-1], lambda c: said.get(c, BAD if thirty.index(c) >= 3 else GOOD))
    assert bisection.run() == [thirty[3]]
    assert bisection.search.followed == clear
    assert others(bisection.search.judgements, clear) == [vague]
    first, *later = [plan for _, plan, _ in bisection.runs.asked]
    assert first == PLAN
    assert {(plan.selected, tuple(rule.text for rule in plan.rules)) for plan in later} == {
        (("t.py::t[story]",), (RULE,))
    }


def test_what_is_inconclusive_is_measured_once_more_and_then_skipped(checkout, thirty):
    def answers(made):
        number = thirty.index(made)
        return (
            [UNSURE, GOOD]
            if number == 14
            else [UNSURE, UNSURE]
            if number in (21, 22)
            else BAD
            if number >= 25
            else GOOD
        )

    kept = {made: answers(made) for made in thirty}
    bisection = Bisection(checkout, thirty[0], thirty[-1], kept)
    assert bisection.run() == [thirty[25]]
    asked = [(thirty.index(made), more) for made, _, more in bisection.runs.asked]
    assert [(number, more) for number, more in asked if number == 14] == [(14, False), (14, True)]
    assert bisection.search.steps[thirty[14]].mark is Mark.GOOD
    skipped = [step for step in bisection.search.steps.values() if step.mark is Mark.SKIP]
    assert all(step.again for step in skipped)
    (line, *_) = [line for line in bisection.log if "skipped" in line]
    assert "inconclusive, skipped, " in line
    assert line.endswith("\n  measured twice; the interval reaches beyond")


def test_an_undecided_figure_is_measured_again_whatever_else_ends_the_run(checkout, thirty):
    """The run itself takes a bound that GOOD breaks as well, and rules of the commit's settings, for regressions."""
    broken = judged(Verdict.INCOMPARABLE, rule="ttft:3%", reason=runs.NOT_OF_GOOD)
    own = judged(Verdict.REGRESSED, rule="peak_rss:2%")
    (unsure,), (bad,), (good,) = (one.judgements for one in (UNSURE, BAD, GOOD))

    def answers(made):
        first, then = (broken, bad) if made == thirty[-1] else (own, bad if thirty.index(made) >= 20 else good)
        return [Measured(code=1, judgements=(first, unsure)), Measured(code=1, judgements=(first, then))]

    bisection = Bisection(checkout, thirty[0], thirty[-1], {made: answers(made) for made in thirty})
    assert bisection.run() == [thirty[20]]
    assert [more for _, _, more in bisection.runs.asked] == [False, True] * len(bisection.search.steps)


def test_what_cannot_be_measured_is_not_measured_twice(checkout, thirty):
    def answers(made):
        number = thirty.index(made)
        return BROKEN if number in (14, 15, 16) else BAD if number >= 20 else GOOD

    bisection = Bisection(checkout, thirty[0], thirty[-1], answers)
    assert bisection.run() == [thirty[20]]
    assert not any(more for _, _, more in bisection.runs.asked)
    assert any(line.endswith("\n  ImportError while importing test module") for line in bisection.log)


def test_skipped_commits_beside_the_first_bad_one_leave_a_range(checkout, thirty):
    def answers(made):
        number = thirty.index(made)
        return BROKEN if number in (18, 19) else BAD if number >= 18 else GOOD

    bisection = Bisection(checkout, thirty[0], thirty[-1], answers)
    suspects = bisection.run()
    assert suspects == [thirty[20], thirty[19], thirty[18]]
    said = lines.ranged(
        described(bisection.repository, suspects), [bisection.search.steps.get(made) for made in suspects]
    )
    assert said[0] == "the first bad commit is one of these 3; those skipped could not be judged:"
    assert said[1] == f"  {thirty[20]} change 20  [+1.8 % +2.0 % +2.2 %] regressed"
    assert said[2] == f"  {thirty[19]} change 19  skipped"


def test_all_that_lies_between_may_be_skipped(checkout, thirty):
    bisection = Bisection(checkout, thirty[0], thirty[3], lambda c: BAD if c == thirty[3] else BROKEN)
    assert bisection.run() == [thirty[3], thirty[2], thirty[1]]


def test_neighbours_need_no_step(checkout, thirty):
    bisection = Bisection(checkout, thirty[3], thirty[4], lambda _: BAD)
    assert bisection.run() == [thirty[4]]
    assert len(bisection.runs.asked) == 1
    (known, good) = described(bisection.repository, [thirty[4], thirty[3]])
    said = lines.named(known, judged(Verdict.REGRESSED), [], good)
    assert said[0] == f"first bad commit: {thirty[4]}"
    assert said[1] == "  change 4"
    assert said[2].startswith("  A Name, 20")
    assert said[3] == f"  tpot:1% of story against {good.short}: [+1.8 % +2.0 % +2.2 %] regressed"
    assert said[4] == f"  its parent is {good.short} itself"


def test_the_end_names_the_figure_of_the_parent(checkout, thirty):
    bisection = Bisection(checkout, thirty[0], thirty[-1], lambda c: BAD if thirty.index(c) >= 7 else GOOD)
    bisection.run()
    (known,) = described(bisection.repository, [thirty[7]])
    ((parent, judgement),) = of_parents(known.parents, thirty[0], bisection.search.steps)
    assert (parent, judgement) == (thirty[6], judged(Verdict.UNCHANGED))


def merged(folder):
    """Return the commits of a main line with a branch that is merged into it; the change comes on the branch."""
    made = {"base": commit(folder, "base")}
    git(folder, "checkout", "-q", "-b", "side")
    for name in ("side 1", "slow", "side 3"):
        made[name] = commit(folder, name, side_dot_py=name)
    git(folder, "checkout", "-q", "main")
    for name in ("main 1", "main 2"):
        made[name] = commit(folder, name, main_dot_py=name)
    git(folder, "merge", "-q", "--no-ff", "-m", "merge", "side")
    made["merge"] = git(folder, "rev-parse", "HEAD")
    made["last"] = commit(folder, "last", main_dot_py="last")
    return made


def test_a_change_on_a_merged_branch_is_found_there(checkout):
    made = merged(checkout)
    slow = {made[name] for name in ("slow", "side 3", "merge", "last")}
    bisection = Bisection(checkout, made["base"], "main", lambda c: BAD if c in slow else GOOD)
    assert bisection.run() == [made["slow"]]


def test_or_the_merge_where_only_the_main_line_is_asked_for(checkout):
    made = merged(checkout)
    slow = {made[name] for name in ("slow", "side 3", "merge", "last")}
    bisection = Bisection(checkout, made["base"], "main", lambda c: BAD if c in slow else GOOD, first_parent=True)
    assert bisection.run() == [made["merge"]]
    assert {made["side 1"], made["slow"]}.isdisjoint(asked[0] for asked in bisection.runs.asked)


def test_a_bisection_of_the_users_own_goes_on_undisturbed(checkout, thirty):
    git(checkout, "bisect", "start", thirty[20], thirty[5])
    git(checkout, "bisect", "good", thirty[8])

    def state():
        return git(checkout, "bisect", "log"), git(checkout, "for-each-ref"), git(checkout, "rev-parse", "HEAD")

    before = state()
    Bisection(checkout, thirty[0], thirty[-1], lambda c: BAD if thirty.index(c) >= 3 else GOOD).run()
    assert state() == before
    assert git(checkout, "worktree", "list").count("\n") == 0


def test_an_interrupt_says_what_is_known_and_how_to_go_on(checkout, thirty):
    def answers(made):
        number = thirty.index(made)
        if number not in (29, 14, 21):
            raise KeyboardInterrupt
        return BAD if number >= 18 else GOOD

    bisection = Bisection(checkout, thirty[0], thirty[-1], answers)
    bisection.search.confirm()
    with pytest.raises(KeyboardInterrupt):
        bisection.search.halve(bisection.halving)
    left = bisection.halving.suspects()
    assert (len(left), left[0], bisection.halving.best_good()) == (7, thirty[21], thirty[14])
    said = lines.go_on("interrupted", thirty[14], thirty[21], ["--rule=tpot[a b]:1%", "--", "bench"], 7)
    assert said[0] == (
        f"interrupted: the first bad commit is one of 7, after {thirty[14][:12]} and up to {thirty[21][:12]}; to go on:"
    )
    assert shlex.split(said[1]) == [
        "pytest-infer", "bisect", thirty[14][:12], thirty[21][:12], "--rule=tpot[a b]:1%", "--", "bench",
    ]  # fmt: skip
    bisection.worktree.remove()


@pytest.mark.parametrize(("code", "ends"), [(130, KeyboardInterrupt), (128, AgainstError)])
def test_an_interrupted_step_and_wrong_usage_end_it(checkout, thirty, code, ends):
    bisection = Bisection(checkout, thirty[0], thirty[-1], lambda _: Measured(code=code, why="unknown option"))
    with pytest.raises(ends):
        bisection.run()


def test_what_decided_is_shown():
    good, bad = judged(Verdict.UNCHANGED), judged(Verdict.REGRESSED, name="chat")
    unsure = judged(Verdict.INCONCLUSIVE, name="list")
    assert decisive([good, unsure, bad]) is bad
    assert decisive([good, unsure]) is unsure
    assert decisive([good]) is good
    assert decisive([]) is None


def test_a_commit_is_marked_by_the_figure_that_is_followed(checkout, thirty):
    # Its own settings may judge more, and end the run otherwise.
    more = judged(Verdict.REGRESSED, rule="peak_rss:2%")

    def answers(made):
        number = thirty.index(made)
        if number in (17, 18):
            return Measured(code=1, judgements=(more,))
        return Measured(code=1, judgements=(more, judged(Verdict.REGRESSED if number >= 20 else Verdict.UNCHANGED)))

    bisection = Bisection(checkout, thirty[0], thirty[-1], answers)
    assert bisection.run() == [thirty[20]]
    assert bisection.search.followed.rule == RULE
    assert bisection.search.steps[thirty[14]].mark is Mark.GOOD
    skipped = [step for step in bisection.search.steps.values() if step.mark is Mark.SKIP]
    assert all(step.judgement is None for step in skipped)


def test_a_rule_that_is_given_twice_is_followed_once():
    plan = Plan(**{**plan_fields(), "rules": PLAN.rules * 2}).only(judged(Verdict.REGRESSED))
    assert [rule.text for rule in plan.rules] == [RULE]


def test_arguments_that_one_commit_refuses_are_that_commits_fault(checkout, thirty):
    def answers(made):
        number = thirty.index(made)
        refused = Measured(code=128, why="unrecognized arguments: --mine")
        return refused if number == 14 else BAD if number >= 20 else GOOD

    bisection = Bisection(checkout, thirty[0], thirty[-1], answers)
    assert bisection.run() == [thirty[20]]
    assert bisection.search.steps[thirty[14]].mark is Mark.SKIP
    assert any(line.endswith("\n  unrecognized arguments: --mine") for line in bisection.log)


def test_nothing_to_find_shows_the_intervals(checkout, thirty):
    good, bad = described(Repository.of(checkout), [thirty[0], thirty[-1]])
    step = Step(commit=bad.hash, mark=Mark.GOOD, judgement=judged(Verdict.UNCHANGED))
    said = lines.nothing_to_find(step, [judged(Verdict.UNCHANGED)], good, bad)
    assert said == [
        f"nothing to find: {bad.short} against {good.short} did not get worse",
        "  tpot:1% of story  [−0.2 % 0.0 % +0.2 %] unchanged",
    ]
    step = Step(commit=bad.hash, mark=Mark.SKIP, judgement=judged(Verdict.INCONCLUSIVE), why="…")
    (first, _) = lines.nothing_to_find(step, [judged(Verdict.INCONCLUSIVE)], good, bad)
    assert first.startswith(f"cannot tell whether {bad.short} against {good.short} got worse")
    (only,) = lines.nothing_to_find(Step(commit=bad.hash, mark=Mark.SKIP, why="no test"), [], good, bad)
    assert only == f"nothing to find: {bad.short} against {good.short} cannot be compared: no test"


@pytest.fixture
def started(checkout, thirty, monkeypatch, capsys):
    """Return a function that bisects the thirty from a folder with faked runs; it returns how that ends, and lines."""
    here = checkout / "a sub"
    here.mkdir()
    monkeypatch.chdir(here)
    found = runs.Collected(root=checkout.resolve(), options=("-k", "story"), amounts=(1, 1, 1), tests=(), files=(),
                           data={})  # fmt: skip

    def run(scratch, answers):
        repository = Repository.of(checkout)
        monkeypatch.setattr(command_module, "Runs", lambda *_: Faked(answers))
        ends = Ends.of(repository, thirty[0], thirty[-1])
        made = command_module._Bisection(repository, ends, found, PLAN.rules, first_parent=True)
        try:
            code = made.run(scratch)
        except AgainstError as error:
            code = error
        return code, capsys.readouterr().out.splitlines()

    return run


def test_what_ends_it_early_says_first_how_to_go_on(checkout, thirty, started, tmp_path):
    def answers(made):
        number = thirty.index(made)
        if number == 21:
            raise AgainstError("git cannot check it out")
        return BAD if number >= 18 else GOOD

    error, said = started(tmp_path, answers)
    assert str(error) == "git cannot check it out"
    assert said[-2].startswith(f"stopped: the first bad commit is one of 15, after {thirty[14][:12]} and up to ")
    assert shlex.split(said[-1])[4:] == ["--rule=tpot:1%", "--first-parent", "--", "-k", "story", "../t.py::t[story]"]


def test_nothing_is_said_of_what_is_not_known_yet(checkout, thirty, started, tmp_path):
    def answers(made):
        raise KeyboardInterrupt

    code, said = started(tmp_path, answers)
    assert code == 130
    (good, bad) = (git(checkout, "rev-parse", "--short", thirty[number]) for number in (0, -1))
    assert said == [f"interrupted: whether {bad} is worse than {good} is not known yet"]


# what is refused at once


@pytest.fixture
def command(checkout, thirty, monkeypatch):
    monkeypatch.chdir(checkout)

    def run(*arguments):
        result = CliRunner().invoke(app, ["bisect", *arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.stderr.count("\n") <= 1 or "Usage" in result.stderr
        return result

    return run


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("nowhere", "HEAD"),
            "GOOD nowhere: git finds no such commit; give a branch, tag or commit of this repository",
        ),
        (("HEAD~3", "$(touch hacked)"), "BAD $(touch hacked): git finds no such commit"),
        (("HEAD~3", "; touch hacked;"), "BAD ; touch hacked;: git finds no such commit"),
        (("--", "--upload-pack=touch hacked", "HEAD"), "GOOD --upload-pack=touch hacked: git finds no such commit"),
        (("HEAD", "main"), "GOOD HEAD and BAD main are the same commit"),
        (("HEAD", "HEAD~3"), "GOOD HEAD comes after BAD HEAD~3: give the older commit first"),
        (("other", "HEAD"), "GOOD other is no ancestor of BAD HEAD: give an older commit of BAD's history; "),
        (("HEAD~3", "HEAD", "--rule", "speed:5%"), "gate rule 'speed:5%': unknown metric 'speed'"),
        (("HEAD~3", "HEAD", "--", "--infer-gate=tpot:1%"), "--infer-gate is not for a bisection: give the rules with"),
        (("HEAD~3", "HEAD", "--", "--infer-against", "x"), "--infer-against is not for a bisection: GOOD is compared"),
    ],
)
def test_what_cannot_be_searched_is_one_line(command, checkout, thirty, arguments, line):
    git(checkout, "branch", "other", git(checkout, "commit-tree", f"{thirty[4]}^{{tree}}", "-p", thirty[4], "-m", "x"))
    result = command(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"pytest-infer: {line}")
    assert not list(checkout.parent.rglob("hacked"))
    assert not list((checkout.parent / "tmp").iterdir())


def test_a_shallow_clone_is_sent_for_the_rest(thirty, checkout, tmp_path):
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{checkout}", "shallow")
    shallow = Repository.of(tmp_path / "shallow")
    with pytest.raises(UnknownCommitError, match=r"^GOOD v1: .* in this shallow clone; run `git fetch --unshallow`$"):
        Ends.of(shallow, "v1", "HEAD")
    git(shallow.root, "fetch", "-q", "--depth=1", "origin", thirty[3])
    with pytest.raises(OptionError, match=r"between GOOD FETCH_HEAD and BAD HEAD in this shallow clone; run `git fet"):
        Ends.of(shallow, "FETCH_HEAD", "HEAD")


def test_outside_git_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["bisect", "a", "b"])
    assert (result.exit_code, result.stderr.startswith("pytest-infer: pytest-infer bisect needs a git checkout")) == (
        2,
        True,
    )


def test_hostile_names_of_commits_are_names(checkout, thirty):
    for name in ("a;b", "$(x)", "`x`", "a'b", 'a"b', "-x"):
        git(checkout, "update-ref", f"refs/heads/{name}", thirty[3])
        assert Ends.of(Repository.of(checkout), f"refs/heads/{name}", "main").good == thirty[3]
    with pytest.raises(UnknownCommitError):
        Ends.of(Repository.of(checkout), "--all", "main")


def test_tests_that_cannot_be_collected_here_are_told_with_pytests_words(checkout, tmp_path, monkeypatch):
    commit(checkout, "tests", bench__test_it_dot_py="import nowhere\n")
    monkeypatch.chdir(checkout)
    with pytest.raises(OptionError, match=r"tests cannot be measured: ModuleNotFoundError: No module named 'nowhere'"):
        runs.collected(["bench"], tmp_path)
    (checkout / "bench" / "test_it.py").write_text("def test_it():\n    pass\n")
    with pytest.raises(OptionError, match="no test asks for `infer`"):
        runs.collected(["bench"], tmp_path)
    (checkout / "bench" / "test_it.py").write_text("def test_it(infer):\n    infer('one')\n")
    found = runs.collected(["bench"], tmp_path)
    assert found.files == (checkout.resolve() / "bench" / "test_it.py",)
    assert found.options == ()
    assert not list(checkout.rglob("__pycache__"))


# the suite of the checkout


@pytest.fixture
def suite(checkout, tmp_path):
    """Return a function that lays the suite of the checkout over a commit and returns a reader of its files."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def over(commit, *tests):
        repository = Repository.of(checkout)
        made = Suite.of(repository, [checkout.resolve() / test for test in tests], scratch).on(commit)

        def read(path):
            done = subprocess.run(
                ["git", "show", f"{made}:{path}"], cwd=checkout, capture_output=True, text=True, check=False
            )
            return done.stdout if done.returncode == 0 else None

        read.commit = made
        return read

    return over


def test_tests_and_prompts_are_the_checkouts_and_conftest_is_the_commits(checkout, suite):
    before = commit(checkout, "none yet", mine_dot_py="code 1")
    old = commit(
        checkout, "a suite", bench__test_it_dot_py="old", bench__prompts_dot_toml="old", bench__conftest_dot_py="old",
        bench__only_here_dot_py="old", mine_dot_py="code 2",
    )  # fmt: skip
    new = commit(
        checkout, "another", bench__test_it_dot_py="new", bench__prompts_dot_toml="new", bench__conftest_dot_py="new",
        bench__deep__text_dot_txt="new", mine_dot_py="code 3",
    )  # fmt: skip
    (checkout / "bench" / "prompts.toml").write_text("not committed")
    (checkout / "bench" / "more.jsonl").write_text("not added")
    (checkout / "bench" / "pytest.ini").write_text("[pytest]")
    (checkout / "mine.py").write_text("not committed")
    index = (checkout / ".git" / "index").read_bytes()
    names = ("bench/test_it.py", "bench/prompts.toml", "bench/more.jsonl", "bench/conftest.py", "bench/deep/text.txt")
    seen = [[suite(made, "bench/test_it.py")(name) for name in (*names, "mine.py")] for made in (before, old, new)]
    assert seen == [
        ["new", "not committed", "not added", "new", "new", "code 1"],
        ["new", "not committed", "not added", "old", "new", "code 2"],
        ["new", "not committed", "not added", "new", "new", "code 3"],
    ]
    assert suite(old, "bench/test_it.py")("bench/only_here.py") == "old"
    assert suite(old, "bench/test_it.py")("bench/pytest.ini") is None
    assert (checkout / ".git" / "index").read_bytes() == index


def test_a_commit_that_has_the_suite_stays_itself(checkout, suite):
    made = commit(checkout, "a suite", bench__test_it_dot_py="new", bench__prompts_dot_toml="new")
    assert suite(made, "bench/test_it.py").commit == made


def test_beside_the_repositorys_own_files_only_the_suite_is_laid_over(checkout, suite):
    old = commit(
        checkout, "old", test_it_dot_py="old", prompts_dot_toml="old", engine_dot_py="old", pyproject_dot_toml="old"
    )
    commit(checkout, "new", test_it_dot_py="new", prompts_dot_toml="new", engine_dot_py="new", pyproject_dot_toml="new",
           other_dot_py="new", sub__code_dot_py="new")  # fmt: skip
    read = suite(old, "test_it.py")
    found = [
        read(name) for name in ("test_it.py", "prompts.toml", "engine.py", "pyproject.toml", "other.py", "sub/code.py")
    ]
    assert found == ["new", "new", "old", "old", None, None]


def test_a_folder_in_the_place_of_a_file_gives_way(checkout, suite):
    old = commit(checkout, "old", bench="a file")
    git(checkout, "rm", "-q", "bench")
    commit(checkout, "new", bench__test_it_dot_py="new")
    assert suite(old, "bench/test_it.py")("bench/test_it.py") == "new"


def test_names_of_files_may_be_hostile(checkout, suite):
    old = commit(checkout, "old")
    folder = checkout / "be nch; $(x) 'é\n*"
    folder.mkdir()
    (folder / "test_it.py").write_text("new")
    (folder / "prompts.toml").write_text("new")
    read = suite(old, f"{folder.name}/test_it.py")
    assert (read(f"{folder.name}/test_it.py"), read(f"{folder.name}/prompts.toml")) == ("new", "new")


def test_a_model_that_is_not_committed_and_prompts_are_shared(checkout):
    commit(checkout, "one", models__kept__config_dot_json="{}", my_dot_toml="")
    (checkout / "models" / "big").mkdir()
    (checkout / "models" / "big" / "config.json").write_text("{}")
    repository, here = Repository.of(checkout), checkout.resolve()

    def given(**data):
        return shared(repository, {name: here / path for name, path in data.items()})

    assert given(model="models/big") == [f"--infer-model={here}/models/big"]
    assert given(model="models/kept") == given(model="reference-moe") == given(model="x" * 300) == []
    assert given(prompts="my.toml", text="my.toml") == [
        f"--infer-prompts={here}/my.toml",
        f"--infer-text={here}/my.toml",
    ]


def test_a_step_that_the_kernel_kills_is_skipped(checkout, thirty, tmp_path, monkeypatch):
    repository = Repository.of(checkout)
    worktree = Worktree(repository, thirty[0])
    suite = Suite(repository=repository, index=tmp_path / "index", ours={}, spare={})
    made = runs.Runs(repository, worktree, suite, thirty[0], tmp_path)
    # A shell lets what it starts in the background ignore SIGINT.
    program = "import os, signal, sys\nsignal.signal(2, signal.SIG_DFL)\nos.kill(os.getpid(), int(sys.argv[1]))\n"
    for number, code, why in ((9, 125, "the run was killed by signal 9"), (2, 130, None)):
        monkeypatch.setattr(made, "_command", lambda *_, number=number, **__: ["python3", "-c", program, str(number)])
        measured = made.measure(thirty[1], PLAN)
        assert measured.code == code
        assert measured.why == why or why is None
    assert git(worktree.path, "rev-parse", "HEAD") == thirty[1]
    (worktree.path / "left.txt").touch()
    made.measure(thirty[2], PLAN)
    assert not (worktree.path / "left.txt").exists()
    assert made.measure(thirty[2], Plan(**{**plan_fields(), "here": Path("none")})).why == "it has no folder none"
    worktree.remove()
    assert os.listdir(checkout.parent / "tmp") == []  # noqa: PTH208 - its names


def test_tests_are_named_as_they_are(checkout, thirty, tmp_path):
    repository = Repository.of(checkout)
    worktree = Worktree(repository, thirty[0])
    suite = Suite(repository=repository, index=tmp_path / "index", ours={}, spare={})
    made = runs.Runs(repository, worktree, suite, thirty[0], tmp_path)
    plan = Plan(**{**plan_fields(), "selected": ("t.py::t[https://a/b//..]",), "root": Path("sub")})
    *_, asked = made._command(plan, tmp_path / "run.json", more=False)
    worktree.remove()
    assert asked == f"{worktree.path}/sub/t.py::t[https://a/b//..]"


@pytest.mark.parametrize(
    ("rule", "text", "left_out"),
    [("tpot:1%", False, True), ("tpot:1%", True, False), ("peak_rss:1%", False, False)],
)
def test_times_alone_need_no_profile_round_unless_a_text_does(checkout, thirty, tmp_path, rule, text, left_out):
    repository = Repository.of(checkout)
    worktree = Worktree(repository, thirty[0])
    suite = Suite(repository=repository, index=tmp_path / "index", ours={}, spare={})
    made = runs.Runs(repository, worktree, suite, thirty[0], tmp_path)
    plan = Plan(**{**plan_fields(), "rules": rules.parse([rule]), "text": text})
    command = made._command(plan, tmp_path / "run.json", more=False)
    worktree.remove()
    assert ("--infer-no-profile" in command) is left_out


def plan_fields():
    return {name: getattr(PLAN, name) for name in Plan.__dataclass_fields__}


@pytest.mark.parametrize(
    ("amounts", "asked"),
    [((60.0, 8, 30), ("180s", "16", "90")), ((90.5, 40, 8), ("271.5s", "64", "24")), ((0.5, 1, 1), ("1.5s", "2", "3"))],
)
def test_an_undecided_step_gets_several_times_as_much(amounts, asked):
    names = ("--infer-time", "--infer-launches", "--infer-max-rounds")
    assert runs.longer(amounts) == tuple(f"{name}={value}" for name, value in zip(names, asked, strict=True))


def test_no_more_launches_are_asked_for_than_a_run_takes():
    from pytest_infer.pytest_face import settings

    assert runs.MOST_LAUNCHES == settings.MOST_LAUNCHES


def test_what_is_measured_and_how_long_is_what_pytest_says(checkout, tmp_path, monkeypatch):
    commit(checkout, "tests", bench__test_it_dot_py="def test_it(infer):\n    infer('one')\n")
    (checkout / "pytest.ini").write_text("[pytest]\ninfer_time = 300s\n")
    (checkout / "test_other.py").write_text("def test_other(infer):\n    infer('two')\n")
    monkeypatch.chdir(checkout)
    # A word that is an option's value is no test, though there is a file of that name.
    (checkout / "mine.toml").write_text("")
    given = ["--infer-max-new-tokens", "3", "-k", "bench or it", "--ignore", "mine.toml"]
    found = runs.collected(given, tmp_path)
    assert (found.tests, found.options) == (("bench/test_it.py::test_it",), tuple(given))
    assert (found.amounts, found.text) == ((300.0, 8, 30), False)
    named = runs.collected([*given, "test_other.py", "-k", "other"], tmp_path)
    assert (named.tests, named.options) == (("test_other.py::test_other",), (*given, "-k", "other"))


def test_files_that_options_name_are_known_wherever_these_are_set(checkout, tmp_path, monkeypatch):
    commit(checkout, "tests", sub__test_it_dot_py="def test_it(infer):\n    infer('one')\n")
    ini = "[pytest]\ninfer_model = ./mine\ninfer_prompts = p.toml\naddopts = --infer-text --infer-gate\n"
    (checkout / "pytest.ini").write_text(ini)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--infer-text=my.txt")
    here = checkout.resolve() / "sub"
    monkeypatch.chdir(here)
    (here / "mine").mkdir()
    for path in (here / "mine" / "config.json", here / "my.txt"):
        path.write_text("{}")
    (checkout / "p.toml").write_text('[[prompt]]\nname = "one"\ntext = "x"\n')
    found = runs.collected(["test_it.py"], tmp_path)
    assert found.data == {"model": here / "mine", "prompts": here.parent / "p.toml", "text": here / "my.txt"}
    assert found.text
    monkeypatch.setenv("PYTEST_ADDOPTS", "")
    bundled = runs.collected(["test_it.py"], tmp_path)
    assert (bundled.data.keys(), bundled.text) == ({"model", "prompts"}, True)


@pytest.mark.parametrize(
    ("ini", "environment", "said"),
    [
        ("", "--infer-gate=peak_rss:2%", "--infer-gate, as addopts, .*: give the rules with --rule"),
        ("infer_against_python = python3", "", "--infer-against-python, .*: every commit runs in this interpreter"),
        ("addopts = --benchmark-disable", "", "--benchmark-disable, .*: steps are measured"),
    ],
)
def test_what_a_step_decides_itself_is_refused_wherever_it_is_set(
    checkout, tmp_path, monkeypatch, ini, environment, said
):
    commit(checkout, "tests", test_it_dot_py="def test_it(infer):\n    infer('one')\n")
    (checkout / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", environment)
    monkeypatch.chdir(checkout)
    with pytest.raises(OptionError, match=said):
        runs.collected(["test_it.py"], tmp_path)


@pytest.mark.skipif(not PAGE.exists(), reason="the wheel is tested without docs/")
def test_the_page_lists_what_is_refused():
    rows = "".join(f"| `{option}` | {why} |\n" for option, why in runs._NOT_HERE.items())
    shown = (
        PAGE.read_text(encoding="utf-8").partition("<!-- refused:begin -->\n")[2].partition("<!-- refused:end -->")[0]
    )
    assert shown == f"| refused | why |\n|---|---|\n{rows}"


def test_a_run_that_would_be_saved_is_not_refused_where_addopts_asks_for_it(checkout, tmp_path, monkeypatch):
    commit(checkout, "tests", test_it_dot_py="def test_it(infer):\n    infer('one')\n")
    (checkout / "pytest.ini").write_text("[pytest]\naddopts = --benchmark-autosave --benchmark-save=x\n")
    monkeypatch.chdir(checkout)
    assert runs.collected(["test_it.py"], tmp_path).tests
    assert [path for path in checkout.rglob("*") if "benchmark" in path.name] == []


def test_rules_that_are_switched_off_again_are_none(checkout, tmp_path, monkeypatch):
    commit(checkout, "tests", test_it_dot_py="def test_it(infer):\n    infer('one')\n")
    (checkout / "pytest.ini").write_text("[pytest]\naddopts = --infer-gate=ttft:5%\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--infer-gate=off")
    monkeypatch.chdir(checkout)
    assert runs.collected(["test_it.py"], tmp_path).tests


@pytest.mark.parametrize(
    ("text", "change", "asked"),
    [
        ("tpot:1%", 0.02, "tpot:1%"),
        ("tpot:1%", 0.0404, "tpot:2%"),
        ("tpot[a b]:1.5 %", 1.0, "tpot[a b]:41.42%"),
        ("decode_throughput:5%", -0.5, "decode_throughput:29.29%"),
        ("tpot:50%", 1.0, "tpot:50%"),
        ("ttft<=1s", 3.0, "ttft<=1s"),
        ("output:exact", None, "output:exact"),
    ],
)
def test_commits_are_told_apart_halfway_to_the_change(text, change, asked):
    (rule,) = rules.parse([text])
    found = judged(Verdict.REGRESSED, rule=text, interval=(change, change, change))
    assert runs.midway(rule, found).text == asked
    assert rules.parse([asked]) == (runs.midway(rule, found),)


def test_a_large_change_is_followed_by_a_rule_halfway(checkout, thirty):
    twice = {"interval": (0.9, 1.0, 1.1)}
    kept = {made: answer(Verdict.REGRESSED, rule="tpot:41.42%", **twice) for made in thirty}
    kept |= {thirty[-1]: answer(Verdict.REGRESSED, **twice)}
    kept |= {made: answer(Verdict.UNCHANGED, rule="tpot:41.42%") for made in thirty[:5]}
    bisection = Bisection(checkout, thirty[0], thirty[-1], kept)
    assert bisection.run() == [thirty[5]]
    assert {rule.text for _, plan, _ in bisection.runs.asked[1:] for rule in plan.rules} == {"tpot:41.42%"}
    assert {step.why for step in bisection.search.steps.values()} == {None}
    first, now = bisection.search.steps[thirty[-1]].judgement, bisection.search.followed
    also, broken = judged(Verdict.REGRESSED, name="chat"), judged(Verdict.INCOMPARABLE, rule="tpot<=1ms")
    assert lines.following(first, now, [also], [broken], commits=29, steps=5) == [
        "following tpot:1% of story: 29 commits, about 5 steps",
        "  bad from here on: beyond tpot:41.42% of story, halfway to that change",
        "  also worse, and not followed: tpot:1% of chat (--rule and -k choose)",
        "  left out: tpot<=1ms of story: GOOD does not keep that bound for certain",
    ]
    assert others([first, judged(Verdict.REGRESSED, rule="tpot:5%")], first) == []
