"""Tools that watch Python code in this process: suspended around rounds, and named where that cannot be done."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

_TOOLS = range(6)
"""Identifiers of tools that `sys.monitoring` knows (PEP 669)."""


@contextmanager
def suspended() -> Iterator[None]:
    """Take tracers, profilers and monitoring tools off this thread, and off threads that start in the block.

    Coverage, cProfile and debuggers call Python, or at least C, for every line or call. They act on one process only,
    and by how much depends on the code: neither belongs to a measurement. pytest-benchmark does the same.
    """
    tracer, profiler = sys.gettrace(), sys.getprofile()
    of_threads = threading.gettrace(), threading.getprofile()
    events = _monitored()
    # First those that would see the next call.
    sys.settrace(None)
    sys.setprofile(None)
    threading.settrace(None)
    threading.setprofile(None)
    _watch(dict.fromkeys(events, 0))
    try:
        yield
    finally:
        _watch(events)
        threading.setprofile(of_threads[1])
        threading.settrace(of_threads[0])
        if callable(profiler) or profiler is None:
            sys.setprofile(profiler)
        else:
            # cProfile before Python 3.12: only it can set itself.
            profiler.enable()
        sys.settrace(tracer)


def remaining(code: type) -> tuple[str, ...]:
    """Return the names of tools that go on within `suspended()`; `code` is the class whose methods are measured."""
    found = ["tracemalloc"] if tracemalloc.is_tracing() else []
    monitoring = _monitoring()
    if monitoring is not None:
        # Events of single code objects cannot be listed, only asked for one by one.
        methods = [m.__code__ for kind in code.__mro__ for m in vars(kind).values() if isinstance(m, FunctionType)]
        found += [
            str(monitoring.get_tool(tool))
            for tool in _TOOLS
            if monitoring.get_tool(tool) is not None and _watches(monitoring, tool, methods)
        ]
    return tuple(found)


def _watches(monitoring: Any, tool: int, codes: list[CodeType]) -> bool:
    return any(monitoring.get_local_events(tool, code) for code in codes)


def _monitoring() -> Any:
    """Return `sys.monitoring`, which Python has since 3.12."""
    return getattr(sys, "monitoring", None)


def _monitored() -> dict[int, int]:
    monitoring = _monitoring()
    if monitoring is None:
        return {}
    return {tool: monitoring.get_events(tool) for tool in _TOOLS if monitoring.get_tool(tool) is not None}


def _watch(events: dict[int, int]) -> None:
    for tool, wanted in events.items():
        _monitoring().set_events(tool, wanted)
