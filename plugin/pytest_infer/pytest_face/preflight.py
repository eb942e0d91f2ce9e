"""Checks between collection and the first test: everything that can be refused before a model is loaded."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from _pytest.skipping import evaluate_skip_marks, evaluate_xfail_marks

from pytest_infer import untrusted
from pytest_infer.analysis.doctor import requirements
from pytest_infer.analysis.doctor.requirements import Room
from pytest_infer.analysis.sweep import axes
from pytest_infer.analysis.sweep.axes import AXES
from pytest_infer.engines.base import Engine, EngineOptions
from pytest_infer.errors import EngineError, InferError, ModelError, OptionError, StorageError, UnknownValueError
from pytest_infer.measure.heap import no_collections
from pytest_infer.measure.load import environment
from pytest_infer.measure.machine import host
from pytest_infer.prompts import Prompt
from pytest_infer.prompts import check as check_prompt
from pytest_infer.pytest_face import command_line, fixtures, honoured, native_options, prompt_tokens, under_load
from pytest_infer.pytest_face.parametrize import LEVEL
from pytest_infer.pytest_face.selection import Selection, ignores_tests, repeats
from pytest_infer.pytest_face.session import InferSession
from pytest_infer.pytest_face.sweep import configurations, ordering
from pytest_infer.records import Level
from pytest_infer.report.text import printable
from pytest_infer.storage import files
from pytest_infer.units import size

_PACKAGE = Path(__file__).parents[1]


def measuring(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the tests that ask for our `infer` or `infer_under_load` and are not skipped outright."""
    return [item for item in items if fixtures.measures(item) and not _awaits_levels(item) and not _left_out(item)]


def _left_out(item: pytest.Item) -> bool:
    """Return whether marks say that a test is not run; what is wrong with one pytest says when it comes to the test."""
    try:
        if evaluate_skip_marks(item) is not None:
            return True
        expected = None if item.config.option.runxfail else evaluate_xfail_marks(item)
    except (pytest.fail.Exception, TypeError):
        return False
    return expected is not None and not expected.run


def check(collected: pytest.Session, session: InferSession) -> None:
    """Refuse what cannot work, in one line; raises pytest.UsageError."""
    items = measuring(collected.items)
    expected = any(fixtures.measures(item) and not _awaits_levels(item) for item in collected.items)
    session.gate.expects(expected and not session.bridge.off)
    if items and not session.bridge.available:
        raise pytest.UsageError("pytest-infer keeps its results in pytest-benchmark: leave out -p no:benchmark")
    if not items or session.config.option.collectonly or session.bridge.parallel:
        return
    for item in items:
        _check_benchmark(item)
    try:
        _check_rules(items, session)
        if not session.bridge.disabled:
            _check_recording(items, session)
        _check_load_tests(items, session)
        _check_followed(items, session)
        # Importing torch and transformers would start half a dozen collections of all that is there.
        with no_collections():
            _check_engine(items, session)
    except InferError as error:
        # Printable: a model's template and files may say anything.
        raise pytest.UsageError(f"pytest-infer: {printable(str(error))}") from error
    finally:
        session.live.clear()
    session.selection = _selection(items, session)
    planned = measuring(items)
    session.keeper.planned = tuple(item.nodeid for item in planned)
    # Where each configuration has two sides, what drifts is the same for both.
    alone = session.one_sided and not session.bridge.disabled
    session.remeasure.last = ordering.last_of_loads(planned) if alone else ()


def _selection(items: list[pytest.Item], session: InferSession) -> Selection:
    """Return what these tests, and those that cannot be run, are of all that there may be."""
    curve, configs = session.settings.curve, [one.values for one in session.configurations]
    points = configs
    if curve is not None:
        # Where the model's context is the end of it, the tests that there are tell the lengths.
        lengths = () if curve.needs_context else curve.up_to(0)
        points = [configurations.at_length(one, n).values for one in session.configurations for n in lengths]
        points += [found[1].values for item in items if (found := ordering.swept(item))]
    prompts = tuple({prompt.name: None for suite in session.suites.values() for prompt in suite})
    typed = "--infer-prompts" in {word.partition("=")[0] for word in command_line.words(session.config)}
    typed = typed and session.settings.prompts in session.suites
    session.keeper.typed_prompts = prompts if typed else ()
    return Selection(
        config=session.config,
        left_out=session.deselected,
        kept=[item.nodeid for item in items],
        levels=[level.name for level in session.settings.load],
        configs=configs,
        points=points,
        prompts=prompts,
        suites={session.keeper.suite, *map(session.keeper.suite_name, session.suites)},
        typed=typed,
    )


def _check_recording(items: list[pytest.Item], session: InferSession) -> None:
    """Refuse what the results of a run could not be saved as, compared with or follow; a disabled run has none."""
    native_options.check(session.config)
    native_options.name_ignored(session.config, items, session.note)
    session.tables_asked = native_options.tables_asked(session.config)
    session.keeper.prepare(session.machine)
    _check_report(session)
    session.gate.prepare(session.keeper.storage)
    session.references.prepare(session.keeper.storage, {item.nodeid: _prompt_of(item) for item in items})
    session.read_text()


def _check_load_tests(items: list[pytest.Item], session: InferSession) -> None:
    """Before anything is measured: see that the load generator is installed, and that there is something to send."""
    loading = [item for item in items if _level_of(item) is not None]
    if not loading:
        return
    if session.settings.sweep or session.settings.curve is not None:
        option = "--infer-sweep" if session.settings.sweep else "--infer-curve"
        raise OptionError(f"{option}: {loading[0].nodeid} is a load test, which follows none: leave out one of them")
    environment.required()
    for item in loading:
        work = under_load.workload_of(item, session)
        under_load.check_steady(item.callspec.params[LEVEL], work, session.settings.load_requests)  # type: ignore[attr-defined]


def _check_followed(items: list[pytest.Item], session: InferSession) -> None:
    """Refuse a curve that was typed for tests of which none can follow it; name levels and lengths that some do not."""
    config, several = session.config, f"of {len(items)} tests"
    if session.started_by_other:
        return
    if session.settings.curve is not None:
        lacking = [item for item in items if (found := ordering.swept(item)) is None or found[1].curve is None]
        told = f"--infer-curve: no effect on {len(lacking)} {several}, which have no prompt of a suite"
        if len(lacking) == len(items) and config.getoption("infer_curve") is not None:
            raise OptionError(told)
        if lacking:
            session.note(told)
    if config.getoption("infer_load") and not any(map(_level_of, items)):
        session.note(f"--infer-load: no effect: none {several} asks for `load_level`")


def _level_of(item: pytest.Item) -> Level | None:
    """Return the level of load at which a test sends requests."""
    callspec = getattr(item, "callspec", None)
    level = None if callspec is None else callspec.params.get(LEVEL)
    return level if isinstance(level, Level) and under_load.FIXTURE in getattr(item, "fixturenames", ()) else None


def _awaits_levels(item: pytest.Item) -> bool:
    """Return whether a test skips itself, as no option says at which levels it is to send requests."""
    return LEVEL in getattr(item, "fixturenames", ()) and _level_of(item) is None and fixtures.gets_ours(item, LEVEL)


def _check_rules(items: list[pytest.Item], session: InferSession) -> None:
    """Refuse a rule about no prompt of the suite, which is all that was collected before -k and -m left some out."""
    tests = [item for item in session.collected if fixtures.measures(item)]
    session.collected.clear()
    awaiting, curve = any(map(_awaits_levels, tests)), session.settings.curve is not None
    named_by = {item.nodeid: _names_of(item) for item in tests if not _awaits_levels(item)}
    names = {name for found in named_by.values() for name in found}
    if not curve:
        names |= {prompt.name for suite in session.suites.values() for prompt in suite}
    config, here = session.config, session.config.invocation_params.dir
    named = any("::" in argument or untrusted.is_file(here / argument) for argument in config.args)
    part = curve or named or repeats(config) or ignores_tests(config)
    unnamed = [nodeid for nodeid, found in named_by.items() if not found]
    asked = {name for item in items for name in fixtures.MEASURING.intersection(item.fixturenames)}  # type: ignore[attr-defined]
    loads = {name == under_load.FIXTURE for name in asked}
    session.gate.check_rules(names, part=part, unnamed=unnamed, awaiting=awaiting, under_load=loads)


def _names_of(item: pytest.Item) -> tuple[str, ...]:
    """Return what a test's prompt or level goes by in a rule; nothing where nobody knows before it runs."""
    prompt, swept = _prompt_of(item), ordering.swept(item)
    if under_load.FIXTURE in getattr(item, "fixturenames", ()):
        level = _level_of(item)
        return () if level is None else (level.name,)
    return () if prompt is None else axes.names(prompt.name, {} if swept is None else swept[1].values)


def _check_report(session: InferSession) -> None:
    """Before anything is measured: raise OptionError where the report that is asked for could not be written."""
    path = session.settings.report
    if path is None:
        return
    if not session.bridge.saving:
        raise OptionError("--infer-report shows a stored run: add --benchmark-autosave")
    try:
        files.check_publishing(path)
    except StorageError as error:
        raise OptionError(f"--infer-report {error}") from error


def _check_engine(items: list[pytest.Item], session: InferSession) -> None:
    """Find the models and see that every prompt fits, unless the tests bring their own engine or model.

    Of a sweep, what cannot be run is skipped, unless that is all of it.
    """
    loads: dict[EngineOptions, list[pytest.Item]] = {}
    own = [item for item in items if not fixtures.gets_ours(item, "engine")]
    session.deaf = tuple(item.nodeid for item in own if honoured.deaf(partial(fixtures.seen_by, item)))
    honoured.check_fixtures(session.deaf, len(items), session.settings, session.note)
    sends = any(_level_of(item) is not None for item in items if item not in own)
    for item in items:
        own_engine = not fixtures.gets_ours(item, "engine")
        own_model = own_engine or not fixtures.gets_ours(item, "model")
        _check_axes(item, session, own_engine=own_engine, own_model=own_model)
        load, _ = ordering.swept(item) or (session.settings.engine_options, None)
        if not own_engine:
            loads.setdefault(load, [])
        if not own_model:
            loads[load].append(item)
    for load, own in loads.items():
        with _own_code(session.settings.engine):
            engine = session.model_in_use.engine(load)
            honoured.check_engine(engine, session.settings)
            if sends:
                under_load.check_serves(engine)
            _check_adapts(engine, load, items)
            if own:
                _check_load(engine, load, own, session)
    if session.impossible.issuperset(item.nodeid for item in items):
        marks = [mark for item in items if (mark := item.get_closest_marker("skip")) is not None]
        reasons = dict.fromkeys(str(mark.kwargs["reason"]) for mark in marks)
        raise ModelError(f"nothing of the sweep can be run: {'; '.join(reasons)}")


@contextmanager
def _own_code(name: str) -> Iterator[None]:
    """Say in one line, with its place, what an engine raises by mistake; pytest would call it an internal error."""
    try:
        yield
    except InferError:
        raise
    except Exception as error:
        # Where the engine failed: not we who called it, and not a library that it calls.
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if not Path(frame.filename).is_relative_to(_PACKAGE)] or frames
        place = next((frame for frame in reversed(theirs) if "site-packages" not in frame.filename), theirs[-1])
        raise EngineError(
            f"the engine {name!r} failed before its model was loaded: {untrusted.failure(error)} "
            f"({Path(place.filename).name}:{place.lineno}, in {place.name})"
        ) from error


def _check_axes(item: pytest.Item, session: InferSession, *, own_engine: bool, own_model: bool) -> None:
    """Refuse to sweep what a test's own engine or model decides, and skip what no model can run."""
    found = ordering.swept(item)
    if found is None:
        return
    if found[1].impossible is not None:
        _skip(item, found[1].impossible, session)
    for axis in found[1].values:
        if (own_engine and configurations.of_engine(axis)) or (own_model and AXES[axis].reload):
            whose = "engine" if own_engine else "model"
            raise OptionError(f"--infer-sweep: {axis} is decided by the `{whose}` fixture that {item.nodeid} overrides")


def _check_adapts(engine: Engine, load: EngineOptions, items: list[pytest.Item]) -> None:
    """Refuse what a loaded model cannot be switched to, if the engine cannot switch at all."""
    for item in items:
        found = ordering.swept(item)
        if found is not None and found[0] == load and found[1].settings.engine_options != load and not engine.adapts():
            raise OptionError(
                f"--infer-sweep: {found[1].label}: this engine cannot change threads or the cache of a loaded model; "
                "sweep other axes"
            )


def _check_load(engine: Engine, load: EngineOptions, items: list[pytest.Item], session: InferSession) -> None:
    """Check one model with all that it is to run."""
    items = [item for item in items if item.nodeid not in session.impossible]
    try:
        engine.check()
        held = {item: _check_item(engine, item, session) for item in items}
        _check_memory(engine, held, load, session)
    except UnknownValueError:
        raise
    except InferError as error:
        if any(ordering.swept(item) is None for item in items):
            raise
        for item in items:
            _skip(item, str(error), session)


def _check_item(engine: Engine, item: pytest.Item, session: InferSession) -> int:
    """Return the positions that a test fills in the KV cache; of a sweep, skip a test that does not fit."""
    prompt, found = _prompt_of(item), ordering.swept(item)
    if prompt is None:
        return 0
    check_prompt(prompt, item.nodeid)
    if not engine.encodes():
        return 0
    settings = session.settings if found is None else found[1].settings
    try:
        ids, _ = prompt_tokens.encode(engine, prompt, settings)
    except InferError as error:
        if found is None:
            raise
        _skip(item, str(error), session)
        return 0
    limits = prompt_tokens.limits_of(prompt, settings)
    return limits.sequences * (len(ids) + limits.max_new_tokens)


def _skip(item: pytest.Item, reason: str, session: InferSession) -> None:
    found = ordering.swept(item)
    if found is not None:
        # Before any mark of its own that pytest cannot evaluate.
        item.add_marker(pytest.mark.skip(reason=reason), append=False)
        session.impossible.add(item.nodeid)
        session.note(f"not run: {printable(found[1].label)}: {printable(reason)}")


def _check_memory(engine: Engine, held: dict[pytest.Item, int], load: EngineOptions, session: InferSession) -> None:
    """Warn, or refuse with --infer-strict-memory, before the kernel would kill the run for want of memory.

    `held` are the positions that each test fills. Of a sweep, the tests that do not fit are skipped.
    """
    lacking = _lacking(engine, max(held.values(), default=0), load, session)
    if lacking is None:
        return
    if session.settings.strict_memory:
        if any(ordering.swept(item) is None for item in held):
            raise ModelError(f"{lacking}; or leave out --infer-strict-memory")
        for item, positions in held.items():
            if (why := _lacking(engine, positions, load, session)) is not None:
                _skip(item, f"{why}; or leave out --infer-strict-memory", session)
        return
    session.note(f"! {lacking}")
    # At once as well: a killed run shows no summary.
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        session.live.clear()
        reporter.ensure_newline()
        reporter.write_line(f"pytest-infer: {lacking}", yellow=True)


def _lacking(engine: Engine, context: int, load: EngineOptions, session: InferSession) -> str | None:
    """Return what a model with so many positions in its KV cache lacks of memory; None where it fits, or none tells."""
    held, limit = engine.checkpoint(), session.machine.memory_limit_bytes
    if held is None or limit is None:
        return None
    # Interpreter and libraries are loaded by now: their memory is no longer available to anybody.
    room = Room(limit_bytes=limit, available_bytes=host.available_bytes(), runtime_bytes=0)
    try:
        needs = requirements.of(held, room, context=context or None, dtype=load.dtype)
    except InferError:
        # A size that nobody tells is no reason to stop.
        return None
    need, free = needs.chosen, room.available_bytes
    most = limit if free is None else min(limit, free)
    if need.minimum_bytes <= most:
        return None
    return printable(
        f"{needs.name} in {need.dtype} takes {size(need.minimum_bytes)} (weights and KV cache), and {size(most)} are "
        f"available: pytest-infer doctor --model {load.model} says what would fit"
    )


def _check_benchmark(item: pytest.Item) -> None:
    """Refuse a `benchmark` fixture that is not pytest-benchmark's, which would end in an internal error of its own."""
    definitions = fixtures.seen_by(item, "benchmark")
    owner = definitions[-1].func.__module__ if definitions else None
    if owner is not None and owner != "pytest_benchmark.plugin":
        raise pytest.UsageError(
            f"pytest-infer: the `benchmark` fixture is {owner}'s, not pytest-benchmark's; "
            "disable the plugin that replaces it (-p no:NAME) or rename the fixture"
        )


def _prompt_of(item: pytest.Item) -> Prompt | None:
    callspec = getattr(item, "callspec", None)
    prompt = callspec.params.get("prompt") if callspec is not None else None
    return prompt if isinstance(prompt, Prompt) else None
