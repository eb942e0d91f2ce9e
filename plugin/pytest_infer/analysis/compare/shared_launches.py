"""The change of a figure over prompts that were measured in the same launches, which may shift all of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pytest_infer.analysis.compare import launches
from pytest_infer.analysis.compare.stats import Student

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.stats import Array
    from pytest_infer.analysis.compare.suite import Member

LEAST = 3
"""So many launches that were calm in every prompt tell how far apart they lie, if they are half at least of those that
had time for a prompt."""

FEW = 6
"""Of fewer launches than these, earlier runs tell that better where there are any."""


def change(told: Sequence[Member], key: str) -> tuple[Student | None, str]:
    """Return the change over prompts that share their launches, and how many of these tell it.

    Prompts are fixed and launches random: the mean over prompts is taken in each launch first, so that a launch that
    shifts all of them alike is one observation and not many.
    """
    found = [one for member in told if (one := member.pair.by_launch(key)) is not None]
    by_prompt = [dict(zip(one.numbers, map(float, one.values), strict=True)) for one in found]
    many = max(one.ran for one in found)
    calm = sorted(set.intersection(*map(set, by_prompt)))
    before = _earlier(told, key)
    if len(calm) >= max(LEAST if before is None else FEW, many / 2):
        means = np.asarray([[one[number] for number in calm] for one in by_prompt]).mean(axis=0)
        estimate = launches.estimate(means)
        part = f"{len(calm)} of {many} launches, told and calm in every prompt"
        said = f"{many} launches" if len(calm) == many else part
        return estimate, said
    said = f"each prompt's own calm launches of {many}, as if they shifted all prompts alike"
    return _at_worst([one.values for one in found], before), said


def _earlier(told: Sequence[Member], key: str) -> launches.Spread | None:
    """Return how far launches lay apart in earlier runs of these prompts, their mean; None unless each has some.

    It is known no better than that of the prompt that has fewest.
    """
    found = [None if m.pair.turns is None else launches.earlier(key, m.pair.turns) for m in told]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    return launches.Spread(variance=float(np.mean([one.variance for one in known])), df=min(one.df for one in known))


def _at_worst(values: Sequence[Array], before: launches.Spread | None) -> Student | None:
    """Return the mean of changes whose errors may be the same one: a mean's error is at most the mean of the errors.

    Their variance is then known as well as one of them tells it, and earlier runs (`before`).
    """
    own = [found.variance for one in values if (found := launches.own_spread(one)) is not None]
    spread = launches.Spread(variance=float(np.mean(own)), df=min(map(len, values)) - 1) if own else None
    known = launches.with_earlier(spread if spread is None or spread.df else None, before)
    ends = [launches.estimate(one, known) for one in values]
    told = [one for one in ends if one is not None]
    if known is None or len(told) < len(values):
        return None
    return Student(float(np.mean([one.mid for one in told])), float(np.mean([one.se for one in told])), known.df)
