"""What a run's page tells the index: kept in the page itself, so that an index needs the pages and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from markupsafe import Markup

from pytest_infer import untrusted
from pytest_infer.analysis import alike
from pytest_infer.analysis.suite import average

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_infer.report.html.stored import Test
    from pytest_infer.storage.runs import Run

FIGURES = ("decode_throughput", "ttft_s", "peak_rss_bytes")
"""The metrics of which an entry has the mean over the run's prompts."""
_HEAD = 64 * 2**10
"""So many bytes of a page are read: an entry stands at its beginning."""
_MARK = re.compile(rb'<script type="application/json" id="run">(.*?)</script>', re.DOTALL)
_UNSAFE = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&"})


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A line about a run, and how it looks: regressed, improved, inconclusive, incomparable, unchanged."""

    text: str
    look: str = "unchanged"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A run as the index lists it; `figures` are means over its prompts, by metric, where these are of one model.

    `said` is what its gate or the comparison with an earlier run came to, and which that was, and `lasting` what the
    history then knew.
    """

    time: str
    commit: str | None = None
    branch: str | None = None
    dirty: bool = False
    message: str | None = None
    model: str | None = None
    machine: str | None = None
    tests: int = 0
    gate: str | None = None
    said: Said | None = None
    lasting: Said | None = None
    figures: dict[str, float] = {}

    @property
    def at(self) -> datetime:
        """Return the time of the run; a page that tells none is the oldest."""
        try:
            found = datetime.fromisoformat(self.time)
        except ValueError:
            return datetime.min.replace(tzinfo=UTC)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)

    @property
    def identity(self) -> tuple[datetime, str | None]:
        """Return what the pages of one run have in common, as the copies of its file have."""
        return self.at, self.commit


_ENTRY = msgspec.json.Decoder(Entry)


def of(
    run: Run,
    tests: Sequence[Test],
    message: str | None,
    said: Mapping[str, Any] | None,
    lasting: Mapping[str, Any] | None,
) -> Entry:
    """Return the entry of a run, from its tests and the cards of its page."""
    # Over several models, and over the configurations of a sweep, a mean would say nothing.
    shown = FIGURES if len(alike.groups(tests)) == 1 else ()
    means = {key: average(test.value(key) for test in tests) for key in shown}
    return Entry(
        time=run.time.isoformat(),
        commit=run.commit,
        branch=run.branch,
        dirty=bool(run.dirty),
        message=message,
        model=run.model,
        machine=run.machine,
        tests=run.tests,
        gate=None if run.gate is None else run.gate.result,
        said=None if said is None else Said(text=said["says"], look=said["look"]),
        lasting=None if lasting is None else Said(text=lasting["says"], look=lasting["look"]),
        figures={key: of.mean for key, of in means.items() if of is not None},
    )


def element(entry: Entry) -> Markup:
    """Return the element of a page that holds its entry, safe within it."""
    text = json.dumps(msgspec.to_builtins(entry), allow_nan=False).translate(_UNSAFE)
    return Markup(f'<script type="application/json" id="run">{text}</script>')  # noqa: S704 - escaped in the line above


def read(path: Path) -> Entry | None:
    """Return what a page tells; None where it is no page of a site, or tells nothing that can be read."""
    try:
        with untrusted.opened(path) as file:
            found = _MARK.search(file.read(_HEAD))
        return None if found is None else untrusted.decode(_ENTRY, found[1])
    except (OSError, untrusted.Damaged):
        return None
