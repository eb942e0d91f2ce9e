"""A test whose logits were not finite fails every gate, whatever its rules are about."""

import pytest

from pytest_infer.analysis.compare import gate, rules
from pytest_infer.analysis.compare.comparison import RowPair
from pytest_infer.analysis.compare.verdicts import Exit, Verdict

RULES = ("ttft<=100s", "ttft:5%", "output:exact")


@pytest.fixture
def judged(make_row):
    def judge(rule, *, before, after):
        news = make_row(ttft_s=[1.0] * 5, **after)
        parsed = rules.parse([rule])
        if before is None:
            return gate.judge([], parsed, new=[news])
        return gate.judge([RowPair(before=make_row(ttft_s=[1.0] * 5, **before), after=news)], parsed)

    return judge


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("passes", [1, 64])
@pytest.mark.parametrize("before", [None, {}, {"nonfinite_logits": 0}, {"nonfinite_logits": 64}], ids=str)
def test_it_fails_whatever_the_rule_and_the_baseline(judged, rule, passes, before):
    found = judged(rule, before=before, after={"nonfinite_logits": passes})
    assert found.exit is Exit.REGRESSED
    (why,) = [j.reason for j in found.judgements if j.verdict is Verdict.MISSING]
    assert why == f"logits of {passes} forward passes are NaN or infinite"


@pytest.mark.parametrize("after", [{}, {"nonfinite_logits": 0}], ids=str)
@pytest.mark.parametrize("before", [None, {"nonfinite_logits": 64}], ids=str)
def test_finite_or_unknown_ones_do_not(judged, before, after):
    assert judged("ttft<=100s", before=before, after=after).exit is Exit.PASSED
