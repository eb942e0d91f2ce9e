"""What a forward pass of a loaded model reads and multiplies, counted from its modules and its config."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_infer.engines import roles
from pytest_infer.engines.base import TOWER, local
from pytest_infer.engines.roles import Place
from pytest_infer.records import Role, RoleWork, Work

_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|positions?_embed(ding)?s?)$")
_QUERIES = re.compile(r"(^|\.)(q|query|qkv|q_b|query_key_value|Wqkv)(_proj)?$")
WHOLE = frozenset({"full_attention", "attention", "hybrid"})
_CHUNKED = "chunked_attention"
WINDOWED = frozenset({"sliding_attention", _CHUNKED, "hybrid_sliding"})
WITHOUT = frozenset({"linear_attention", "mamba", "conv", "moe", "mlp"})
"""What transformers calls layers (`layer_types`) whose attention sees the whole text, a window of it, and nothing."""


def of(model: Any) -> Work | None:
    """Return the work of a transformers model that only decodes; None for an encoder with a decoder.

    Modules are distinguished by what they have, never by their class, so quantised ones are counted too: a table has
    `num_embeddings`, a linear layer `in_features` and `out_features` (its number of weights, however they are packed).
    Towers for images and sound, which no text runs through, are left out.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        return None
    places = tuple(roles.places(model))
    (reads, held), counts = _bytes(model, places), _multiplied(places)
    of_body = [count for role, count in counts.items() if role != Role.HEAD]
    pairs = _attention(model.config.get_text_config(), _heads_here(model))
    return Work(
        read_bytes=sum(reads.values()),
        parameters=None if None in of_body else sum(count or 0 for count in of_body),
        head_parameters=counts.get(Role.HEAD) or 0,
        expert_parameters=_expert_parameters(model, places),
        pair_flops=None if pairs is None else pairs[0],
        window_pair_flops=0 if pairs is None else pairs[1],
        window=None if pairs is None else pairs[2],
        chunked=pairs is not None and _CHUNKED in (getattr(model.config.get_text_config(), "layer_types", None) or ()),
        roles={
            role: RoleWork(
                read_bytes=reads.get(role, 0), parameters=counts.get(role, 0), parameter_bytes=held.get(role, 0)
            )
            for role in dict.fromkeys((*reads, *counts))
        },
    )


def parameters(model: Any) -> int | None:
    """Return the number of weights held here; shared ones count once, unless a quantiser packed a copy of them.

    Where a quantiser packs several into a number, beside scales and zero points, the layer's shape says how many they
    are; None where it has none.
    """
    packed = [module for module in model.modules() if _holds_packed(module)]
    within = {id(parameter) for module in packed for parameter in module._parameters.values()}
    others = [local(parameter) for parameter in model.parameters() if id(parameter) not in within]
    if any(tensor.ndim > 1 and not tensor.is_floating_point() for tensor in others):
        return None
    counts = [sum(int(tensor.numel()) for tensor in others), *(count for count, _ in _packed(model.modules()))]
    return sum(counts) + sum((_weights(module) or 0) + _biases(module) for module in packed)


def parameter_bytes(model: Any) -> int:
    """Return the bytes that hold the weights."""
    return sum(stored_bytes(p) for p in model.parameters()) + sum(size for _, size in _packed(model.modules()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """How many ids and how many positions a model has rows for; None where it has no such table."""

    ids: int | None = None
    positions: int | None = None


def tables(model: Any) -> Tables:
    """Return the sizes of the tables in which a model looks up the ids that it is given, and their positions."""
    try:
        ids = _rows(model.get_input_embeddings())
    except NotImplementedError:
        ids = None
    found = [_rows(module) for name, module in _seeing_text(model) if _POSITIONS.search(name)]
    return Tables(ids=ids, positions=min((rows for rows in found if rows is not None), default=None))


def _rows(table: Any) -> int | None:
    rows = getattr(table, "num_embeddings", None)
    # Some tables of positions begin with rows of another use (`offset`: OPT, BART).
    return rows - int(getattr(table, "offset", 0)) if isinstance(rows, int) else None


def _packed(modules: Iterable[Any]) -> Iterator[tuple[int, int]]:
    """Yield number and bytes of the weights of each of torch's own quantised layers, which are no parameters."""
    for module in modules:
        if hasattr(module, "_packed_params") and hasattr(module, "in_features"):
            held = [tensor for tensor in module._weight_bias() if tensor is not None]
            yield sum(int(t.numel()) for t in held), sum(stored_bytes(t) for t in held)


def _holds_packed(module: Any) -> bool:
    """Return whether a linear layer's own weight is not floating point, or missing beside whole numbers in its place.

    torch's own quantised layers have neither, nor have layers whose weight is another module's (an adapter's base).
    """
    if not all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features")):
        return False
    weight = module._parameters.get("weight")
    own = [weight] if weight is not None else [*module._parameters.values(), *module._buffers.values()]
    return any(tensor is not None and not local(tensor).is_floating_point() for tensor in own)


def _biases(module: Any) -> int:
    bias = module._parameters.get("bias", module._buffers.get("bias"))
    return 0 if bias is None else int(local(bias).numel())


# bytes


def _bytes(model: Any, places: Sequence[Place]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes that a forward pass reads, and those that hold the weights, by role of the module they are in.

    The latter are together `parameter_bytes`, without towers.
    """
    tables: dict[int, Place] = {}
    others: dict[int, Place] = {}
    for place in places:
        within = tables if _looked_up(place) else others
        for parameter in place.module._parameters.values():
            within.setdefault(id(parameter), place)
    found: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for _, parameter in model.named_parameters():  # shared ones once
        # A table that is also the output head is read in full, by the head; another one row a token.
        at = others.get(id(parameter)) or tables.get(id(parameter))
        if at is not None:
            size = stored_bytes(parameter)
            held[at.role] += size
            used = round(size * _routed_share(at.module, parameter))
            found[at.role] += used if id(parameter) in others else size // local(parameter).shape[0]
    for place in places:
        packed = sum(size for _, size in _packed([place.module]))
        found[place.role] += packed
        held[place.role] += packed
        # Some quantisers keep weights as buffers; elsewhere buffers are masks and frequencies.
        if hasattr(place.module, "in_features"):
            found[place.role] += sum(stored_bytes(b) for b in place.module._buffers.values() if b is not None)
    return {role: size for role, size in found.items() if size}, held


def _looked_up(place: Place) -> bool:
    """Return whether a token takes a row of a module; tables whose rows are experts (doge) count as experts do."""
    return hasattr(place.module, "num_embeddings") and place.role != Role.EXPERTS


def _routed_share(module: Any, parameter: Any) -> float:
    """Return how much of a stack experts can use: longcat_flash's has rows for its identity experts, never read."""
    routed = getattr(module, "num_routed_experts", None)
    known = isinstance(routed, int) and parameter.ndim > 2
    return min(1.0, routed / parameter.shape[0]) if known else 1.0


def stored_bytes(tensor: Any) -> int:
    """Return the bytes that hold a tensor, the scales of a quantised one included.

    torchao's tensors wrap those that hold their data (`__tensor_flatten__`); bitsandbytes keeps the scales of its
    4-bit parameters beside them (`quant_state`).
    """
    tensor = local(tensor)
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        return sum(stored_bytes(getattr(tensor, name)) for name in flatten()[0])
    state = getattr(tensor, "quant_state", None)
    return int(tensor.numel() * tensor.element_size()) + (0 if state is None else _state_bytes(state))


def _state_bytes(state: Any) -> int:
    held = [getattr(state, name, None) for name in ("absmax", "code", "offset")]
    own = sum(stored_bytes(tensor) for tensor in held if hasattr(tensor, "element_size"))
    nested = getattr(state, "state2", None)
    return own + (0 if nested is None else _state_bytes(nested))


def _seeing_text(model: Any) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if not TOWER.search(name))


# multiplications


def _multiplied(places: Iterable[Place]) -> dict[str, int | None]:
    """Return the weights that each token is multiplied with, by role; None where some are packed."""
    found: dict[str, int | None] = {}
    for place in places:
        count = 0 if _looked_up(place) and place.role != Role.HEAD else _weights(place.module)
        before = found.get(place.role, 0)
        found[place.role] = None if before is None or count is None else before + count
    return {role: count for role, count in found.items() if count != 0}


def _weights(module: Any) -> int | None:
    """Return the weights of a module itself; None where they are packed in whole numbers and no shape says more."""
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inputs, int) and isinstance(outputs, int):
        return round(inputs * outputs * _share(module))
    matrices = [p for p in module._parameters.values() if p is not None and p.ndim > 1]
    if not all(local(matrix).is_floating_point() for matrix in matrices):
        return None
    return sum(round(int(local(matrix).numel()) * _routed_share(module, matrix)) for matrix in matrices)


def _share(module: Any) -> float:
    """Return how much of a module's own weights this process holds."""
    held = [p for p in module._parameters.values() if p is not None and p.ndim > 1]
    whole = sum(int(p.numel()) for p in held)
    return sum(int(local(p).numel()) for p in held) / whole if whole else 1.0


def _experts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the outermost modules that hold routed experts, by their qualified names."""
    found: list[str] = []
    for name, module in _seeing_text(model):
        is_experts = name.rpartition(".")[2] == "experts" or "Experts" in type(module).__name__
        if name and is_experts and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
            yield name, module


def _expert_parameters(model: Any, places: Iterable[Place]) -> dict[str, int]:
    """Return the weights of all experts of a site, by its name; doge's are tables in the block that is the site."""
    found = {name: sum(_weights(inner) or 0 for inner in module.modules()) for name, module in _experts(model)}
    for place in places:
        if place.role == Role.EXPERTS and hasattr(place.module, "num_embeddings"):
            block = place.name.rpartition(".")[0]
            found[block] = found.get(block, 0) + (_weights(place.module) or 0)
    return found


# attention


def _heads_here(model: Any) -> float:
    """Return the share of the attention's heads that this process computes: as much as it has of their projections."""
    projections = (module for name, module in _seeing_text(model) if _QUERIES.search(name))
    return min((_share(module) for module in projections), default=1.0)


def _attention(config: Any, share: float = 1.0) -> tuple[int, int, int | None] | None:
    """Return the operations a pair of positions of all full layers, of all windowed ones, and the window.

    None where sizes are missing, or where layers see a choice of positions (sparse, indexed, compressed attention).
    A pair costs a product of query and key and one of weight and value, for each head: 2 x heads x (key + value).
    """
    try:
        return _pairs(config, share)
    # What transformers raises where layers differ in a value that the config is asked for.
    except RuntimeError:
        return None


def _pairs(config: Any, share: float) -> tuple[int, int, int | None] | None:
    sizes = [getattr(config, name, None) for name in ("num_attention_heads", "num_hidden_layers", "hidden_size")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return None
    heads, layers, hidden = (int(size or 0) for size in sizes)
    key = getattr(config, "head_dim", None) or hidden // heads
    if getattr(config, "qk_nope_head_dim", None):  # latent attention
        key = config.qk_nope_head_dim + config.qk_rope_head_dim
    value = getattr(config, "v_head_dim", None)
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        windowed = window is not None and getattr(config, "use_sliding_window", True)
        kinds = ["sliding_attention" if windowed else "full_attention"] * layers
    if set(kinds) - WHOLE - WINDOWED - WITHOUT:
        return None
    of_layers = getattr(config, "num_attention_heads_per_layer", None) or [heads] * len(kinds)
    seeing = list(zip(kinds, of_layers, strict=True))
    full = sum(round(2 * n * (key + (value or key)) * share) for kind, n in seeing if kind in WHOLE)
    near, own = getattr(config, "swa_head_dim", None) or key, getattr(config, "swa_num_attention_heads", None)
    short = sum(round(2 * (own or n) * (near + (value or near)) * share) for kind, n in seeing if kind in WINDOWED)
    if window is None:
        return full + short, 0, None
    return full, short, int(window)
