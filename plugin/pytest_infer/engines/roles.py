"""What each module of a model is for, told by its class and the attribute that holds it: the roles of a breakdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pytest_infer.engines.base import TOWER
from pytest_infer.records import Role

_PLAIN = re.compile(r": \w*(Dropout|Identity|ReLU|GELU|SiLU|Activation|Sigmoid|Tanh|Softcap|SwiGLU|L2Clip)\b")
"""Belongs to whatever it is in."""
_EXPERTS = r"^experts: |: (?!\w*Shared)\w*Experts"
_RESIDUAL = r": \w*(Residual|HyperConnection|HyperHead)"

_PART = r": \w*(Attention|Norm|FFN)\b"
"""Is no layer although it has a number: these parts of all layers are in a list of their own (xlm, blt)."""

# Each rule is a role and a pattern of "attribute: Class property property"; the first that is found counts.
_IN_ATTENTION = (
    (Role.SCORES, r": \w*MoA\b"),
    (Role.EXPERTS, _EXPERTS),
    (Role.ROUTER, r": \w*(Router|Gating)"),
    (Role.INDEXER, r": \w*(Indexer|Compressor)"),
    (Role.SCORES, r": \w*(Attention|Attn)"),
    (Role.NORMS, r": \w*Norm"),
    (
        Role.OUTPUT,
        r"^((o|out|output|c|o_[ab])_proj|[wW]o|o|dense|out_lin(ear)?|attention_out): |^output: .*in_features",
    ),
    (Role.PROJECTIONS, r": \w*(Linear|Proj|Conv)|in_features"),
    (Role.SCORES, ""),
)
_IN_BLOCK = (
    (Role.SHARED, r"^\w*shared|: \w*Shared"),
    (Role.EXPERTS, _EXPERTS),
    (Role.ROUTER, r"^(gate|router|router_gate|wg): |: \w*Router|holds_experts"),
    (Role.NORMS, r": \w*Norm"),
    (Role.EXPERTS, r"num_embeddings"),  # doge: experts of a row each
    (Role.SHARED, r"^(gate|up|down)_proj: "),  # doge: a dense MLP beside them
    (Role.EXPERTS, r"^\w*(latent|expert)_proj: "),  # nemotron_h, muse_spark: into and out of the experts' width
    (Role.ROUTER, ""),
)
"""In a block around experts."""
_IN_LAYER = (
    (Role.SHARED, r"^shared_(experts?|mlp): "),
    (Role.RESIDUAL, _RESIDUAL),
    # zamba: layers within a layer, and what leads from one to the other
    (Role.RESIDUAL, r": \w*DecoderLayer\b|^linear: "),
    (Role.POSITIONS, r": \w*(Rotary|RoPE)"),
    (Role.EMBEDDING, r"num_embeddings|: \w*(Embedding|PLE|NGram)|^per_layer_(?!.*Norm)"),
    (Role.LINEAR, r": \w*(Mamba|SSM|Delta|LinearAtt|Lightning|ShortConv|Retention|Recurrent|Mixer\b)|time_decay"),
    (Role.SCORES, r": \w*(Attention|Attn|MLA)|^(self_)?(attn|attention): "),
    (Role.EXPERTS, _EXPERTS),
    (Role.ROUTER, r"^(gate|router): |: \w*Router|holds_experts"),
    (Role.NORMS, r": \w*Norm"),
    (Role.DENSE, r"^(mlps?|ffn|feed_forward|fc\d|w\d): |: \w*(MLP|FFN|FeedForward|DenseAct|LayerFF)"),
    (Role.HEAD, r"^output_projection: .*in_features"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A module with its qualified name, its role, and its layer; None outside numbered layers.

    `begins` says that the module around it has another role: its own time is the role's. `routed` says that experts
    are within, though the module has the router's role.
    """

    name: str
    module: Any
    role: str
    layer: int | None
    begins: bool
    routed: bool = False


def places(model: Any) -> Iterator[Place]:
    """Yield every module of a torch model that sees text, with its role, from the outside inwards.

    No architecture has to be known: modules are told by the names of their classes, without the model's own name in
    front, and of the attributes that hold them. One of an unknown class, outside those that are known, has its class
    for a role.
    """
    family = re.split(r"For(?=[A-Z])|(?:LMHead)?Model$", type(model).__name__)[0]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    # fsmt names the table whose weights its head has.
    return _Walk(family, None if hasattr(head, "num_embeddings") else head).within(model, "", Role.AROUND, None)


def layer_of(name: str) -> int | None:
    """Return the first number of a qualified name: "model.layers.3.mlp.experts" is in layer 3."""
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return None if number is None else int(number[1])


class _Walk:
    """A walk through a model whose classes begin with `family`, and whose output head is `head`."""

    def __init__(self, family: str, head: Any) -> None:
        self._family = family
        self._head = head
        self._seen: set[int] = set()

    def within(self, module: Any, name: str, role: str, around: str | None) -> Iterator[Place]:
        """Yield a module of a known role and all below it; `around` is the role of the one around it.

        One that is there by several names is yielded by its first.
        """
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        routed = role == Role.ROUTER and _holds_experts(module)
        yield Place(name=name, module=module, role=role, layer=layer_of(name), begins=role != around, routed=routed)
        for child, below in module.named_children():
            path = f"{name}.{child}" if name else child
            if not TOWER.search(path):
                found = Role.HEAD if below is self._head else self._role(path, below, role, module)
                yield from self.within(below, path, found, role)

    def _role(self, path: str, module: Any, around: str, holder: Any) -> str:
        """Return the role of a module that `holder` holds, whose role is `around`."""
        described = self._described(path, module)
        if not _runs(module) or _PLAIN.search(described):
            return around
        if around == Role.SCORES:
            return _first(_IN_ATTENTION, described, module)
        if around == Role.ROUTER and _holds_experts(holder):
            return _first(_IN_BLOCK, described, module)
        if around == Role.RESIDUAL and not re.search(_RESIDUAL, self._described("", holder)):
            return _in_layer(described, module, holder)
        if around != Role.AROUND or (layer_of(path) is None and _holds_layers(module)):
            return around
        numbered = path.rpartition(".")[2].isdigit() and not re.search(_PART, described)
        return Role.RESIDUAL if numbered else _in_layer(described, module, holder)

    def _described(self, path: str, module: Any) -> str:
        """Return "attribute: Class" and what the module has; the attribute of one in a list is that of the list."""
        attribute = next((part for part in reversed(path.split(".")) if not part.isdigit()), "")
        has = [name for name in ("num_embeddings", "in_features", "time_decay") if hasattr(module, name)]
        has += ["holds_experts"] if _holds_experts(module) else []
        return " ".join((f"{attribute}: {type(module).__name__.removeprefix(self._family)}", *has))


def _first(rules: tuple[tuple[Role, str], ...], described: str, module: Any) -> str:
    return next((role for role, pattern in rules if re.search(pattern, described)), type(module).__name__)


def _in_layer(described: str, module: Any, layer: Any) -> str:
    role = _first(_IN_LAYER, described, module)
    # granitemoehybrid without experts calls its only MLP shared.
    return Role.DENSE if role == Role.SHARED and not _holds_experts(layer) else role


def _runs(module: Any) -> bool:
    """Return whether a module has a forward: lists of modules have none."""
    # The class of one that torch.jit made has no forward either, but the module has.
    return getattr(getattr(type(module), "forward", None), "__name__", "") != "_forward_unimplemented"


def _holds_experts(module: Any) -> bool:
    """Return whether routed experts are below a module."""
    held = (f"{path.rpartition('.')[2]}: {type(below).__name__}" for path, below in module.named_modules() if path)
    return any(re.search(rf"{_EXPERTS}|^router_gate: ", one) for one in held)


def _holds_layers(module: Any) -> bool:
    return any(layer_of(path) is not None for path, _ in module.named_modules())
