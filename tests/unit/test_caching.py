"""Hit rates of expert caches: planted routing by hand, and every size against a simulator that keeps a list."""

import numpy as np
import pytest

from pytest_infer.analysis.experts.census import Phase
from pytest_infer.analysis.placement import caching
from pytest_infer.records import ExpertSite


def column(*slots):
    return np.array(slots, dtype=np.uint8)[:, None]


def site(experts):
    return ExpertSite(name="s", layer=0, kind="mlp", experts=experts, slots=experts, k=1)


def rate(found, phase, slots):
    """Return the rate of one site by its distances, whose last element is no size of a cache."""
    return caching.rates([site(len(found.decode) - 1)], [found], phase, [slots])


def simulated(trace, experts, slots, prefill, policy):
    """Return [prefill hits, decode hits] of a cache that is kept as a plain list; the slow and obvious way."""
    cached, uses, hits = [], {}, [0, 0]
    for time, selected in enumerate(trace.tolist()):
        row = [e for e in selected if e < experts]
        hits[time >= prefill] += sum(e in cached for e in row)
        for e in row:
            uses[e] = uses.get(e, 0) + 1
            if e in cached:
                cached.remove(e)
            cached.append(e)  # the most recent one stands last
        while len(cached) > slots:
            others = [e for e in cached if e not in row]
            if policy == "lru":
                cached.pop(0)
            elif others:
                cached.remove(min(others, key=lambda e: (uses[e], cached.index(e))))
            else:
                cached.remove(min(cached, key=lambda e: (uses[e], cached.index(e))))
    return hits


def test_cyclic_routing_misses_in_every_cache_smaller_than_the_cycle():
    # 0 1 2 3, three times round; the first time is the prompt. LRU always evicted what comes next.
    (found,) = caching.distances([column(*[0, 1, 2, 3] * 3)], [4], prefill_tokens=4)
    assert found.prefill.tolist() == [0, 0, 0, 0, 4]
    assert found.decode.tolist() == [0, 0, 0, 8, 0]
    assert [rate(found, Phase.DECODE, n) for n in range(6)] == [0, 0, 0, 0, 1, 1]
    assert [rate(found, Phase.PREFILL, n) for n in range(5)] == [0, 0, 0, 0, 0]
    assert [rate(found, Phase.BOTH, n) for n in range(5)] == [0, 0, 0, 0, 8 / 12]


def test_distances_by_hand():
    # 0 and 1 come back after one other; the last 0 after 1 and 2.
    (found,) = caching.distances([column(0, 1, 0, 1, 2, 0)], [3], prefill_tokens=0)
    assert found.decode.tolist() == [0, 2, 1, 3]
    assert [rate(found, Phase.DECODE, n) for n in range(4)] == pytest.approx([0, 0, 2 / 6, 3 / 6])


def test_the_experts_of_a_token_are_looked_up_together():
    # Token 2 reads 1 and 2 when (1, 0) is what was read last to first: 1 has none since, 2 was never read.
    (found,) = caching.distances([np.array([[0, 1], [1, 2], [0, 1]])], [3], prefill_tokens=0)
    # The last token: 2 and 1 were read since 0 was; 2 since 1.
    assert found.decode.tolist() == [1, 1, 1, 3]


@pytest.mark.parametrize(("k", "experts", "slots"), [(1, 5, 5), (2, 6, 6), (3, 8, 8), (2, 5, 7)])
def test_every_size_agrees_with_the_simulator(k, experts, slots):
    draws = np.random.default_rng(k)
    weights = np.arange(1, slots + 1) / np.arange(1, slots + 1).sum()
    traces = [np.array([draws.choice(slots, k, replace=False, p=weights) for _ in range(60)]) for _ in range(2)]
    found = caching.distances([t.astype(np.uint8) for t in traces], [experts] * 2, prefill_tokens=20)
    for size in range(experts + 1):
        for trace, one in zip(traces, found, strict=True):
            hits = [int(row[:size].sum()) for row in (one.prefill, one.decode)]
            assert hits == simulated(trace, experts, size, 20, "lru")
        expected = np.sum([simulated(t, experts, size, 20, "lfu") for t in traces], axis=0)
        hits, reads = caching.lfu(traces, [experts] * 2, size, 20)
        assert hits.tolist() == expected.tolist()
        assert reads.tolist() == [int((np.stack(traces)[:, part] < experts).sum()) for part in (np.s_[:20], np.s_[20:])]


def test_lfu_keeps_what_was_read_most_where_lru_forgets_it():
    trace = column(0, 0, 1, 2, 0, 1)
    # LFU of two: 0 hits twice, since 1 goes for 2, and 2 for 1. LRU: 0 hits once, then 1 and 2 drove it out.
    hits, reads = caching.lfu([trace], [3], 2, 0)
    assert (hits.tolist(), reads.tolist()) == ([0, 2], [0, 6])
    (found,) = caching.distances([trace], [3], 0)
    assert rate(found, Phase.DECODE, 2) == pytest.approx(1 / 6)


def test_slots_without_weights_are_no_reads():
    (found,) = caching.distances([column(0, 2, 0, 2)], [2], 0)
    assert found.decode.tolist() == [1, 0, 1]


def test_sites_of_several_shapes_keep_their_order():
    a, b, c = column(0, 0, 0), np.array([[0, 1], [0, 1], [0, 1]]), column(1, 1, 1)
    found = caching.distances([a, b, c], [2, 3, 2], 1)
    assert [one.decode.tolist() for one in found] == [[2, 0, 0], [2, 2, 0, 0], [2, 0, 0]]
    assert [one.prefill.tolist() for one in found] == [[0, 0, 1], [0, 0, 0, 2], [0, 0, 1]]


def test_nothing_read_has_no_rate():
    (found,) = caching.distances([np.zeros((0, 1), dtype=np.uint8)], [2], 0)
    assert rate(found, Phase.DECODE, 1) is None


def test_prompts_add_up():
    (a,) = caching.distances([column(0, 0)], [2], 0)
    (b,) = caching.distances([column(0, 1)], [2], 0)
    assert (a + b).decode.tolist() == [1, 0, 3]
