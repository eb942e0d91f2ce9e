"""Which modules are sites, what is read from them, and which models are refused: on toy modules."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_infer.errors import ExpertCaptureError
from pytest_infer.measure.experts import sites as expert_sites


class Experts(nn.Module):
    def __init__(self, experts=4, declared=True, bias=False):
        super().__init__()
        if declared:
            self.num_experts = experts
        self.up = nn.Parameter(torch.zeros(experts, 6, 8))
        self.down = nn.Parameter(torch.zeros(experts, 8, 6))
        if bias:
            self.bias = nn.Parameter(torch.zeros(experts, 8))
            self.scale = nn.Buffer(torch.zeros(experts))

    def forward(self, hidden_states, top_k_index, top_k_weights):
        return hidden_states


class RenamedExperts(Experts):
    def forward(self, hidden_states, router_indices=None, routing_weights=None):
        return hidden_states


class MaskedExperts(Experts):
    def forward(self, hidden_states, router_mask, router_probs):
        return hidden_states


class Block(nn.Module):
    def __init__(self, experts, router=4):
        super().__init__()
        self.router = nn.Linear(8, router, bias=False)
        self.experts = experts
        self.shared_experts = nn.Linear(8, 8)


class Layer(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp


class Model(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.num_experts = 4  # as causal language models repeat their config, even dense ones
        self.layers = nn.ModuleList(Layer(block) for block in blocks)


def test_dense_model_has_no_sites():
    assert expert_sites.find(Model(nn.Linear(8, 8), nn.Linear(8, 8))) == ()


def test_sites_are_named_numbered_and_sized():
    sites = expert_sites.find(Model(nn.Linear(8, 8), Block(Experts()), Block(Experts(3, declared=False), router=3)))
    assert [(site.name, site.layer, site.experts, site.slots) for site in sites] == [
        ("layers.1.mlp.experts", 1, 4, 4),
        ("layers.2.mlp.experts", 2, 3, 3),
    ]
    assert {site.expert_bytes for site in sites} == {2 * 6 * 8 * 4}


@pytest.mark.parametrize("name", ["shared_experts", "shared_expert", "shared_mlp"])
def test_shared_experts_are_found_in_the_block_or_in_the_layer_around_it(name):
    inside, outside = Block(Experts()), Block(Experts())
    del inside.shared_experts, outside.shared_experts
    setattr(inside, name, nn.Linear(8, 8, bias=False))
    model = Model(inside, outside)
    setattr(model.layers[1], name, nn.Linear(8, 4, bias=False))
    sites = expert_sites.find(model)
    assert [(site.shared, site.shared_bytes) for site in sites] == [(1, 8 * 8 * 4), (1, 8 * 4 * 4)]


def test_gate_of_a_shared_expert_is_no_expert():
    block = Block(Experts())
    del block.shared_experts
    block.shared_expert_gate = nn.Linear(8, 1)
    (site,) = expert_sites.find(Model(block))
    assert (site.shared, site.shared_bytes) == (None, None)


def test_number_of_shared_experts_is_the_configs():
    model = Model(Block(Experts()))
    model.config = SimpleNamespace(model_type="mixtral", n_shared_experts=3)
    (site,) = expert_sites.find(model)
    assert (site.shared, site.shared_bytes) == (3, (8 * 8 + 8) * 4)


@pytest.mark.parametrize("tower", ["vision_tower", "visual", "audio_tower", "talker"])
def test_experts_of_a_tower_are_no_sites(tower):
    model = Model(Block(Experts()))
    model.add_module(tower, Model(Block(Experts())))
    assert [site.name for site in expert_sites.find(model)] == ["layers.0.mlp.experts"]
    assert [name for name, _ in expert_sites.towers(model)] == [f"{tower}.layers.0.mlp.experts"]


def test_adapted_class_of_another_build_is_refused_by_name():
    class ZayaExperts(Experts):
        pass

    with pytest.raises(ExpertCaptureError, match=r"layers\.0\.mlp\.experts \(ZayaExperts\) is not built as in"):
        expert_sites.find(Model(Block(ZayaExperts())))


def test_type_is_named_in_every_refusal():
    model = Model(Block(MaskedExperts()))
    model.config = SimpleNamespace(model_type="brandnew")
    with pytest.raises(ExpertCaptureError, match=r"^brandnew: layers\.0\.mlp"):
        expert_sites.find(model)


def test_expert_bytes_include_biases_and_scales():
    (site,) = expert_sites.find(Model(Block(Experts(bias=True))))
    assert site.expert_bytes == 2 * 6 * 8 * 4 + 8 * 4 + 4


def test_expert_bytes_do_not_include_what_experts_share():
    experts = Experts()
    experts.norm = nn.LayerNorm(8)
    (site,) = expert_sites.find(Model(Block(experts)))
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

    experts = Experts()
    packed = Packed(torch.zeros(4, 24, dtype=torch.uint8), torch.zeros(4, dtype=torch.float16), (4, 6, 8))
    experts.up = nn.Parameter(packed, requires_grad=False)
    (site,) = expert_sites.find(Model(Block(experts)))
    assert site.expert_bytes == 24 + 2 + 6 * 8 * 4


def test_expert_bytes_are_unknown_when_experts_are_not_stacked():
    experts = Experts()
    experts.up = nn.Parameter(torch.zeros(4 * 6, 8))
    (site,) = expert_sites.find(Model(Block(experts)))
    assert site.expert_bytes is None


def test_gpt_oss_names_are_recognised():
    (site,) = expert_sites.find(Model(Block(RenamedExperts())))
    assert site.tap.index_name == "router_indices"


def test_number_of_experts_that_weights_disagree_on_is_refused():
    experts = Experts(declared=False)
    experts.up = nn.Parameter(torch.zeros(6, 6, 8))  # longcat_flash: identity experts have half of their weights
    with pytest.raises(ExpertCaptureError, match=r"number of its experts cannot be told, .* \[4, 6\]"):
        expert_sites.find(Model(Block(experts)))


def test_router_with_more_slots_than_experts_is_refused():
    with pytest.raises(ExpertCaptureError, match="no router beside it has 4 outputs"):
        expert_sites.find(Model(Block(Experts(), router=5)))


@pytest.mark.parametrize("name", ["layers.0.mlp.experts", "layers.1.mlp.experts"])
def test_experts_of_another_interface_are_refused_beside_known_ones_or_alone(name):
    blocks = {"layers.0.mlp.experts": (Block(MaskedExperts()),)}
    blocks["layers.1.mlp.experts"] = (Block(Experts()), Block(MaskedExperts()))
    model = Model(*blocks[name])
    with pytest.raises(ExpertCaptureError, match=r"holds experts but has no forward\(hidden_states") as caught:
        expert_sites.find(model)
    assert name.rpartition(".")[0] in str(caught.value)


def test_list_of_experts_is_refused():
    block = nn.Module()
    block.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
    with pytest.raises(ExpertCaptureError, match=r"layers\.0\.mlp\.experts \(ModuleList\) holds experts"):
        expert_sites.find(Model(block))


def test_experts_without_a_layer_number_are_refused():
    with pytest.raises(ExpertCaptureError, match="not in a numbered layer"):
        expert_sites.find(Block(Experts()))


def test_bypass_through_forward_routed_is_refused():
    experts = Experts()
    experts.forward_routed = experts.forward
    with pytest.raises(ExpertCaptureError, match="forward_routed"):
        expert_sites.find(Model(Block(experts)))


def test_expert_parallelism_is_refused():
    experts = Experts()
    experts._is_expert_parallel = True
    with pytest.raises(ExpertCaptureError, match="one rank's experts"):
        expert_sites.find(Model(Block(experts)))


def test_hub_kernel_is_refused_only_when_it_is_in_use():
    class KernelBlock(Block):
        kernel_layer_name = "MegaBlocksMoeMLP"

    block = KernelBlock(Experts())
    assert len(expert_sites.find(Model(block))) == 1
    block.forward = lambda hidden_states: hidden_states
    with pytest.raises(ExpertCaptureError, match="hub kernel MegaBlocksMoeMLP"):
        expert_sites.find(Model(block))


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
    model = Model(Block(Experts()))
    compile_(model)
    with pytest.raises(ExpertCaptureError, match="compiled"):
        expert_sites.find(model)
