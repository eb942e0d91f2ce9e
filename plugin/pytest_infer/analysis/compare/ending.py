"""How what a gate found ends a process: the exit code, whether a doubt passes, and what git bisect is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_infer.analysis.compare.verdicts import Exit, Judgement, Verdict, outcome

FAIL, PASS = "fail", "pass"
DOUBTS = (FAIL, PASS)
"""What may become of a run whose only fault is that a verdict is inconclusive; the first is the default."""
PLAIN, BISECT = "plain", "bisect"
EXITS = (PLAIN, BISECT)
"""Whom the exit code is for: a pipeline, or `git bisect run`."""

SKIP = 125
"""What tells `git bisect run` that a commit cannot be judged."""
STOP = 128
"""What ends `git bisect run`, as all codes from here on do: a command that is wrong for every commit."""
INTERRUPTED = 130
"""The same, for an interrupt: what a shell reports of SIGINT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What was asked for; `option` is what the exit codes' options begin with, as a line names them."""

    passes_doubt: bool = False
    bisect: bool = False
    option: str = "--infer-"

    def code(self, judgements: Sequence[Judgement]) -> int:
        """Return the exit code for what a gate found.

        For git bisect: 1 only where a figure regressed, 0 only where everything passed, else 125.
        """
        found = outcome(judgements)
        verdicts = {judgement.verdict for judgement in judgements}
        if self.bisect:
            if Verdict.REGRESSED in verdicts:
                return Exit.REGRESSED.value
            return found.value if found is Exit.PASSED else SKIP
        if found is Exit.INCONCLUSIVE and self.passes_doubt and Verdict.INCOMPARABLE not in verdicts:
            return Exit.PASSED.value
        return found.value

    def said(self, judgements: Sequence[Judgement]) -> str | None:
        """Return the line that says what an inconclusive verdict means here; None where there is none."""
        verdicts = {judgement.verdict for judgement in judgements}
        if Verdict.INCONCLUSIVE not in verdicts:
            return None
        if self.bisect:
            return f"inconclusive: exit {SKIP} ({self.option}exit=bisect)"
        if self.passes_doubt:
            other = f"; incomparable does not: exit {Exit.INCONCLUSIVE.value}"
            still = other if Verdict.INCOMPARABLE in verdicts else ""
            return f"inconclusive: passes ({self.option}inconclusive=pass){still}"
        alone = " alone" if outcome(judgements) is Exit.REGRESSED else ""
        return f"inconclusive{alone}: exit {Exit.INCONCLUSIVE.value} ({self.option}inconclusive=pass lets it pass)"
