"""Delays that a device was given are in the stamps, and what it did before a round is not."""

import statistics
from itertools import pairwise

import pytest
from on_device import Own, generated

from asked import asked
from pytest_infer.measure.rounds import timed_round
from pytest_infer.metrics import timing
from pytest_infer.records import Limits

IDS = [1, 2, 3]
MS = 1e-3


def agree(stamped, took, device):
    """Check that each stamp is within 1 ms of what the device measured; a CPU is taken away for longer than that."""
    assert len(stamped) == len(took)
    late = [stamp - spun for stamp, spun in zip(stamped, took, strict=True)]
    assert min(late) > -MS / 10
    assert (max(late) if device.type == "cuda" else min(late)) < (MS if device.type == "cuda" else 0.1)


@pytest.mark.parametrize("delay_s", [0.003, 0.02, 0.08])
def test_each_token_is_stamped_when_the_device_is_done(spinner, system, device, delay_s):
    spinner.took()
    trace = timed_round(Own(spinner, lambda _: spinner(delay_s)), asked(IDS), Limits(max_new_tokens=8), system).trace
    stamped = [(after - before) / 1e9 for before, after in pairwise((trace.start_ns, *trace.stamps_ns))]
    agree(stamped, spinner.took(), device)


def test_what_the_device_did_before_is_not_the_first_tokens(spinner, system, device):
    engine = Own(spinner, lambda _: spinner(0.01))
    engine.reset = lambda: spinner(0.5)
    spinner.took()
    trace = timed_round(engine, asked(IDS), Limits(max_new_tokens=2), system).trace
    before, first, _ = spinner.took()
    assert before > 0.4
    agree([timing.ttft_s(trace)], [first], device)


def test_a_delay_within_a_real_model_is_in_every_token(engines, device, spinner):
    engine = engines(device=str(device))
    generated(engine)
    bare = timing.inter_token_latencies_s(generated(engine)[0])
    spinner.took()
    hook = engine.running.model.model.layers[1].register_forward_hook(lambda *_: spinner(0.05))
    try:
        slow = timing.inter_token_latencies_s(generated(engine)[0])
    finally:
        hook.remove()
    added = [one - spun for one, spun in zip(slow, spinner.took()[1:], strict=True)]
    assert min(added) > 0
    if device.type == "cuda":
        # The host goes on while the card spins, and has less left to do when it is over.
        assert statistics.median(added) < statistics.median(bare) + 2 * MS
