"""What kills and Ctrl-C lose: the real main job is interrupted at random moments, and resumed until it is through.

    python benchmarks/interruptions.py --kills 200 --interrupts 100      # two to three runs' time each
    python benchmarks/interruptions.py --kills 5 --interrupts 5          # a try

The job is a suite of six short prompts with reference-moe, run by `python -m pytest … --benchmark-autosave
--infer-resume`. Half of the jobs are interrupted once and half twice in a row, and then run to their end. A third of
the moments lie anywhere in a run; a third just after a prompt was finished; a third while the run is being saved. A
SIGKILL goes to pytest alone or to its whole process group (as a container's end does), a Ctrl-C to the group, as a
terminal sends it; every fourth is typed twice.

After each interruption and each end it counts: prompts that had been finished (a whole line in a journal) and were
measured again; files that are not whole; runs with the number of another; files of ours that are left once a job is
through; processes that outlive their run by 5 s; exit codes that say something else than what happened; and what the
commands warn of. It ends with exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pytest_infer.storage import history, journal

PROMPTS = 6
SUITE = """
[defaults]
max_new_tokens = 6

""" + "".join(
    f'[[prompt]]\nname = "p{number}"\ntext = "{"one two three " * (number + 1)}"\n\n' for number in range(PROMPTS)
)
TEST = "def test_prompt(infer, prompt):\n    infer(prompt)\n"
SAVING = ("--benchmark-autosave", "--infer-resume")
BRIEF = ("--infer-rounds=2", "--infer-no-probe", "--infer-repeat-disturbed=0", "--infer-threads=1")
OUTLIVES_S = 5.0
STUCK_S = 120.0

PASSED, INTERRUPTED = 0, 2
"""Exit codes of pytest."""


@dataclass
class Found:
    """What went wrong, by kind, each with a line; and how often what happened."""

    faults: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def fault(self, kind: str, line: str) -> None:
        """Count a fault and tell it."""
        self.counts[f"FAULT {kind}"] += 1
        self.faults.append(f"{kind}: {line}")
        print(f"! {kind}: {line}", flush=True)


@dataclass(frozen=True)
class Moment:
    """When a run is interrupted: so many seconds after `prompts` were finished, or after its start where it is None."""

    after_s: float
    prompts: int | None = None

    def __str__(self) -> str:
        """Return it for people."""
        since = "its start" if self.prompts is None else f"prompt {self.prompts}"
        return f"{self.after_s:.3f} s after {since}"


class Job:
    """The main job in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = folder / "results"
        self.process: subprocess.Popen[str] | None = None
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (folder / "prompts.toml").write_text(SUITE, encoding="utf-8")
        (folder / "test_suite.py").write_text(TEST, encoding="utf-8")

    def start(self) -> subprocess.Popen[str]:
        """Start a run in a process group of its own, as a shell does."""
        command = [sys.executable, "-m", "pytest", "test_suite.py", "-q", "-p", "no:cacheprovider", *SAVING, *BRIEF]
        with (self.folder / "said.txt").open("w") as said:
            self.process = subprocess.Popen(
                [*command, f"--benchmark-storage={self.storage}"],
                cwd=self.folder,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                preexec_fn=_hears,  # noqa: PLW1509 - there are no threads here
            )
        return self.process

    def end(self) -> None:
        """End a run that still goes on, as this program is ended."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def said(self) -> str:
        """Return the output of the last run."""
        return (self.folder / "said.txt").read_text(encoding="utf-8", errors="replace")

    def journals(self) -> set[Path]:
        """Return the journals that are there."""
        return set((self.storage / journal.FOLDER).glob("*.jsonl"))

    def finished(self, journals: set[Path] | None = None) -> set[str]:
        """Return the tests of which a journal holds a whole line."""
        found = set()
        for path in self.journals() if journals is None else journals:
            with suppress(FileNotFoundError):
                for line in path.read_bytes().split(b"\n")[:-1]:
                    found.add(json.loads(line)["nodeid"])
        return found

    def runs(self) -> dict[Path, list[str]]:
        """Return the run files, each with the tests that it took from a journal."""
        found = {}
        for path in self.storage.rglob("*.json"):
            run = json.loads(path.read_text(encoding="utf-8"))
            blocks = {row["fullname"]: row["extra_info"]["pytest_infer"] for row in run["benchmarks"]}
            totals = {name: block for name, block in blocks.items() if block["phase"] == "total"}
            found[path] = [name for name, block in totals.items() if block["rounds"]["resumed"]]
        return found


def _hears() -> None:
    # A shell's background jobs ignore Ctrl-C, and so would their children.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait(job: Job, process: subprocess.Popen[str], moment: Moment) -> bool:
    """Wait for a moment in a run; return False where it ended before."""
    began, before = time.monotonic(), job.journals()
    if moment.prompts is not None:
        while len(job.finished(job.journals() - before)) < moment.prompts:
            if process.poll() is not None or time.monotonic() - began > STUCK_S:
                return False
            time.sleep(0.002)
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment.after_s)
        return False
    return True


def interrupt(process: subprocess.Popen[str], kind: str, chance: random.Random) -> str:
    """Send a signal as its sender does, and return what was sent."""
    if kind == "kill":
        group = chance.random() < 0.5
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if group else process.kill()
        return "SIGKILL to the group" if group else "SIGKILL to pytest"
    twice = chance.random() < 0.25
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        if twice:
            time.sleep(chance.uniform(0.02, 0.5))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
    return "Ctrl-C twice" if twice else "Ctrl-C"


def ended(process: subprocess.Popen[str], found: Found, what: str) -> int:
    """Wait for the end of a run and of all its processes, and return its exit code."""
    try:
        code = process.wait(STUCK_S)
    except subprocess.TimeoutExpired:
        found.fault("hang", f"{what}: the run goes on for {STUCK_S:g} s")
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    until = time.monotonic() + OUTLIVES_S
    while time.monotonic() < until:
        if not _lives(process.pid):
            return code
        time.sleep(0.02)
    found.fault("outlives its run", what)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return code


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def check_files(job: Job, found: Found, what: str) -> None:
    """Count files that are not whole, and numbers that two runs have."""
    numbers = Counter[str]()
    for path in job.storage.rglob("*"):
        if path.is_dir() or journal.FOLDER in path.parts or path.name.startswith("."):
            continue
        numbers[path.name.partition("_")[0]] += path.suffix == ".json"
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
            elif path.name.endswith(".trace.json.gz"):
                json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
            elif path.suffix == ".npz":
                with zipfile.ZipFile(path) as archive:
                    half = archive.testzip()
                if half is not None:
                    found.fault("half file", f"{what}: {path}: {half}")
            else:
                found.fault("unknown file", f"{what}: {path}")
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            found.fault("half file", f"{what}: {path}: {error}")
    for number, times in numbers.items():
        if times > 1:
            found.fault("number", f"{what}: {times} runs are {number}")


def check_interrupted(job: Job, found: Found, code: int, what: str, *, measuring: bool) -> None:
    """Count an exit code that says something else than that the run was interrupted, or that it was through."""
    said = job.said()
    name = "SIGKILL" if "SIGKILL" in what else "Ctrl-C twice" if "twice" in what else "Ctrl-C"
    found.counts[f"exit code {code} after {name}"] += 1
    if name == "SIGKILL":
        fine = code in (-signal.SIGKILL, PASSED)
    else:
        # Python's own code: before pytest listens, while it ends or after it has, or at the second of two.
        ending = " passed" in said or len(job.finished()) == PROMPTS
        own = code == -signal.SIGINT and (not measuring or ending or name == "Ctrl-C twice")
        through = code == PASSED and len(job.finished()) in (0, PROMPTS)
        fine = code == INTERRUPTED or through or own
    if not fine or "INTERNALERROR" in said:
        found.fault("exit code", f"{what}: {code}\n{said[-3000:]}")


def check_through(job: Job, found: Found, earlier: set[str], known: set[Path], what: str) -> None:
    """Count what the last run of a job measured again, and what is left of the others once it is through."""
    made = {path: resumed for path, resumed in job.runs().items() if path not in known}
    if len(made) != 1:
        found.fault("no run", f"{what}: {len(made)} were saved\n{job.said()[-2000:]}")
    again = earlier - {test for resumed in made.values() for test in resumed}
    found.counts["prompts that were finished"] += len(earlier)
    found.counts["prompts that were taken up"] += len(earlier) - len(again)
    if again:
        found.fault("measured again", f"{what}: {', '.join(sorted(again))}")
    left = [path for path in job.storage.rglob("*") if path.name.startswith(".") or journal.FOLDER in path.parts]
    left = [path for path in left if path.is_file()]
    if left:
        found.fault("left", f"{what}: {', '.join(str(path.relative_to(job.storage)) for path in left)}")
    lines: list[str] = []
    listed = history.load(job.storage, lines.append)
    unreadable = [run.label for run in listed.runs if not run.readable]
    if listed.warnings or lines or unreadable:
        found.fault("warning", f"{what}: {[*listed.warnings, *lines, *unreadable]}")
    loud = [line for line in job.said().splitlines() if line.startswith("! ") and "disturbed" not in line]
    if loud or "left out" in job.said():
        found.fault("warning", f"{what}: {job.said()[-2000:]}")


@dataclass(frozen=True)
class Durations:
    """How long a run takes that nothing interrupts, seconds: all of it, and from its last prompt to its end."""

    whole: float
    saving: float


def measured(job: Job, found: Found) -> Durations:
    """Run the job to its end twice, the model then being in the page cache, and time the second."""
    for _ in range(2):
        began = time.monotonic()
        process = job.start()
        wait(job, process, Moment(0.0, prompts=PROMPTS))
        last = time.monotonic()
        code = ended(process, found, "an undisturbed run")
        if code != PASSED:
            raise SystemExit(f"the job itself fails:\n{job.said()}")
    return Durations(whole=time.monotonic() - began, saving=time.monotonic() - last)


def moments(chance: random.Random, durations: Durations, done: int) -> Moment:
    """Return a moment to interrupt a run of which `done` prompts are taken from a journal."""
    match chance.randrange(3):
        case 0:
            return Moment(chance.uniform(0, durations.whole))
        case 1:
            return Moment(chance.uniform(0, 0.1), prompts=chance.randint(min(done + 1, PROMPTS), PROMPTS))
        case _:
            return Moment(chance.uniform(0, durations.saving), prompts=PROMPTS)


def left(found: Found, kills: int, interrupts: int) -> list[str]:
    """Return the signals that are still to be sent."""
    return ["kill"] * (kills - found.counts["kill"]) + ["interrupt"] * (interrupts - found.counts["interrupt"])


def try_job(job: Job, kinds: list[str], durations: Durations, chance: random.Random, found: Found) -> None:
    """Interrupt a job, resume it until it is through, and count what is wrong on the way."""
    earlier: set[str] = set()
    known = set(job.runs())
    whats = []
    for kind in kinds:
        there = job.journals()
        process = job.start()
        moment = moments(chance, durations, len(earlier))
        over = not wait(job, process, moment)
        what = f"{interrupt(process, kind, chance)} {moment}"
        whats.append(what)
        code = ended(process, found, what)
        found.counts["over before its moment" if over else kind] += 1
        if not over:
            check_interrupted(job, found, code, what, measuring=bool(job.finished(job.journals() - there)))
        check_files(job, found, what)
        earlier = job.finished()
        known |= set(job.runs())
    what = ", then ".join(whats)
    code = ended(job.start(), found, what)
    if code != PASSED:
        found.fault("exit code", f"the resumed run, {what}: {code}\n{job.said()[-3000:]}")
    check_files(job, found, what)
    check_through(job, found, earlier, known, what)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--interrupts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no job after so many")
    options = parser.parse_args()
    chance, found = random.Random(options.seed), Found()  # noqa: S311 - not for secrets
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        job = Job(Path(name))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
        try:
            durations = measured(job, found)
            print(f"a run takes {durations.whole:.1f} s, {durations.saving:.1f} s after its last prompt", flush=True)
            while signals := left(found, options.kills, options.interrupts):
                if time.monotonic() - began > 60 * options.minutes:
                    break
                many = min(1 + found.counts["jobs"] % 2, len(signals))
                try_job(job, chance.sample(signals, many), durations, chance, found)
                found.counts["jobs"] += 1
        finally:
            job.end()
    for what, count in sorted(found.counts.items()):
        print(f"{count:6}  {what}")
    print(f"{len(found.faults)} faults in {time.monotonic() - began:.0f} s")
    raise SystemExit(bool(found.faults))


if __name__ == "__main__":
    main()
