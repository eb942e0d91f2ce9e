"""Where the time of a step goes: what each role of a model's modules, and what is around the model, took."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What a module is for, or what an engine does around its model; docs/breakdown.md says what belongs to each."""

    EMBEDDING = "embedding"
    PROJECTIONS = "attention projections"
    SCORES = "attention scores"
    OUTPUT = "attention output"
    INDEXER = "attention indexer"
    LINEAR = "linear attention"
    CACHE = "KV cache"
    ROUTER = "router"
    EXPERTS = "experts"
    UNSEEN_EXPERTS = "router and experts"
    SHARED = "shared experts"
    DENSE = "dense MLP"
    NORMS = "norms"
    RESIDUAL = "residual"
    POSITIONS = "positions"
    AROUND = "around the layers"
    HEAD = "head"
    PROCESSORS = "logits processors"
    SAMPLING = "sampling"
    STOPPING = "stop criteria"
    LOOP = "generation loop"
    TOKENISER = "tokeniser"


OUTSIDE = frozenset({Role.PROCESSORS, Role.SAMPLING, Role.STOPPING, Role.LOOP})
"""The roles outside the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleTimes:
    """What one role took: `self_ns[i]` in observed step i, the instrument's cost taken off.

    Self time: that of another role within is not part of it. `role` is a Role, the class of a module of an unknown
    type, or the name of an engine's span. `calls` is how often a step comes to it. `layer_ns[i]` is the mean of typical
    steps in the layer with the number `layers[i]`; what is outside numbered layers is in none.
    """

    role: str
    calls: float
    self_ns: tuple[int, ...]
    layers: tuple[int, ...] = ()
    layer_ns: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTimes:
    """Steps of one phase, observed ones and bare ones in turns in the same round.

    `observed_ns` are whole steps with the instrument, `cost_ns` what it cost each of them; `bare_ns` are steps without
    it, each beside the observed one of the same number. The roles' self times of a step are together observed − cost.
    """

    observed_ns: tuple[int, ...]
    cost_ns: tuple[int, ...]
    bare_ns: tuple[int, ...]
    roles: tuple[RoleTimes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassParts:
    """One side's steps of a pass in turns, all of them observed, the instrument's cost taken off.

    `parts` are roles, each with the number of a layer or None outside numbered ones; `self_ns[i][n]` is the self time
    of part i in step n. Step 0 is the prefill, the others are those of decode.
    """

    parts: tuple[tuple[str, int | None], ...]
    self_ns: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleTurns:
    """What one role took of a step on either side of a comparison, in each launch: nanoseconds, the base's before.

    `layer_change_ns[i]` is after − before in the layer with the number `layers[i]`, in each launch. `launches` are the
    launches' numbers, as in `Turns`.
    """

    role: str
    before_ns: tuple[int, ...]
    after_ns: tuple[int, ...]
    layers: tuple[int, ...] = ()
    layer_change_ns: tuple[tuple[int, ...], ...] = ()
    launches: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTimes:
    """One operator on tensors of the same shapes within one role: how often a step calls it, and its self time.

    `role` is that of the module or span around it. `shapes` are those of its first tensors; where steps differ in a
    size, both ends: "[9, 64, 12-15]". `self_s` is on the host, and `device_s` that of the kernels it started; None
    without an accelerator.
    """

    name: str
    role: str
    shapes: str = ""
    calls: float = 0.0
    self_s: float = 0.0
    device_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseOperators:
    """The operators of one phase, a mean step of those `steps` that were recorded, with what recording costs.

    `self_s` and `device_s` are of all operators, `operators` the largest of them. `peak_bytes` is the most that tensors
    allocated since the beginning held at one moment, and `peaks` the same of those that were allocated within each
    role; the peaks come at different moments, so they do not add up.
    """

    steps: int
    self_s: float
    device_s: float | None = None
    operators: tuple[OperatorTimes, ...] = ()
    peak_bytes: int | None = None
    peaks: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operators:
    """What torch's profiler recorded of a prompt, or why it recorded nothing: `absent`.

    `trace` is a Chrome trace, as gzip. `prefill_absent` is why the prefill was not recorded, `peaks_absent` why no
    memory is told, and `trace_absent` why there is no trace.
    """

    prefill: PhaseOperators | None = None
    decode: PhaseOperators | None = None
    prefill_absent: str | None = None
    peaks_absent: str | None = None
    trace: bytes | None = None
    trace_absent: str | None = None
    absent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """A prompt's steps taken apart: `prefill` runs to the first token, `decode` from token to token, each if observed.

    `clock` says what read the time: "host", or "device" for the events of an accelerator. `operators` are None unless
    they were asked for.
    """

    clock: str
    prefill: PhaseTimes | None = None
    decode: PhaseTimes | None = None
    operators: Operators | None = None
