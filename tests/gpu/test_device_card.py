"""A card's energy against its own counter, and the probe against a copy and a large product."""

import time

import pytest
from on_device import Own

from asked import asked
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.measure.machine import probe
from pytest_infer.measure.rounds import timed_round
from pytest_infer.records import Limits, Quality


def test_energy_is_what_its_counter_says(card, spinner, system, record_property):
    import torch

    nvml = pytest.importorskip("pynvml")
    nvml.nvmlInit()
    uuid = f"GPU-{torch.cuda.get_device_properties(card).uuid}"
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    x = torch.randn(8192, 8192, device=card, dtype=torch.bfloat16)

    def work(_):
        for _ in range(400):
            x @ x

    engine = Own(spinner, work)
    timed_round(engine, asked([1]), Limits(max_new_tokens=1), system)
    before = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    found = timed_round(engine, asked([1]), Limits(max_new_tokens=4), system).counters
    record_property("energy", f"{found.device_energy_j.value} J in {found.wall_s} s, {found.device_power_w.value} W")
    joules = (nvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / 1e3
    assert found.device_energy_j.value == pytest.approx(joules, rel=0.1)
    assert found.device_energy_j.value == pytest.approx(found.device_power_w.value * found.wall_s, rel=0.4)
    assert found.device_utilization.value > 50
    assert found.device_energy_j.quality is (Quality.EXACT if found.wall_s >= 1 else Quality.ESTIMATED)


def test_the_probe_reads_as_fast_as_a_copy_and_multiplies_as_fast_as_a_product(card, record_property):
    import torch

    made = probe.measure(1, str(card))
    assert not isinstance(made, Unavailable), made.reason

    def best(work, times=10):
        work()
        took = []
        for _ in range(times):
            torch.cuda.synchronize(card)
            begun = time.perf_counter()
            work()
            torch.cuda.synchronize(card)
            took.append(time.perf_counter() - begun)
        return min(took)

    source = torch.ones(2**30, device=card)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / best(lambda: target.copy_(source))
    x = torch.randn(8192, 8192, device=card, dtype=torch.bfloat16)
    product = 2 * 8192**3 / best(lambda: x @ x)
    record_property("probe", f"read {made.read_bandwidth:.4g} B/s, products {made.flops} FLOP/s")
    record_property("by hand", f"copy {copied:.4g} B/s, product {product:.4g} FLOP/s")
    assert 0.75 * copied < made.read_bandwidth < 1.25 * copied
    assert made.flops["bfloat16"] == pytest.approx(product, rel=0.2)
    assert made.flops["float16"] == pytest.approx(made.flops["bfloat16"], rel=0.3)
    assert made.flops["float32"] < made.flops["bfloat16"]


def test_the_cycles_that_a_kernel_counts_are_those_of_the_cards_clock(card, spinner, record_property):
    import torch

    told = getattr(torch.cuda.get_device_properties(card), "clock_rate", None)
    if told is None:
        pytest.skip("this torch does not tell the card's highest clock")
    record_property("clock", f"{spinner.cycles_per_s:.4g} cycles/s; the highest is {told} kHz")
    assert 0.3e3 * told < spinner.cycles_per_s < 1.1e3 * told  # kHz: never above, and not idle
