"""What is said of expert usage that moved."""

from pytest_infer.analysis.experts import drift
from pytest_infer.records import ExpertSite
from pytest_infer.report.experts import drift as moved
from pytest_infer.storage.schema import Counts, Usage


def usage(*layers):
    sites = tuple(ExpertSite(name=f"layers.{n}", layer=n) for n in range(len(layers)))
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


def test_several_runs_are_named_and_lines_keep_to_the_width():
    layers = drift.between(usage((50, 50), (80, 20), (9, 1)), usage((20, 80), (60, 40), (1, 9)))
    one = moved.render([("0002", {"a": layers})], width=200, color=False)
    assert one.startswith("expert usage moved (share of selections that went elsewhere)\n  a: layer 2 80.0 %")
    two = moved.render([("0002 [x]", {"a": layers}), ("0003", {"[b]": layers})], width=60, color=False)
    assert "expert usage moved in 0002 [x] (share" in two
    assert "expert usage moved in 0003 (share" in two
    assert "[b]: layer 2" in two
    assert max(map(len, two.splitlines())) <= 60
