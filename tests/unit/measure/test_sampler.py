from __future__ import annotations

import pytest

from pytest_infer.errors import InferError
from pytest_infer.measure.counters.sampler import SystemSampler
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.machine import description


@pytest.fixture
def sampler():
    counters = SystemCounters()
    yield SystemSampler(counters, description.describe())
    counters.close()
    counters.close()  # again does nothing


def test_record_is_there_after_the_block(sampler: SystemSampler) -> None:
    with sampler() as block, pytest.raises(InferError, match="after the `with"):
        block.record  # noqa: B018  # reading it is what raises
    assert block.record.counters.wall_s > 0
    assert block.record.machine.usable_cores > 0


def test_blocks_in_turn_within_one_another_and_again(sampler: SystemSampler) -> None:
    with sampler() as outer:
        with sampler() as inner:
            pass
        with sampler() as other:
            pass
    assert inner.record.counters.wall_s < outer.record.counters.wall_s
    assert other.record is not inner.record
    first = inner.record
    with inner:
        pass
    assert inner.record is not first


def test_a_block_that_raises_is_recorded(sampler: SystemSampler) -> None:
    with pytest.raises(KeyError), sampler() as block:
        raise KeyError
    assert block.record.counters.cpu_s.value is not None
