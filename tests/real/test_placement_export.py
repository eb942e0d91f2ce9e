"""What placement exports, given to the program that reads it: a model loaded by the device_map says the same."""

import warnings
from pathlib import Path

import pytest
from lazily import Late, torch, transformers

from pytest_infer.analysis.placement import device_map, sizes
from pytest_infer.engines import models
from pytest_infer.engines.checkpoint import tensors
from pytest_infer.records import ExpertSite

FOLDER = Path(models.resolve("reference-moe", print))
SITES = [
    ExpertSite(name=f"model.layers.{n}.mlp.experts", layer=n, kind="mlp", experts=8, slots=8, k=2) for n in range(4)
]

accelerate = Late("accelerate.utils")

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def split():
    found = sizes.of_tensors(tensors.of_folder(FOLDER), SITES, "reference-moe")
    # Room for two layers and one passing through.
    layer = 8 * found.experts[0] + found.layers[0]
    return device_map.split(SITES, found, sum(found.outside.values()) + 3 * layer)


def load(**options):
    return transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, **options).eval()


def test_the_map_names_every_module_and_none_that_is_not_there(split):
    assert split.gpu_layers == 2
    model = load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accelerate.check_device_map(model, split.devices)
    assert {site.name for site in SITES} <= {name for name, _ in model.named_modules()}


def test_a_model_loaded_by_the_map_says_the_same(split, tmp_path):
    # There is no GPU here: its part is played by the CPU, and the CPU's by the disk, which accelerate treats alike.
    played = {name: {0: "cpu", "cpu": "disk"}[device] for name, device in split.devices.items()}
    ids = torch.arange(2, 22)[None]
    with torch.inference_mode():
        expected = load()(ids).logits
        mapped = load(device_map=played, offload_folder=str(tmp_path))
        assert {p.device.type for n, p in mapped.named_parameters() if ".layers.3." in n} == {"meta"}
        assert {p.device.type for n, p in mapped.named_parameters() if ".layers.1." in n} == {"cpu"}
        # Weights from the disk lie at other addresses, which changes the order of some sums.
        assert torch.allclose(mapped(ids).logits, expected, atol=1e-3)
