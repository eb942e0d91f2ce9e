"""What is said of expert usage that moved."""

from pytest_infer.analysis import drift
from pytest_infer.report import moved
from pytest_infer.storage.history import Counts, Site, Usage


def usage(*layers):
    sites = tuple(Site(name=f"layers.{n}", layer=n) for n in range(len(layers)))
    return Usage(sites=sites, counts=Counts(prefill=layers, decode=tuple((0,) * len(layer) for layer in layers)))


def test_layers_that_moved_are_named_with_their_experts():
    layers = drift.between(usage((50, 50), (80, 20)), usage((50, 50), (60, 40)))
    assert moved.lines({"a\x1b[31m": layers})[1:] == [
        "  a\\x1b[31m: layer 1 20.0 % (E0 80 → 60 %, E1 20 → 40 %)",
    ]
    assert moved.flat({"a": layers})["a"][0]["distance"] == layers[0].distance
    assert [layer["layer"] for layer in moved.flat({"a": layers})["a"]] == [1, 0]


def test_nothing_is_said_where_nothing_moved():
    assert moved.lines({"a": drift.between(usage((1, 2)), usage((2, 4)))}) == []
