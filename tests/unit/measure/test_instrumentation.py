"""Tracers, profilers and monitoring tools see nothing of a round, and go on behind it."""

import cProfile
import sys
import threading
import tracemalloc

import pytest

from pytest_infer.measure import instrumentation
from pytest_infer.measure.instrumentation import suspended

from_3_12 = pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with Python 3.12")


def work():
    return sum(number % 7 for number in range(100))


def in_a_thread():
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.fixture
def seen():
    """What a tracer saw: names of functions."""
    names = []

    def tracer(frame, event, _argument):
        names.append(frame.f_code.co_name)
        return tracer

    before = sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()
    yield names, tracer
    sys.settrace(before[0])
    sys.setprofile(before[1])
    threading.settrace(before[2])
    threading.setprofile(before[3])


@pytest.mark.parametrize(
    ("install", "call"),
    [
        (sys.settrace, work),
        (sys.setprofile, work),
        (threading.settrace, in_a_thread),
        (threading.setprofile, in_a_thread),
    ],
)
def test_a_tracer_sees_what_is_outside_only(seen, install, call):
    names, tracer = seen
    install(tracer)
    with suspended():
        call()
    assert "work" not in names
    call()
    assert "work" in names


def test_cprofile_goes_on_behind_a_round():
    profile = cProfile.Profile()
    profile.enable()
    with suspended():
        work()
    in_a_thread()
    profile.disable()
    called = {entry.code.co_name for entry in profile.getstats() if not isinstance(entry.code, str)}
    assert "in_a_thread" in called
    assert "work" not in called


def test_an_error_in_a_round_gives_them_back(seen):
    names, tracer = seen
    sys.settrace(tracer)
    with pytest.raises(ValueError, match="a round failed"), suspended():
        raise ValueError("a round failed")
    work()
    assert "work" in names


@from_3_12
def test_a_monitoring_tool_sees_what_is_outside_only():
    calls, tool = [], 4
    sys.monitoring.use_tool_id(tool, "test")
    try:
        sys.monitoring.register_callback(
            tool, sys.monitoring.events.PY_START, lambda code, _offset: calls.append(code.co_name)
        )
        sys.monitoring.set_events(tool, sys.monitoring.events.PY_START)
        with suspended():
            work()
        assert "work" not in calls
        work()
        assert "work" in calls
    finally:
        sys.monitoring.set_events(tool, 0)
        sys.monitoring.free_tool_id(tool)


class Own:
    def generate(self):
        return work()


def test_nothing_is_named_where_nothing_goes_on():
    assert instrumentation.remaining(Own) == ()


def test_what_cannot_be_suspended_is_named():
    tracemalloc.start()
    try:
        assert instrumentation.remaining(Own) == ("tracemalloc",)
    finally:
        tracemalloc.stop()


@from_3_12
def test_a_tool_that_watches_a_measured_method_is_named():
    tool = 4
    sys.monitoring.use_tool_id(tool, "watcher")
    try:
        sys.monitoring.set_local_events(tool, Own.generate.__code__, sys.monitoring.events.LINE)
        assert instrumentation.remaining(Own) == ("watcher",)
    finally:
        sys.monitoring.set_local_events(tool, Own.generate.__code__, 0)
        sys.monitoring.free_tool_id(tool)
