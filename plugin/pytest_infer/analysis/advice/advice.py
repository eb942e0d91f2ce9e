"""Advice about a run: the rules held against every test, merged, and sorted by severity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_infer.analysis import alike
from pytest_infer.analysis.advice import cpu, roles, speed, trust
from pytest_infer.analysis.advice.evidence import AdviceRule, Facts, Finding, Severity
from pytest_infer.storage.schema import WholeBlock

RULES: tuple[AdviceRule, ...] = (*trust.RULES, *cpu.RULES, *roles.RULES, *speed.RULES)
"""All rules, those first that say whether the others' evidence can be trusted."""

_ORDER = tuple(Severity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What one rule says of a run, with the evidence of the test where it is plainest.

    `prompts` are those it was found in, of `tests` in the run; without a suggestion it is a good sign.
    """

    rule: str
    severity: Severity
    evidence: str
    suggestion: str | None
    prompts: tuple[str, ...]
    tests: int


def advise(tests: Mapping[str, WholeBlock], rules: Sequence[AdviceRule] = RULES) -> tuple[Advice, ...]:
    """Return the advice on a run's tests, by their ids: the most serious first, good signs last.

    On the tests of a sweep there is none: it measures what to choose. Nor is there on levels of load, which are no
    prompts. A rule that cannot see its evidence in a test is silent about it. A good sign is one of the whole run: it
    is left out unless every test that has its evidence shows it, and then told of the test where it is weakest.
    """
    blocks = {test: block for test, block in tests.items() if not block.config and block.under_load is None}
    title = alike.titles({test: block.prompt.name or "?" for test, block in blocks.items()})
    facts = [(title[test], Facts(block)) for test, block in blocks.items()]
    found = [advice for rule in rules if (advice := _merged(rule, facts)) is not None]
    return tuple(sorted(found, key=lambda a: (a.suggestion is None, _ORDER.index(a.severity))))


def _merged(rule: AdviceRule, facts: Sequence[tuple[str, Facts]]) -> Advice | None:
    seen = [(finding, title) for title, test in facts if (finding := rule.find(test)) is not None]
    asked = [test for _, test in facts if rule.sign is None or test.figure(rule.sign) is not None]
    if not seen or (rule.sign is not None and len(seen) < len(asked)):
        return None
    plainest, _ = min(seen, key=lambda pair: _plainness(pair[0]))
    return Advice(
        rule=rule.key,
        severity=plainest.severity,
        evidence=plainest.evidence,
        suggestion=plainest.suggestion,
        prompts=tuple(title for _, title in seen),
        tests=len(asked),
    )


def _plainness(finding: Finding) -> tuple[int, float]:
    """Return what sorts the most serious finding first, then the strongest."""
    return _ORDER.index(finding.severity), -finding.weight
