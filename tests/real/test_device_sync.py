"""Waiting for an accelerator, by a device that is not there."""

from types import SimpleNamespace

import pytest
from lazily import Late, torch

running = Late("pytest_infer.engines.transformers.running")


@pytest.mark.parametrize(("device", "waits"), [("cpu", []), ("cuda:1", ["cuda:1"])])
def test_the_models_own_device_is_waited_for(monkeypatch, device, waits):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    made = object.__new__(running.Running)
    made.model = SimpleNamespace(device=torch.device(device))
    made.synchronize()
    assert waited == [torch.device(name) for name in waits]


def test_a_tick_comes_after_the_ids_have_come_to_the_host():
    log = []

    class OnDevice:
        def tolist(self):  # what blocks until the device has them
            log.append("copied")
            return [7]

    streamer = running.TickStreamer(SimpleNamespace(tick=log.append))
    streamer.put(OnDevice())  # the prompt
    streamer.put(OnDevice())
    assert log == ["copied", [7]]


@pytest.mark.gpu
def test_a_real_device_is_idle_after_waiting():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.rand(4096, 4096, device="cuda")
    for _ in range(20):
        x @ x
    done = torch.cuda.Event()
    done.record()
    made = object.__new__(running.Running)
    made.model = SimpleNamespace(device=x.device)
    made.synchronize()
    assert done.query()
