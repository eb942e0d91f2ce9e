"""The processes of a distributed run: where one stands, what they tell each other, and what comes of silence."""

from types import SimpleNamespace

import pytest

from pytest_infer.measure import ranks
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.measure.ranks import Place, World
from pytest_infer.records import RankMemory

ENVIRON = {"MASTER_ADDR": "here", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "r"}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, Place()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Place()),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Place(1, 2)),
        ({"RANK": "3"}, Place()),
        ({"RANK": "two", "WORLD_SIZE": "2"}, Place()),
        ({"RANK": "2", "WORLD_SIZE": "2"}, Place()),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, Place()),
    ],
)
def test_a_place_is_what_the_launcher_says_if_it_makes_sense(environ, place) -> None:
    assert ranks.here(environ) == place
    assert place.alone == (place.size == 1)


class Store(dict):
    """torch's TCPStore, without the waiting: what nobody set times out."""

    def set(self, key, value) -> None:
        self[key] = value

    def get(self, key) -> str:
        if key not in self:
            raise RuntimeError("wait timeout after 60000ms. And a long C++ trace")
        return self[key]


@pytest.fixture
def met(monkeypatch):
    """Return a function that makes worlds of so many ranks that meet at one store."""
    store = Store()
    torch = SimpleNamespace(distributed=SimpleNamespace(TCPStore=lambda *_args, **_named: store))
    monkeypatch.setattr(ranks, "loaded_torch", lambda: torch)
    return lambda size: [World(Place(rank, size), ENVIRON) for rank in range(size)]


def counters(rss, peak, cpu=None):
    readings = {"rss_bytes": rss, "peak_rss_bytes": peak, "device_peak_bytes": None, "cpu_s": cpu}
    return SimpleNamespace(**{name: SimpleNamespace(value=value) for name, value in readings.items()})


def test_the_first_rank_knows_the_most_memory_of_each(met) -> None:
    first, second, third = met(3)
    assert second.gathered("t", [counters(5, 7), counters(6, 6)]) is None
    assert third.gathered("t", [counters(None, None)]) is None
    found = first.gathered("t", [counters(1, 2)])
    assert found.size == 3
    assert found.memory == (
        RankMemory(rss_bytes=1, peak_rss_bytes=2),
        RankMemory(rss_bytes=6, peak_rss_bytes=7),
        RankMemory(),
    )
    assert World(Place()).gathered("t", [counters(1, 2)]) is None


def test_the_first_rank_knows_what_each_used_of_the_cores_in_a_round(met) -> None:
    first, second, third = met(3)
    second.gathered("t", [counters(5, 7, 2.0), counters(6, 6, 4.0), counters(6, 6, 2.5)])
    third.gathered("t", [counters(5, 7)])
    assert first.gathered("t", [counters(1, 2, 1.5)]).cpu_s == (1.5, 2.5, None)
    first, second = met(2)
    assert first.gathered("another", [counters(1, 2, 1.5)]).cpu_s == (1.5, None)


def test_a_rank_that_has_gone_leaves_a_reason_of_one_line(met) -> None:
    first, _ = met(2)
    (_, lost) = first.gathered("t", [counters(1, 2)]).memory
    assert lost == RankMemory(absent="rank 1 did not answer: RuntimeError: wait timeout after 60000ms")


def test_without_torch_nobody_is_asked_and_codes_are_each_ones_own(monkeypatch) -> None:
    monkeypatch.setattr(ranks, "loaded_torch", lambda: None)
    first = World(Place(0, 2), ENVIRON)
    assert "torch is not loaded" in first.gathered("t", [counters(1, 2)]).memory[1].absent
    assert first.agreed(1) == (1, [])


@pytest.mark.parametrize(
    ("codes", "agreed"), [((0, 0, 0), 0), ((10, 0, 0), 10), ((0, 0, 1), 1), ((1, 2, 0), 1), ((0, 3, 1), 3)]
)
def test_all_ranks_end_alike_and_no_failure_is_lost(met, codes, agreed) -> None:
    first, *others = met(len(codes))
    for world, code in zip(others, codes[1:], strict=True):
        world.tell("ends with", code)
    code, lines = first.agreed(codes[0])
    assert code == agreed
    assert len(lines) == (sum(1 for c in codes[1:] if c) if codes[0] == 0 else 0)
    assert [world.agreed(c)[0] for world, c in zip(others, codes[1:], strict=True)] == [agreed] * len(others)


def test_a_store_that_cannot_be_reached_is_a_reason(monkeypatch) -> None:
    def refuse(*_args, **_named):
        raise ConnectionError("refused")

    monkeypatch.setattr(ranks, "loaded_torch", lambda: SimpleNamespace(distributed=SimpleNamespace(TCPStore=refuse)))
    world = World(Place(0, 2), ENVIRON)
    assert world.hear("x", 1) == Unavailable("the ranks cannot reach each other: ConnectionError: refused")
    assert World(Place(0, 2), {}).hear("x", 1).reason.startswith("the ranks cannot reach each other: KeyError")
