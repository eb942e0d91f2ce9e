"""The device is idle before the clock starts, and each tick holds ids that have reached the host."""

from __future__ import annotations

from collections.abc import Sequence

from asked import asked
from pytest_infer.engines.base import Clock, Engine
from pytest_infer.measure import rounds
from pytest_infer.measure.clock import TokenClock
from pytest_infer.records import Limits, StopReason


class Deferred(Engine):
    """Queues work on a device, like a GPU: what was queued before a round must not run in it."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def reset(self) -> None:
        self.log.append("reset")

    def prepare(self, prompt_ids: Sequence[int], limits: Limits) -> None:
        self.log.append(f"prepare {len(prompt_ids)}+{limits.max_new_tokens}")

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def generate(self, prompt_ids: Sequence[int], limits: Limits, clock: Clock) -> StopReason | None:
        self.log.append("generate")
        clock.tick([1])
        return StopReason.LENGTH


class System:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def begin(self) -> str:
        self.log.append("begin")
        return "before"

    def end(self, before: str) -> None:
        self.log.append("end")


def test_the_clock_starts_when_the_device_has_nothing_left_to_do(monkeypatch) -> None:
    log: list[str] = []
    start = TokenClock.start
    monkeypatch.setattr(TokenClock, "start", lambda clock: (log.append("start"), start(clock))[1])
    rounds.timed_round(Deferred(log), asked([1, 2]), Limits(max_new_tokens=1), System(log))
    # What belongs to the request is made before the counters are read.
    assert log == ["reset", "prepare 2+1", "begin", "synchronize", "start", "generate", "end"]


class First:
    """Has the first turn, and all others."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def await_first(self) -> None:
        self.log.append("turn")

    def after(self, tick: int) -> bool:
        return False


def test_a_request_is_made_before_its_first_turn_and_the_device_is_left_idle() -> None:
    log: list[str] = []
    runner = rounds.Runner(
        engine=Deferred(log),
        asking=asked([1, 2]),
        limits=Limits(max_new_tokens=1),
        system=System(log),
        usable_cores=1.0,
    )
    runner.in_turns(First(log), tokens=3)
    assert log == ["reset", "prepare 2+3", "synchronize", "turn", "generate", "synchronize"]
