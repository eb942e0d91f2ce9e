"""The command: what it refuses at once, what it prints, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pytest_infer.analysis.compare import rules
from pytest_infer.analysis.compare.ending import INTERRUPTED
from pytest_infer.analysis.compare.rules import Rule
from pytest_infer.analysis.compare.verdicts import Exit, Judgement, Verdict
from pytest_infer.checkouts.worktree import Repository, Worktree, no_place
from pytest_infer.cli import inifile
from pytest_infer.cli.bisect import lines
from pytest_infer.cli.bisect.halving import Ends, Halving, Mark, described
from pytest_infer.cli.bisect.runs import NOT_OF_GOOD, Collected, Plan, Runs, collected, longer, refuse_arguments
from pytest_infer.cli.bisect.search import Search, Step, of_parents, others
from pytest_infer.cli.bisect.suite import Suite, shared
from pytest_infer.cli.shared import out, refuse, screen
from pytest_infer.errors import AgainstError, InferError


def bisect(
    good: Annotated[str, typer.Argument(metavar="GOOD", help="A commit that was fast: branch, tag or hash.")],
    bad: Annotated[str, typer.Argument(metavar="BAD", help="A later one that is slow.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- ARGUMENT…]", help="Of pytest: tests, and how they are measured; default: bench."),
    ] = None,
    *,
    keyword: Annotated[
        str | None, typer.Option("-k", metavar="TEXT", help="Only tests that pytest's -k takes.")
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            metavar="RULE",
            help="What got worse: tpot:1%, ttft[story]:3% (repeat it); default: infer_gate of the ini file, else "
            f"{', '.join(rules.DEFAULT_PAIRED)}.",
        ),
    ] = None,
    first_parent: Annotated[
        bool, typer.Option("--first-parent", help="Only commits of the main line: a merge counts as one.")
    ] = False,
) -> None:
    """Find the commit that got worse: 0 found, 10 a few are left or it cannot be told, 11 nothing to find, 2 usage."""
    given = [*(arguments or ()), *(["-k", keyword] if keyword is not None else [])]
    try:
        if os.name == "nt":
            raise AgainstError("pytest-infer bisect does not work on Windows; use WSL")
        repository = Repository.of(Path.cwd(), "pytest-infer bisect")
        ends = Ends.of(repository, good, bad)
        source = rules.Source.TYPED if rule else rules.Source.INI
        parsed = rules.parse(rule or inifile.gate_rules(Path.cwd()), rules.DEFAULT_PAIRED, source)
        # Levels of load are none of an A/B run's.
        parsed = rules.of_kinds(parsed, [False])
        refuse_arguments(given)
        with _scratch() as scratch:
            found = collected(given, scratch)
            code = _Bisection(repository, ends, found, parsed, first_parent=first_parent).run(scratch)
    except InferError as error:
        refuse(error)
    raise typer.Exit(code)


@contextmanager
def _scratch() -> Iterator[Path]:
    """Yield a folder for as long as this takes; whatever asks this process to end lets it clean up first."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        try:
            made = tempfile.TemporaryDirectory(prefix="pytest-infer-bisect-")
        except OSError as error:
            raise no_place(error) from error
        with made as folder:
            yield Path(folder).resolve()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _plan(repository: Repository, found: Collected, parsed: Sequence[Rule]) -> Plan:
    here = Path.cwd().resolve()
    for place in (here, found.root):
        if not place.is_relative_to(repository.root):
            raise AgainstError(f"{place} lies outside the repository {repository.root}: start in it")
    return Plan(
        arguments=(*found.options, *shared(repository, found.data)),
        longer=longer(found.amounts),
        selected=found.tests,
        rules=tuple(parsed),
        text=found.text,
        here=here.relative_to(repository.root),
        root=found.root.relative_to(repository.root),
    )


class _Bisection:
    """One bisection on a terminal."""

    def __init__(
        self,
        repository: Repository,
        ends: Ends,
        found: Collected,
        parsed: Sequence[Rule],
        *,
        first_parent: bool,
    ) -> None:
        self._repository = repository
        self._ends = ends
        self._found = found
        self._first_parent = first_parent
        self._plan = _plan(repository, found, parsed)
        self._good, self._bad = described(repository, [ends.good, ends.bad])
        self._width = screen().width

    def run(self, scratch: Path) -> int:
        """Search, and return the exit code."""
        # What is left of it is said before the worktree goes, with git's state of it.
        worktree = Worktree(self._repository, self._ends.good)
        try:
            return self._search(worktree, scratch)
        finally:
            worktree.remove()

    def _search(self, worktree: Worktree, scratch: Path) -> int:
        suite = Suite.of(self._repository, self._found.files, scratch)
        runs = Runs(self._repository, worktree, suite, self._ends.good, scratch)
        search = Search(bad=self._ends.bad, plan=self._plan, runs=runs, starting=self._starting, told=self._told)
        halving = Halving(worktree.path, self._ends, first_parent=self._first_parent)
        try:
            confirmed = search.confirm()
            if confirmed.mark is not Mark.BAD or search.followed is None:
                self._say(lines.nothing_to_find(confirmed, search.judgements, self._good, self._bad))
                doubt = confirmed.judgement is not None and confirmed.judgement.verdict is Verdict.INCONCLUSIVE
                return Exit.INCONCLUSIVE.value if doubt and confirmed.mark is Mark.SKIP else Exit.NOTHING.value
            self._followed(search, len(halving.suspects()), halving.steps())
            suspects = search.halve(halving)
        except KeyboardInterrupt:
            self._clear()
            if search.followed is None:
                between = f"{self._bad.short} is worse than {self._good.short}"
                self._say([f"interrupted: whether {between} is not known yet"])
            else:
                self._go_on("interrupted", search.followed, halving)
            return INTERRUPTED
        except InferError:
            self._clear()
            if search.followed is not None:
                self._go_on("stopped", search.followed, halving)
            raise
        return self._ended(search, suspects)

    def _go_on(self, how: str, followed: Judgement, halving: Halving) -> None:
        """Say how to go on with the figure that is followed."""
        file, colons, name = followed.test.partition("::")
        test = f"{os.path.relpath(self._found.root / file)}{colons}{name}"
        line = ["--first-parent"] if self._first_parent else []
        left = halving.suspects()
        options = [f"--rule={followed.rule}", *line, "--", *self._found.options, test]
        self._say(lines.go_on(how, halving.best_good(), left[0], options, len(left)))

    def _followed(self, search: Search, suspects: int, steps: int) -> None:
        first = search.steps[search.bad].judgement
        if search.followed is not None and first is not None:
            also = others(search.judgements, first)
            broken = [judgement for judgement in search.judgements if judgement.reason == NOT_OF_GOOD]
            self._say(lines.following(first, search.followed, also, broken, commits=suspects, steps=steps))

    def _ended(self, search: Search, suspects: Sequence[str]) -> int:
        commits = described(self._repository, suspects)
        if len(commits) > 1:
            self._say(lines.ranged(commits, [search.steps.get(commit.hash) for commit in commits]))
            return Exit.INCONCLUSIVE.value
        (commit,) = commits
        measured = of_parents(commit.parents, self._ends.good, search.steps)
        parents = list(
            zip(described(self._repository, [p for p, _ in measured]), [j for _, j in measured], strict=True)
        )
        self._say(lines.named(commit, search.steps[commit.hash].judgement, parents, self._good))
        return Exit.PASSED.value

    def _told(self, step: Step, left: int | None) -> None:
        self._clear()
        (commit,) = described(self._repository, [step.commit])
        self._say([lines.step(step, commit, left, self._width)])

    def _starting(self, commit: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\rmeasuring {commit[:12]} …")
            sys.stderr.flush()

    def _clear(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _say(self, found: Sequence[str]) -> None:
        out("".join(f"{line}\n" for line in found))
        sys.stdout.flush()
