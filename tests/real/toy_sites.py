"""Toy modules with experts, as models have them."""

import torch
from torch import nn


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
