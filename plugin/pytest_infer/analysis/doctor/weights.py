"""A model's weights in plain numbers: their bytes in each dtype, what a token reads of them, and what can be moved."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from pytest_infer.analysis.doctor import kv_cache, shapes
from pytest_infer.engines.base import TOWER, dtype_named
from pytest_infer.engines.checkpoint.source import Checkpoint, ModelSource
from pytest_infer.engines.checkpoint.tensors import DRAFT, EXPERT, SHARED, Tensor
from pytest_infer.errors import ModelError, OptionError, alternatives

STORED = "stored"
AUTO = "auto"

PLAIN = {"float32": 4, "bfloat16": 2, "float16": 2}
_BLOCKS = {"int8": 34, "int4": 18}
"""Bytes of a block of 32 weights: ggml's Q8_0 and Q4_0, a float16 scale and 32 numbers of 8 or 4 bits."""
DTYPES = (*PLAIN, *_BLOCKS)

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "F8_E8M0")

_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|token_embd)\.[^.]+$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.(?!bias$)[^.]+$")
"""Packed weights are called otherwise (`qweight`, `scales`, `weight_packed`); a tied head has at most a bias."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|blk|h|blocks)\.(\d+)\.")
EXPERTS_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
TOP_K_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "top_k_experts",
    "experts_per_token",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The weights by what can be moved of them: `units` experts of a mixture, else layers, of `movable_bytes` together.

    A token reads `selected` of them, and `fixed_bytes` of others. What is left of the weights is only looked up.
    """

    experts: bool
    units: int
    selected: int
    movable_bytes: int
    fixed_bytes: int

    @property
    def selected_bytes(self) -> float:
        """Return the bytes of the movable ones that a token reads."""
        return self.movable_bytes * self.selected / self.units if self.units else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The tensors of a model in plain numbers; `own` is the dtype that `auto` means, `STORED` for packed weights."""

    tensors: tuple[Tensor, ...]
    own: str
    files: tuple[Tensor, ...] = ()
    """As they are stored, which tells the size of packed ones."""
    experts: tuple[int, int] = (0, 0)
    """Of a layer: how many there are, and how many a token selects."""
    stored: int | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: Mapping[str, Any]) -> Weights:
        """Return those of a checkpoint; raise ModelError where nothing tells how large it is."""
        tensors = loaded(checkpoint.tensors, config)
        packed = _packed(tensors) or checkpoint.source is ModelSource.GGUF
        stored = sum(t.bytes for t in tensors) if packed else None
        own = STORED if packed else _own_dtype(config, tensors)
        plain = tensors
        if not tensors or (packed and checkpoint.source is not ModelSource.GGUF):
            try:
                plain = shapes.of_config(config)
            except ModelError as error:
                if stored is None and checkpoint.stored_bytes is None:
                    raise ModelError(f"{checkpoint.name}: {error}") from error
                # Only the bytes are known: of packed weights, or of files without a header.
                size = checkpoint.stored_bytes if stored is None else stored
                return cls(tensors=(), own=STORED, stored=size)
        return cls(
            tensors=plain,
            own=own,
            files=tensors,
            experts=(kv_cache.number(config, *EXPERTS_KEYS) or 0, kv_cache.number(config, *TOP_K_KEYS) or 0),
            stored=stored,
        )

    @property
    def parameters(self) -> int | None:
        """Return how many there are, None where their shapes are not known."""
        return _elements(self.tensors) or None

    @property
    def active(self) -> int | None:
        """Return how many a token is multiplied with, None where that is not known."""
        parts = self.parts("float32")
        return None if parts is None else round((parts.fixed_bytes + parts.selected_bytes) / PLAIN["float32"])

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Return what their bytes are known in, as stored first."""
        return (*((STORED,) if self.stored is not None else ()), *(DTYPES if self.tensors else ()))

    def bytes_in(self, dtype: str) -> int:
        """Return the bytes of all of them in a dtype."""
        return self.stored or 0 if dtype == STORED else weights_bytes(self.tensors, dtype)

    def parts(self, dtype: str) -> Parts | None:
        """Return them by what can be moved, None where their shapes are not known, or not which of them a token reads.

        It reads all outside the routed experts, and k of each site's experts; of an embedding that is not the output
        head too only a row is looked up, and towers for images and sound are not run. A step of one sequence selects k
        distinct experts. The config may tell of experts that are not found, or not how many a token selects.
        """
        if dtype == STORED:
            return self._parts(self.files, lambda chosen: sum(t.bytes for t in chosen))
        return self._parts(self.tensors, lambda chosen: weights_bytes(chosen, dtype))

    def _parts(self, tensors: Iterable[Tensor], held: Callable[[Iterable[Tensor]], int]) -> Parts | None:
        seen = [t for t in tensors if not TOWER.search(t.name)]
        routed = [t for t in seen if EXPERT.search(t.name) and not SHARED.search(t.name)]
        if not seen or (0 in self.experts if routed else self.experts[0] > 1):
            return None
        moved = routed or [t for t in seen if _LAYER.search(t.name)]
        layers = len({found[1] for t in moved if (found := _LAYER.search(t.name))}) or len(routed[:1])
        tied = not any(_HEAD.search(t.name) for t in seen)
        looked_up = [] if tied else [t for t in seen if _EMBEDDING.search(t.name)]
        of_a_layer, chosen = self.experts if routed else (1, 1)
        return Parts(
            experts=bool(routed),
            units=layers * of_a_layer,
            selected=layers * chosen,
            movable_bytes=held(moved),
            fixed_bytes=held(seen) - held(moved) - held(looked_up),
        )


def _elements(tensors: Iterable[Tensor]) -> int:
    return sum(prod(t.shape) for t in tensors)


def weights_bytes(tensors: Iterable[Tensor], dtype: str) -> int:
    """Return the bytes of the weights in a dtype.

    float32, bfloat16, float16: numbers x size. int8, int4: matrices whose rows are multiples of 32 in blocks of
    ggml's Q8_0 (34 bytes for 32 weights) and Q4_0 (18 bytes), all else in float32, as llama.cpp keeps it.
    """
    if dtype in PLAIN:
        return _elements(tensors) * PLAIN[dtype]
    return sum(_blocked(t, _BLOCKS[dtype]) for t in tensors)


def _blocked(tensor: Tensor, block: int) -> int:
    elements = prod(tensor.shape)
    return elements // 32 * block if len(tensor.shape) > 1 and tensor.shape[-1] % 32 == 0 else elements * 4


def tensors_of(checkpoint: Checkpoint, dtype: str = AUTO) -> tuple[Tensor, ...]:
    """Return the tensors of a model with their bytes: as they are stored, by its config alone, or in another dtype.

    Raises:
        ModelError: neither headers nor config tell its shapes, or packed weights are asked for in another dtype.
        OptionError: the dtype is none of DTYPES.
    """
    config, wanted = kv_cache.text_config(checkpoint.config), dtype_named(dtype)
    if wanted not in (AUTO, *DTYPES):
        raise OptionError(alternatives("dtype", wanted, (AUTO, *DTYPES)))
    tensors = loaded(checkpoint.tensors, config)
    if not tensors:
        try:
            tensors = shapes.of_config(config)
        except ModelError as error:
            raise ModelError(f"{checkpoint.name}: {error}") from error
        wanted = _own_dtype(config, ()) if wanted == AUTO else wanted
    if wanted == AUTO:
        return tensors
    if _packed(tensors) and checkpoint.source is not ModelSource.GGUF:
        raise ModelError(f"{checkpoint.name}: its weights are packed: their size in {wanted} is not known")
    return tuple(replace(t, dtype=wanted, bytes=weights_bytes((t,), wanted)) for t in tensors)


def loaded(tensors: Sequence[Tensor], config: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Leave out what transformers does not load: a draft head, by its name or as layers behind the model's own."""
    tensors = tuple(t for t in tensors if not DRAFT.search(t.name))
    count = kv_cache.layers(config)
    if not config.get("num_nextn_predict_layers") or count is None:
        return tensors
    return tuple(t for t in tensors if (found := _LAYER.search(t.name)) is None or int(found[1]) < count)


def _packed(tensors: Sequence[Tensor]) -> bool:
    """Return whether integers hold the weights, several in one: then shapes do not tell how many weights there are."""
    total = sum(t.bytes for t in tensors)
    integers = sum(t.bytes for t in tensors if t.dtype not in _FLOATS and t.dtype not in _EIGHT_BITS)
    return integers > total / 100


def _own_dtype(config: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    """Return what transformers takes for `auto`: the config's dtype, else that of the files."""
    named = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    if named in PLAIN:
        return named
    sizes = by_dtype(tensors)
    stored = _FLOATS.get(max(sizes, key=lambda name: sizes[name]), "") if sizes else ""
    return stored if stored in PLAIN else "bfloat16" if sizes else "float32"


def by_dtype(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Return the bytes of the tensors of each storage type."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
    return sizes
