"""THE schema of the stored block of a test: every part, and three depths to which a reader may ask for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from pytest_infer.metrics.breakdown import DECODE, PREFILL, PhaseParts
from pytest_infer.records import (
    CurvePoint,
    Drift,
    ExpertSite,
    Fidelity,
    Level,
    Objectives,
    PhaseOperators,
    Quality,
    Ranks,
    Reported,
    RoleWork,
    Turns,
)

SCHEMA = 1
KEY = "pytest_infer"
"""Where the block lies: `extra_info["pytest_infer"]` of a row, and `["pytest_infer"]` of a run file."""
TOTAL = "total"
"""The phase whose row holds the block; those of the others point to it."""

_NUMBER = re.compile(r"[0-9]{1,9}")  # Python refuses to read numbers of thousands of digits

Scalar = str | int | float | bool | None


class _Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of a block: all of it may be missing, as older versions did not write it, or did not know the figure."""


# what was measured, and with what


class StoredLimits(_Part, frozen=True):
    """`records.Limits` as stored."""

    max_new_tokens: int | None = None
    stop: list[str] | None = None
    ignore_eos: bool | None = None
    batch: int | None = None


class StoredPrompt(_Part, frozen=True):
    """`records.PromptInfo` as stored."""

    name: str | None = None
    content_sha256: str | None = None
    limits: StoredLimits | None = None
    group: str | None = None
    tags: tuple[str, ...] | None = None


class StoredWork(_Part, frozen=True):
    """`records.Work` as stored."""

    read_bytes: int | None = None
    parameters: int | None = None
    head_parameters: int | None = None
    expert_parameters: dict[str, int] | None = None
    pair_flops: int | None = None
    window_pair_flops: int | None = None
    window: int | None = None
    chunked: bool | None = None
    roles: dict[str, RoleWork] | None = None


class Model(_Part, frozen=True):
    """`records.ModelInfo` as stored: without the load, whose figures are metrics."""

    name: str | None = None
    engine: str | None = None
    architecture: str | None = None
    source: str | None = None
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    parameters: int | None = None
    parameter_bytes: int | None = None
    buffer_bytes: int | None = None
    context_length: int | None = None
    vocabulary: int | None = None
    attention: str | None = None
    experts_implementation: str | None = None
    threads: int | None = None
    load_s: float | None = None
    load_read_bytes: int | None = None
    weights_sha256: str | None = None
    work: StoredWork | None = None
    uncounted: str | None = None
    quantization: str | None = None
    engine_args: str | None = None
    remote_code: str | None = None
    versions: dict[str, str] | None = None
    generation: dict[str, Scalar] | None = None


class Probe(_Part, frozen=True):
    """`records.MachineProbe` as stored."""

    threads: int | None = None
    read_bandwidth: float | None = None
    read_bandwidth_spread: float | None = None
    flops: dict[str, float] | None = None
    caches: dict[str, int] | None = None
    at_ns: int | None = None
    boot: str | None = None
    governor: str | None = None
    device: str | None = None
    instructions: tuple[str, ...] | None = None
    waited: float | None = None


class Machine(_Part, frozen=True):
    """`records.MachineInfo` as stored."""

    cpu: str | None = None
    logical_cores: int | None = None
    physical_cores: int | None = None
    affinity_cores: int | None = None
    quota_cores: float | None = None
    usable_cores: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    system: str | None = None
    kernel: str | None = None
    architecture: str | None = None
    python: str | None = None
    virtualization: str | None = None
    governor: str | None = None
    accelerators: list[str] | None = None
    card_settings: dict[str, str] | None = None
    probe: Probe | None = None
    environment: dict[str, str] | None = None
    huge_pages: str | None = None
    scheduling: dict[str, str] | None = None
    instrumented: list[str] | None = None
    probe_absent: str | None = None
    clock_resolution_s: float | None = None
    unread: dict[str, str] | None = None


# figures


class Values(msgspec.Struct, frozen=True):
    """One metric of one test: the median, and the rounds' values where there were several."""

    value: float | str
    rounds: tuple[float, ...] = ()
    quality: Quality = Quality.EXACT
    unit: str | None = None

    @property
    def numbers(self) -> tuple[float, ...]:
        """Return the values of all rounds, or the single one; nothing for text."""
        return self.rounds or ((float(self.value),) if not isinstance(self.value, str) else ())


class Figure(Values, frozen=True):
    """A metric with all that is stored of it; whole numbers stay whole."""

    value: int | float | str
    rounds: tuple[int | float, ...] = ()
    mean: float | None = None
    stdev: float | None = None
    source: str | None = None


Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Counts(msgspec.Struct, frozen=True):
    """Selections per site and slot."""

    prefill: tuple[tuple[Count, ...], ...]
    decode: tuple[tuple[Count, ...], ...]


class Weights(msgspec.Struct, frozen=True):
    """Sums of gate weights per site and slot, to four significant digits."""

    prefill: tuple[tuple[float, ...], ...]
    decode: tuple[tuple[float, ...], ...]


class Dropped(msgspec.Struct, frozen=True):
    """Selections that were refused for want of capacity, per site."""

    prefill: tuple[Count, ...]
    decode: tuple[Count, ...]


class Tokens(msgspec.Struct, frozen=True):
    """How many tokens went through each site."""

    prefill: Count
    decode: Count


class Usage(msgspec.Struct, frozen=True):
    """Expert usage of one test; without counts where it was not recorded, for the reason `absent` gives.

    `check` is "passed", or the sums that are not tokens x k; `trace`: the sidecar holds each selection.
    """

    sites: tuple[ExpertSite, ...] = ()
    counts: Counts | None = None
    tokens: Tokens | None = None
    weights: Weights | None = None
    dropped: Dropped | None = None
    check: str | None = None
    note: str | None = None
    trace: bool = False
    absent: str | None = None

    @property
    def adds_up(self) -> bool:
        """Return whether the selections are all those there must be, as far as it was checked."""
        return self.check in (None, "passed")


class Rounds(msgspec.Struct, frozen=True):
    """How many rounds there were of each kind; `disturbed` holds the reasons by the number of a timed round, from 0.

    `reported` is what a server counted of each timed round. `resumed`: an interrupted run had measured them.
    """

    warmup: int | None = None
    timed: int | None = None
    profile: bool = True
    resumed: bool = False
    disturbed: dict[str, tuple[str, ...]] = {}
    reported: tuple[Reported, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """Return the numbers of the disturbed rounds."""
        return tuple(int(number) for number in self.disturbed if _NUMBER.fullmatch(number))


class StoredTimeline(msgspec.Struct, frozen=True):
    """What the sidecar holds of the profile round's timeline, or why there is none."""

    absent: str | None = None
    interval_s: float | None = None
    not_read: dict[str, str] = {}


class StoredText(msgspec.Struct, frozen=True):
    """The text of a perplexity and its windows: `records.TextScore` as stored."""

    name: str | None = None
    sha256: str | None = None
    tokens: int | None = None
    window: int | None = None
    stride: int | None = None


class StoredScores(msgspec.Struct, frozen=True):
    """What the sidecar holds of the scores of each generated position, or why there are none.

    Older versions did not store of which `text` the perplexity is.
    """

    positions: int | None = None
    sequences: int | None = None
    width: int | None = None
    vocabulary: int | None = None
    absent: str | None = None
    text: StoredText | None = None


class StoredReference(msgspec.Struct, frozen=True):
    """Whose tokens were followed: `records.Reference` as stored, its scores in the sidecar.

    `tokens` is their number, `sha256` that of its ids, as of any output. `free` is how many were generated where none
    were given, if the timed rounds followed, and the version told it.
    """

    name: str = ""
    tokens: int = 0
    sha256: str | None = None
    timed: bool = False
    free: int | None = None
    problem: str | None = None


class StoredOperators(msgspec.Struct, frozen=True):
    """`records.Operators` as stored: `trace` is what follows the run's name in that of its file."""

    prefill: PhaseOperators | None = None
    decode: PhaseOperators | None = None
    prefill_absent: str | None = None
    peaks_absent: str | None = None
    trace: str | None = None
    trace_absent: str | None = None
    absent: str | None = None


class StoredBreakdown(msgspec.Struct, frozen=True):
    """A typical step of each phase, by role, or why there is none."""

    absent: str | None = None
    clock: str | None = None
    prefill: PhaseParts | None = None
    decode: PhaseParts | None = None
    operators: StoredOperators | None = None

    @property
    def phases(self) -> dict[str, PhaseParts]:
        """Return those that there are, by name."""
        found = {PREFILL: self.prefill, DECODE: self.decode}
        return {name: parts for name, parts in found.items() if parts is not None}


class StoredOutput(msgspec.Struct, frozen=True):
    """What was generated, and whether every round generated it."""

    text: str | None = None
    equal: bool | None = None
    first_difference: tuple[int, int] | None = None
    by: str | None = None
    varied: str | None = None
    stopped_by: str | None = None


class StoredWarning(msgspec.Struct, frozen=True):
    """`records.MeasurementWarning` as stored: a later version may know more kinds."""

    kind: str
    text: str


class StoredLoad(msgspec.Struct, frozen=True):
    """At which level of load a test was measured, and what became of the requests of each repetition.

    `errors` are how many were not answered, by what was said of it. `data` is what was asked for, if not the prompts.
    `marks` are the kinds of the warnings about it.
    """

    level: Level
    objectives: Objectives = Objectives()
    generator: str = ""
    data: str | None = None
    requests: tuple[Count, ...] = ()
    errors: dict[str, int] = {}
    marks: tuple[str, ...] = ()


class StoredAgainst(msgspec.Struct, frozen=True):
    """The other side of a comparison in one run: `records.AgainstInfo`, its figures, and what turns of a token said.

    `differ` names in what the work of the two sides differed so that they are not compared, and `rounds` are the
    rounds of the other side; None where it was not stored. `experts` is its census of selections, where it has one.
    """

    rev: str = ""
    commit: str = ""
    dirty: bool = False
    sequential: bool = False
    turns: Turns | None = None
    metrics: Mapping[str, Values] = {}
    differ: tuple[str, ...] | None = None
    rounds: Rounds | None = None
    experts: Usage = Usage()


# the block of a test, four depths of it


class HeadModel(msgspec.Struct, frozen=True):
    """How the list of runs names a model."""

    name: str | None = None
    dtype: str | None = None


class HeadMachine(msgspec.Struct, frozen=True):
    """How the list of runs names a machine."""

    cpu: str | None = None
    usable_cores: float | None = None


class HeadBlock(msgspec.Struct, frozen=True):
    """As much of a block as the list of runs needs; those of the phases' rows have no model."""

    schema: int
    phase: str = ""
    model: HeadModel | None = None
    machine: HeadMachine | None = None


class PartsBlock(HeadBlock, frozen=True):
    """As much of a block as tells where the time of a step goes."""

    breakdown: StoredBreakdown | None = None


class Block(msgspec.Struct, frozen=True):
    """As much of a block as comparisons read."""

    schema: int
    phase: str = ""
    prompt: StoredPrompt = StoredPrompt()
    model: Model = Model()
    machine: Machine = Machine()
    metrics: Mapping[str, Values] | None = None
    experts: Usage | None = None
    config: dict[str, str] = {}
    curve: CurvePoint | None = None
    drift: Drift | None = None
    ranks: Ranks | None = None
    fidelity: Fidelity | None = None
    under_load: StoredLoad | None = None
    rounds: Rounds | None = None
    against: StoredAgainst | None = None
    scores: StoredScores | None = None
    reference: StoredReference | None = None


class WholeBlock(Block, frozen=True):
    """A block with all that any reader wants of it."""

    metrics: Mapping[str, Figure] | None = None
    absent: dict[str, str] | None = None
    timeline: StoredTimeline | None = None
    breakdown: StoredBreakdown | None = None
    output: StoredOutput | None = None
    warnings: tuple[StoredWarning, ...] = msgspec.field(default=(), name="cautions")

    @property
    def disturbed_totals(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Return the total times of the rounds, seconds, and the numbers of those that were disturbed."""
        total = (self.metrics or {}).get("total_s")
        return (() if total is None else total.numbers), (self.rounds or Rounds()).numbers


B = TypeVar("B", HeadBlock, PartsBlock, Block, WholeBlock)
A = TypeVar("A", Block, WholeBlock)

BLOCK: msgspec.json.Decoder[Block] = msgspec.json.Decoder(Block)
WHOLE_BLOCK: msgspec.json.Decoder[WholeBlock] = msgspec.json.Decoder(WholeBlock)


def of_block(table: Mapping[str, Any], depth: msgspec.json.Decoder[A]) -> A:
    """Return a block that is not stored yet, as it will be read."""
    return depth.decode(msgspec.json.encode(table))
