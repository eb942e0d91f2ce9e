"""What a failed test shows: in one line why it cannot be measured, or what the gate found to be worse."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from _pytest.junitxml import bin_xml_escape, mangle_test_address

from pytest_infer.analysis.compare.accepted import suggested
from pytest_infer.analysis.compare.verdicts import Judgement
from pytest_infer.errors import InferError
from pytest_infer.pytest_face.gate import Gate
from pytest_infer.report.compare import words

_Made = TypeVar("_Made")
_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "out_of_device_memory",
    "status_alloc_failed",
)
"""How torch's allocators say it, for the CPU in a plain RuntimeError; the last two Intel's and NVIDIA's libraries."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or what it was raised from, says that there was no memory left."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).lower()
        if isinstance(seen, MemoryError) or (isinstance(seen, RuntimeError) and any(t in text for t in _NO_MEMORY)):
            return True
        seen = seen.__cause__
    return False


def or_fail(call: Callable[[], _Made], before: Callable[[], None] = lambda: None) -> _Made:
    """Return what `call` does, or let the test fail with one line for what is the user's to mend or for no memory.

    `before` is called before it fails. There is no traceback, which would keep the model alive.
    """
    try:
        return call()
    except InferError as error:
        refusal = str(error)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        refusal = f"out of memory: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"
    # Outside the handler: a chained error would be shown twice, and its frames hold what was loaded so far.
    before()
    pytest.fail(refusal, pytrace=False)


@dataclass(frozen=True, slots=True)
class _CrashLocation:
    """Where a failure lies, in the form that pytest's summary line asks for."""

    path: str
    lineno: int
    message: str


class GateFailure:
    """What a failed test shows: every figure that got worse, both values, the interval, and what to do."""

    def __init__(self, judgements: Sequence[Judgement], against: str, place: _CrashLocation, advice: str) -> None:
        self.reprcrash = place
        self._lines = [f"the gate failed, against {against}:", *map(_line, judgements), "", advice]

    def __str__(self) -> str:
        """Return it as text, as JUnit's XML holds it."""
        return "\n".join(self._lines)

    def toterminal(self, tw: Any) -> None:
        """Write it into pytest's section of failures."""
        for line in self._lines:
            tw.line(line, red=line.startswith("  "))


_PAIRED = "Both commits were measured in turns, in this run. --infer-against=self shows the noise of this machine."
_STORED = "Is it real? Measure both commits in one run: --infer-against REV."
_ACCEPT = "accept it in a commit message, as the end of this run shows"
_ANEW = "run without the gate and `pytest-infer baseline set NAME latest`"


def _advice(judgements: Sequence[Judgement], *, paired: bool) -> str:
    """Return how to tell whether it is real, and what to do if it is wanted."""
    ways = [*([_ACCEPT] if suggested(judgements) else []), *([] if paired else [_ANEW])]
    wanted = f" If it is wanted: {', or '.join(ways)}." if ways else ""
    return f"{_PAIRED if paired else _STORED}{wanted}"


def _line(judgement: Judgement) -> str:
    parts = (
        words.label(judgement),
        words.values(judgement),
        words.change(judgement),
        words.p_value(judgement.p_adjusted),
        words.verdict(judgement),
        judgement.reason or "",
    )
    return "  " + "  ".join(part for part in parts if part)


def report_gated(session: pytest.Session, gating: Gate) -> None:
    """Report each test that the gate fails as a failed test, in place of its passing report."""
    failing = gating.failing()
    places: dict[str, tuple[tuple[str, int | None, str], Mapping[str, Any]]] = {
        item.nodeid: (item.location, dict.fromkeys(item.keywords, 1)) for item in session.items
    }
    against = gating.result.against if gating.result is not None else None
    # Nothing runs behind this that -x or --maxfail could stop.
    session.config.option.maxfail = 0
    for nodeid, judgements in failing.items():
        path, _, name = nodeid.partition("::")
        location, keywords = places.get(nodeid, ((path, None, name), {}))
        message = f"gate: {'; '.join(_line(j).strip() for j in judgements)}"
        place = _CrashLocation(location[0], location[1] or 0, message)
        advice = _advice(judgements, paired=gating.paired)
        longrepr: Any = GateFailure(judgements, against or "its bounds", place, advice)
        _withdraw(session, nodeid)
        now = time.time()
        report = pytest.TestReport(nodeid, location, keywords, "failed", longrepr, "call", (), 0.0, now, now)
        session.config.hook.pytest_runtest_logreport(report=report)


def _withdraw(session: pytest.Session, nodeid: str) -> None:
    """Take back how a test ended that did not fail, where it was counted: in the terminal's line and in JUnit's XML.

    pytest has no public way to. Where these names are gone the test is counted twice, so and as failed.
    """
    plugins = session.config.pluginmanager
    reporter = plugins.get_plugin("terminalreporter")
    for ended in ("passed", "skipped", "xfailed", "xpassed"):
        reports = getattr(reporter, "stats", {}).get(ended, [])
        reports[:] = [report for report in reports if report.nodeid != nodeid]
    for xml in plugins.get_plugins():
        ordered = getattr(xml, "node_reporters_ordered", None)
        stats = getattr(xml, "stats", None)
        if isinstance(ordered, list) and isinstance(stats, dict):
            *owners, name = mangle_test_address(nodeid)
            prefix = [xml.prefix] if getattr(xml, "prefix", None) else []
            entry = (".".join([*prefix, *owners]), bin_xml_escape(name))
            for made in [r for r in ordered if tuple(map(r.to_xml().get, ("classname", "name"))) == entry]:
                kind = "passed" if made.to_xml().find("skipped") is None else "skipped"
                stats[kind] = stats.get(kind, 0) - 1
                ordered.remove(made)
