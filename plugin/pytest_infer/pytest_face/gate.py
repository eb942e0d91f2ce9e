"""The gate inside pytest: finds what to compare with, judges what a run measured, and marks the run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_infer import untrusted
from pytest_infer.analysis import alike
from pytest_infer.analysis.compare import fingerprint
from pytest_infer.analysis.compare.rules import Rule, Source, check_covered, of_kinds
from pytest_infer.analysis.compare.verdicts import Exit, Judgement, Verdict
from pytest_infer.errors import OptionError, StorageError
from pytest_infer.metrics import by_key
from pytest_infer.pytest_face.accepted import Acceptances
from pytest_infer.pytest_face.options import SELF
from pytest_infer.pytest_face.settings import Settings
from pytest_infer.records import AgainstInfo, LevelKind, PromptInfo, PromptRecord, Round, Turns
from pytest_infer.report.compare import exports, headline
from pytest_infer.storage import block, history
from pytest_infer.storage.history import History
from pytest_infer.storage.runfile import Mark
from pytest_infer.storage.runs import Row, Run, row_of

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.comparison import RowPair
    from pytest_infer.analysis.compare.gate import Gated
    from pytest_infer.analysis.compare.noise import NamedFloor
    from pytest_infer.pytest_face.saving import MeasuredTest

Block = Mapping[str, Any]
FAILED = "failed in this run"
_ANY = ("",)
_LEVELS = (*LevelKind, "*", "?", "[")
"""What patterns begin with that may be about a level of load."""
_NOISE_OF = ("ttft_s", "tpot_s", "total_s", "peak_rss_bytes")


class Gate:
    """One run's gate. `folder` is where it was started, and `note` takes lines for the summary."""

    def __init__(self, settings: Settings, folder: Path, note: Callable[[str], None]) -> None:
        self._settings = settings
        self._accepted = Acceptances(settings, folder, note)
        self._note = note
        self._history: History | None = None
        self._baseline: Run | None = None
        self.result: Gated | None = None
        self.exit: Exit | None = None
        self._open: tuple[Rule, ...] = ()
        """Rules that are about none of the prompts that were known before any was measured."""
        self._unnamed: Collection[str] = ()
        self._judged = settings.gate
        """The rules, without those that are for runs that measure something else."""
        self._expected = settings.gate_asked

    @property
    def active(self) -> bool:
        """Whether there are rules."""
        return self._settings.gate is not None

    @property
    def paired(self) -> bool:
        """Whether both sides are measured in this run."""
        return self._settings.against is not None

    def prepare(self, storage: Path | None) -> None:
        """Before anything is measured: find the baseline that was asked for; raise StorageError for a wrong one."""
        if self._settings.gate is None:
            return
        # What commits say is no word about servers.
        self._accepted.read(None if self._settings.other_server else self._settings.against)
        if self._settings.against is not None:
            return
        if storage is not None and untrusted.is_dir(storage):
            self._history = history.load(storage, self._note)
            for warning in self._history.warnings:
                self._note(warning)
        if self._settings.baseline is None:
            return
        if self._history is None:
            raise StorageError("--infer-baseline names a stored run, and there is no storage folder")
        self._baseline = self._history.select(self._settings.baseline)
        if self._baseline.regressed:
            raise StorageError(f"--infer-baseline: run {self._baseline.label} failed its own gate; choose another")
        from pytest_infer.analysis.compare import possible  # noqa: PLC0415

        possible.refuse(self._baseline)
        self._accepted.read(self._baseline.commit)

    def judge(
        self,
        tests: Mapping[str, MeasuredTest],
        planned: Collection[str],
        covers: Callable[[Row, Run], bool],
        failed: Collection[str] = (),
    ) -> None:
        """Judge the measured tests (by node id) against a stored run.

        `planned` were to be measured; a test of the baseline that `covers` says belongs to this run, by its row and the
        baseline, and that was not measured, is missing. Those that `failed` have no figures, whatever the baseline has
        of them.
        """
        rules = self._judged
        if rules is None:
            return
        # Imported late, here and below: loading the plugin must not load numpy and scipy.
        from pytest_infer.analysis.compare import gate  # noqa: PLC0415

        measured = [row_of(test, test, found.block) for test, found in tests.items()]
        unfit = _impossible(measured) | dict.fromkeys(failed, FAILED)
        rows = [row for row in measured if row.test not in unfit]
        before = self._baseline or self._found(rows)
        allowed = self._settings.allow_different
        if before is None or self._history is None:
            if gate.needs_baseline(rules):
                self._note("gate: no stored run to compare with (same machine and software, clean code, not failed)")
            self._end(gate.judge([], rules, unfit=unfit, new=rows, allowed=allowed))
            return
        records = {test: found.record for test, found in tests.items()}
        pairs, gone, new = gate.stored_pairs(before, rows, self._history, records)
        missing: list[Row | str] = [row for row in gone if row.test in planned or covers(row, before)]
        self._end(
            gate.judge(
                pairs,
                rules,
                missing=missing,
                unfit=unfit,
                new=new,
                against=before.label,
                allowed=allowed,
                accepted=self._accepted.since(before),
            )
        )

    def judge_sides(
        self,
        sides: Mapping[str, tuple[Block | None, Block]],
        turns: Mapping[str, Turns],
        missing: Sequence[str],
        info: AgainstInfo,
        unmeasured: Sequence[str] = (),
        failed: Collection[str] = (),
    ) -> None:
        """Judge tests that were measured on both sides in this run: the blocks of each, the other side's first.

        `turns` are what turns of a token said of them, by node id; `unmeasured` are tests before which the run ended,
        and those that `failed` have no figures.
        """
        rules = self._judged
        if rules is None:
            return
        from pytest_infer.analysis.compare import gate  # noqa: PLC0415

        pairs, new = [], []
        unfit = dict.fromkeys(failed, FAILED)
        for test, (base, ours) in sides.items():
            rows = [row_of(test, test, block) for block in (base, ours) if block is not None]
            wrong = _impossible(rows)
            if wrong:
                unfit |= wrong
            elif base is None:
                new += rows
            else:
                pairs.append(_pair(test, base, ours, info, turns.get(test)))
        against = f"{info.rev} ({info.commit[:8]})" if info.commit else info.rev
        allowed = self._settings.allow_different
        self._end(
            gate.judge(
                pairs,
                rules,
                new=new,
                missing=missing,
                unfit=unfit,
                unmeasured=unmeasured,
                against=against,
                allowed=allowed,
                accepted=self._accepted.found,
            )
        )

    def settled(
        self, prompt: PromptInfo, before: Sequence[Round], after: Sequence[Round], config: Mapping[str, str]
    ) -> bool:
        """Return whether so many pairs of rounds are enough for the rules; without rules there are never enough."""
        if not self._settings.gate:
            return False
        from pytest_infer.analysis.compare import gate  # noqa: PLC0415

        return gate.settled(self._settings.gate, prompt.name, before, after, config)

    def check_rules(
        self,
        names: Collection[str],
        *,
        part: bool,
        unnamed: Collection[str] = (),
        awaiting: bool = False,
        under_load: Collection[bool] = (),
    ) -> None:
        """Raise OptionError for a rule about none of the suite's prompts, whatever of them is measured.

        Or for one that was typed about a round that is switched off. `part` says that only some files or tests were
        collected: rules of the ini file may be about others. The tests that are `unnamed` bring prompts of their own:
        where there are any, what was measured tells in the end. Where load tests are `awaiting` their levels, rules of
        the ini file may be about these. `under_load` tells of what is to be measured whether it is a level.
        """
        self._judged = self._settings.gate and of_kinds(self._settings.gate, under_load)
        of_others = _ANY if part else _LEVELS if awaiting else ()
        asked = [
            rule
            for rule in self._settings.gate or ()
            if not (rule.source is Source.INI and (rule.prompt or "").startswith(of_others))
        ]
        if not unnamed:
            check_covered(asked, names)
        self._unnamed = unnamed
        self._open = tuple(rule for rule in asked if not any(map(rule.covers, names)))
        self._accepted.names = None if part or unnamed or awaiting else names
        if not self._settings.profile:
            unscored = next((rule for rule in asked if rule.source is Source.TYPED and rule.needs_scores), None)
            if unscored is not None:
                raise OptionError(f"gate rule {unscored.text!r} needs the profile round: leave out --infer-no-profile")

    def expects(self, measurements: bool) -> None:
        """Take note whether tests that measure were selected, if only to be skipped."""
        self._expected = self._expected or measurements

    def nothing(self, why: str = "nothing was measured") -> None:
        """Say that nothing was judged, and why: that never passes a run that is about measurements.

        Rules of the ini file alone do not make it one: with them other tests are run too.
        """
        if self.active and self._expected:
            self.exit = Exit.NOTHING
            self._note(f"gate: {why}, so nothing was gated")

    @property
    def code(self) -> int | None:
        """Return the exit code of what was gated; None where nothing was to be."""
        if self.exit is None:
            return None
        return self._settings.ending.code(() if self.result is None else self.result.judgements)

    def _found(self, rows: Sequence[Row]) -> Run | None:
        if self._history is None:
            return None
        from pytest_infer.analysis.compare import gate  # noqa: PLC0415

        return gate.baseline_for(rows, self._history.runs, self._settings.allow_different)

    def measured(self, names: Mapping[str, Collection[str]]) -> None:
        """Take what the prompts of tests that were measured go by (`axes.names`), by node id.

        A rule may be about one of these after all, or about one that a test would have brought that did not run.
        """
        known = {name for found in names.values() for name in found}
        whole = all(nodeid in names for nodeid in self._unnamed)
        self._open = tuple(rule for rule in self._open if whole and not any(map(rule.covers, known)))

    def _end(self, gated: Gated) -> None:
        of_none = [
            Judgement(
                test=f"[{rule.prompt}]",
                name=f"[{rule.prompt}]",
                metric_key=None if rule.metric is None else rule.metric.key,
                rule=rule.text,
                verdict=Verdict.INCOMPARABLE,
                reason="no prompt of that name was measured: the rule is about nothing",
            )
            for rule in self._open
        ]
        judgements = (*gated.judgements, *of_none)
        self.result = replace(gated, judgements=judgements, ending=self._settings.ending)
        self.exit = self.result.exit

    @property
    def mark(self) -> dict[str, Any] | None:
        """Return what is kept in the run's file."""
        if self.exit is None:
            return None
        against = self.result.against if self.result is not None else None
        rules = tuple(rule.text for rule in self._judged or ())
        judgements = self.result.judgements if self.result is not None else ()
        said = headline.in_words(self.result.headline, judgements) if self.result is not None else ""
        made = Mark(result=self.exit.word, against=against, rules=rules, headline=said or None)
        suite = self.result.suite if self.result is not None else ()
        kept = {"judgements": msgspec.to_builtins(judgements), "suite": msgspec.to_builtins(suite)}
        return {**msgspec.to_builtins(made), **kept}

    def publish(self, environ: Mapping[str, str], write: Callable[[str], None], more: str = "") -> None:
        """In a job of GitHub Actions, write its step summary, with `more` Markdown below, and annotations."""
        if self.result is None or environ.get("GITHUB_ACTIONS") != "true":
            return
        heading = [f"inference gate against {self.result.against or 'bounds only'}"]
        write(exports.github_annotations(self.result.judgements))
        try:
            exports.write_summary(self.result, heading, environ, more)
        except OSError as error:
            self._note(f"GitHub's step summary cannot be written: {error.strerror}")

    def failing(self) -> dict[str, list[Judgement]]:
        """Return the judgements that fail each test, but for tests that failed themselves."""
        found: dict[str, list[Judgement]] = {}
        for judgement in self.result.judgements if self.result is not None else ():
            if judgement.verdict in (Verdict.REGRESSED, Verdict.MISSING) and judgement.reason != FAILED:
                found.setdefault(judgement.test, []).append(judgement)
        return found


def _impossible(rows: Sequence[Row]) -> dict[str, str]:
    """Return the tests whose figures cannot have been measured, with the reason."""
    from pytest_infer.analysis.compare import possible  # noqa: PLC0415

    found = [(row.test, possible.impossible(row)) for row in rows]
    return {test: f"cannot be judged: {why}" for test, why in found if why is not None}


_OF_EXPERTS = ("check", "tokens", "sites", "counts")
"""What is kept of the other side's expert usage: its census."""


def both_sides(
    pairs: Mapping[str, tuple[PromptRecord | None, PromptRecord]],
    turns: Mapping[str, Turns],
    passed: Mapping[str, dict[str, Any]],
    info: AgainstInfo,
    allowed: Collection[str] = (),
) -> tuple[dict[str, tuple[Block | None, Block]], list[NamedFloor]]:
    """Return the blocks of both sides, the other side's first, of each test that passed, and the noise between them.

    Keeps the other side's figures in our block. There is noise to tell only where a checkout meets itself.
    """
    blocks: dict[str, tuple[Block | None, Block]] = {}
    noise: dict[str, list[NamedFloor]] = {}
    for test, (base, _) in pairs.items():
        if test not in passed:
            continue
        if base is None:
            blocks[test] = (None, passed[test])
            continue
        theirs = block.build(base)
        blocks[test] = (theirs, passed[test])
        pair = _pair(test, theirs, passed[test], info, turns.get(test))
        if info.rev == SELF:
            noise[test] = _noise_of(pair.after.title, pair)
        taken = {"turns": msgspec.to_builtins(turns[test])} if test in turns else {}
        differ = [str(found) for found in fingerprint.sides_differ(pair.before, pair.after, allowed)]
        used = {what: theirs["experts"][what] for what in _OF_EXPERTS if what in theirs["experts"]}
        passed[test]["against"] = {
            **msgspec.to_builtins(info),
            **taken,
            **({"experts": used} if "counts" in used else {}),
            "differ": differ,
            "rounds": theirs["rounds"],
            "metrics": theirs["metrics"],
        }
    title = alike.titles({test: floors[0].name for test, floors in noise.items() if floors})
    return blocks, [replace(floor, name=title[test]) for test, floors in noise.items() for floor in floors]


def _pair(test: str, before: Block, after: Block, info: AgainstInfo, turns: Turns | None) -> RowPair:
    """Return both sides of a test as they are judged."""
    from pytest_infer.analysis.compare import comparison  # noqa: PLC0415

    rows = row_of(test, test, before), row_of(test, test, after)
    spread = comparison.block_spread(*rows) if info.sequential else None
    return comparison.RowPair(
        before=rows[0],
        after=rows[1],
        paired=not info.sequential,
        block_spread=spread,
        turns=turns,
        unscored=after["absent"].get("kl"),
    )


def _noise_of(prompt: str, pair: RowPair) -> list[NamedFloor]:
    """Return the noise of the metrics that gates are about: of launches where there were several, else of pairs."""
    from pytest_infer.analysis.compare import noise as floors  # noqa: PLC0415

    found = []
    for key in _NOISE_OF:
        ratios = pair.launches(key)
        a, b = (row.metrics[key].rounds if key in row.metrics else () for row in (pair.before, pair.after))
        if ratios is not None and len(ratios) > 1:
            floor = floors.floor_of_launches(ratios)
        elif pair.paired and len(a) == len(b) > 1 and min((*a, *b)) > 0:
            floor = floors.floor(a, b)
        else:
            continue
        found.append(floors.NamedFloor(name=prompt, label=by_key(key).label, floor=floor))
    return found
