"""Everything of one prompt, one comparison or one sampled block, put together."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pytest_infer.records.breakdown import Breakdown, RoleTurns
from pytest_infer.records.counters import Counters
from pytest_infer.records.fidelity import Fidelity
from pytest_infer.records.generation import Output, PromptInfo
from pytest_infer.records.load import UnderLoad
from pytest_infer.records.machine import MachineInfo
from pytest_infer.records.model import ModelInfo
from pytest_infer.records.rounds import Profile, Round
from pytest_infer.records.scores import Reference


class WarningKind(StrEnum):
    """The kinds of warnings about a record."""

    OUTPUT_DIFFERS = "output differs between rounds"
    MISCOUNTED = "the server counted other tokens"
    CACHED = "the server had the prompt in its cache"
    LENGTHS_DIFFER = "rounds are of different lengths"
    PROFILE_DIFFERS = "output differs under instruments"
    NOT_FINITE = "logits are not finite"
    EXPERTS_DO_NOT_ADD_UP = "expert selections do not add up"
    EXPERTS_UNCHECKED = "expert selections are of an unchecked architecture"
    DISTURBED = "rounds were disturbed"
    COLD_FIRST_ROUND = "the first round is much slower"
    FREQUENCY = "the cores' frequency moved between rounds"
    CLIENT_BUSY = "the client was busy"
    CLIENT_BOUND = "the sender of requests is the bottleneck"
    UNSTEADY = "the level is not steady"
    REQUESTS_FAILED = "requests failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementWarning:
    """One warning about a record, with its numbers and what to do about it."""

    kind: WarningKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Where a test stands on a curve: `axis` is "prompt_tokens" or "context_depth", `value` is in tokens."""

    axis: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The first test of a load, re-measured after its last one: how much the machine's speed drifted in between.

    `test` is that first test's node id, `apart_s` the time between its two measurements, seconds, and `ratios` are, by
    metric key, the geometric mean of the second measurement's rounds / that of the first's.
    """

    test: str
    apart_s: float
    ratios: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """The most memory of one process of a distributed run over a test's rounds, bytes; None where it is unknown.

    `absent` says why a rank told nothing at all.
    """

    rss_bytes: int | None = None
    peak_rss_bytes: int | None = None
    device_peak_bytes: int | None = None
    absent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The processes that measured a test together, in order; everything else in a record is that of the first.

    `cpu_s` is what each used of the cores in a round, seconds, the median of the rounds; None where it is unknown.
    """

    size: int
    memory: tuple[RankMemory, ...]
    cpu_s: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRecord:
    """Everything measured for one prompt in one test.

    `repeated` are disturbed rounds that were re-measured and are not used. `first_run` is the first warm-up round: what
    it takes beyond the others is the extra time of a first run. `config` holds
    the swept options by axis, as they were given; it is empty when nothing is swept. `drift` is stored with the last
    test of a load. `reference` says whose tokens were followed, if any were. `pieces` are the texts of single ids: of
    those generated, and of the most probable ones at each position. `fidelity` is how far this is from the reference.
    `ranks` is None unless several processes ran the model together. That of a load test has no rounds but `under_load`:
    its `prompt` is the level, and its output is empty.
    """

    nodeid: str
    prompt: PromptInfo
    model: ModelInfo
    machine: MachineInfo
    tokenize_s: float
    warmup_rounds: int
    rounds: tuple[Round, ...]
    output: Output
    repeated: tuple[Round, ...] = ()
    first_run: Round | None = None
    profile: Profile | None = None
    profile_absent: str | None = None
    warnings: tuple[MeasurementWarning, ...] = ()
    resumed: bool = False
    config: dict[str, str] = field(default_factory=dict)
    curve: CurvePoint | None = None
    drift: Drift | None = None
    ranks: Ranks | None = None
    reference: Reference | None = None
    pieces: dict[int, str] = field(default_factory=dict)
    fidelity: Fidelity | None = None
    breakdown: Breakdown | None = None
    breakdown_absent: str | None = None
    under_load: UnderLoad | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstInfo:
    """What this checkout is compared with: a revision as given (`self`: this checkout again) and its commit.

    `dirty` says that this checkout has uncommitted changes; `sequential` that the two sides ran in blocks.
    """

    rev: str
    commit: str
    dirty: bool
    sequential: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemRecord:
    """What `system_sampler` saw of one `with` block."""

    counters: Counters
    machine: MachineInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """What passes in turns of a token said of the change between two sides.

    `ratios` are log-ratios, this checkout's over the other's: of the `first` token, of a decode `step`, and of
    `steps` by their sums where these changed otherwise, a tuple a launch, with its observations. No step is there
    if whole rounds told another change than the parts of the text that passes were of. A turn had `every` ticks.
    `rounds` whole ones were measured in each launch on either side, launch by launch, or in the first launches only; 0
    where that was not kept. Passes were of so many `tokens`, in two places of the text, or of all (None). `parts` are
    steps taken apart by role, by phase, as far as they were, and what the tokeniser took. `undisturbed` is the
    share of turns in which neither side waited long for a core, of each ratio that these tell alone; a launch that has
    too few has no observation, nor has one for which there was no time. `launches` are the serial numbers of the
    launches in a run, in the order of all of these: one that died is followed by one of another number. Without them it
    is 0, 1, ….
    """

    every: int
    cycles: int
    seconds: float
    ratios: dict[str, tuple[tuple[float, ...], ...]]
    rounds: int = 0
    tokens: int | None = None
    earlier: dict[str, tuple[float, float]] = field(default_factory=dict)
    strayed: int = 0
    undisturbed: dict[str, float] = field(default_factory=dict)
    parts: dict[str, tuple[RoleTurns, ...]] = field(default_factory=dict)
    launches: tuple[int, ...] = ()
