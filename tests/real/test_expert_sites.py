"""Which modules are sites, what is read from them, and which models are refused: on toy modules."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lazily import Late, torch

from pytest_infer.errors import ExpertCaptureError

pytestmark = pytest.mark.real

expert_sites = Late("pytest_infer.measure.experts.sites")
nn = Late("torch.nn")
toys = Late("toy_sites")


def test_dense_model_has_no_sites():
    assert expert_sites.find(toys.Model(nn.Linear(8, 8), nn.Linear(8, 8))) == ()


def test_sites_are_named_numbered_and_sized():
    sites = expert_sites.find(
        toys.Model(nn.Linear(8, 8), toys.Block(toys.Experts()), toys.Block(toys.Experts(3, declared=False), router=3))
    )
    assert [(site.name, site.layer, site.experts, site.slots) for site in sites] == [
        ("layers.1.mlp.experts", 1, 4, 4),
        ("layers.2.mlp.experts", 2, 3, 3),
    ]
    assert {site.expert_bytes for site in sites} == {2 * 6 * 8 * 4}


@pytest.mark.parametrize("name", ["shared_experts", "shared_expert", "shared_mlp"])
def test_shared_experts_are_found_in_the_block_or_in_the_layer_around_it(name):
    inside, outside = toys.Block(toys.Experts()), toys.Block(toys.Experts())
    del inside.shared_experts, outside.shared_experts
    setattr(inside, name, nn.Linear(8, 8, bias=False))
    model = toys.Model(inside, outside)
    setattr(model.layers[1], name, nn.Linear(8, 4, bias=False))
    sites = expert_sites.find(model)
    assert [(site.shared, site.shared_bytes) for site in sites] == [(1, 8 * 8 * 4), (1, 8 * 4 * 4)]


def test_gate_of_a_shared_expert_is_no_expert():
    block = toys.Block(toys.Experts())
    del block.shared_experts
    block.shared_expert_gate = nn.Linear(8, 1)
    (site,) = expert_sites.find(toys.Model(block))
    assert (site.shared, site.shared_bytes) == (None, None)


def test_number_of_shared_experts_is_the_configs():
    model = toys.Model(toys.Block(toys.Experts()))
    model.config = SimpleNamespace(model_type="mixtral", n_shared_experts=3)
    (site,) = expert_sites.find(model)
    assert (site.shared, site.shared_bytes) == (3, (8 * 8 + 8) * 4)


@pytest.mark.parametrize("tower", ["vision_tower", "visual", "audio_tower", "talker"])
def test_experts_of_a_tower_are_no_sites(tower):
    model = toys.Model(toys.Block(toys.Experts()))
    model.add_module(tower, toys.Model(toys.Block(toys.Experts())))
    assert [site.name for site in expert_sites.find(model)] == ["layers.0.mlp.experts"]
    assert [name for name, _ in expert_sites.towers(model)] == [f"{tower}.layers.0.mlp.experts"]


def test_adapted_class_of_another_build_is_refused_by_name():
    class ZayaExperts(toys.Experts):
        pass

    with pytest.raises(ExpertCaptureError, match=r"layers\.0\.mlp\.experts \(ZayaExperts\) is not built as in"):
        expert_sites.find(toys.Model(toys.Block(ZayaExperts())))


def test_type_is_named_in_every_refusal():
    model = toys.Model(toys.Block(toys.MaskedExperts()))
    model.config = SimpleNamespace(model_type="brandnew")
    with pytest.raises(ExpertCaptureError, match=r"^brandnew: layers\.0\.mlp"):
        expert_sites.find(model)


def test_expert_bytes_include_biases_and_scales():
    (site,) = expert_sites.find(toys.Model(toys.Block(toys.Experts(bias=True))))
    assert site.expert_bytes == 2 * 6 * 8 * 4 + 8 * 4 + 4


def test_expert_bytes_do_not_include_what_experts_share():
    experts = toys.Experts()
    experts.norm = nn.LayerNorm(8)
    (site,) = expert_sites.find(toys.Model(toys.Block(experts)))
    assert site.expert_bytes == 2 * 6 * 8 * 4


def test_expert_bytes_of_a_quantised_tensor_are_those_of_its_parts():
    class Packed(torch.Tensor):
        @staticmethod
        def __new__(cls, data, scale, shape):
            return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bfloat16)

        def __init__(self, data, scale, shape):
            self.data_part, self.scale_part = data, scale

        def __tensor_flatten__(self):
            return ["data_part", "scale_part"], None

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            return args[0]

    experts = toys.Experts()
    packed = Packed(torch.zeros(4, 24, dtype=torch.uint8), torch.zeros(4, dtype=torch.float16), (4, 6, 8))
    experts.up = nn.Parameter(packed, requires_grad=False)
    (site,) = expert_sites.find(toys.Model(toys.Block(experts)))
    assert site.expert_bytes == 24 + 2 + 6 * 8 * 4


def test_expert_bytes_are_unknown_when_experts_are_not_stacked():
    experts = toys.Experts()
    experts.up = nn.Parameter(torch.zeros(4 * 6, 8))
    (site,) = expert_sites.find(toys.Model(toys.Block(experts)))
    assert site.expert_bytes is None


def test_gpt_oss_names_are_recognised():
    (site,) = expert_sites.find(toys.Model(toys.Block(toys.RenamedExperts())))
    assert site.tap.index_name == "router_indices"


def test_number_of_experts_that_weights_disagree_on_is_refused():
    experts = toys.Experts(declared=False)
    experts.up = nn.Parameter(torch.zeros(6, 6, 8))  # longcat_flash: identity experts have half of their weights
    with pytest.raises(ExpertCaptureError, match=r"number of its experts cannot be told, .* \[4, 6\]"):
        expert_sites.find(toys.Model(toys.Block(experts)))


def test_router_with_more_slots_than_experts_is_refused():
    with pytest.raises(ExpertCaptureError, match="no router beside it has 4 outputs"):
        expert_sites.find(toys.Model(toys.Block(toys.Experts(), router=5)))


@pytest.mark.parametrize("name", ["layers.0.mlp.experts", "layers.1.mlp.experts"])
def test_experts_of_another_interface_are_refused_beside_known_ones_or_alone(name):
    blocks = {"layers.0.mlp.experts": (toys.Block(toys.MaskedExperts()),)}
    blocks["layers.1.mlp.experts"] = (toys.Block(toys.Experts()), toys.Block(toys.MaskedExperts()))
    model = toys.Model(*blocks[name])
    with pytest.raises(ExpertCaptureError, match=r"holds experts but has no forward\(hidden_states") as caught:
        expert_sites.find(model)
    assert name.rpartition(".")[0] in str(caught.value)


def test_list_of_experts_is_refused():
    block = nn.Module()
    block.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
    with pytest.raises(ExpertCaptureError, match=r"layers\.0\.mlp\.experts \(ModuleList\) holds experts"):
        expert_sites.find(toys.Model(block))


def test_experts_without_a_layer_number_are_refused():
    with pytest.raises(ExpertCaptureError, match="not in a numbered layer"):
        expert_sites.find(toys.Block(toys.Experts()))


def test_bypass_through_forward_routed_is_refused():
    experts = toys.Experts()
    experts.forward_routed = experts.forward
    with pytest.raises(ExpertCaptureError, match="forward_routed"):
        expert_sites.find(toys.Model(toys.Block(experts)))


def test_expert_parallelism_is_refused():
    experts = toys.Experts()
    experts._is_expert_parallel = True
    with pytest.raises(ExpertCaptureError, match="one rank's experts"):
        expert_sites.find(toys.Model(toys.Block(experts)))


def test_hub_kernel_is_refused_only_when_it_is_in_use():
    class KernelBlock(toys.Block):
        kernel_layer_name = "MegaBlocksMoeMLP"

    block = KernelBlock(toys.Experts())
    assert len(expert_sites.find(toys.Model(block))) == 1
    block.forward = lambda hidden_states: hidden_states
    with pytest.raises(ExpertCaptureError, match="hub kernel MegaBlocksMoeMLP"):
        expert_sites.find(toys.Model(block))


def _compile_part(model):
    model.layers[0].compile(backend="eager")


def _wrap_part(model):
    model.layers[0] = torch.compile(model.layers[0], backend="eager")


def _compile_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")


def _compile_call(model):
    model._compiled_call = torch.compile(model.__call__, backend="eager")  # as generate() does


@pytest.mark.parametrize("compile_", [_compile_part, _wrap_part, _compile_forward, _compile_call])
def test_compiled_model_is_refused(compile_):
    model = toys.Model(toys.Block(toys.Experts()))
    compile_(model)
    with pytest.raises(ExpertCaptureError, match="compiled"):
        expert_sites.find(model)
