"""The definitions that everything shown links to: the table of metrics, and the terms that are no metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pytest_infer.metrics import METRICS
from pytest_infer.report.html.parts import anchor


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One definition; a metric has its unit, key, direction and source too."""

    anchor: str
    term: str
    definition: str
    unit: str = ""
    better: str = ""
    source: str = ""
    key: str = ""


_TERMS = {
    "itl": ("ITL", "inter-token latency: the gap between two ticks, that is, between two tokens becoming available"),
    "sd": ("± sd", "sample standard deviation over the timed rounds, or over the prompts below a suite's mean"),
    "quality": ("quality", "exact unless it says sampled (of a changing quantity), estimated, or lower bound"),
    "timeline": (
        "timeline",
        "what a helper process sampled in the profile round, which is never timed; memory is this process's resident "
        "size, busy cores are those of the machine, whatever ran there",
    ),
    "self-time": (
        "self time",
        "what a role took itself, without the other roles within it, of a typical step (the middle half by length), "
        "without what the hooks cost; so the parts add up. A step is from token to token, a prefill up to the first; "
        "docs/breakdown.md says what belongs to each role",
    ),
    "limit": (
        "share of the limit",
        "what a role must read (decode) or multiply (prefill) / what the machine's probed bandwidth or GEMM rate would "
        "have done in that time; no figure where it is unknown or above 100 %, as then weights come from the caches",
    ),
    "role-change": (
        "change of a role",
        "[low middle high] of after − before, 99 %; all roles together make up the step's change. A role carries it "
        "where its own change stands out (Holm) and is more than its share of a change of everything alike",
    ),
    "interval": (
        "change and interval",
        "[low middle high] of after / before − 1; the line drawn runs from low to high, the dot is the middle, the "
        "shaded band the threshold; docs/statistics.md says what each interval rests on",
    ),
    "p": (
        "p",
        "two-sided: how often chance alone shows as much; what decides is this figure corrected for all rows judged "
        "together (Holm)",
    ),
    "verdict": (
        "verdict",
        "regressed or improved: significant and larger than the threshold; unchanged: the interval excludes a "
        "regression; accepted: a regression that somebody said is wanted, within its bound; inconclusive: neither; "
        "incomparable: the runs differ in what matters",
    ),
    "change-point": (
        "change point",
        "the first run since which the median has been at another level (p < 0.001 and medians 3 % apart), after "
        "Hunter (Fleming et al. 2023)",
    ),
    "selections": ("selections", "how often tokens chose an expert in one layer; a token chooses top-k of them"),
    "share": ("share", "an expert's selections / all of its layer; the interval is Wilson's, 95 %"),
    "fair": ("× fair", "an expert's selections / the mean of its layer: 1 is even use"),
    "gate": ("mean gate", "the mean weight that the router gave the expert when it was selected"),
    "hot": ("hot, cold", "differs from its fair share beyond chance, corrected for the number of experts"),
    "coverage": ("coverage", "the share of a layer's selections that its m most used experts serve"),
    "placement": (
        "placement",
        "which experts a GPU's memory holds: by frequency (most selected first), whole layers, first layers, or "
        "random; the share of expert reads that they serve is measured on the half of the prompts not planned from",
    ),
    "pareto": (
        "Pareto set",
        "the configurations that no other one beats: distinctly better (the ratio's interval excludes 1) in decode, "
        "TTFT, peak memory or, where it was measured, fidelity (KL), and behind in none of them",
    ),
    "drift": (
        "drift",
        "how the first test of a load had changed when it was measured again after the last: what the machine alone "
        "made of the same work; intervals between configurations of different loads hold it",
    ),
    "configuration": ("configuration", "the values of the swept options, as given on the command line"),
}


def entries() -> Iterator[Definition]:
    """Yield all definitions: metrics in the table's order, then terms, then figures of skew."""
    for metric in METRICS:
        yield Definition(
            anchor=anchor(metric.key),
            term=metric.label,
            definition=metric.definition,
            unit=metric.unit.value,
            better=metric.direction.value,
            source=metric.source,
            key=metric.key,
        )
    for key, (term, definition) in _TERMS.items():
        yield Definition(anchor=anchor(key), term=term, definition=definition)
    from pytest_infer.analysis.experts import skew  # noqa: PLC0415 - numpy is loaded where it is needed

    for figure in skew.FIGURES:
        yield Definition(
            anchor=anchor(f"skew-{figure.key}"), term=figure.label, definition=figure.definition, source=figure.source
        )
