"""What the `infer_under_load` fixture is: the measurement of one level of load, as `infer` is that of one prompt."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from pytest_infer import untrusted
from pytest_infer.engines import models
from pytest_infer.engines.base import Engine, Served
from pytest_infer.errors import EngineError, OptionError, SuiteError
from pytest_infer.measure import answers
from pytest_infer.measure.load import environment, generator, marks, trace, workload
from pytest_infer.measure.load.generator import Sending
from pytest_infer.measure.load.workload import Synthetic, Workload
from pytest_infer.metrics import load
from pytest_infer.prompts import Prompt
from pytest_infer.pytest_face import failures, parametrize, prompt_tokens
from pytest_infer.pytest_face.options import CACHE, OFF
from pytest_infer.pytest_face.session import BENCHMARK, CLOCK, InferSession
from pytest_infer.pytest_face.settings import DEFAULT_REQUESTS
from pytest_infer.records import (
    Level,
    LevelKind,
    Limits,
    Output,
    PromptInfo,
    PromptRecord,
    RequestStatus,
    UnderLoad,
)

FIXTURE = "infer_under_load"
GROUP = "load"
_SALT = secrets.token_hex(8)
"""Other in every run, and with the test's id in every level: what a server remembers of the last one is of no use."""
_UNSERVED = "a load test sends its requests to a server, and this engine's model is not served: --infer-server URL"


class InferUnderLoad:
    """Measures a level: `record = infer_under_load(load_level)`; once a test."""

    def __init__(self, request: pytest.FixtureRequest, session: InferSession, benchmark: object) -> None:
        self._request = request
        self._session = session
        self._benchmark = benchmark

    @classmethod
    def of(cls, request: pytest.FixtureRequest, session: InferSession, benchmark: object) -> InferUnderLoad:
        """Return it for a test; let a test fail that cannot be measured, whatever its level."""
        if session.bridge.parallel:
            pytest.fail("load tests are refused under pytest-xdist: they slow each other; use -n 0", pytrace=False)
        if CLOCK not in request.node.stash:
            pytest.fail(
                f"`{FIXTURE}` must be among the arguments of the test or of its fixtures: getfixturevalue comes too "
                "late",
                pytrace=False,
            )
        return cls(request, session, benchmark)

    def __call__(self, level: Level) -> PromptRecord:
        """Send all repetitions of a level, keep the results, and return the record."""
        __tracebackhide__ = True
        return failures.or_fail(lambda: self._measured(level), self._session.live.clear)

    def _measured(self, level: Level) -> PromptRecord:
        session, nodeid = self._session, self._request.node.nodeid
        session.bridge.check(self._benchmark)
        work = workload_of(self._request.node, session)
        prompt = _info(level, work, session)
        record = session.keeper.resumed(nodeid, prompt.content_sha256, prompt.limits, session.settings)
        if record is not None and _whole(record, session.settings.rounds):
            self._keep(record)
            return record
        engine: Engine = self._request.getfixturevalue("engine")
        model = answers.model(self._request.getfixturevalue("model"), "the fixture `model`")
        found, failed = self._sent(level, work, engine)
        session.live.clear()
        record = PromptRecord(
            nodeid=nodeid,
            prompt=prompt,
            model=model,
            machine=session.machine_of(engine),
            tokenize_s=0.0,
            warmup_rounds=0,
            rounds=(),
            output=Output(text="", sha256="", equal=True),
            profile_absent="a load test has no profile round",
            breakdown_absent="a load test takes no step apart",
            warnings=marks.find(found, bust=not work.shares),
            under_load=found,
        )
        if session.bridge.disabled:
            session.bridge.spend(self._benchmark)
        else:
            self._keep(record)
        if failed is not None:
            raise failed
        return record

    def _sent(self, level: Level, work: Workload, engine: Engine) -> tuple[UnderLoad, EngineError | None]:
        """Return the repetitions that were measured, and what kept others from being so; raise it where none was."""
        session, settings = self._session, self._session.settings
        installed = environment.required()
        sending = Sending(
            served=served_by(engine),
            level=level,
            work=work,
            requests=_number(level, work, settings.load_requests),
            limit_s=settings.load_limit_s,
            salt=f"{_SALT}/{self._request.node.nodeid}",
            sampling=settings.engine_options.sampling,
        )
        found = UnderLoad(
            level=level,
            objectives=settings.objectives,
            repetitions=(),
            generator=f"{environment.GENERATOR} {installed.version}",
            data=work.told,
        )
        seeds = workload.seeds(1 if session.bridge.disabled else settings.rounds)
        if (gone := engine.ended()) is not None:
            raise EngineError(gone)
        for number, seed in enumerate(seeds, 1):
            session.live.show(f"{level.name} · {sending.requests} requests · repetition {number}/{len(seeds)}")
            system = session.observing.counters(engine)
            try:
                one = generator.repetition(installed, sending, seed, system)
                more = replace(found, repetitions=(*found.repetitions, one))
                check_answered(more, engine.ended)
            except EngineError as error:
                if not found.repetitions:
                    raise
                return found, error
            found = more
        return found, None

    def _keep(self, record: PromptRecord) -> None:
        session, node = self._session, self._request.node
        node.stash[BENCHMARK] = self._benchmark
        session.keeper.keep(
            record,
            session.settings,
            lambda phases, block: session.bridge.hand_over(
                self._benchmark,
                node.stash[CLOCK],
                phases,
                block,
                params={"load_level": record.prompt.name},
                group=getattr(self._benchmark, "group", None) or GROUP,
            ),
        )
        session.loop.finished(record)


def _whole(record: PromptRecord, repetitions: int) -> bool:
    return record.under_load is not None and len(record.under_load.repetitions) == repetitions


def check_answered(found: UnderLoad, ended: Callable[[], str | None]) -> None:
    """Raise EngineError where the last repetition has nothing to measure, with what was said of most of its requests.

    Where requests failed `ended` is asked first what became of the server.
    """
    number, repetition = len(found.repetitions), found.repetitions[-1]
    where = f"{found.level.name}, repetition {number}"
    errors = load.errors(repetition.requests)
    if errors and (gone := ended()) is not None:
        raise EngineError(f"{where}: {gone}")
    if not any(request.status is RequestStatus.DONE for request in repetition.requests):
        raise EngineError(f"{where}: no request was answered: {next(iter(errors), 'none was sent')}")
    part = load.steady(repetition, found)
    if part is None or not load.output_tokens(part):
        replay = found.level.kind is LevelKind.REPLAY
        raise EngineError(
            f"{where}: no answer ended between the first and the last requests, which are left out: "
            f"{'take a longer trace' if replay else 'send more (--infer-load-requests)'}"
            f"{f'; most failures: {next(iter(errors))}' if errors else ''}"
        )


def check_steady(level: Level, work: Workload, wanted: int) -> None:
    """Raise OptionError for a level that has nothing between its first and last requests, whatever is answered."""
    number = _number(level, work, wanted)
    cut = load.cut(number, level)
    if level.kind is LevelKind.THROUGHPUT:
        return
    if work.trace is not None:
        due = sorted(request.timestamp for request in work.trace.requests)
        if number <= 2 * cut or due[cut] == due[-cut]:
            raise OptionError(
                f"--infer-load-data: {work.trace.path}: no time lies between the first {cut} and the last {cut} of its "
                f"{number} requests, which are left out: take a longer trace"
            )
    elif number <= 2 * cut:
        raise OptionError(
            f"--infer-load-requests: of {level.name} the first and the last {cut} are left out: send {2 * cut + 1} or "
            f"more, not {number}"
        )


def served_by(engine: Engine) -> Served:
    """Return where an engine's model is served; raise EngineError where it is not."""
    served = engine.served()
    if served is None:
        raise EngineError(_UNSERVED)
    return served


def check_serves(engine: Engine) -> None:
    """Raise EngineError for an engine that serves no model, before it loads one."""
    if type(engine).served is Engine.served:
        raise EngineError(_UNSERVED)


def workload_of(node: pytest.Item, session: InferSession) -> Workload:
    """Return what a test's requests ask for; raise SuiteError or OptionError where that is nothing that can be sent."""
    settings = session.settings
    server = settings.engine_options.server
    if server is not None and server.cache == OFF:
        raise OptionError(
            "--infer-cache=off: a load test cannot ask that of a server: take bust, for prompts that none has cached"
        )
    if settings.load_data is not None:
        return _made_up(settings.load_data, session)
    prompts: tuple[Prompt, ...] = parametrize.prompts_of(node, settings.prompts, session.suites)
    if not prompts:
        raise SuiteError(
            f"{node.nodeid}: a load test sends the prompts of a suite: put a prompts.toml beside it, name a suite with "
            "--infer-prompts FILE, or describe synthetic ones with --infer-load-data"
        )
    limited = tuple((prompt, prompt_tokens.limits_of(prompt, settings).max_new_tokens) for prompt in prompts)
    work = Workload(prompts=limited, bust=server is None or server.cache == CACHE[0])
    # Refused where the suite has both texts and dialogues.
    _ = work.path
    return work


def _made_up(data: Synthetic, session: InferSession) -> Workload:
    found = None if data.trace is None else trace.read(Path(data.trace), "--infer-load-data")
    folder, sha256 = _tokenizer(session, data.tokenizer)
    named = None if data.tokenizer is None else sha256
    return Workload(synthetic=data.counts, tokenizer=str(folder), tokenizer_sha256=named, trace=found)


def _tokenizer(session: InferSession, given: str | None) -> tuple[Path, str]:
    """Return the folder of the tokenizer of synthetic prompts, as given or the model's, and its hash."""
    options = session.settings.engine_options
    # An engine of somebody's own has its own model, whatever the options' default is.
    bundled = given is None and options.server is not None and options.model in models.BUNDLED
    name = models.resolve(options.model, options.progress) if bundled else given or options.model
    folder = models.expanded(name).absolute()
    refusal = OptionError(
        "--infer-load-data makes prompts with the model's tokenizer: add tokenizer=FOLDER, which holds its "
        f"tokenizer.json{f'; {Path(given).name} does not' if given else ''}"
    )
    if not name:
        raise refusal
    try:
        with untrusted.opened(folder / "tokenizer.json") as file:
            return folder, hashlib.sha256(file.read()).hexdigest()
    except (OSError, untrusted.Damaged) as error:
        raise refusal from error


def _number(level: Level, work: Workload, wanted: int) -> int:
    """Return how many requests a repetition sends: all of a trace."""
    if work.trace is not None:
        return len(work.trace.requests)
    return workload.number_of_requests(level, wanted)


def _info(level: Level, work: Workload, session: InferSession) -> PromptInfo:
    """Return the level as what is measured; its hash tells the work from other work."""
    settings = session.settings
    # A trace is all sent, however many are asked for.
    limits = [settings.load_requests if work.trace is None else DEFAULT_REQUESTS, settings.load_limit_s]
    asked = [work.sha256, work.bust, level.name, *limits, msgspec.to_builtins(settings.objectives)]
    most = max((limit for _, limit in work.prompts), default=work.synthetic.get("output_tokens", 0))
    if work.trace is not None:
        most = work.trace.longest
    return PromptInfo(
        name=level.name,
        content_sha256=hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        limits=Limits(max_new_tokens=most, ignore_eos=True),
        group=GROUP,
    )
