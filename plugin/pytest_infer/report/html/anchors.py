"""Anchors by name: each heading, prompt and figure has one that says what it is, for links from elsewhere."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pytest_infer.analysis.compare.rules import short_name
from pytest_infer.metrics import METRICS, Metric
from pytest_infer.report.html.parts import Section

_LONGEST = 48
_CHARTS = ("itl", "dist", "memory")


def slug(text: str) -> str:
    """Return a name as it stands in an address: `A long Story!` is `a-long-story`; letters of any script stay."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", "-", plain).strip("-")[:_LONGEST].rstrip("-")


def of_metric(metric: Metric) -> str:
    """Return what a figure is called behind its prompt's name, as in rules: `ttft`, `itl-p99`."""
    return short_name(metric).replace("_", "-")


def of_tests(titles: Sequence[str]) -> list[str]:
    """Return a name a test, so that none is another's, nor that of another's figure or chart."""
    own = ["", *(f"-{of_metric(metric)}" for metric in METRICS), *(f"-{chart}" for chart in _CHARTS)]
    taken: set[str] = set()
    found = []
    for title in titles:
        first = slug(title) or "unnamed"
        numbered = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
        name = next(one for one in numbered if taken.isdisjoint(f"{one}{end}" for end in own))
        taken |= {f"{name}{end}" for end in own}
        found.append(name)
    return found


def anchored(sections: Iterable[Section]) -> tuple[Section, ...]:
    """Return the sections with a key for every part that has a title: `history-trends`."""
    found = []
    for section in sections:
        taken = {section.key, *(item.key for item in section.items)}
        items = []
        for item in section.items:
            key = item.key
            if key is None and item.title:
                first = f"{section.key}-{slug(item.title) or 'part'}"
                numbered = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
                key = next(one for one in numbered if one not in taken)
                taken.add(key)
            items.append(replace(item, key=key))
        found.append(replace(section, items=tuple(items)))
    return tuple(found)
