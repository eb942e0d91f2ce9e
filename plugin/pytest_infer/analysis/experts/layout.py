"""Where a model routes tokens to experts, told by the names of its tensors and its config; nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_infer.analysis.doctor import kv_cache, weights
from pytest_infer.engines.base import TOWER
from pytest_infer.engines.checkpoint.source import Checkpoint
from pytest_infer.engines.checkpoint.tensors import EXPERT, IN_LAYER, SHARED, Tensor
from pytest_infer.errors import ModelError
from pytest_infer.records import ExpertSite


def sites(checkpoint: Checkpoint, tensors: Sequence[Tensor]) -> tuple[ExpertSite, ...]:
    """Return a site for each layer whose tensors are experts, in order.

    Raises:
        ModelError: no tensor is an expert's, or the config does not tell how many there are and how many a token takes.
    """
    config = kv_cache.text_config(checkpoint.config)
    places: dict[int, str] = {}
    for tensor in tensors:
        found = IN_LAYER.match(tensor.name)
        if found and EXPERT.search(tensor.name) and not SHARED.search(tensor.name) and not TOWER.search(tensor.name):
            inside = tensor.name.find("experts")
            name = tensor.name[: found.end() if inside < 0 else inside] + "experts"
            places.setdefault(int(found[2]), name)
    if not places:
        raise ModelError(f"{checkpoint.name} has no experts: it is dense, or names them otherwise")
    experts = kv_cache.number(config, *weights.EXPERTS_KEYS)
    k = kv_cache.number(config, *weights.TOP_K_KEYS)
    if experts is None or k is None or k > experts:
        raise ModelError(f"{checkpoint.name}: its config does not tell how many experts there are and a token takes")
    return tuple(
        ExpertSite(name=name, layer=layer, experts=experts, slots=experts, k=k)
        for layer, name in sorted(places.items())
    )
