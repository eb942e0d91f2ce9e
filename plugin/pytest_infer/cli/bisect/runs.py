"""One step of a bisection: pytest in a worktree, which compares a commit with the good one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from pytest_infer.analysis.compare import bounds, verdicts
from pytest_infer.analysis.compare.ending import INTERRUPTED, SKIP, STOP
from pytest_infer.analysis.compare.rules import Form, Rule
from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Judgement, Verdict
from pytest_infer.checkouts import imports
from pytest_infer.checkouts.git import git, last_line
from pytest_infer.checkouts.imports import BENCH, CHECKOUT, TOLD, Move
from pytest_infer.checkouts.worktree import Repository, Worktree, remove_abandoned
from pytest_infer.cli.bisect.suite import Suite
from pytest_infer.errors import AgainstError, InferError, OptionError
from pytest_infer.metrics import Kind
from pytest_infer.storage import runfile, runs

PLUGIN = ("-p", "pytest_infer.ab.bisected", "-p", "no:cacheprovider")
_PATIENCE_S = (30, 5, 5)
"""How long an interrupted run has to clean up, before it is asked again, and then killed."""
_BENCH = "bench"
_MORE = (3, 2, 3)
"""How many times the time, the launches and the rounds an undecided step is measured again with."""
MOST_LAUNCHES = 64
"""What the option takes at most."""
NOT_OF_GOOD = "GOOD does not keep that bound for certain"
_PERCENT = re.compile(r"[\d.]+\s*%$")
_NOT_HERE = {
    "--infer-gate": "give the rules with --rule",
    "--infer-baseline": "GOOD is the baseline",
    "--infer-against": "GOOD is compared with",
    "--infer-against-python": "every commit runs in this interpreter",
    "--infer-exit": "it is set for each step",
    "--infer-accepted": "a bisection accepts nothing",
    "--infer-inconclusive": "an undecided commit is measured again, then skipped",
    "--infer-report": "steps are not stored",
    "--infer-resume": "steps are not stored",
    "--benchmark-json": "steps are not stored",
    "--benchmark-save": "steps are not stored",
    "--benchmark-autosave": "steps are not stored",
    "--benchmark-disable": "steps are measured",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured at each step: pytest's arguments without the tests, and the node ids of these.

    `longer` are the arguments that let an undecided step measure longer. `here` is the folder that pytest is started in
    and `root` its rootdir, both relative to the repository's top. With a `text` its perplexity is measured.
    """

    arguments: tuple[str, ...]
    longer: tuple[str, ...]
    selected: tuple[str, ...]
    rules: tuple[Rule, ...]
    here: Path
    root: Path
    text: bool = False

    def only(self, judgement: Judgement) -> Plan:
        """Return the plan for one figure of one test, with `midway` as its rule."""
        rule = next(rule for rule in self.rules if rule.text == judgement.rule)
        return replace(self, selected=(judgement.test,), rules=(midway(rule, judgement),))


def midway(rule: Rule, judgement: Judgement) -> Rule:
    """Return a rule whose threshold lies halfway between no change and the one that was found, or the same if it does.

    Every commit is taken to be like one end or the other: that is told sooner, and by a noisier machine, than what the
    rule asks of either.
    """
    if rule.form is not Form.RELATIVE or judgement.mid is None or judgement.mid <= -1:
        return rule
    # Halfway on the scale of ratios, on which intervals are symmetric.
    limit = round(abs((1 + judgement.mid) ** 0.5 - 1), 4)
    if limit <= rule.limit:
        return rule
    return replace(rule, limit=limit, text=_PERCENT.sub(f"{100 * limit:.10g}%", rule.text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a step said: its exit code for git bisect, its judgements, and why there is none."""

    code: int
    judgements: tuple[Judgement, ...] = ()
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What pytest would run in the user's checkout: `options` are the arguments that name no tests.

    `data` are the files that options name, wherever these are set, by the names of the options. `amounts` are what a
    prompt is measured with at most: seconds, launches, and rounds. `text` is whether that of one is measured too.
    """

    root: Path
    options: tuple[str, ...]
    amounts: tuple[float, int, int]
    tests: tuple[str, ...]
    files: tuple[Path, ...]
    data: Mapping[str, Path]
    text: bool = False


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Raise OptionError for an argument that a bisection decides itself."""
    for argument in arguments:
        name = argument.partition("=")[0]
        if name in _NOT_HERE:
            raise OptionError(f"{name} is not for a bisection: {_NOT_HERE[name]}")


def collected(arguments: Sequence[str], scratch: Path) -> Collected:
    """Return what pytest collects here, the folder `bench` where no tests are named and there is one.

    Raises OptionError, with pytest's words, if that fails or measures nothing.
    """
    told, own = scratch / "collected.json", (*PLUGIN, "--collect-only", _storage(scratch))
    command = [sys.executable, "-m", "pytest", *own, *arguments]
    bench = {BENCH: _BENCH} if Path(_BENCH).is_dir() else {}
    environment = {**os.environ, **bench, TOLD: str(told), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    what = _read(told)
    if done.returncode or not what.get("tests"):
        reason = _reason(done.stdout + done.stderr) if done.returncode else "no test asks for `infer`"
        raise OptionError(f"this checkout's tests cannot be measured: {reason}")
    for name in what["refused"]:
        where = "as addopts, PYTEST_ADDOPTS or the ini file sets it"
        raise OptionError(f"{name}, {where}, is not for a bisection: {_NOT_HERE[name]}")
    return Collected(
        root=Path(what["root"]).resolve(),
        options=tuple(what["options"][len(own) :]),
        amounts=tuple(what["amounts"]),
        tests=tuple(what["tests"]),
        files=tuple(Path(file).resolve() for file in what["files"]),
        data={name: Path(path) for name, path in what["data"].items()},
        text=what["text"],
    )


def _storage(scratch: Path) -> str:
    """Return the option that gives pytest-benchmark a folder, which it makes even where it stores nothing."""
    return f"--benchmark-storage=file://{scratch / 'storage'}"


class Runs:
    """Measures commits against the good one, in a worktree of its own; `suite` is laid over both."""

    def __init__(self, repository: Repository, worktree: Worktree, suite: Suite, good: str, scratch: Path) -> None:
        self._repository = repository
        self._worktree = worktree
        self._suite = suite
        self._base = suite.on(good)
        self._scratch = scratch

    def measure(self, commit: str, plan: Plan, *, more: bool = False) -> Measured:
        """Return what a run of pytest at a commit says; `more` lets it measure longer, in more launches.

        Raises AgainstError where code of the checkout would be measured in the commit's place.
        """
        try:
            self._check_out(self._suite.on(commit))
        except AgainstError as error:
            return Measured(code=SKIP, why=str(error))
        here = self._worktree.path / plan.here
        if not here.is_dir():
            return Measured(code=SKIP, why=f"it has no folder {plan.here}")
        told, stored = self._scratch / "told.json", self._scratch / "run.json"
        # The run tells what it imported, and each process that it measures in, in a file of its own.
        for path in (stored, *self._scratch.glob(f"{told.name}*")):
            path.unlink(missing_ok=True)
        code, output = self._run(self._command(plan, stored, more=more), here, told)
        foreign = [_read(path).get("foreign") or {} for path in self._scratch.glob(f"{told.name}*")]
        for module, file in ((module, file) for one in foreign for module, file in one.items()):
            raise AgainstError(
                f"the run of {commit[:12]} imported {module} from this checkout ({file}), not from that commit: make "
                "it importable from the rootdir, or let `git bisect run` start a script that installs each commit"
            )
        if code > STOP and code != INTERRUPTED:
            return Measured(code=SKIP, why=f"the run was killed by signal {code - STOP}")
        judgements = _judgements(stored, plan.rules)
        return Measured(code=code, judgements=judgements, why=None if judgements else _reason(output))

    def _check_out(self, commit: str) -> None:
        for arguments in (("checkout", "--quiet", "--detach", "--force", commit), ("clean", "-ffdxq")):
            done = git(self._worktree.path, "-c", f"core.hooksPath={os.devnull}", *arguments)
            if done.returncode:
                raise AgainstError(f"git cannot check {commit[:12]} out: {last_line(done)}")
        missing = self._worktree.complete()
        if missing:
            raise AgainstError(f"{commit[:12]} cannot be checked out whole: {'; '.join(missing)}")

    def _command(self, plan: Plan, stored: Path, *, more: bool) -> list[str]:
        root = self._worktree.path / plan.root
        timed = all(rule.metric is not None and rule.metric.kind is Kind.TIMED for rule in plan.rules)
        return [
            *(sys.executable, "-m", "pytest", *PLUGIN, *plan.arguments, f"--rootdir={root}"),
            # A text that is asked for is measured after the profile round.
            *(["--infer-no-profile"] if timed and not plan.text else []),
            *(plan.longer if more else ()),
            *(f"--infer-gate={rule.text}" for rule in plan.rules),
            *("--infer-exit=bisect", f"--infer-against={self._base}"),
            *(f"--benchmark-json={stored}", _storage(self._scratch)),
            # As text: in a test's id a path would lose slashes.
            *(f"{root}/{test}" for test in plan.selected),
        ]

    def _run(self, command: Sequence[str], here: Path, told: Path) -> tuple[int, str]:
        """Return how a command ends and what it says; an interrupt lets it clean up first."""
        move = Move(self._repository.root, self._worktree.path)
        given = os.environ.get("PYTHONPATH", "")
        path = imports.python_path(sys.path, given, imports.PACKAGE.parent, move)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")},
            **({"PYTHONPATH": os.pathsep.join(path)} if path else {}),
            "PWD": str(here),
            TOLD: str(told),
            CHECKOUT: str(self._repository.root),
        }
        log = self._scratch / "log"
        with log.open("wb") as file:
            # A group of its own, for Ctrl-C is for us; not a session, which the kernel may give another share of time.
            process = subprocess.Popen(
                command, cwd=here, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0
            )
            try:
                code = process.wait()
            except BaseException:
                _end(process)
                remove_abandoned(self._repository)
                raise
        return (STOP - code if code < 0 else code), log.read_text(encoding="utf-8", errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, patience in zip((signal.SIGINT, signal.SIGTERM, signal.SIGKILL), _PATIENCE_S, strict=True):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        until = time.monotonic() + patience
        while process.poll() is None and time.monotonic() < until:
            # However often Ctrl-C is pressed.
            with suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
                process.wait(0.2)
        if process.poll() is not None:
            return


def longer(amounts: tuple[float, int, int]) -> tuple[str, ...]:
    """Return the options that let a run measure longer: several times of what it has, whoever said so."""
    seconds, launches, rounds = (factor * amount for factor, amount in zip(_MORE, amounts, strict=True))
    return (
        f"--infer-time={seconds:g}s",
        f"--infer-launches={min(launches, MOST_LAUNCHES)}",
        f"--infer-max-rounds={rounds}",
    )


def _judgements(stored: Path, rules: Sequence[Rule]) -> tuple[Judgement, ...]:
    """Return what a run judged, where GOOD itself breaks a bound nothing of it."""
    try:
        gate = runfile.read(stored, runfile.ALL).pytest_infer.gate
        rows = {row.test: row for row in runs.rows(stored)}
    except InferError:
        return ()
    found = () if gate is None else verdicts.restored(gate.judgements)
    alone = {rule.text: rule for rule in rules if not rule.compares}
    return tuple(
        structs.replace(judgement, verdict=Verdict.INCOMPARABLE, reason=NOT_OF_GOOD)
        if judgement.verdict is Verdict.REGRESSED
        and judgement.rule in alone
        and not _keeps(rows.get(judgement.test), alone[judgement.rule])
        else judgement
        for judgement in found
    )


def _keeps(row: runs.Row | None, bound: Rule) -> bool:
    """Return whether GOOD's own figures of a test are known to keep a bound."""
    if row is None or row.against is None:
        return False
    good = replace(row, metrics=row.against.metrics)
    return bounds.held(good, bound, CONFIDENCE, None).verdict is Verdict.UNCHANGED


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _reason(output: str) -> str:
    """Return the line of pytest's output that says best why there is no result."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for start in ("ERROR: ", "E  ", "FAILED ", "ERROR "):
        for line in lines:
            if line.startswith(start):
                return line.removeprefix("ERROR: ").removeprefix("E  ").strip()
    return lines[-1].strip("= ") if lines else "pytest said nothing"
