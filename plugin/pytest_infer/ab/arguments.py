"""What the child is started with: the parent's own arguments and import path, moved to the other checkout."""

from __future__ import annotations

import os
import shlex
from argparse import Action
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from pytest_infer import untrusted
from pytest_infer.checkouts.imports import Move
from pytest_infer.engines import models
from pytest_infer.pytest_face.command_line import parser_of
from pytest_infer.pytest_face.option_reader import OptionReader
from pytest_infer.pytest_face.options import BARE, SWEPT
from pytest_infer.pytest_face.settings import OF_THE_RUN, ONLY_OURS, Settings

_SAVED_OR_SHOWN_TWICE = """
    benchmark_autosave benchmark_save benchmark_save_data benchmark_json benchmark_compare benchmark_compare_fail
    benchmark_histogram benchmark_cprofile benchmark_cprofile_dump xmlpath htmlpath log_file pastebin debug report_log
    verbose color
"""
_OTHER_TESTS_OR_AN_EARLY_END = """
    benchmark_disable benchmark_skip maxfail lf failedfirst newfirst cacheshow cacheclear last_failed_no_failures
    stepwise stepwise_skip stepwise_reset usepdb usepdb_cls trace collectonly
"""
_SPREAD_AGAIN_OR_EMPTIED_FIRST = """
    numprocesses maxprocesses dist distload tx px looponfail basetemp
    force_reruns only_rerun fail_on_flaky max_suite_reruns
"""
_TOLD_OTHERWISE = " ".join(f"infer_{name.replace('-', '_')}" for name in OF_THE_RUN)
_NOT_FOR_THE_CHILD = frozenset(
    f"{_SAVED_OR_SHOWN_TWICE} {_OTHER_TESTS_OR_AN_EARLY_END} {_SPREAD_AGAIN_OR_EMPTIED_FIRST} {_TOLD_OTHERWISE}".split()
)
"""Destinations of options, whatever way they are written."""
_NOT_FOR_THE_CHILD_PREFIXES = (*(f"infer_{name.replace('-', '_')}" for name in ONLY_OURS), "cov_", "no_cov", "rerun")
DATA = ("model", "prompts", "text")
"""Options of ours that name files which need not be committed."""
_NOT_INHERITED = ("COV_CORE_", "COVERAGE_PROCESS_", "PYTEST_XDIST_", "PYTEST_CURRENT_TEST", "PYTHONPATH")


def wanted_by_child(dest: str) -> bool:
    """Whether the child follows an option, by its destination."""
    return dest not in _NOT_FOR_THE_CHILD and not dest.startswith(_NOT_FOR_THE_CHILD_PREFIXES)


def neutralise(config: pytest.Config) -> None:
    """In the child: undo what an ini file's `addopts` asks for and the child must not do."""
    for action in parser_of(config)._actions:
        if not wanted_by_child(action.dest) and hasattr(config.option, action.dest):
            setattr(config.option, action.dest, [] if isinstance(action.default, list) else action.default)


def moved(args: Sequence[str], options: Mapping[str, Action], move: Move, cwd: Path, *, pyargs: bool) -> list[str]:
    """Return the parent's arguments for the child: without what is not for it, and with paths in its own checkout.

    A test file or folder that the other commit lacks is left out, and of a node id only the file is kept: the child
    runs what the parent plans, and pytest would refuse the rest for one name that is missing.
    """
    result = []
    for action, tokens in _split(args, options):
        if action is not None and not wanted_by_child(action.dest):
            continue
        if action is None and not tokens[0].startswith("-") and not pyargs:
            path = move.path(cwd / tokens[0].partition("::")[0])
            result += [str(path)] if untrusted.exists(path) else []
        else:
            result += [_moved_value(token, action, move, cwd) for token in tokens]
    return result


def selects(args: Sequence[str], options: Mapping[str, Action]) -> list[str]:
    """Return the files, folders and node ids among the arguments."""
    return [tokens[0] for action, tokens in _split(args, options) if action is None and not tokens[0].startswith("-")]


def but_tests(args: Sequence[str], options: Mapping[str, Action]) -> list[str]:
    """Return the arguments without what `selects` returns."""
    split = _split(args, options)
    return [token for action, tokens in split if action is not None or tokens[0].startswith("-") for token in tokens]


def _moved_value(token: str, action: Action | None, move: Move, cwd: Path) -> str:
    flag, equals, value = token.partition("=") if token.startswith("-") else ("", "", token)
    data = action is not None and action.dest in {f"infer_{name}" for name in DATA}
    if not value or not (data or Path(value).is_absolute()):
        return token
    return f"{flag}{equals}{_moved_data(value, move, cwd)}"


def _moved_data(value: str, move: Move, cwd: Path) -> str:
    """Return a path for the child; one that is not in its own checkout, as it need not be committed, stays here."""
    own = cwd / value
    if not move.holds(own):
        return value
    other = move.path(own)
    if untrusted.exists(other):
        return str(other) if Path(value).is_absolute() else value
    return str(own) if untrusted.exists(own) else value


def data(config: pytest.Config) -> dict[str, Path]:
    """Return the files that options name, wherever these are set, by the options' names."""
    read, found = OptionReader(config), {}
    for name in DATA:
        value = read.text(name)
        if value is not None and value != BARE and not (name == "model" and value in models.BUNDLED):
            own = config.invocation_params.dir / models.expanded(read.model(name, value))
            found[name] = own if name == "model" else read.path(name) or own
    return found


def uncommitted(config: pytest.Config, move: Move) -> list[str]:
    """Return options that name those of these files which lie here and that the other checkout lacks."""
    there = {name: path for name, path in data(config).items() if move.holds(path) and untrusted.exists(path)}
    return [f"--infer-{name}={path}" for name, path in there.items() if not untrusted.exists(move.path(path))]


def swept(settings: Settings, move: Move, cwd: Path) -> str:
    """Return what the child is told to sweep, for its environment: the parent's own, with models in its checkout.

    And which server it measures, where two are compared.
    """
    lines = []
    for axis, values in settings.sweep:
        found = [_moved_data(value, move, cwd) for value in values] if axis == "model" else values
        lines.append(f"{axis}={','.join(found)}")
    curve = None if settings.curve is None else settings.curve.text
    return msgspec.json.encode({"sweep": lines or None, "curve": curve, **_other_server(settings)}).decode()


def _other_server(settings: Settings) -> dict[str, str | None]:
    if settings.other_server is None:
        return {}
    name, value = settings.other_server
    own = settings.engine_options.server
    return {name: value, "serve-flags": own.flags or None if name == "serve" and own is not None else None}


def adopt_sweep(config: pytest.Config) -> None:
    """In the child: sweep what the parent does, on the server that it names; `neutralise` made it forget any other."""
    told = msgspec.json.decode(os.environ.pop(SWEPT, "{}"))
    for name in OF_THE_RUN:
        setattr(config.option, f"infer_{name.replace('-', '_')}", told.get(name))


def _split(args: Iterable[str], options: Mapping[str, Action]) -> Iterator[tuple[Action | None, list[str]]]:
    """Yield each option with its values, as argparse would take them, and each other argument alone."""
    left = list(args)
    while left:
        word = left.pop(0)
        if word == "--":
            yield from ((None, [other]) for other in left)
            return
        if word.startswith("-") and not word.startswith("--") and word not in options and len(word) > 2:
            # Letters in one: -xq is -x -q, -n2 is -n 2.
            action = options.get(word[:2])
            if action is not None and action.nargs == 0:
                left.insert(0, f"-{word[2:]}")
                yield action, [word[:2]]
            else:
                yield action, [word]
            continue
        action = options.get(word.partition("=")[0]) if word.startswith("-") else None
        yield action, [word, *_values(action, left, joined="=" in word)]


def _values(action: Action | None, left: list[str], *, joined: bool) -> list[str]:
    if action is None or joined or action.nargs == 0:
        return []
    if action.nargs is None or isinstance(action.nargs, int):
        count = action.nargs or 1
    else:
        count = next((n for n, token in enumerate(left) if token.startswith("-")), len(left))
        count = min(count, 1) if action.nargs == "?" else count
    taken, left[:count] = left[:count], []
    return taken


def environment(
    given: Mapping[str, str],
    options: Mapping[str, Action],
    move: Move,
    cwd: Path,
    *,
    python_path: Sequence[str],
    read_in: Callable[[list[str]], list[str]] = list,
) -> dict[str, str]:
    """Return the child's environment; `read_in` puts the words of files in place of their names."""
    kept = {name: value for name, value in given.items() if not name.startswith(_NOT_INHERITED)}
    if "PYTEST_ADDOPTS" in kept:
        kept["PYTEST_ADDOPTS"] = shlex.join(
            moved(read_in(shlex.split(kept["PYTEST_ADDOPTS"])), options, move, cwd, pyargs=False)
        )
    if python_path:
        kept["PYTHONPATH"] = os.pathsep.join(python_path)
    return {**kept, "PWD": str(move.path(cwd))}
