"""What a run comes to at its end: the summary on the terminal, and the HTML report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_infer import untrusted
from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.analysis.sweep import axes
from pytest_infer.errors import InferError
from pytest_infer.metrics import result
from pytest_infer.pytest_face import since
from pytest_infer.pytest_face.session import InferSession
from pytest_infer.pytest_face.sweep import configurations
from pytest_infer.report.show.summary import tell, write_summary
from pytest_infer.report.sweep import exports as sweep
from pytest_infer.report.text import printable
from pytest_infer.storage import history
from pytest_infer.storage.code import repository
from pytest_infer.storage.runs import read, row_of

if TYPE_CHECKING:
    import pytest

    from pytest_infer.analysis.load.curve import LoadCurve
    from pytest_infer.analysis.sweep.curve import Curve
    from pytest_infer.analysis.sweep.recommend import Recommendation
    from pytest_infer.analysis.sweep.sides import SweptSides

_Part = TypeVar("_Part")
_NOTHING: tuple[Recommendation | None, tuple[Curve, ...], SweptSides | None] = (None, (), None)


def show(run: InferSession, reporter: pytest.TerminalReporter) -> None:
    """Write the report and the summary, and publish what was judged.

    What fails is a line: the run is still to be kept, and to end as its gate says.
    """
    shown = None
    with _without(reporter, "summary"):
        write_report(run)
        shown = of(run)
        write_summary(reporter, shown)
    with _without(reporter, "annotations"):
        more = "" if shown is None or shown.sides is None else sweep.as_markdown(shown.sides)
        run.gate.publish(os.environ, partial(tell, reporter), more)


@contextmanager
def _without(reporter: pytest.TerminalReporter, what: str) -> Iterator[None]:
    """Go on without a part that fails, and say so."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not worth a run that was measured
        reporter.ensure_newline()
        reporter.write_line(printable(f"ERROR: no {what}: {type(error).__name__}: {error}"), red=True)


def of(run: InferSession) -> RunSummary:
    """Return what the terminal shows at the end."""
    finished = run.keeper.finished.values()
    disabled = bool(run.keeper.planned) and run.bridge.disabled
    passed = {nodeid: f.block for nodeid, f in run.keeper.passed.items()}
    under_load = {nodeid: f.block for nodeid, f in run.keeper.passed.items() if f.record.under_load is not None}
    models = configurations.models_of(run.settings)
    recommended, curves, sides = _part(run, "sweep", lambda: _swept(passed, models), _NOTHING)
    return RunSummary(
        results=tuple(
            replace(result.of_record(f.record, f.figures), trace=run.keeper.trace(f.record.nodeid)) for f in finished
        ),
        failed=tuple(f.record.nodeid for f in finished if f.failed),
        unmeasured=() if disabled else tuple(run.keeper.unmeasured()),
        disabled=disabled,
        gated=run.gate.result,
        noise=tuple(run.noise),
        advice=() if disabled else _part(run, "advice", run.keeper.advice, ()),
        all_advice=run.settings.advice,
        recommended=recommended,
        curves=curves,
        sides=sides,
        load=_part(run, "curve of load", lambda: _load(under_load), ()),
        since=_part(run, "comparison with the last run", lambda: since.of(run), None),
        apart=run.settings.breakdown in ("on", "ops"),
        saved=bool(run.keeper.finished) and run.keeper.stored() is not None,
        notes=tuple(run.notes),  # the last, as all of the above may add some
    )


def _part(run: InferSession, what: str, found: Callable[[], _Part], otherwise: _Part) -> _Part:
    """Return a part of the summary, or what stands for it where it fails, and say so: the verdicts come after it."""
    try:
        return found()
    except Exception as error:  # noqa: BLE001 - as above
        run.note(f"! no {what}: {type(error).__name__}: {error}")
        return otherwise


def write_report(run: InferSession) -> None:
    """Write the HTML report, if one is asked for and the run was stored; a line of the summary says where it is."""
    path = run.settings.report
    if path is None or run.bridge.disabled:
        return
    run_file = run.keeper.stored()
    if run_file is None:
        run.note("! no report: the run was not stored")
        return
    try:
        from pytest_infer.report.html import page  # noqa: PLC0415

        storage = run.keeper.storage
        found = history.load(storage, run.note) if storage is not None and untrusted.is_dir(storage) else None
        for line in () if found is None else found.warnings:
            run.note(line)
        page.write(path, read(run_file), () if found is None else found.runs, repository=repository())
    except InferError as error:
        run.note(f"! no report: {error}")
        return
    except Exception as error:  # noqa: BLE001 - the summary and what is published come after this
        run.note(f"! no report: {type(error).__name__}: {error}")
        return
    run.note(f"report: {path}")


def _load(blocks: Mapping[str, Mapping[str, Any]]) -> tuple[LoadCurve, ...]:
    """Return the curves of load tests, their blocks by node id."""
    if not blocks:
        return ()
    from pytest_infer.analysis.load import curve  # noqa: PLC0415

    return curve.curves(row_of(nodeid, nodeid, block) for nodeid, block in blocks.items())


def _swept(
    blocks: Mapping[str, Mapping[str, Any]], given: Mapping[str, str]
) -> tuple[Recommendation | None, tuple[Curve, ...], SweptSides | None]:
    """Return what the tests that passed, their blocks by node id, recommend, the curves, and what both sides say.

    `given` are the models by how results name them: what is stored holds no paths, and what is to be typed needs them.
    """
    rows = [row_of(nodeid, nodeid, block) for nodeid, block in blocks.items() if block.get("config")]
    if not rows:
        return None, (), None
    from pytest_infer.analysis.sweep import curve, recommend, sides  # noqa: PLC0415

    return _typed(recommend.recommend(rows), given), curve.curves(rows), sides.of(rows)


def _typed(found: Recommendation | None, given: Mapping[str, str]) -> Recommendation | None:
    """Return a recommendation whose options name the model as it was given."""
    if found is None or not found.goals:
        return found
    best = found.configurations[found.goals[0].best].config
    model = given.get(best.get("model", ""))
    return found if model is None else replace(found, options=axes.options({**best, "model": model}))
