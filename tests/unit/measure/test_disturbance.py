from __future__ import annotations

from dataclasses import fields, replace

import pytest

from pytest_infer.measure import disturbance
from pytest_infer.records import Counters, Reading, absent


def counters(**values: float) -> Counters:
    """Counters of one second with one second of CPU time, in which only the given figures are told."""
    names = [field.name for field in fields(Counters) if field.name != "wall_s"]
    figures = {name: absent("not told") for name in names}
    for name, value in ({"cpu_s": 1.0} | values).items():
        figures[name] = Reading(value=value, source="fake")
    return Counters(wall_s=1.0, **figures)


@pytest.mark.parametrize(
    ("values", "reasons"),
    [
        ({}, ()),
        ({"run_queue_wait_s": 0.009, "pressure_cpu_s": 0.01, "steal_s": 0.02}, ()),
        ({"run_queue_wait_s": 0.25}, ("waited 20.0 % of its time for a core",)),
        ({"pressure_cpu_s": 0.032}, ("some task was short of a core 3.2 % of the time",)),
        ({"pressure_memory_s": 0.5}, ("some task was stalled for memory 50.0 % of the time",)),
        ({"pressure_io_s": 0.5}, ()),
        ({"steal_s": 0.05}, ("the host took 2.5 % of its cores' time",)),
        # The run-queue wait tells the same as switches and other processes, and better.
        ({"run_queue_wait_s": 0.0, "involuntary_switches": 1000, "other_cpu_s": 2.0}, ()),
        ({"involuntary_switches": 1000, "other_cpu_s": 2.0}, ("was interrupted 1000 times for other threads",)),
        ({"involuntary_switches": 10, "other_cpu_s": 2.0}, ()),
        ({"other_cpu_s": 0.5}, ("other processes used 25.0 % of its cores' time",)),
        ({"other_cpu_s": 0.05}, ()),
        ({"thermal_throttles": 0}, ()),
        ({"thermal_throttles": 1}, ("the processor slowed down 1 time because of its heat",)),
        ({"thermal_throttles": 12}, ("the processor slowed down 12 times because of its heat",)),
    ],
)
def test_reasons_beyond_the_thresholds(values: dict[str, float], reasons: tuple[str, ...]) -> None:
    assert disturbance.reasons(counters(**values), 2.0) == reasons


def test_all_reasons_are_told() -> None:
    found = disturbance.reasons(counters(run_queue_wait_s=1.0, pressure_cpu_s=0.5, steal_s=0.5), 1.0)
    assert len(found) == 3


def test_one_tick_of_steal_tells_nothing() -> None:
    short = replace(counters(steal_s=0.01), wall_s=0.1)
    assert disturbance.reasons(short, 1.0) == ()


def test_steal_of_cores_that_others_use_is_shared_with_them() -> None:
    # 96 cores work and lose 0.5 % each; 4 of them may be used here.
    assert disturbance.reasons(counters(cpu_s=4.0, other_cpu_s=91.5, steal_s=0.5, run_queue_wait_s=0.0), 4.0) == ()
    # Only these work.
    alone = disturbance.reasons(counters(cpu_s=3.5, other_cpu_s=0.0, steal_s=0.5, run_queue_wait_s=0.0), 4.0)
    assert alone == ("the host took 12.5 % of its cores' time",)


def test_a_window_without_cpu_time() -> None:
    assert disturbance.reasons(counters(cpu_s=0, run_queue_wait_s=0, involuntary_switches=0), 1.0) == ()
