"""Which launches a prompt is measured in: as many as fit the memory, of those that are there."""

from types import SimpleNamespace

import pytest

from pytest_infer.ab import launches
from pytest_infer.ab.protocol import Begun
from pytest_infer.errors import AgainstError

GIB = 2**30


class Memory:
    """A machine's memory, of which each launch holds what its model takes, and room for some processes."""

    def __init__(self, total):
        self.total, self.open = total, []
        self.processes, self.refused = 100, 0

    def available_bytes(self):
        return self.total - sum(launch.holds for launch in self.open)


class Launch:
    def __init__(self, memory):
        self.holds, self._memory = 0, memory
        memory.open.append(self)

    def close(self):
        self._memory.open.remove(self)


@pytest.fixture
def machine(monkeypatch):
    memory = Memory(20 * GIB)
    monkeypatch.setattr(launches.host, "available_bytes", memory.available_bytes)
    notes = []
    session = SimpleNamespace(
        settings=SimpleNamespace(launches=8, time_s=60.0),
        note=notes.append,
        live=SimpleNamespace(show=lambda line: None),
    )
    loop = launches.Launches(session, None)

    def launch():
        if len(memory.open) >= memory.processes:
            memory.refused += 1
            raise AgainstError("python cannot be started: Resource temporarily unavailable")
        return Launch(memory)

    loop._launch = launch

    def test_with(model, in_time=8, **device):
        """Measure a test whose model takes so much in a launch; return how many launches have loaded it."""
        loop._launches[0].holds = model
        used = loop._used([Begun(private_bytes=model // 2, **device)] * 2, in_time)
        for launch in used:
            launch.holds = model
            assert memory.available_bytes() >= 0
        return len(used)

    loop._launches.append(Launch(memory))
    test_with.memory = memory
    return test_with, notes


def test_a_larger_model_ends_launches_and_a_smaller_one_starts_them_again(machine):
    measure, notes = machine
    assert measure(1 * GIB) == 8
    assert measure(1 * GIB) == 8
    assert notes == []
    assert measure(6 * GIB) == 3
    assert notes == ["3 of 8 launches fit the memory: how far launches differ is known less well"]
    assert measure(1 * GIB) == 8


def test_one_launch_is_always_left(machine):
    measure, _ = machine
    assert measure(1 * GIB) == 8
    assert measure(19 * GIB) == 1


def test_launches_that_a_slow_prompt_does_not_use_are_the_first_to_end(machine):
    measure, notes = machine
    assert measure(2 * GIB) == 8
    notes.clear()
    # Three are used, of 5 GiB each, and with the five others holding 2 GiB each that is too much.
    assert measure(5 * GIB, in_time=3) == 3
    assert not any("memory" in note for note in notes)


def test_launches_that_fit_main_memory_may_not_fit_the_card(machine):
    measure, notes = machine
    # One launch, of two processes with 16 GiB each, is there; of 100 GiB left, 80 hold two more.
    assert measure(1 * GIB, device_bytes=16 * GIB, device_free=100 * GIB) == 3
    assert notes == ["3 of 8 launches fit the accelerator's memory: how far they differ is known less well"]
    notes.clear()
    assert measure(1 * GIB, device_bytes=16 * GIB, device_free=4 * GIB) == 3  # they are there
    assert measure(1 * GIB, device_bytes=GIB, device_free=100 * GIB) == 8


@pytest.mark.parametrize("processes", [1, 3])
def test_a_launch_that_cannot_be_started_is_told_once_and_the_others_measure(machine, processes):
    measure, notes = machine
    measure.memory.processes = processes
    assert [measure(1 * GIB) for _ in range(3)] == [processes] * 3
    assert measure.memory.refused == 2, "once more at the second prompt, and then no more"
    assert notes == [
        f"! {processes} of 8 launches started: how far they differ is known less well: "
        "python cannot be started: Resource temporarily unavailable"
    ]


def test_a_launch_that_ended_while_it_loaded_for_an_earlier_test_costs_no_later_one(machine, monkeypatch):
    class Loading:
        broken = False

        def __init__(self, why=None):
            self.why = why

        def abandon(self, *, loading):
            assert loading
            self.broken = self.why is not None
            return self.why

        def close(self):
            pass

    _, notes = machine
    loop = launches.Launches(SimpleNamespace(settings=SimpleNamespace(launches=2), note=notes.append), None)
    loop._session.live = SimpleNamespace(clear=lambda: None)
    whole = Loading()
    loop._launches = [Loading("the run of main was killed by SIGKILL"), whole]
    used = []
    monkeypatch.setattr(launches, "OnePrompt", lambda *given: None)
    monkeypatch.setattr(loop, "_begun", lambda nodeid, one: used.extend(loop._launches))
    monkeypatch.setattr(loop, "_alone", lambda nodeid, plan: "record")
    assert loop.elsewhere("t", None, None, {}) == "record"
    assert used == [whole]
    assert notes == ["! the run of main was killed by SIGKILL"]
