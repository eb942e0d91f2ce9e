"""A suite as a whole: the averages over its prompts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """The mean of the prompts' values, and their sample standard deviation; None for fewer than two prompts."""

    mean: float
    stdev: float | None = None
    prompts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteAverages:
    """The averages of one model in one configuration, by metric key, over all its tests that were measured.

    `config` are the swept options by axis, and `model` what tells the model from others, by field; older versions
    stored none of it, and averaged over several. `against` are those of the other side, where two were compared.
    """

    metrics: dict[str, Average]
    config: dict[str, str] = field(default_factory=dict)
    model: dict[str, str | int] = field(default_factory=dict)
    against: dict[str, Average] = field(default_factory=dict)
