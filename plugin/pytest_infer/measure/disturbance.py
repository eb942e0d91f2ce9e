"""Why a window counts as disturbed: the thresholds beyond which something other than the workload affected it."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_infer.records import Counters, Reading

SHARE = 0.01
"""Wait, pressure and steal beyond this share are reported: this spots rounds 2 % slow with an AUC of .82 to .97."""

SWITCHES_PER_S = 50
"""Involuntary switches per second of CPU time: only used where the run-queue wait, a better measure, is absent."""

OTHER_SHARE = 0.05
"""Share of the usable cores that other processes used; used only where neither wait nor switches are known."""

_TICK_S = 0.01


def reasons(counters: Counters, usable_cores: float) -> tuple[str, ...]:
    """Return why the window counts as disturbed, one short line per reason, or nothing."""
    wall_s = counters.wall_s
    lines = (
        *_waited(counters, usable_cores),
        *_client_waited(counters),
        _pressed(counters.pressure_cpu_s, wall_s, "some task was short of a core"),
        _pressed(counters.pressure_memory_s, wall_s, "some task was stalled for memory"),
        _stolen(counters, usable_cores),
        _throttled(counters.thermal_throttles),
    )
    return tuple(line for line in lines if line is not None)


def _waited(counters: Counters, usable_cores: float) -> Iterator[str]:
    cpu_s = counters.cpu_s.value or 0
    waited_s = counters.run_queue_wait_s.value
    switches = counters.involuntary_switches.value
    other_s = counters.other_cpu_s.value
    if waited_s is not None:
        if waited_s > SHARE * (cpu_s + waited_s):
            yield f"waited {_percent(waited_s, cpu_s + waited_s)} of its time for a core"
    elif switches is not None:
        if switches > SWITCHES_PER_S * cpu_s and switches > 1:
            yield f"was interrupted {switches} times for other threads"
    elif other_s is not None:
        available_s = counters.wall_s * usable_cores
        if other_s > OTHER_SHARE * available_s:
            yield f"other processes used {_percent(other_s, available_s)} of its cores' time"


def _client_waited(counters: Counters) -> Iterator[str]:
    # It mostly waits for the server: its share is of the whole time.
    waited_s = counters.client_wait_s.value
    if waited_s is not None and waited_s > SHARE * counters.wall_s:
        yield f"the client waited {_percent(waited_s, counters.wall_s)} of the time for a core"


def _pressed(pressure: Reading, wall_s: float, what: str) -> str | None:
    if pressure.value is None or pressure.value <= SHARE * wall_s:
        return None
    return f"{what} {_percent(pressure.value, wall_s)} of the time"


def _stolen(counters: Counters, usable_cores: float) -> str | None:
    # It is that of all cores: where more of them work than are usable here, others share it.
    steal, known = counters.steal_s, (counters.cpu_s, counters.other_cpu_s, counters.steal_s)
    available_s = max(counters.wall_s * usable_cores, sum(reading.value or 0 for reading in known))
    # One tick can belong to time before the window: only more than one is evidence.
    if steal.value is None or steal.value <= max(SHARE * available_s, _TICK_S * 1.5):
        return None
    return f"the host took {_percent(steal.value, available_s)} of its cores' time"


def _throttled(throttles: Reading) -> str | None:
    # The processor's own count of thermal throttling is not an estimate, so one event is enough.
    if not throttles.value:
        return None
    return f"the processor slowed down {throttles.value} time{'' if throttles.value == 1 else 's'} because of its heat"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %"
