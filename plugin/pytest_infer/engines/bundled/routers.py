"""Routers for an upcycled model: which tokens belong together, and a linear map that tells them apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SEED = 20221209  # one seed for all layers; the day that sparse upcycling was published

_ROUNDS = 10  # of k-means; the clusters hardly move after five
_SINKHORN_ROUNDS = 20
_TEMPERATURE = 0.1  # of the soft assignment, in mean squared distances
_RIDGE = 1e-2  # in mean variances of an input feature
_GAIN = 4.0  # the chosen cluster's target logit is this far above the others': mean top-1 weight 0.84-0.92


def fit(inputs: Tensor, experts: int) -> Tensor:
    """A router that sends each token to the experts of its cluster and the next-likeliest one, evenly loaded.

    Args:
        inputs: what the feed-forward network of one layer sees, (tokens, hidden size), float32.
        experts: the number of experts, one for a cluster.

    Returns:
        The router's weight, (experts, hidden size), float32; its logits are `inputs @ weight.T`. For one input and
        one build of torch it is the same every time.
    """
    clusters = functional.one_hot(balanced_clusters(inputs, experts), experts).float()
    targets = _GAIN * (clusters - 1 / experts)
    gram = inputs.T @ inputs
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    solution: Tensor = torch.linalg.solve(gram, inputs.T @ targets)
    return solution.T.contiguous()


def balanced_clusters(inputs: Tensor, clusters: int) -> Tensor:
    """The cluster of every row of `inputs` (rows, features): k-means on directions, with clusters of about one size.

    Rows are assigned by Sinkhorn's iteration (Cuturi 2013): scores are normalised by cluster and by row in turn until
    every cluster holds the same mass. Returns (rows,), int64.
    """
    generator = torch.Generator().manual_seed(SEED)
    points = functional.normalize(inputs, dim=1)
    centres = points[torch.randperm(len(points), generator=generator)[:clusters]]
    for _ in range(_ROUNDS):
        distances = torch.cdist(points, centres).square()
        labels = _even(-distances / (_TEMPERATURE * distances.mean())).argmax(dim=1)
        members = functional.one_hot(labels, clusters).float()
        centres = members.T @ points / members.sum(dim=0).clamp(min=1).unsqueeze(1)
    return labels


def _even(scores: Tensor) -> Tensor:
    """Log-probabilities (rows, clusters) from scores of that shape, with equal mass on every cluster."""
    for _ in range(_SINKHORN_ROUNDS):
        scores = scores.log_softmax(dim=0).log_softmax(dim=1)
    return scores
