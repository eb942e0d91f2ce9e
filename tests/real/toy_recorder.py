"""A toy model whose selections follow from its token ids."""

import torch
from torch import nn

EXPERTS, LAYERS = 5, 3


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.zeros(EXPERTS, 2, 2))

    def forward(self, hidden_states, top_k_index, top_k_weights):
        return hidden_states


class Block(nn.Module):
    """Selects the experts token + layer and token + layer + 1, modulo EXPERTS; `mangle` distorts what is selected."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.gate = nn.Linear(2, EXPERTS)
        self.experts = Experts()
        self.mangle = lambda index: index
        self.gates = torch.zeros(2)
        self.by_name = False
        self.times = 1

    def forward(self, ids):
        index = self.mangle(selected(ids.reshape(-1), self.layer))
        states = self.gates.expand(index.shape[0], 2)
        for _ in range(self.times):
            if self.by_name:
                self.experts(hidden_states=states, top_k_index=index, top_k_weights=states)
            else:
                self.experts(states, index, states)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block(layer) for layer in range(LAYERS))
        self.fail = False

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, cache=None):
        for layer in self.layers:
            layer(input_ids)
        for held in (past_key_values, cache):
            if held is not None:
                held.length += input_ids.shape[1]
        if self.fail:
            raise ValueError("out of luck")


def selected(ids, layer):
    return torch.stack([(ids + layer) % EXPERTS, (ids + layer + 1) % EXPERTS], dim=-1)
