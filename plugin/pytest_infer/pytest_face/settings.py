"""The options of a run, read once from the command line and the ini file, and checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pytest_infer import untrusted
from pytest_infer.analysis.compare import ending, exact, fingerprint, rules
from pytest_infer.analysis.compare.ending import Ending
from pytest_infer.analysis.compare.rules import Rule, Source
from pytest_infer.analysis.sweep import axes
from pytest_infer.engines.base import EngineOptions, ServerOptions
from pytest_infer.engines.models import DEFAULT
from pytest_infer.errors import OptionError, alternatives
from pytest_infer.measure import ranks
from pytest_infer.measure.load import workload
from pytest_infer.measure.load.workload import Synthetic
from pytest_infer.measure.text import BUNDLED
from pytest_infer.pytest_face import levels, served
from pytest_infer.pytest_face.option_reader import OptionReader
from pytest_infer.pytest_face.options import (
    BARE,
    BREAKDOWN,
    EXPERTS,
    INTERLEAVED,
    OFF,
    ORDERS,
    ROUND,
    SELF,
    TIMELINE,
    TURNS,
)
from pytest_infer.pytest_face.sweep.lengths import Lengths
from pytest_infer.records import Level, LevelKind, Objectives

ONLY_OURS = (
    *("accepted", "against", "baseline", "breakdown", "cold-load", "exit"),
    *("gate", "inconclusive", "replay", "report", "resume"),
)
"""Beginnings of the options that the other side of a comparison must not follow, wherever they are set."""
OF_THE_RUN = ("sweep", "curve", "server", "serve", "serve-flags", "server-pid")
"""Options that the other side of a comparison has from this one, and not from its own ini file."""
OF_ENGINES = {
    **{
        name.replace("_", "-"): name
        for name in ("model", "revision", "dtype", "device", "threads", "experts_implementation", "attention")
    },
    "no-cache": "use_cache",
    "sample": "sampling",
    "compile": "compile",
    "trust-remote-code": "trust_remote_code",
    "quantization": "quantization",
    **dict.fromkeys(served.OPTIONS, "server"),
    "engine-args": "engine_args",
}
"""The fields of EngineOptions by the options that set them."""
DEFAULT_MIN_PAIRS = 10
DEFAULT_MAX_ROUNDS = 30
MOST_THREADS = 4096
"""More than any machine has cores; torch takes what it is given and then dies of it."""
DEFAULT_REQUESTS = 64
DEFAULT_LIMIT_S = 600.0
MOST_LAUNCHES = 64
"""More pairs of processes than this are a typing error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All options, parsed and checked."""

    prompts: Path | None
    engine: str
    engine_options: EngineOptions
    cold_load: bool
    rounds: int
    warmup: int
    max_new_tokens: int | None
    ignore_eos: bool
    experts: bool
    expert_trace: bool
    timeline: bool
    breakdown: str
    advice: bool
    profile: bool
    probe: bool
    repeat_disturbed: int
    strict_memory: bool
    resume: bool
    report: Path | None
    gate: tuple[Rule, ...] | None
    baseline: str | None
    allow_different: tuple[str, ...]
    against: str | None
    against_python: str | None
    against_sequential: bool
    turns: str
    launches: int
    time_s: float
    min_pairs: int
    max_rounds: int
    batch: int | None = None
    given: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """The options that only an engine follows, by field of EngineOptions (and `engine`), with where they were given."""
    context: int | None = None
    prompt_tokens: int | None = None
    sweep: tuple[tuple[str, tuple[str, ...]], ...] = ()
    interleaved: bool = True
    curve: Lengths | None = None
    ending: Ending = Ending()  # noqa: RUF009 - frozen
    load: tuple[Level, ...] = ()
    objectives: Objectives = Objectives()  # noqa: RUF009 - frozen
    load_requests: int = DEFAULT_REQUESTS
    load_limit_s: float = DEFAULT_LIMIT_S
    load_data: Synthetic | None = None
    replay: str | None = None
    text: Path | None = None
    """The file whose perplexity is measured."""
    accepted: Path | None = None
    """The file of accepted regressions, where one is named."""
    accepts: bool = True
    gate_asked: bool = field(default=False, compare=False)
    """Whether a gate or a comparison was asked for on the command line, not only in the ini file."""
    other_server: tuple[str, str] | None = None
    """The server to compare with: the option that names one (`server` or `serve`), and its value."""

    @classmethod
    def from_config(cls, config: pytest.Config, *, base: bool = False) -> Settings:
        """Read options and ini keys; raise OptionError naming the option and what it takes.

        `base` says that this run is the other side of one with --infer-against, which alone compares and gates.
        """
        place = ranks.here()
        if not place.alone:
            _check_ranks(OptionReader(config), place.size)
        ignored = ONLY_OURS if base or not place.leads else ()
        read = OptionReader(config, ignored=ignored, not_in_ini=OF_THE_RUN if base else ())
        folder = read.path("prompts")
        server = served.options(read)
        engine = served.engine(read, server)
        sweep = _sweep(read)
        _check_sides(read)
        min_pairs, max_rounds = _pairs(read)
        other = served.other(read, server)
        gate = _gate(read, two_servers=other is not None)
        experts = read.choice("experts", EXPERTS, "counts")
        return cls(
            prompts=folder,
            engine=engine,
            engine_options=_engine_options(read, engine, server),
            cold_load=read.flag("cold-load"),
            rounds=read.number("rounds", 5, least=1),
            warmup=read.number("warmup", 1, least=0),
            max_new_tokens=read.number("max-new-tokens", None, least=1),
            ignore_eos=read.flag("ignore-eos"),
            experts=experts != OFF,
            expert_trace=experts == "trace",
            timeline=read.choice("timeline", TIMELINE, "on") == "on",
            breakdown=_breakdown(read),
            advice=read.flag("advice"),
            profile=not read.flag("no-profile"),
            probe=not read.flag("no-probe"),
            # Ranks that each judged their own rounds would wait for each other for ever.
            repeat_disturbed=read.number("repeat-disturbed", 3, least=0) if place.alone else 0,
            strict_memory=read.flag("strict-memory"),
            resume=read.flag("resume"),
            report=read.path("report"),
            gate=gate,
            gate_asked=_gate_asked(read),
            ending=_ending(read, gate),
            accepted=None if _accepts_none(read) else read.path("accepted"),
            accepts=not _accepts_none(read),
            baseline=_baseline(read, gate),
            allow_different=_allowed(read) + _may_say_else(other, gate),
            against=read.text("against") if other is None else other[1],
            other_server=other,
            against_python=read.text("against-python"),
            against_sequential=read.flag("against-sequential"),
            # What a server computes waits for nobody's turn.
            turns=read.choice("turns", TURNS, TURNS[0]) if other is None else ROUND,
            launches=read.number("launches", 8, least=1, most=MOST_LAUNCHES),
            time_s=read.duration("time", 60.0),
            min_pairs=min_pairs,
            max_rounds=max_rounds,
            batch=read.number("batch", None, least=1),
            given=_given(read),
            context=read.number("context", None, least=1),
            prompt_tokens=read.number("prompt-tokens", None, least=1),
            sweep=sweep,
            interleaved=read.choice("order", ORDERS, INTERLEAVED) == INTERLEAVED,
            curve=_curve(read, sweep),
            load=_levels(read),
            objectives=levels.objectives(read.text("slo"), read.place("slo")),
            load_requests=read.number("load-requests", DEFAULT_REQUESTS, least=1),
            load_limit_s=read.duration("load-limit", DEFAULT_LIMIT_S),
            load_data=_load_data(read),
            replay=_replay(read),
            text=_text(read),
        )


def _engine_options(read: OptionReader, engine: str, server: ServerOptions | None) -> EngineOptions:
    """Return what is for the engine alone."""
    # A server that runs is asked which model it has.
    tells = engine == served.ENGINE and (server is None or server.command is None)
    found = EngineOptions(
        model=read.model("model", read.text("model") or ("" if tells else DEFAULT)),
        revision=read.text("revision"),
        dtype=read.text("dtype") or "auto",
        device=read.text("device"),
        threads=read.number("threads", None, least=1, most=MOST_THREADS),
        experts_implementation=read.text("experts-implementation"),
        attention=read.text("attention"),
        use_cache=not read.flag("no-cache"),
        sampling=read.sampling("sample"),
        compile=read.flag("compile"),
        trust_remote_code=read.flag("trust-remote-code"),
        quantization=read.text("quantization"),
        server=server,
        engine_args=read.text("engine-args"),
    )
    if found.compile and not found.use_cache:
        raise OptionError(f"{read.place('compile')} needs the KV cache: leave out {read.place('no-cache')}")
    return found


def _check_sides(read: OptionReader) -> None:
    """Refuse what a run that measures another commit too cannot do."""
    if read.text("against") is None:
        return
    if read.flag("resume"):
        raise OptionError(f"{read.place('against')} measures both sides in one run: leave out {read.place('resume')}")
    if read.flag("cold-load"):
        raise OptionError(
            f"{read.place('cold-load')} needs a model that no other process maps, and {read.place('against')} "
            f"loads it twice: leave out {read.place('cold-load')}"
        )


def _check_ranks(read: OptionReader, size: int) -> None:
    """Refuse what the processes of a distributed run cannot do alike."""
    for name in ("against", "against-server", "against-serve", "replay", "resume"):
        if read.given(name):
            raise OptionError(f"{read.place(name)} is for one process, and this run has {size} (WORLD_SIZE)")


def _levels(read: OptionReader) -> tuple[Level, ...]:
    """Return the levels of load tests, which this process sends to one server."""
    found = levels.parse(read.lines("load") or (), read.place("load"))
    other = next((name for name in ("against", "against-server", "against-serve") if read.given(name)), None)
    if found and other is not None:
        raise OptionError(f"{read.place('load')} measures one server: leave out {read.place(other)}")
    data = _load_data(read)
    traced = data is not None and data.trace is not None
    if found and any((level.kind is LevelKind.REPLAY) != traced for level in found):
        where = f"{read.place('load')}: replay needs {read.place('load-data')} trace=FILE"
        raise OptionError(f"{where}, and a trace no other kind of load")
    return found


def _load_data(read: OptionReader) -> Synthetic | None:
    text = read.text("load-data")
    if text is None:
        return None
    found = workload.synthetic(text, read.place("load-data"))
    tokenizer, trace = (value and read.file("load-data", value) for value in (found.tokenizer, found.trace))
    return replace(found, tokenizer=tokenizer, trace=trace)


def _replay(read: OptionReader) -> str | None:
    replay = read.text("replay")
    if replay is not None:
        for other in ("against", "no-profile"):
            if read.given(other):
                raise OptionError(f"{read.place('replay')} cannot be combined with {read.place(other)}")
    return replay


def _text(read: OptionReader) -> Path | None:
    if read.text("text") is None:
        return None
    if read.flag("no-profile"):
        where, without = read.place("text"), read.place("no-profile")
        if where.startswith("--"):
            raise OptionError(f"{where} is measured after the profile round: leave out {without}")
        return None
    return BUNDLED if read.text("text") == BARE else read.path("text")


def _breakdown(read: OptionReader) -> str:
    """Return when steps are taken apart; asked for on the command line it needs the profile round."""
    wanted = "on" if read.text("breakdown") == BARE else read.choice("breakdown", BREAKDOWN, "auto")
    asked, two = read.place("breakdown").startswith("--"), read.text("against") is not None
    if wanted == "ops" and two:
        if asked:
            raise OptionError(
                f"{read.place('breakdown')}=ops is for one checkout: with {read.place('against')} take =on"
            )
        wanted = "on"
    if wanted in ("on", "ops") and not two and asked and read.flag("no-profile"):
        raise OptionError(f"{read.place('breakdown')} follows the profile round: leave out {read.place('no-profile')}")
    whole = "against-sequential" if read.flag("against-sequential") else "turns"
    in_turns = whole == "turns" and read.choice("turns", TURNS, TURNS[0]) == TURNS[0]
    if wanted == "on" and two and asked and not in_turns:
        where = f"{read.place('breakdown')}: two commits are taken apart in turns of a token"
        raise OptionError(f"{where}: leave out {read.place(whole)}")
    return wanted


def _given(read: OptionReader) -> tuple[tuple[str, str], ...]:
    """Return which options for the engine were given, and where."""
    found = {"engine": "engine", **OF_ENGINES}
    return tuple((option, read.place(name)) for name, option in found.items() if read.given(name))


def _gate(read: OptionReader, *, two_servers: bool) -> tuple[Rule, ...] | None:
    """Return the rules, or None for no gate; a comparison in one run brings rules of its own, except with itself."""
    lines, against = read.lines("gate"), read.text("against")
    if (lines or [""])[-1] == OFF or against == SELF or (lines is None and against is None and not two_servers):
        return None
    lines = [line for line in lines or () if line != OFF]
    for line in lines:
        if untrusted.exists(Path(line)):
            raise OptionError(f"--infer-gate took {line!r} for its rules: put it last, or write --infer-gate=RULES")
    source = Source.TYPED if read.typed("gate") else Source.INI
    paired = rules.DEFAULT_SERVERS if two_servers else rules.DEFAULT_PAIRED
    return rules.parse(lines, rules.DEFAULT if against is None and not two_servers else paired, source)


def _baseline(read: OptionReader, gate: tuple[Rule, ...] | None) -> str | None:
    """Return the stored run that a gate compares with; refuse one that was typed where there is none.

    Beside --infer-against, or --infer-gate=off, it may stand in `addopts` for other runs.
    """
    others = ("gate", "against", "against-server", "against-serve")
    if gate is None and read.place("baseline").startswith("--") and not any(read.given(name) for name in others):
        raise OptionError(f"{read.place('baseline')} names the run that a gate compares with: add --infer-gate")
    return read.text("baseline")


def _may_say_else(other: tuple[str, str] | None, gate: tuple[Rule, ...] | None) -> tuple[str, ...]:
    """Return that two servers may say something else, unless a rule is about what they say."""
    asked = any(rule.metric is not None and rule.metric.key == exact.OUTPUT for rule in gate or ())
    return () if other is None or asked else (fingerprint.OUTPUT,)


def _gate_asked(read: OptionReader) -> bool:
    """Return whether the command line asks for a gate or a comparison, and not the ini file alone."""
    return any(read.place(name).startswith("--") for name in ("gate", "against", "against-server", "against-serve"))


def _ending(read: OptionReader, gate: tuple[Rule, ...] | None) -> Ending:
    """Return what the exit code is to say."""
    bisect = read.choice("exit", ending.EXITS, ending.PLAIN) == ending.BISECT
    if bisect and gate is None:
        where = read.place("exit")
        raise OptionError(f"{where}=bisect tells what a gate found: add --infer-against=REV, or --infer-gate")
    passes = read.choice("inconclusive", ending.DOUBTS, ending.FAIL) == ending.PASS
    return Ending(passes_doubt=passes, bisect=bisect)


def _accepts_none(read: OptionReader) -> bool:
    """Return whether no regression is accepted; a bisection looks for the commit, whoever wanted it."""
    return read.text("accepted") == OFF or read.text("exit") == ending.BISECT


def _allowed(read: OptionReader) -> tuple[str, ...]:
    keys = read.text("allow-different") or ""
    found = tuple(key.strip() for key in keys.split(",") if key.strip())
    fingerprint.check_allowed(found, read.place("allow-different"))
    return found


def _sweep(read: OptionReader) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the axes in the order given, each with its values; what the values mean is checked later."""
    found: dict[str, tuple[str, ...]] = {}
    where = read.place("sweep")
    for line in read.lines("sweep") or ():
        axis, equals, values = (part.strip() for part in line.partition("="))
        if not equals:
            raise OptionError(f"{where} takes AXIS=VALUE,VALUE, not {line!r}; axes: {', '.join(axes.AXES)}")
        if axis not in axes.AXES:
            raise OptionError(f"{where}: {alternatives('axis', axis, axes.AXES)}")
        if axis in found:
            raise OptionError(f"{where}: {axis} is swept twice; write all its values in one: {axis}=V1,V2")
        given = [axes.named(axis, value.strip()) for value in values.split(",")]
        found[axis] = tuple(read.model("sweep", value) for value in given) if axis == "model" else tuple(given)
        if "" in found[axis] or len(set(found[axis])) < len(found[axis]):
            raise OptionError(f"{where}: {axis} takes different values with commas between them, not {values!r}")
    return tuple(found.items())


def _curve(read: OptionReader, sweep: tuple[tuple[str, tuple[str, ...]], ...]) -> Lengths | None:
    """Return the lengths of a curve, or None."""
    text = read.text("curve")
    if text is None or text.lower() == OFF:
        return None
    where = read.place("curve")
    if read.text("prompt-tokens") is not None:
        raise OptionError(f"{where} cannot be combined with {read.place('prompt-tokens')}")
    if any(axis == "prompt-tokens" for axis, _ in sweep):
        raise OptionError(f"{where} sweeps prompt-tokens itself: leave it out of {read.place('sweep')}")
    return Lengths.parse(text, where)


def _pairs(read: OptionReader) -> tuple[int, int]:
    """Return the least and the most pairs of rounds; one that is given moves the other's default."""
    least, most = read.number("min-pairs", None, least=1), read.number("max-rounds", None, least=1)
    if least is not None and most is not None and least > most:
        raise OptionError(f"{read.place('min-pairs')} is {least}, more than {read.place('max-rounds')}: {most}")
    return (
        min(DEFAULT_MIN_PAIRS, most or DEFAULT_MIN_PAIRS) if least is None else least,
        max(DEFAULT_MAX_ROUNDS, least or 0) if most is None else most,
    )
