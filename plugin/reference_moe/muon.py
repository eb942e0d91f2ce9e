"""Muon, an optimizer for weight matrices that steps along the orthogonalised momentum."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

#: Quintic Newton-Schulz coefficients and steps of Keller Jordan's Muon (2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, approximately, of each matrix in a (..., rows, columns) tensor."""
    a, b, c = COEFFICIENTS
    wide: Tensor = matrices if matrices.size(-2) <= matrices.size(-1) else matrices.mT
    x: Tensor = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrices else x.transpose(-2, -1)


class Muon:
    """Nesterov momentum, orthogonalised per matrix, with decoupled weight decay.

    Experts stored as one (experts, rows, columns) tensor are orthogonalised one by one.
    """

    def __init__(self, parameters: Iterable[Tensor], *, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        self._parameters = list(parameters)
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._buffers = [torch.zeros_like(parameter) for parameter in self._parameters]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update every parameter from its gradient."""
        for parameter, buffer in zip(self._parameters, self._buffers, strict=True):
            if parameter.grad is None:
                continue
            buffer.lerp_(parameter.grad, 1 - self._momentum)
            update = orthogonalise(parameter.grad.lerp(buffer, self._momentum))
            scale = max(1.0, parameter.size(-2) / parameter.size(-1)) ** 0.5
            parameter.mul_(1 - learning_rate * self._weight_decay)
            parameter.add_(update, alpha=-learning_rate * scale)
