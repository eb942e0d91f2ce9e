"""The rules of a gate, one a line: `ttft:5%`, `tpot[story]:3%`, `decode_throughput>=15`, `output:exact`."""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from pytest_infer.analysis.sweep import axes
from pytest_infer.errors import OptionError, alternatives
from pytest_infer.metrics import METRICS, Metric, by_key, fidelity
from pytest_infer.metrics.metric import Direction, Kind
from pytest_infer.metrics.scope import OTHERS, Scope
from pytest_infer.metrics.summary import why_not
from pytest_infer.units import Unit

DEFAULT = ("output:exact", "ttft:5%", "tpot:5%", "peak_rss:5%")
"""What is gated where nothing is said."""

DEFAULT_PAIRED = ("output:exact", "ttft:3%", "tpot:3%", "peak_rss:3%")
"""The same where the rounds of two commits are paired, which tells smaller changes."""
DEFAULT_SERVERS = ("ttft:3%", "tpot:3%", "peak_rss:3%")
"""The same where those of two servers are: another build, or other flags, may well say something else."""

EXPERTS = "experts"
_RULE = re.compile(
    r"""(?P<name>[A-Za-z_][\w]*)            # metric
        (?:\[(?P<prompt>[^\]]*)\])?\s*      # of these prompts only
        (?: :\s*(?P<percent>\d+(?:\.\d+)?)\s*%
          | :\s*(?P<same>exact|close)
          | :\s*drift\s*<(?P<upto>=?)\s*(?P<drift>\d+(?:\.\d+)?|\.\d+)
          | (?P<sign><=|>=|<|>)\s*(?P<bound>\d+(?:\.\d+)?(?:e-?\d+)?)\s*(?P<unit>[A-Za-zµμ/%]*)
        )""",
    re.VERBOSE,
)
_PARTS = re.compile(r"\s*#.*|(?:\[[^\]]*\]|[^,#])+")  # a comment, or what lies between commas outside of brackets
_SUFFIX = re.compile(r"_(?:s|bytes|sha256)$")
_SCALES: dict[Unit, dict[str, float]] = {
    Unit.SECONDS: {"s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9},
    Unit.BYTES: {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    Unit.TOKENS_PER_SECOND: {"tok/s": 1},
    Unit.PERCENT: {"%": 1},
    Unit.HERTZ: {"Hz": 1, "MHz": 1e6, "GHz": 1e9},
    Unit.NATS: {"nats": 1},
}
_FORMS = "METRIC:5%, METRIC[PROMPT]:3%, METRIC>=15, METRIC<=2GiB, output:exact, output:close, experts:drift<0.02"


class Form(StrEnum):
    """What a rule asks: no worse by more than a share, no difference at all, a bound, or a bound on expert drift.

    Or output that is as close as rounding explains.
    """

    RELATIVE = "relative"
    EXACT = "exact"
    CLOSE = "close"
    BOUND = "bound"
    DRIFT = "drift"


class Source(StrEnum):
    """Who wrote a rule: for this run, for all runs in the ini file, or nobody: a default."""

    TYPED = "typed"
    INI = "ini"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line. `limit` is a share (0.05), a bound in the metric's unit, or a distance; `metric` is None for experts.

    `at_least` tells which side of a bound is good; `inclusive` whether the limit itself is (`<=`, not `<`).
    """

    text: str
    form: Form
    metric: Metric | None
    limit: float = 0.0
    at_least: bool = False
    inclusive: bool = False
    prompt: str | None = None
    source: Source = field(default=Source.TYPED, compare=False)

    @property
    def compares(self) -> bool:
        """Return whether it needs something to compare with: a bound does only where it is about a distance."""
        return self.form is not Form.BOUND or (self.metric is not None and self.metric.scope is Scope.DISTANCE)

    @property
    def needs_scores(self) -> bool:
        """Return whether it is about what is measured in the profile round: how tokens were predicted."""
        key = None if self.metric is None else self.metric.key
        return self.form is Form.CLOSE or key in fidelity.OF_BOTH or key in fidelity.OF_ONE

    def covers(self, name: str, config: Mapping[str, str] | None = None) -> bool:
        """Return whether the rule is about the prompt of that name (`*` and `?` match as in a shell).

        A prompt that is swept also goes by its name with the configuration, as in its test's id: `story-threads=2`.
        """
        if self.prompt is None:
            return True
        return any(fnmatch.fnmatchcase(one, self.prompt) for one in axes.names(name, config or {}))


def short_name(metric: Metric) -> str:
    """Return a metric's key without its unit: `ttft`, `peak_rss`, `output`."""
    return _SUFFIX.sub("", metric.key)


def metric_named(name: str) -> Metric:
    """Return the metric of that key or short name; raise OptionError naming the known ones."""
    for metric in METRICS:
        if name in (metric.key, short_name(metric)):
            return metric
    raise OptionError(alternatives("metric", name, (short_name(m) for m in METRICS), "pytest-infer metrics"))


def parse(lines: Iterable[str], default: Sequence[str] = DEFAULT, source: Source = Source.TYPED) -> tuple[Rule, ...]:
    """Return the rules of some lines (commas also separate them; # starts a comment); raise OptionError for a bad one.

    No line at all gives the default rules.
    """
    texts = [part.strip() for line in lines for part in _PARTS.findall(line)]
    texts = [text for text in texts if text and not text.startswith("#")]
    source = source if texts else Source.DEFAULT
    return tuple(replace(_rule(text), source=source) for text in texts or default)


def of_kinds(rules: Sequence[Rule], under_load: Collection[bool]) -> tuple[Rule, ...]:
    """Return the rules but for those of the ini file about every prompt or level where only the other is measured.

    `under_load` tells of what is measured which it is. Where no rule would be left, or nobody knows, all stay.
    """

    def of_other(rule: Rule) -> bool:
        if rule.source is not Source.INI or rule.prompt is not None or not under_load:
            return False
        if rule.metric is None:
            return all(under_load)
        return all(why_not(rule.metric, under_load=level) is not None for level in under_load)

    return tuple(rule for rule in rules if not of_other(rule)) or tuple(rules)


def check_covered(rules: Iterable[Rule], names: Collection[str]) -> None:
    """Raise OptionError for a rule that is about none of these prompts: it would pass whatever happens.

    `names` are all that the prompts go by (`axes.names`).
    """
    for rule in rules:
        if any(rule.covers(name) for name in names):
            continue
        near = difflib.get_close_matches(rule.prompt or "", names, n=3) or sorted(names)[:5]
        known = ", ".join(near) or "none"
        raise OptionError(f"gate rule {rule.text!r} is about no prompt of this run; near it: {known}")


def check_measured(rules: Iterable[Rule], figures: Collection[tuple[Collection[str], Collection[str]]]) -> None:
    """Raise OptionError for a rule about a figure that none of its prompts has.

    `figures` are what a prompt goes by (`axes.names`) and the keys of what it has, prompt by prompt. A default is for
    whoever has the figure.
    """
    for rule in rules:
        if rule.metric is None or rule.metric.scope is Scope.DISTANCE or rule.source is Source.DEFAULT:
            continue
        covered = [keys for names, keys in figures if any(map(rule.covers, names))]
        if covered and not any(rule.metric.key in keys for keys in covered):
            raise OptionError(f"gate rule {rule.text!r} is about {rule.metric.key}, which no prompt of this run has")


def _rule(text: str) -> Rule:
    found = _RULE.fullmatch(text)
    if found is None:
        raise OptionError(f"gate rule {text!r} cannot be read; write {_FORMS}")
    part = found.groupdict()
    part["prompt"] = None if part["prompt"] is None else axes.meant(part["prompt"])
    if part["drift"] is not None or part["name"] == EXPERTS:
        if part["name"] != EXPERTS or part["drift"] is None:
            raise OptionError(f"gate rule {text!r}: drift is about experts: write experts:drift<0.02")
        limit, inclusive = _number(text, part["drift"]), part["upto"] == "="
        if limit > 1 or (limit == 1 and inclusive):
            raise OptionError(f"gate rule {text!r}: drift is a share of the selections, at most 1: write 0.02 for 2 %")
        return Rule(text=text, form=Form.DRIFT, metric=None, limit=limit, inclusive=inclusive, prompt=part["prompt"])
    try:
        metric = metric_named(part["name"])
    except OptionError as error:
        raise OptionError(f"gate rule {text!r}: {error}") from None
    unfit = _unfit(metric, part)
    if unfit is not None:
        raise OptionError(f"gate rule {text!r}: {unfit}")
    if part["same"] is not None:
        return Rule(text=text, form=Form(part["same"]), metric=metric, prompt=part["prompt"])
    if part["percent"] is not None:
        limit = _number(text, part["percent"]) / 100
        return Rule(text=text, form=Form.RELATIVE, metric=metric, limit=limit, prompt=part["prompt"])
    bound = _number(text, part["bound"], _scale(text, metric, part["unit"]))
    return Rule(
        text=text,
        form=Form.BOUND,
        metric=metric,
        limit=bound,
        at_least=part["sign"].startswith(">"),
        inclusive=part["sign"].endswith("="),
        prompt=part["prompt"],
    )


def _unfit(metric: Metric, part: Mapping[str, str | None]) -> str | None:
    """Return why a metric cannot be asked for what a rule asks, and what can."""
    if metric.scope is not Scope.PROCESS and part["bound"] is None:
        return _not_of_the_code(metric)
    if part["same"] == Form.CLOSE.value and metric.key != "output_sha256":
        return "only output can be close: write output:close, or give a bound"
    if part["same"] is not None:
        return f"no two times are the same: write {part['name']}:5%" if metric.kind is Kind.TIMED else None
    if metric.unit is Unit.TEXT or metric.direction is Direction.EXACT:
        return f"{metric.key} has no noise: write {part['name']}:exact"
    if part["percent"] is not None and metric.direction is Direction.NEUTRAL:
        return f"{metric.key} is neither better high nor low; give a bound"
    return None


def _not_of_the_code(metric: Metric) -> str:
    """Return why a change of a metric is not the code's, and what to gate instead."""
    if metric.scope is Scope.DISTANCE:
        good = f"{short_name(metric)}{'>=' if metric.direction is Direction.HIGHER else '<='}…"
        return f"{metric.key} tells how far two sides are apart, so it has no change: give a bound ({good})"
    why = (
        "is held against the machine's probe, which moves from run to run"
        if metric.scope is Scope.PROBE
        else "is not of this process alone: whatever else runs here changes it"
    )
    instead = f"{short_name(by_key(OTHERS[metric.key][1]))}:5%"
    bound = f"{short_name(metric)}{'>' if metric.direction is Direction.HIGHER else '<'}=…"
    return f"{metric.key} {why}; gate {instead} instead, or give a bound ({bound})"


def _number(text: str, number: str, scale: float = 1.0) -> float:
    found = float(number) * scale
    if not math.isfinite(found):
        raise OptionError(f"gate rule {text!r}: {number} is more than a number can hold")
    return found


def _scale(text: str, metric: Metric, unit: str) -> float:
    scales = _SCALES.get(metric.unit, {})
    if not unit:
        return 1.0
    if unit not in scales:
        raise OptionError(f"gate rule {text!r}: {alternatives('unit', unit, scales)}")
    return scales[unit]
