"""Waiting for an accelerator, by a device that is not there."""

import struct
from types import SimpleNamespace

import pytest
from lazily import Late, torch, transformers

from pytest_infer.errors import ModelError
from pytest_infer.measure.breakdown import taken
from pytest_infer.measure.clock import TokenClock
from pytest_infer.records import Limits

accelerate = Late("accelerate")
devices = Late("pytest_infer.engines.transformers.devices")
implementations = Late("pytest_infer.engines.transformers.implementations")
running = Late("pytest_infer.engines.transformers.running")


def placed(*places, **hooks):
    """Return a model whose weights lie on these devices; `hooks` are those of accelerate's, by module."""
    return SimpleNamespace(
        device=torch.device(places[0]),
        parameters=lambda: [SimpleNamespace(device=torch.device(place)) for place in places],
        modules=lambda: [SimpleNamespace(_hf_hook=hook) for hook in hooks.values()],
    )


def moving_to(*places):
    """Return a hook of accelerate's; of several a chain, as it adds one to another."""
    hooks = [SimpleNamespace(execution_device=place) for place in places]
    return hooks[0] if len(hooks) == 1 else SimpleNamespace(hooks=hooks)


@pytest.mark.parametrize(
    ("places", "hooks", "home", "waits"),
    [
        (["cpu"], {}, "cpu", []),
        (["cuda:1", "cuda:1"], {}, "cuda:1", ["cuda:1"]),
        (["cpu", "cuda:0", "cuda:1", "cuda:0"], {}, "cpu", ["cuda:0", "cuda:1"]),
        # Offloaded weights are on meta until their module runs: ids of that device hold nothing.
        (["meta", "cuda:0"], {"whole": moving_to(None), "table": moving_to("cuda:0")}, "cuda:0", ["cuda:0"]),
        (["meta", "meta"], {"whole": moving_to(None, "cuda:1"), "head": moving_to("cpu")}, "cuda:1", ["cuda:1"]),
        (["meta", "meta"], {"whole": moving_to("cpu")}, "cpu", []),
    ],
)
def test_every_device_that_computes_is_waited_for(monkeypatch, places, hooks, home, waits):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    made = object.__new__(running.Running)
    made.model = placed(*places, **hooks)
    made._awaited = devices.awaited(made.model)
    made.synchronize()
    assert waited == [torch.device(name) for name in waits]
    assert devices.home(made.model) == torch.device(home)


def test_a_model_whose_weights_come_from_a_file_generates_as_ever(engine_of, tmp_path):
    """All its weights are on meta: accelerate brings those of a module when it runs."""
    limits, ids = Limits(max_new_tokens=6), [5, 9, 2, 7]

    def generated(engine):
        clock = TokenClock()
        engine.reset()
        engine.keep_scores(keep=True)
        engine.prepare(ids, limits)
        engine.synchronize()
        clock.start()
        engine.generate(ids, limits, clock)
        trace = clock.trace(prompt_tokens=4, requested_tokens=6, stopped_by=None)
        chosen = list(struct.unpack("<6f", engine.scores().chosen))
        return trace.token_ids, [*chosen, *engine.log_probabilities([*ids, 3], 2)]

    engine = engine_of("mixtral")
    tokens, scores = generated(engine)
    model = engine.running.model
    accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    assert model.device.type == "meta"
    info = engine.adopt(model, engine._tokenizer)
    # Decoding takes other experts where weights are not on the CPU: the last digits differ.
    assert generated(engine) == (tokens, pytest.approx(scores, abs=1e-5))
    assert (info.device, info.experts_implementation) == ("meta", "grouped_mm, batched_mm in decode")
    assert "offloaded" in taken.absent(engine, SimpleNamespace(stamps_ns=(1,), start_ns=0), taken.ON)


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("cuda:1", None),
        ("cuda", None),
        ("cuda:2", "unknown device 'cuda:2'; did you mean cuda:0 or cuda:1? known: cuda:0, cuda:1"),
        ("cpu:1", "unknown device 'cpu:1'"),
        ("mps", "unknown device 'mps'; did you mean"),
    ],
)
def test_a_number_beyond_the_devices_is_refused_before_the_weights_are_read(monkeypatch, device, says):
    two = SimpleNamespace(
        is_available=lambda: True, current_accelerator=lambda: torch.device("cuda"), device_count=lambda: 2
    )
    monkeypatch.setattr(implementations.torch, "accelerator", two)
    if says is None:
        implementations.check_device(device)
        return
    with pytest.raises(ModelError) as caught:
        implementations.check_device(device)
    assert str(caught.value).startswith(says.partition(";")[0])


@pytest.mark.parametrize(
    ("device", "named", "told"),
    [
        ("cpu", "grouped_mm", "grouped_mm"),
        ("cuda:0", "grouped_mm", "grouped_mm, batched_mm in decode"),
        ("cuda:0", "eager", "eager"),
    ],
)
def test_the_experts_of_decoding_are_told_where_generate_takes_others(device, named, told):
    class Mixture:
        config = SimpleNamespace(_experts_implementation=named)
        _can_set_experts_implementation = classmethod(lambda _: True)
        _optimize_model_for_decode = None

    model = Mixture()
    model.device = torch.device(device)
    assert running._experts_implementation(model) == told
    # The word for it in transformers, without which it decodes with what the config says.
    assert hasattr(transformers.GenerationMixin, "_optimize_model_for_decode")


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
    made._awaited = (x.device,)
    made.synchronize()
    assert done.query()
