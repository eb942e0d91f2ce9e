"""Where the time of a step goes, in three lines: decode, prefill, and what is around the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from pytest_infer.analysis.breakdown import shares
from pytest_infer.analysis.breakdown.shares import PhaseShares
from pytest_infer.metrics.breakdown import DECODE, PREFILL
from pytest_infer.metrics.result import Result
from pytest_infer.report.text import printable
from pytest_infer.units import Unit, show, significant

LIMIT = {DECODE: "of bandwidth", PREFILL: "of the GEMM rate"}
_SMALL = 0.005
_LEAST = 3
"""So many roles are named, however narrow the terminal is."""


def lines(results: Sequence[Result], *, width: int, brief: bool = False) -> Iterator[Text]:
    """Yield the lines; nothing where no steps were taken apart. In brief the first, and what of it to look at twice."""
    found = [of for phase in (DECODE, PREFILL) if (of := shares.of(results, phase)) is not None]
    for of in found[:1] if brief else found:
        yield Text(printable(_phase(of, width)))
        if of.far is not None:
            yield Text(printable(f"! {far(of.phase, of.far, of.tests)}"))
    if found and not brief:
        yield Text(printable(around(found[0])), style="dim")
    elif found and found[0].adds_up is False:
        yield Text(printable(f"! {_checked(found[0])}"))


def _phase(of: PhaseShares, width: int) -> str:
    """Return as many roles as one line holds, and some at least, the largest first, and what the others take."""
    line = f"{of.phase} {show(of.step_s, Unit.SECONDS)}{' a step' if of.phase == DECODE else ''}: "
    limit, left = LIMIT[of.phase], 1.0 - sum(one.share for one in of.outside)
    for number, one in enumerate(of.model):
        part = f"{one.role} {percent(one.share)}"
        if one.used is not None:
            part += f" ({percent(one.used)}{f' {limit}' if limit else ''})"
        joined = f"{line}{', ' if number else ''}{part}"
        others = f", others {percent(left - one.share)}" if number + 1 < len(of.model) else ""
        if number and (one.share < _SMALL or (number >= _LEAST and len(joined) + len(others) > width)):
            return f"{line}, others {percent(left)}"
        line, left = joined, left - one.share
        limit = "" if one.used is not None else limit
    return line


def far(phase: str, found: shares.Far, of_tests: int) -> str:
    """Return that steps which were taken apart are not those of the timed rounds."""
    worst = f" (the worst of {found.tests} of {of_tests} tests)" if of_tests > 1 else ""
    took, timed = (show(seconds, Unit.SECONDS) for seconds in (found.step_s, found.timed_s))
    step = "a step" if phase == DECODE else "the prefill"
    return f"{step} took {took} where it was taken apart, {timed} in timed rounds{worst}: the parts are not theirs"


def around(of: PhaseShares) -> str:
    """Return what happened outside the model, what the hooks took, and whether the parts add up to the step."""
    line = f"{outside(of)}; hooks took {percent(of.cost)}, not counted"
    if of.missed is None:
        return f"{line}; the parts are not checked"
    if not of.checked:
        return f"{line}; steps scattered too much to check the parts"
    return f"{line}; {'' if of.adds_up else '! '}{_checked(of)}"


def _checked(of: PhaseShares) -> str:
    """Return whether the parts add up to the step, of one that was checked."""
    missed = percent(of.missed or 0.0)
    if of.adds_up:
        return f"the parts add up to a step within {missed}"
    worst = f", the worst of {of.off} of {of.judged} tests" if of.judged > 1 else ""
    return f"the parts do not add up: they miss a step by {missed}{worst}"


def outside(of: PhaseShares) -> str:
    """Return what happened outside the model."""
    parts = ", ".join(f"{one.role} {percent(one.share)}" for one in of.outside if one.share >= _SMALL / 10)
    whole = percent(sum(one.share for one in of.outside))
    return f"outside the model {whole}{f': {parts}' if len(of.outside) > 1 and parts else ''}"


def percent(share: float) -> str:
    """Return a share as a percentage, whole from ten on, with two digits below."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 else f"{significant(value, 2)} %" if value >= 0.05 else "0 %"
