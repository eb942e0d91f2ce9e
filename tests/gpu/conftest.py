"""Tests of a real accelerator, which run on the CPU where they mean something there: PYTEST_INFER_GPU_TESTS=cpu."""

import os
from pathlib import Path

import pytest
from on_device import Spinner

WHERE = "PYTEST_INFER_GPU_TESTS"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device():
    """Return the device that the tests run on."""
    import torch

    wanted = os.environ.get(WHERE)
    if wanted is None and not torch.cuda.is_available():
        pytest.skip(f"no CUDA device; {WHERE}=cpu runs what makes sense without one")
    # Where a card is asked for by name, its absence is a failure.
    return torch.device(wanted) if wanted == "cpu" else torch.zeros(1, device=wanted or "cuda").device


@pytest.fixture
def card(device):
    """Return the device of a test that has nothing to say about a CPU."""
    if device.type == "cpu":
        pytest.skip("about the clock, the memory or the power of a card")
    return device


@pytest.fixture(scope="session")
def spinner(device):
    return Spinner(device)


@pytest.fixture
def system():
    from pytest_infer.measure.counters.snapshot import SystemCounters

    counters = SystemCounters()
    yield counters
    counters.close()


@pytest.fixture(scope="session")
def engines():
    """Return a function: options to an engine with its model loaded; the same options give the same one."""
    from pytest_infer.engines.base import EngineOptions
    from pytest_infer.engines.transformers.engine import TransformersEngine

    made = {}

    def engine(**options):
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = TransformersEngine(EngineOptions(**{"model": "reference-moe", "dtype": "float32", **options}))
            made[key].load()
        return made[key]

    yield engine
    for one in made.values():
        one.close()
