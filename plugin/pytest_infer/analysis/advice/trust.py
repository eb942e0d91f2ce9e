"""Rules about how far a run's figures can be trusted."""

from __future__ import annotations

import math
import statistics

from pytest_infer.analysis.advice.evidence import AdviceRule, Facts, Finding, Severity
from pytest_infer.metrics import by_key, scatter
from pytest_infer.metrics.scatter import WANTED
from pytest_infer.records import WarningKind
from pytest_infer.units import percent

COLD = 1.5
"""A first timed round this many times slower than the median of the others was not warm (as the warning says)."""
MOST_ROUNDS = 30
"""Beyond so many rounds a comparison in turns is the cheaper way."""
ANY_ROUNDS = 100
"""More rounds than anybody would run."""


def output_differs(facts: Facts) -> Finding | None:
    """Rounds that generated different tokens did different work."""
    if facts.output.equal is not False:
        return None
    where = facts.output.first_difference
    seen = "" if where is None else f" (round {where[0] + 1} from generated token {where[1] + 1})"
    return Finding(
        severity=Severity.CRITICAL,
        evidence=f"the rounds generated different tokens{seen}: their times are of different work",
        suggestion="set a seed, one thread, or a deterministic kernel",
    )


def cold_start(facts: Facts) -> Finding | None:
    """The first timed round still compiled or initialised something, which its first token waited for."""
    totals = facts.rounds("total_s")
    others = [total for number, total in enumerate(totals) if number and number not in facts.counted.numbers]
    if len(totals) < 3 or not others or 0 in facts.counted.numbers:
        return None
    usual = statistics.median(others)
    ratio = totals[0] / usual if usual else 0.0
    if ratio < COLD:
        return None
    firsts, part = facts.rounds("ttft_s"), ""
    if len(firsts) == len(totals):
        calm = facts.calm("ttft_s")[1:]
        extra = (firsts[0] - statistics.median(calm)) / (totals[0] - usual)
        part = f", {percent(100 * min(1.0, max(0.0, extra)))} of the difference before the first token"
    why = "compilation" if (facts.model.generation or {}).get("compile") else "lazy initialisation"
    warmup = facts.counted.warmup
    return Finding(
        severity=Severity.WARNING,
        evidence=f"the first timed round took {ratio:.1f}× the others{part}: {why}",
        suggestion=f"--infer-warmup {warmup + 1}" if warmup is not None else "a higher --infer-warmup",
        weight=ratio,
    )


def rounds_disturbed(facts: Facts) -> Finding | None:
    """Something else took part in rounds that count, and their times show it."""
    disturbed, timed = facts.counted.disturbed, facts.counted.timed
    if timed is None or not scatter.shows(facts.rounds("total_s"), facts.counted.numbers):
        return None
    number, reasons = next(iter(disturbed.items()))
    return Finding(
        severity=Severity.WARNING,
        evidence=f"{len(disturbed)} of {timed} rounds were disturbed (round {int(number) + 1}: {'; '.join(reasons)})",
        suggestion="stop what else runs, or compare commits in turns with --infer-against",
        weight=len(disturbed) / timed,
    )


def too_few_rounds(facts: Facts) -> Finding | None:
    """The rounds scatter more than their number can average out."""
    timed = facts.counted.timed
    if timed in (1, 2):
        return Finding(
            severity=Severity.INFO,
            evidence=f"{timed} timed round{'s' if timed == 2 else ''}: no spread can be told",
            suggestion="--infer-rounds 5",
        )
    scattered = [(spread, key) for key in ("ttft_s", "tpot_s") if (spread := _spread(facts.calm(key))) is not None]
    if not scattered:
        return None
    spread, key = max(scattered)
    count = len(facts.calm(key))
    needed = math.ceil((2 * spread / WANTED) ** 2)
    if needed <= count:
        return None
    # As many calm ones; of these rounds not all were.
    rounds = math.ceil(needed * len(facts.rounds(key)) / count)
    enough = f"from about {needed} rounds on" if needed <= ANY_ROUNDS else "by no number of rounds that one would run"
    return Finding(
        severity=Severity.INFO,
        evidence=f"{by_key(key).label} of {count} rounds scatters by ± {percent(100 * spread)}: "
        f"{percent(100 * WANTED)} can be told {enough}",
        suggestion=f"--infer-rounds {rounds}" if rounds <= MOST_ROUNDS else "compare commits with --infer-against",
        weight=spread,
    )


def _spread(values: tuple[float, ...]) -> float | None:
    """Return the standard deviation / the mean."""
    if len(values) < 3 or statistics.fmean(values) <= 0:
        return None
    return statistics.stdev(values) / statistics.fmean(values)


RULES = (
    AdviceRule(
        key="output_differs",
        needs="`output.equal`",
        threshold="any difference (exact)",
        what_to_try="a seed; one thread; a deterministic kernel",
        find=output_differs,
        warning=WarningKind.OUTPUT_DIFFERS,
    ),
    AdviceRule(
        key="cold_start",
        needs="three rounds or more of `total_s`; `ttft_s` where known",
        threshold="first round ≥ 1.5 × the median of the others (own choice, as the warning)",
        what_to_try="one warm-up round more",
        find=cold_start,
        warning=WarningKind.COLD_FIRST_ROUND,
    ),
    AdviceRule(
        key="rounds_disturbed",
        needs="`rounds.disturbed`, two rounds or more of `total_s`",
        threshold="a counted round beyond the disturbance limits (system counters: 1 %), whose time shows it",
        what_to_try="an idle machine; a comparison in turns",
        find=rounds_disturbed,
        warning=WarningKind.DISTURBED,
    ),
    AdviceRule(
        key="too_few_rounds",
        needs="`rounds.timed`, or three rounds or more of `ttft_s` or `tpot_s`",
        threshold="fewer than (2 × relative spread / 5 %)²: two standard errors are then within the gate's 5 %",
        what_to_try="so many rounds, or a comparison in turns beyond 30",
        find=too_few_rounds,
    ),
)
