"""Whether a model can be divided among ranks by tensor parallelism, from its config alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_infer.analysis.doctor import kv_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """How a model's heads fall to so many ranks: `refused` is why they do not, None where each gets as many whole ones.

    `possible` are the numbers of ranks that do divide them; empty where the config does not tell its heads.
    """

    ranks: int
    possible: tuple[int, ...]
    refused: str | None = None


def of(config: Mapping[str, Any], ranks: int) -> Division:
    """Return whether so many ranks can share the model.

    Each rank computes whole heads, so that their number, and that of the heads of keys and values, must be multiples
    of the number of ranks (Shoeybi et al. 2019, section 3; transformers' `tp_plan="auto"` fails at the first step
    otherwise). Latent attention has its keys and values in no heads.
    """
    config = kv_cache.text_config(config)
    heads, layers = kv_cache.attention_heads(config), kv_cache.layers(config)
    found = None if layers is None or config.get("kv_lora_rank") else kv_cache.kv_heads(config, layers)
    kv = sorted({n for n in found or () if n})
    if heads is None:
        return Division(ranks=ranks, possible=(), refused="the config does not tell how many heads its layers have")
    shared = math.gcd(heads, *kv)
    possible = tuple(n for n in range(1, shared + 1) if shared % n == 0)
    told = f"{heads} heads" + (f" and {', '.join(map(str, kv))} of keys and values" if kv not in ([], [heads]) else "")
    refused = None if ranks in possible else f"{told} cannot be divided among {ranks} ranks"
    return Division(ranks=ranks, possible=possible, refused=refused)
