"""Waiting for an accelerator, by a device that is not there."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from pytest_infer.engines.transformers.running import Running, TickStreamer  # noqa: E402


@pytest.mark.parametrize(("device", "waits"), [("cpu", []), ("cuda:1", [torch.device("cuda:1")])])
def test_the_models_own_device_is_waited_for(monkeypatch, device, waits):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    running = object.__new__(Running)
    running.model = SimpleNamespace(device=torch.device(device))
    running.synchronize()
    assert waited == waits


def test_a_tick_comes_after_the_ids_have_come_to_the_host():
    log = []

    class OnDevice:
        def tolist(self):  # what blocks until the device has them
            log.append("copied")
            return [7]

    streamer = TickStreamer(SimpleNamespace(tick=log.append))
    streamer.put(OnDevice())  # the prompt
    streamer.put(OnDevice())
    assert log == ["copied", [7]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_device_is_idle_after_waiting():
    x = torch.rand(4096, 4096, device="cuda")
    for _ in range(20):
        x @ x
    done = torch.cuda.Event()
    done.record()
    running = object.__new__(Running)
    running.model = SimpleNamespace(device=x.device)
    running.synchronize()
    assert done.query()
