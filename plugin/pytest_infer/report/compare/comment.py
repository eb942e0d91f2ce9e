"""The comment on a pull request: what a stored run's gate found, as Markdown that fits into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_infer.analysis.compare.verdicts import Judgement, SuiteChange, Verdict, outcome
from pytest_infer.report.compare import exports
from pytest_infer.report.compare.accepted import how_as_markdown
from pytest_infer.report.text import printable
from pytest_infer.storage.runfile import JudgedMark
from pytest_infer.storage.runs import Run

_LONGEST = 60_000
"""Characters: GitHub takes 65 536."""
_QUIET = (Verdict.UNCHANGED, Verdict.NEW, None)
_MARKS = {"passed": "🟢", "regressed": "🔴"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CommentedRun:
    """A gated run, with the judgements that its file keeps; `name` is what its comment goes by beside others.

    `tests` were measured again by it, of the run whose headline was `before`.
    """

    run: Run
    mark: JudgedMark
    judgements: Sequence[Judgement]
    suite: Sequence[SuiteChange]
    name: str
    tests: int = 0
    before: str | None = None

    @property
    def quiet(self) -> bool:
        """Return whether there is nothing to tell: no figure moved, and the gate passed."""
        return self.result == "passed" and all(j.verdict in _QUIET for j in self.judgements)

    @property
    def result(self) -> str:
        """Return how the gate ended, in a word."""
        return self.mark.result if self.before is None else outcome(self.judgements).word


def again(runs: Sequence[CommentedRun]) -> CommentedRun:
    """Return the last of some runs, with what those before it found in the tests that it did not measure."""
    *earlier, last = runs
    tests = {j.test for j in last.judgements}
    if not earlier:
        return last
    first = again(earlier)
    kept = tuple(j for j in first.judgements if j.test not in tests)
    return replace(
        last,
        judgements=(*last.judgements, *kept),
        # The mean over some of the prompts is not that of the suite.
        suite=() if kept else last.suite,
        tests=len(tests),
        before=first.mark.headline or first.mark.result,
    )


def marker(name: str) -> str:
    """Return the hidden first line by which a comment is found again."""
    return f"<!-- pytest-infer: {name} -->"


def as_markdown(of: CommentedRun) -> str:
    """Return the comment: headline, what changed, the rest folded away, and how to accept what failed."""
    against = f" against {of.mark.against}" if of.mark.against else ""
    heading = [f"gate{against}: {of.result}", f"commit {of.run.commit[:8]}" if of.run.commit else of.run.label]
    last, many = of.mark.headline or of.result, len({j.test for j in of.judgements})
    if of.before is not None:
        heading += [f"{of.tests} of {many} prompts measured again; before: {of.before}"]
    if of.before is not None and of.tests < many:
        # What the last run found is about its own prompts, the verdict about all.
        heading += [f"measured again: {last}"]
        last = f"gate: {of.result}"
    said = f"{_MARKS.get(of.result, '🟡')} {last}"
    body = exports.as_markdown(of.judgements, heading, headline=said, suite=of.suite)
    rules = exports.escape(printable(", ".join(of.mark.rules)))
    end = f"{how_as_markdown(of.judgements)}\n<sub>rules: {rules}</sub>\n"
    return f"{marker(of.name)}\n{_cut(body, _LONGEST - len(end))}{end}"


def _cut(text: str, most: int) -> str:
    """Return as many whole lines as there is room for, with what is folded closed."""
    if len(text) <= most:
        return text
    kept = text[:most].rpartition("\n")[0]
    closed = "\n\n</details>" * (kept.count("<details>") - kept.count("</details>"))
    return f"{kept}{closed}\n\nMore is in the job's summary and its report.\n"
