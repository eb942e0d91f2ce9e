"""The model `smollm2-moe`: SmolLM2 upcycled to a mixture of experts that computes exactly what the dense model does."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MixtralConfig

from pytest_infer.engines.bundled import cache, smollm2
from pytest_infer.engines.transformers.loading import explained

NAME = "smollm2-moe"
FORMAT = "1"
EXPERTS = 4
TOP_K = 2

RECIPE = cache.Recipe(
    name=NAME,
    format=f"{smollm2.FORMAT}.{FORMAT}",  # a new dense model makes a new mixture
    source_sha256=smollm2.RECIPE.source_sha256,
    bytes_needed=900_000_000,
    notes={
        **smollm2.RECIPE.notes,
        "routers": f"fitted with torch {torch.__version__} to the pydoc topics of Python {platform.python_version()}",
    },
)

_SEQUENCES, _SEQUENCE_TOKENS = 16, 256
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")

ROUTER_SEED = 20221209  # one seed for all layers; the day that sparse upcycling was published

_KMEANS_ROUNDS = 10  # the clusters hardly move after five
_SINKHORN_ROUNDS = 20
_TEMPERATURE = 0.1  # of the soft assignment, in mean squared distances
_RIDGE = 1e-2  # in mean variances of an input feature
_GAIN = 4.0  # the chosen cluster's target logit is this far above the others': mean top-1 weight 0.84-0.92


def ensure(cache_root: Path, progress: Callable[[str], None]) -> Path:
    """The folder of `smollm2-moe` below `cache_root`, built on the first call (about 15 s, 751 MB, bfloat16).

    Sparse upcycling (Komatsuzaki et al. 2022, "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints"):
    every expert starts as a copy of the dense feed-forward network. Mixtral scales the weights of the chosen experts
    to a sum of 1, so the output is the dense model's whatever the routers choose. Routing, memory and compute are
    those of a real mixture; specialisation of the experts is not.

    The routers are fitted to text of the standard library, so that they differ a little between versions of Python.
    `smollm2` is built first if required.

    Raises:
        ModelError: `smollm2` is not available, the cache is not writable or the disk is full.
    """
    if cache.is_complete(cache_root / NAME, RECIPE):
        return cache_root / NAME
    dense = smollm2.ensure(cache_root, progress)

    def build(folder: Path) -> None:
        progress(f"{NAME}: fitting {EXPERTS} experts' routers to {_SEQUENCES * _SEQUENCE_TOKENS} tokens")
        fitted = [fit_router(inputs, EXPERTS) for inputs in ffn_inputs(dense)]
        progress(f"{NAME}: writing weights")
        upcycle(dense, fitted, folder)

    return cache.ensure(cache_root, RECIPE, build, progress)


def ffn_inputs(dense: Path) -> list[Tensor]:
    """What the feed-forward network of each layer of `dense` sees on the text: (tokens, hidden size), float32."""
    tokens = _text_tokens(dense)
    with explained(smollm2.NAME):
        model = LlamaForCausalLM.from_pretrained(dense, dtype=torch.float32)
    seen: list[Tensor] = []

    def record(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0].flatten(0, 1))

    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(record)
    with torch.inference_mode():
        model.model(tokens, use_cache=False)
    return seen


def upcycle(dense: Path, router_weights: list[Tensor], folder: Path) -> None:
    """Write the Llama folder `dense` into `folder` as a Mixtral in bfloat16, with the tokenizer.

    Args:
        dense: the folder of the dense model.
        router_weights: a router for each layer, (experts, hidden size).
        folder: an existing folder.

    Raises:
        ModelError: the weights cannot be written.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in load_file(dense / "model.safetensors").items():
        weight = tensor.to(torch.bfloat16)
        # safetensors refuses tensors that share memory: each expert is a copy of its own.
        state.update((moe_name, weight.clone()) for moe_name in _moe_names(name))
    for layer, router in enumerate(router_weights):
        state[f"model.layers.{layer}.block_sparse_moe.gate.weight"] = router.to(torch.bfloat16)
    smollm2.save_weights(state, folder)
    _config(LlamaConfig.from_pretrained(dense)).save_pretrained(folder)
    for file in _TOKENIZER_FILES:
        shutil.copyfile(dense / file, folder / file)


def _text_tokens(dense: Path) -> Tensor:
    """Evenly spaced pieces of the standard library's help topics: (sequences, tokens), int64."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    tokens = torch.tensor(AutoTokenizer.from_pretrained(dense)(text, verbose=False)["input_ids"])
    pieces = tokens[: len(tokens) // _SEQUENCE_TOKENS * _SEQUENCE_TOKENS].view(-1, _SEQUENCE_TOKENS)
    return pieces[torch.linspace(0, len(pieces) - 1, _SEQUENCES).long()]


def _moe_names(name: str) -> list[str]:
    """Where a tensor of Llama goes in a Mixtral checkpoint: to every expert if it is of the feed-forward network."""
    layer, _, part = name.partition(".mlp.")
    projection = {"gate_proj.weight": "w1", "down_proj.weight": "w2", "up_proj.weight": "w3"}.get(part)
    if projection is None:
        return [name]
    return [f"{layer}.block_sparse_moe.experts.{expert}.{projection}.weight" for expert in range(EXPERTS)]


def _config(dense: LlamaConfig) -> MixtralConfig:
    return MixtralConfig(
        architectures=["MixtralForCausalLM"],
        vocab_size=dense.vocab_size,
        hidden_size=dense.hidden_size,
        intermediate_size=dense.intermediate_size,
        num_hidden_layers=dense.num_hidden_layers,
        num_attention_heads=dense.num_attention_heads,
        num_key_value_heads=dense.num_key_value_heads,
        head_dim=dense.head_dim,
        hidden_act=dense.hidden_act,
        max_position_embeddings=dense.max_position_embeddings,
        rms_norm_eps=dense.rms_norm_eps,
        rope_parameters=dense.rope_parameters,
        tie_word_embeddings=dense.tie_word_embeddings,
        bos_token_id=dense.bos_token_id,
        eos_token_id=dense.eos_token_id,
        pad_token_id=dense.pad_token_id,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        dtype="bfloat16",
    )


# routers: which tokens belong together, and a linear map that sends them to their expert


def fit_router(inputs: Tensor, experts: int) -> Tensor:
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
    generator = torch.Generator().manual_seed(ROUTER_SEED)
    points = functional.normalize(inputs, dim=1)
    centres = points[torch.randperm(len(points), generator=generator)[:clusters]]
    for _ in range(_KMEANS_ROUNDS):
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
