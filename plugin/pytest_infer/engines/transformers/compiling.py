"""Compiled decoding as each request has it alone: what torch and transformers keep of earlier ones is no part of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from transformers import CompileConfig

_GRAPHS = 256
"""As many as torch compiles of one function at all (its `accumulated_recompile_limit`)."""


def config() -> CompileConfig:
    """Return how decoding is compiled: for prompts of any length at once, so that none is compiled for those before."""
    made = CompileConfig(fullgraph=False, dynamic=True, mode="default")
    # A private switch of transformers: without it, generate() compiles on accelerators only.
    made._compile_all_devices = True
    return made


def forget_length(model: Any) -> None:
    """Let the next static cache be as long as its request, and not as the longest so far, all of which is attended to.

    transformers would spare a compilation by that, which code for any length does not need.
    """
    vars(model).pop("_previous_max_cache_length", None)


def many_graphs() -> AbstractContextManager[object]:
    """Let torch compile for every number of threads and each of several models.

    Beyond 8 graphs of a function, which all models share, it would run what is new uncompiled, and go on.
    """
    import torch._dynamo.config as dynamo  # noqa: PLC0415 - takes a second, for what is compiled alone

    patched: AbstractContextManager[object] = dynamo.patch(recompile_limit=max(dynamo.recompile_limit, _GRAPHS))
    return patched
