"""How a measurement reaches the storage: journal first, then rows, then the run file, its sidecar and traces."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from pytest_benchmark.storage.file import FileStorage

from pytest_infer import untrusted
from pytest_infer.analysis.advice import advice
from pytest_infer.analysis.advice.advice import Advice
from pytest_infer.analysis.suite import OneTest, of_tests
from pytest_infer.checkouts.git import why_not_in
from pytest_infer.engines.checkpoint import source
from pytest_infer.errors import EngineError, StorageError
from pytest_infer.metrics import Summary, load, summarize, timing
from pytest_infer.pytest_face.settings import Settings
from pytest_infer.records import Drift, Limits, MachineInfo, PromptRecord, SuiteAverages
from pytest_infer.storage import block, files, journal, sidecar, traces
from pytest_infer.storage.bridge import Bridge
from pytest_infer.storage.code import DETACHED, branch_of_job, code_state
from pytest_infer.storage.schema import BLOCK, KEY, SCHEMA, WHOLE_BLOCK, StoredAgainst, of_block
from pytest_infer.units import plural

_MATTER = (
    "engine",
    "rounds",
    "warmup",
    "experts",
    "expert_trace",
    "timeline",
    "breakdown",
    "profile",
    "repeat_disturbed",
    "prompt_tokens",
    "replay",
    "text",
    "cold_load",
)
"""The settings on which figures depend, beside the engine's options and the prompt's limits."""
_OF_THE_MACHINE = (
    *("cpu", "usable_cores", "memory_bytes", "system", "kernel", "architecture", "python"),
    *("environment", "huge_pages"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTest:
    """One measured test, its figures worked out once; `failed` when it failed after its measurement."""

    record: PromptRecord
    figures: Mapping[str, Summary]
    block: dict[str, Any]
    failed: bool = False


class Keeper:
    """Keeps what a run measured, so that nothing finished is lost, whatever ends the run.

    Of two sides only what can be saved when it ends: a record of one is half of what was measured.
    """

    def __init__(self, settings: Settings, bridge: Bridge, code_folder: Path, note: Callable[[str], None]) -> None:
        self.planned: tuple[str, ...] = ()
        self.typed_prompts: tuple[str, ...] = ()
        self.finished: dict[str, MeasuredTest] = {}
        self.skipped: set[str] = set()
        self.other_side: Callable[[], Mapping[str, PromptRecord]] = dict
        self.save_failed = False
        self._run_files: list[Path] = []
        self._json_file: Path | None = None
        self._saved_at: str | None = None
        self._settings = settings
        self._bridge = bridge
        self._code_folder = code_folder
        self._note = note
        self._journal: journal.Journal | None = None
        self._left: tuple[journal.Left, ...] = ()
        self._worked: set[journal.Work] = set()
        self._code: str | None = None
        self._machine: MachineInfo | None = None

    @property
    def passed(self) -> dict[str, MeasuredTest]:
        """Return the measured tests that passed, by node id."""
        return {nodeid: f for nodeid, f in self.finished.items() if not f.failed}

    @property
    def suite(self) -> str:
        """Return how stored runs name the suite that was asked for: by its place in the project; empty without one."""
        return "" if self._settings.prompts is None else self.suite_name(self._settings.prompts)

    def suite_name(self, path: Path) -> str:
        """Return how stored runs name a suite's file, however its path was typed."""
        path, root = Path(os.path.normpath(path)), self._code_folder
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name

    @property
    def storage(self) -> Path | None:
        """Return the folder of pytest-benchmark's file storage; None for another kind of storage."""
        storage = self._bridge.storage
        return Path(storage.path) if isinstance(storage, FileStorage) else None

    def prepare(self, machine: MachineInfo) -> None:
        """Before anything is measured: see that results can be saved, make saving safe, look for interrupted runs."""
        self._machine = machine
        if not self._bridge.saving:
            if self._settings.resume:
                raise StorageError("--infer-resume goes on with a run that is saved: add --benchmark-autosave")
            return
        self._prepare_json()
        if self.storage is None:
            self._note("no journal and no sidecar: they need pytest-benchmark's file storage")
            return
        files.check_writable(self.storage)
        self._bridge.save_with(lambda storage: files.safe_save(storage, self._write_sidecar, self._lost))
        self._code = code_state(self._code_folder)
        if self._code is None and (why := why_not_in(self._code_folder)) is not None:
            self._note(f"! this run is stored without its commit: {why}")
        self._look_for_left(self.storage)
        if self._settings.against is None:
            # Of two sides a record is half of what was measured, which no run can go on with.
            self._journal = journal.Journal(self.storage)

    def _look_for_left(self, storage: Path) -> None:
        """Find what interrupted runs left, and say what becomes of it."""
        found = journal.interrupted(storage)
        for left in found:
            if left.damage is not None:
                self._note(f"left out: {left.path}: {left.damage}")
        self._left = tuple(left for left in found if left.entries)
        if self._settings.resume and not self._left:
            self._note(
                f"--infer-resume: no interrupted run is left in {storage / journal.FOLDER}; everything is measured"
            )
        elif self._settings.resume and self._code is None:
            self._note("! --infer-resume: outside of git nobody knows whether what was finished is of the same code")
        elif self._left and not self._settings.resume:
            tests = {entry.nodeid for left in self._left for entry in left.entries}
            runs = "an interrupted run" if len(self._left) == 1 else f"{len(self._left)} interrupted runs"
            how = "a run of one side with --infer-resume" if self._settings.against is not None else "--infer-resume"
            self._note(f"{runs} left {plural(len(tests), 'prompt')}; {how} takes the valid ones")

    def _prepare_json(self) -> None:
        """The same of the file of --benchmark-json, which pytest-benchmark writes first."""
        path = self._bridge.json_path
        if path is None:
            return
        if not untrusted.is_dir(path.parent):
            raise StorageError(f"--benchmark-json: {path.parent} is no folder")
        try:
            files.check_publishing(path)
        except StorageError as error:
            raise StorageError(f"--benchmark-json {error}") from error

        def saved(path: Path) -> None:
            self._json_file = path

        self._bridge.save_json_with(lambda session: files.safe_save_json(session, saved, self._lost))

    @cached_property
    def _resumable(self) -> Mapping[journal.Work, PromptRecord]:
        """The newest record of each test and fingerprint that interrupted runs left."""
        return journal.newest(self._left) if self._settings.resume else {}

    def resumed(self, nodeid: str, content_sha256: str, limits: Limits, settings: Settings) -> PromptRecord | None:
        """Return the newest record that an interrupted run left of this test, if it was of the same work.

        `settings` are those of the test's own configuration.
        """
        if not self._resumable:
            return None
        record = self._resumable.get((nodeid, self._key(content_sha256, limits, settings)))
        return None if record is None else replace(record, resumed=True)

    @cached_property
    def _here(self) -> tuple[dict[str, Any], list[str]]:
        """What figures depend on whatever the test: the machine, and the packages, by the names of their folders."""
        machine = {} if self._machine is None else {name: getattr(self._machine, name) for name in _OF_THE_MACHINE}
        return machine, sorted(path.name for folder in sys.path for path in Path(folder).glob("*-info"))

    def _key(self, content_sha256: str, limits: Limits, own: Settings) -> str:
        """Return a hash of what the figures of a prompt depend on, as far as options, code and machine say."""
        settings = {name: getattr(own, name) for name in _MATTER}
        if own.text is not None:
            settings["text"] = hashlib.sha256(own.text.read_bytes()).hexdigest()
        options = {k: v for k, v in _fields(own.engine_options).items() if k != "progress"}
        model = source.state(own.engine_options.model, own.engine_options.revision)
        basis = [content_sha256, _fields(limits), settings, options, model, self._code, *self._here]
        return hashlib.sha256(msgspec.json.encode(basis, enc_hook=str)).hexdigest()

    def keep(
        self,
        record: PromptRecord,
        settings: Settings,
        hand_over: Callable[[Mapping[str, list[float]], dict[str, Any]], None],
    ) -> PromptRecord:
        """Put a finished record into the journal, then into pytest-benchmark's rows; return it as it is kept.

        Raises:
            EngineError: it holds what the engine told and nobody could read back, which would end the whole run.
        """
        if record.reference is not None:
            # Imported late: loading the plugin must not load numpy.
            from pytest_infer.analysis.fidelity import measured  # noqa: PLC0415

            record = replace(record, fidelity=measured.of_record(record))
        figures = summarize(record)
        data = block.build(record, figures)
        try:
            of_block(data, WHOLE_BLOCK)
        except (TypeError, msgspec.MsgspecError) as error:
            raise EngineError(f"the engine told what cannot be stored: {untrusted.reason(error)}") from error
        self._write_journal(record, settings)
        hand_over(phases(record), data)
        self.finished[record.nodeid] = MeasuredTest(record=record, figures=figures, block=data)
        return record

    def drifted(self, nodeid: str, drift: Drift, settings: Settings) -> PromptRecord:
        """Add the drift of its load to a record that is kept already, in the journal and the block, and return it."""
        kept = self.finished[nodeid]
        record = replace(kept.record, drift=drift)
        self._write_journal(record, settings)
        # The row of pytest-benchmark holds this very block.
        kept.block["drift"] = msgspec.to_builtins(drift)
        self.finished[nodeid] = replace(kept, record=record)
        return record

    def renew(self, change: Callable[[PromptRecord], PromptRecord]) -> None:
        """Change records that are kept already, with their figures and blocks."""
        for nodeid, kept in self.finished.items():
            record = change(kept.record)
            if record is kept.record:
                continue
            figures = summarize(record)
            # The row of pytest-benchmark holds this very block.
            kept.block.clear()
            kept.block.update(block.build(record, figures))
            self.finished[nodeid] = replace(kept, record=record, figures=figures)

    def _write_journal(self, record: PromptRecord, settings: Settings) -> None:
        if self._journal is None:
            return
        key = self._key(record.prompt.content_sha256, record.prompt.limits, settings)
        entry = journal.Entry(nodeid=record.nodeid, key=key, record=record)
        self._worked.add(entry.work)
        try:
            self._journal.append(entry)
        except OSError as error:
            # The measurement goes on: the run file may still be written at the end.
            self._note(f"! the journal cannot be written: {error.strerror}; a kill would lose this run")

    def mark_failed(self, nodeid: str) -> None:
        """Mark a test that did not pass after it was measured: its row is not a baseline."""
        if nodeid in self.finished:
            self.finished[nodeid] = replace(self.finished[nodeid], failed=True)

    def complete(
        self, output_json: dict[str, Any], gate: dict[str, Any] | None, probe: dict[str, Any] | None = None
    ) -> None:
        """Add to a run file what concerns the run as a whole, the mark of its gate, and the machine's probes."""
        # pytest-benchmark takes it anew for the file of --benchmark-json, by whose time and commit a copy is known.
        self._saved_at = output_json["datetime"] = self._saved_at or output_json["datetime"]
        if not self.finished:
            return
        self._bridge.complete(output_json)
        commit = output_json["commit_info"]
        if commit.get("branch") == DETACHED:
            commit["branch"] = branch_of_job(os.environ, commit.get("id")) or DETACHED
        self._tell_left()
        failed = {nodeid: f.block for nodeid, f in self.finished.items() if f.failed}
        whole = {"schema": SCHEMA, "suite": self.suite, "typed_prompts": self.typed_prompts}
        unmeasured = self.unmeasured()
        skipped = [nodeid for nodeid in (*unmeasured, *failed) if nodeid in self.skipped]
        whole |= {"unmeasured": unmeasured, "skipped": skipped, "failed": failed}
        whole |= {} if probe is None else {"probe": probe}
        whole["averages"] = block.of_suite(self.averages())
        whole["advice"] = msgspec.to_builtins(self.advice())
        output_json[KEY] = whole if gate is None else {**whole, "gate": gate}

    def advice(self) -> tuple[Advice, ...]:
        """Return the advice on the tests that passed."""
        return advice.advise({t: of_block(f.block, WHOLE_BLOCK) for t, f in self.passed.items()})

    def averages(self) -> tuple[SuiteAverages, ...]:
        """Return the averages of the suite, of all tests that were measured: those below the table at the end."""
        return of_tests(
            OneTest(
                config=f.record.config,
                model=f.record.model,
                figures=f.figures,
                against=(of_block(f.block, BLOCK).against or StoredAgainst()).metrics if "against" in f.block else {},
            )
            for f in self.finished.values()
            # A mean over levels says nothing.
            if f.record.under_load is None
        )

    def unmeasured(self) -> list[str]:
        """Return the planned tests that were not measured."""
        return [nodeid for nodeid in self.planned if nodeid not in self.finished]

    def _write_sidecar(self, run_file: Path) -> None:
        """Write what belongs beside a run file, once: a run is one without it too."""
        if run_file in self._run_files:
            return
        self._run_files.append(run_file)
        records = [f.record for f in self.finished.values()]
        try:
            sidecar.write(run_file, records, self.other_side())
            traces.write(run_file, records)
        except OSError as error:
            self._lost(f"the run is in {run_file}, but without its arrays: {error.strerror or error}")

    def trace(self, nodeid: str) -> str | None:
        """Return the name of a test's trace, once the run was saved with one."""
        run_file = self.stored()
        return None if run_file is None else traces.beside(run_file, traces.name_for(nodeid))

    def stored(self) -> Path | None:
        """Return the file of the run that was saved, with its arrays beside it; None where nothing was."""
        if self.finished and self._json_file is not None and self._json_file.is_file():
            self._write_sidecar(self._json_file)
        return self._run_files[0] if self._run_files else None

    def _lost(self, line: str) -> None:
        kept = (
            f"; its prompts are in {self._journal.path}: mend it and run with --infer-resume" if self._journal else ""
        )
        self.save_failed = True
        self._note(f"! {line}{kept}")

    def finish(self, *, complete: bool) -> None:
        """After the run was saved: write the sidecar of a JSON file, and drop the journals if the run is complete."""
        if not self.finished:
            return
        self.stored()
        if self._journal is None or self.save_failed or not complete:
            return
        self._journal.discard()
        if self._settings.resume:
            for left in self._left:
                if left.used_up(self._worked):
                    journal.remove(left.path)

    def _tell_left(self) -> None:
        """Say what stays of interrupted runs after this one has taken what it can."""
        if not self._resumable or self.unmeasured():
            return
        tests = {nodeid for nodeid, key in self._resumable if (nodeid, key) not in self._worked}
        if tests:
            self._note(
                f"--infer-resume: {len(tests)} prompts of interrupted runs are of other tests, options, texts or code; "
                f"they stay in {self._left[0].path.parent}: remove it to forget them"
            )

    def close(self) -> None:
        """Leave the journal, if it is still there, to a run that goes on with it."""
        if self._journal is not None:
            self._journal.close()


def phases(record: PromptRecord) -> dict[str, list[float]]:
    """Return the durations of each native row, a value a round, seconds; a phase that does not exist has none."""
    if record.under_load is not None:
        return {"total": load.durations(record.under_load)}
    traces = [r.trace for r in record.rounds]
    return {
        "total": _all(timing.total_s(t) for t in traces),
        "ttft": _all(timing.ttft_s(t) for t in traces),
        "tpot": _all(timing.tpot_s(t) for t in traces),
    }


def _all(values: Iterable[float | None]) -> list[float]:
    found = list(values)
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else []


def _fields(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}
