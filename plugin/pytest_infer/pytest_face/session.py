"""The state of one pytest run: what is planned, what was measured, and how it reaches the storage and the gate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

import pytest

from pytest_infer import untrusted
from pytest_infer.ab.loop import Alone, Loop, Settled, Task
from pytest_infer.analysis.sweep import axes
from pytest_infer.engines.base import Engine
from pytest_infer.measure import answers, following, instrumentation, ranks, rounds, warnings
from pytest_infer.measure.asking import Asking
from pytest_infer.measure.counters import accelerator
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.heap import Heap
from pytest_infer.measure.loading import timed
from pytest_infer.measure.machine import cards, environment
from pytest_infer.measure.machine import description as machine
from pytest_infer.measure.ranks import World
from pytest_infer.measure.text import TextScorer
from pytest_infer.prompts import Prompt
from pytest_infer.pytest_face import pieces, prompt_tokens
from pytest_infer.pytest_face.gate import Gate, both_sides
from pytest_infer.pytest_face.model_in_use import ModelInUse
from pytest_infer.pytest_face.observing import Observing
from pytest_infer.pytest_face.options import SELF
from pytest_infer.pytest_face.parametrize import Cache
from pytest_infer.pytest_face.probing import Probing
from pytest_infer.pytest_face.references import References
from pytest_infer.pytest_face.saving import Keeper
from pytest_infer.pytest_face.selection import Selection
from pytest_infer.pytest_face.settings import Settings
from pytest_infer.pytest_face.sweep import configurations
from pytest_infer.pytest_face.sweep.configurations import Configuration
from pytest_infer.pytest_face.sweep.remeasure import Measurement, Remeasure
from pytest_infer.records import (
    AgainstInfo,
    MachineInfo,
    ModelInfo,
    Output,
    PromptInfo,
    PromptRecord,
    TokenTrace,
    Turns,
)
from pytest_infer.report.show import live
from pytest_infer.report.show.live import LiveLine
from pytest_infer.storage.bridge import Bridge, ReplayClock

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.noise import NamedFloor

_Text = TypeVar("_Text", str, dict[int, str])


class InferSession:
    """What one pytest run knows; kept in `config.stash`.

    With `--infer-against`: `pairs` holds, per test, the base's record (None where it has no such test) and ours, of
    equally many rounds; `missing` are the tests that only the base has. `one_sided`: this is no side of a comparison;
    `started_by_other`: it is one that another run started.
    `impossible` are tests of a sweep that are skipped, as they cannot be run; `failed` are those that pytest reported,
    and `over` all whose last report it made.
    """

    def __init__(self, config: pytest.Config, *, base: bool = False) -> None:
        self.config = config
        self.settings = Settings.from_config(config, base=base)
        self.one_sided = self.settings.against is None and not base
        self.started_by_other = base
        self.configurations = configurations.of(self.settings)
        self.suites: Cache = {}
        self.notes: list[str] = []
        self.world = World(ranks.here())
        self.bridge = Bridge(config, self.note)
        self.keeper = Keeper(self.settings, self.bridge, config.rootpath, self.note)
        self.gate = Gate(self.settings, config.invocation_params.dir, self.note)
        # Not in a comparison of two commits: the memory that a probe leaves behind would be on one side only.
        # Nor in ranks that follow, whose probes would disturb that of the first.
        wanted = self.settings.probe and self.one_sided and self.world.place.leads
        self.probing = Probing(self.note, wanted=wanted)
        self.references = References(self.settings.replay, self.note, sweeping=self.one_sided)
        self.text: TextScorer | None = None
        self.deselected: set[str] = set()
        self.impossible: set[str] = set()
        self.failed: set[str] = set()
        self.over: set[str] = set()
        self.selection: Selection | None = None
        self.collected: list[pytest.Item] = []
        # Whether somebody wants pytest-benchmark's own tables.
        self.tables_asked = False
        # The tests whose own engine learns of no option.
        self.deaf: tuple[str, ...] = ()
        self.loop: Loop = Alone()
        self.settled: Settled = self.gate.settled
        self.against: AgainstInfo | None = None
        self.pairs: dict[str, tuple[PromptRecord | None, PromptRecord]] = {}
        self.keeper.other_side = lambda: {test: base for test, (base, _) in self.pairs.items() if base is not None}
        self.turns: dict[str, Turns] = {}
        self.missing: tuple[str, ...] = ()
        self.noise: list[NamedFloor] = []
        # The live line is asked for late: now there may be no terminal yet.
        self.heap = Heap()
        self.remeasure = Remeasure(self.note, lambda line: self.live.show(line), self.heap)  # noqa: PLW0108
        self.model_in_use = ModelInUse(
            self.settings.engine,
            lambda line: self.live.show(line),  # noqa: PLW0108
            self._closing_model,
        )
        self.observing = Observing(lambda: self.machine.usable_cores, timeline=self.settings.timeline)
        self._machines: dict[tuple[int, ...], MachineInfo] = {}

    @cached_property
    def live(self) -> LiveLine:
        """Return the live line of pytest's terminal, which is there once pytest is configured."""
        plugins = self.config.pluginmanager
        reporter, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
        if reporter is None or self.config.get_verbosity() < 0:
            return LiveLine(None, nullcontext)
        suspend = nullcontext if capture is None else capture.global_and_fixture_disabled
        return LiveLine(reporter._tw._file, suspend, lambda: reporter._tw.width_of_current_line)

    def note(self, line: str) -> None:
        """Keep a line for the summary, once."""
        if line not in self.notes:
            self.notes.append(line)

    def read_text(self) -> None:
        """Read the text of --infer-text, if there is one; raise OptionError where it cannot be."""
        if self.settings.text is not None:
            self.text = TextScorer(self.settings.text, lambda line: self.live.show(line))  # noqa: PLW0108

    # what is measured with

    @property
    def system(self) -> SystemCounters:
        """Return the kernel's counters of this process, opened on first use."""
        return self.observing.counters()

    @property
    def machine(self) -> MachineInfo:
        """Return the description of this machine."""
        return self.machine_of(None)

    def machine_of(self, engine: Engine | None) -> MachineInfo:
        """Return the description of this machine as those have it that do an engine's work, by default this process."""
        observed = None if engine is None else engine.observed()
        pids = () if observed is None else observed.pids
        if pids not in self._machines:
            self._machines[pids] = machine.describe(pids)
        return self._machines[pids]

    def load(self, engine: Engine, name: str) -> ModelInfo:
        """Load the engine's model, which the options call `name`, and time it."""
        self.live.show(f"loading {name} …")
        info = timed.measured(engine, self.system, cold=self.settings.cold_load, note=self.note)
        info = replace(info, weights_sha256=timed.weights_sha256(engine))
        self.live.clear()
        return info

    def fail(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Mark the measurement, if there is one, of a test that did not pass, for pytest-benchmark and for us."""
        if report.failed:
            self.failed.add(item.nodeid)
            self.keeper.skipped.discard(item.nodeid)
        elif report.skipped and item.nodeid not in self.failed:
            # Or it failed as expected: pytest calls neither a failure.
            self.keeper.skipped.add(item.nodeid)
        self.keeper.mark_failed(item.nodeid)
        # Not from its `funcargs`: they are filled after all of its fixtures, and the one that failed may have measured.
        self.bridge.mark_failed(item.stash.get(BENCHMARK, None))

    def unreached(self) -> list[str]:
        """Return the planned tests that a run which ended early did not come to."""
        told = {*self.failed, *self.over, *self.keeper.skipped, *self.keeper.finished}
        return [test for test in self.keeper.planned if test not in told]

    def judge(self, *, early: bool = False) -> None:
        """Hold what was measured against the gate's rules; after an `early` end only tests with two sides."""
        measured = self.keeper.passed
        passed = {nodeid: f.block for nodeid, f in measured.items()}
        if self.config.option.collectonly or (early and (self.against is None or not passed)):
            return
        # One that was run anew may have passed then.
        failed = (self.failed - measured.keys()).intersection(self.keeper.planned)
        records = {nodeid: f.record for nodeid, f in measured.items()}
        self.gate.measured({nodeid: axes.names(r.prompt.name, r.config) for nodeid, r in records.items()})
        if not self.keeper.planned or not passed or self.selection is None:
            self.gate.nothing()
        elif self.against is not None:
            judged, noise = both_sides(self.pairs, self.turns, passed, self.against, self.settings.allow_different)
            self.noise += noise
            if self.against.rev == SELF and self.against.sequential:
                self.note(
                    "one after the other there are no pairs to tell noise by: leave out --infer-against-sequential"
                )
            unmeasured = self.unreached() if early else []
            self.gate.judge_sides(judged, self.turns, self.missing, self.against, unmeasured, failed)
        else:
            self.gate.judge(measured, self.keeper.planned, self.selection.covers, failed)

    def _closing_model(self) -> None:
        self.remeasure.forget()
        if self.text is not None:
            self.text.forget()
        self.observing.forget()
        self.heap.release()

    def close(self) -> None:
        """Give back what was opened."""
        self.heap.release()
        self.live.clear()
        self.keeper.close()
        self.observing.close()

    # measuring

    def measure(
        self, nodeid: str, prompt: Prompt, engine: Engine, model: ModelInfo, configuration: Configuration
    ) -> PromptRecord:
        """Run a prompt's rounds and return their record."""
        ids, tokenize_s = prompt_tokens.encode(engine, prompt, configuration.settings)
        # A slip in what the record is made of is told before anything is measured.
        answers.varied(engine)
        once = self.bridge.disabled
        here = self._described(model, engine, once=once)
        task = self._task(nodeid, prompt, ids, engine, model, here, configuration)
        with self.heap.still():
            measured = self.loop.measure(task)
        # The test may go on to generate something itself.
        following.steer(engine, None)
        self.remeasure.measured(
            Measurement(
                test=nodeid,
                name=prompt.name,
                runner=task.runner,
                options=configuration.settings.engine_options,
                plan=task.plan,
                rounds=measured.rounds,
            )
        )
        self.live.clear()
        if measured.profile_absent is not None:
            self.note(f"! {nodeid}: {measured.profile_absent}; what was timed is kept")
        output = self._output(nodeid, engine, measured)
        record = PromptRecord(
            nodeid=nodeid,
            prompt=task.prompt,
            model=model,
            machine=here,
            tokenize_s=tokenize_s,
            warmup_rounds=measured.warmup,
            rounds=measured.rounds,
            output=output,
            repeated=measured.repeated,
            first_run=measured.first,
            profile=measured.profile,
            profile_absent=None if measured.profile else self._unprofiled(measured, once=once),
            warnings=warnings.find(measured.rounds, measured.profile, output, measured.repeated),
            config=dict(configuration.values),
            curve=configuration.curve,
            ranks=self.world.gathered(nodeid, [r.counters for r in measured.rounds]),
            reference=measured.reference,
            pieces=self._decoded(nodeid, lambda: pieces.of(engine.decode, measured.profile, measured.reference), {}),
            breakdown=measured.breakdown,
            breakdown_absent=None if measured.breakdown else self._not_taken_apart(measured.breakdown_absent),
        )
        if self._broken_down_in_vain(record):
            self.note(f"no breakdown: {record.breakdown_absent}")
        return self.loop.compared(record)

    def _output(self, nodeid: str, engine: Engine, measured: rounds.Measured) -> Output:
        """Return what the engine generates freely, whatever it followed."""
        reference, varied = measured.reference, answers.varied(engine)
        difference = None if varied else warnings.first_difference(measured.rounds)
        said = measured.rounds[0].trace.said if reference is None or not reference.free else reference.free
        return Output(
            text=said if isinstance(said, str) else self._decoded(nodeid, lambda: answers.text(engine, said), ""),
            sha256=warnings.hash_said(said),
            equal=difference is None,
            first_difference=difference,
            by="text" if isinstance(said, str) else None,
            varied=varied,
        )

    def _decoded(self, nodeid: str, made: Callable[[], _Text], otherwise: _Text) -> _Text:
        """Return what is made of the engine's texts of tokens, or something else where it has none of some."""
        try:
            return made()
        except Exception as error:  # noqa: BLE001 - an engine may raise anything
            self.note(f"! {nodeid}: Engine.decode failed: {untrusted.failure(error)}; what was timed is kept")
            return otherwise

    def _broken_down_in_vain(self, record: PromptRecord) -> bool:
        """Return whether a breakdown was asked for and there is none; two commits have theirs elsewhere."""
        asked = self.settings.breakdown in ("on", "ops") and self.one_sided and not self.bridge.disabled
        return asked and record.breakdown is None

    def _task(
        self,
        nodeid: str,
        prompt: Prompt,
        ids: list[int],
        engine: Engine,
        model: ModelInfo,
        here: MachineInfo,
        configuration: Configuration,
    ) -> Task:
        """Return what the rounds of a test are run with."""
        info, plan = _info(prompt, configuration), self._plan()
        reference = None
        if not self.bridge.disabled:
            reference = self.references.of(nodeid, prompt, info.limits, model, engine, configuration)
        positions = len(ids) + info.limits.max_new_tokens
        traced = plan.trace or (plan.experts and self.references.traces(configuration, positions, reference))
        return Task(
            nodeid=nodeid,
            prompt=info,
            plan=replace(plan, reference=reference, trace=traced),
            runner=rounds.Runner(
                engine=engine,
                asking=Asking(prompt=prompt, ids=ids),
                limits=info.limits,
                system=self.observing.counters(engine),
                usable_cores=here.usable_cores,
                timeline=self.observing.sampler(engine),
                encode=partial(engine.encode, prompt),
                text=None if self.text is None else partial(self.text.score, engine, model),
            ),
            watch=self._watcher(model, prompt),
            threads=model.threads,
            vocabulary=model.vocabulary,
            config=configuration.values,
        )

    @staticmethod
    def _unprofiled(measured: rounds.Measured, *, once: bool) -> str:
        if once:
            return "benchmarks are disabled"
        return measured.profile_absent or "left out with --infer-no-profile"

    def verified(self, record: PromptRecord) -> PromptRecord:
        """Return a record with the machine's probe made again if a round beat it; earlier records get it as well."""
        if self.probing.verify(record):
            self.keeper.renew(self.probing.applied)
        return self.probing.applied(record)

    def measure_elsewhere(self, nodeid: str, prompt: Prompt, configuration: Configuration) -> PromptRecord | None:
        """Return the record that other processes make of a prompt; None where it is measured here."""
        return self.loop.elsewhere(nodeid, _info(prompt, configuration), self._plan(), configuration.values)

    def _not_taken_apart(self, why: str | None) -> str:
        """Return why a prompt's steps were not, where the loop gave no reason of its own."""
        if self.bridge.disabled:
            return "benchmarks are disabled"
        if not self.settings.profile:
            return "left out with --infer-no-profile"
        if not self.one_sided:
            return why or "of two commits steps are taken apart in turns of a token, where the time of one changed"
        if not self.world.place.alone:
            return "steps are not taken apart where ranks share a model: each would wait for the others' hooks"
        return why or "not recorded"

    def _plan(self) -> rounds.RoundPlan:
        once = self.bridge.disabled
        return rounds.RoundPlan(
            warmup=0 if once else self.settings.warmup,
            rounds=1 if once else self.settings.rounds,
            profile=self.settings.profile and not once,
            experts=self.settings.experts,
            trace=self.settings.expert_trace,
            repeat=0 if once else self.settings.repeat_disturbed,
            breakdown=self.settings.breakdown if self.one_sided and self.world.place.alone else "off",
        )

    def _described(self, model: ModelInfo, engine: Engine, *, once: bool) -> MachineInfo:
        """Return the machine with the accelerators that torch has found by now, and its probe."""
        if not once and self.probing.due(model):
            self.live.show("probing the machine …")
        probed = None if once else self.probing.before(model)
        watching, here = instrumentation.remaining(type(engine)), self.machine_of(engine)
        why = None if once else self.probing.absent(model)
        return replace(
            here,
            accelerators=accelerator.names(),
            card_settings=cards.settings(cards.describe()),
            probe=probed,
            probe_absent=why,
            instrumented=watching,
            environment={**(here.environment or {}), **environment.of_torch()},
        )

    def _watcher(self, model: ModelInfo, prompt: Prompt) -> rounds.Watcher:
        def watch(phase: str, done: int, planned: int, last: TokenTrace | None) -> None:
            self.live.show(
                f"{model.name} · {prompt.name} · {phase} {done + 1}/{planned}{live.seen(last, planned - done)}"
            )

        return watch


def _info(prompt: Prompt, configuration: Configuration) -> PromptInfo:
    return PromptInfo(
        name=prompt.name,
        content_sha256=prompt.content_sha256,
        limits=prompt_tokens.limits_of(prompt, configuration.settings),
        group=prompt.group,
        tags=prompt.tags,
    )


KEY = pytest.StashKey[InferSession]()
CLOCK = pytest.StashKey[ReplayClock]()
BENCHMARK = pytest.StashKey[object]()
