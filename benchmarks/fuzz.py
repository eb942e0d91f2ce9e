"""What damaged files do: mutated files of every kind, through every command and through pytest.

    python benchmarks/fuzz.py --files 100000            # every file is made of --seed and its number
    python benchmarks/fuzz.py --only 4711               # one of them again, with its traceback

Real files are made from the record in tests/data: a run, the arrays beside it, a journal, baselines, caches, a prompt
suite, and a model's config, safetensors, index and GGUF. Each file is one of them with a few mutations: bytes (flipped,
inserted, cut, repeated), values of JSON (another type, a missing key, nesting, extreme numbers), arrays of another
kind, or no file at all (a pipe, a device, a folder). It lies among good ones while one command of those that read its
kind runs in this process; every --pytest-every th is also there while pytest runs a suite.

It counts exceptions that no command catches, what takes longer than 10 s, and what takes more than 1 GB of memory, and
ends with exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

from fuzz_files import PLACE, RUNS, make_good
from fuzz_mutations import (
    Mutation,
    arrays_mutated,
    bytes_mutated,
    header_bytes_mutated,
    header_mutated,
    line_mutated,
    no_file,
    value_mutated,
)
from fuzz_pytest import HANG_S, MOST_BYTES, Hang, Pytest, remove, run_pytest
from typer.testing import CliRunner

from pytest_infer import prompts
from pytest_infer.cli.main import app
from pytest_infer.errors import InferError
from pytest_infer.storage import block, journal, launch_spreads, probes

CACHED = {
    "probes.json": '{"host | boot | 2 cores | torch 2 | 2 threads | cpu": {"threads": 2, "read_bandwidth": 1e10, '
    '"read_bandwidth_spread": 0.01, "flops": {"float32": 1e11}, "caches": {"L2": 1000000}}}',
    "launch-spreads.json": '{"key": [{"at_ns": 1, "spreads": {"first": [0.1, 3.0], "step": [0.2, 3.0]}}]}',
}


# what reads them

STORED = (
    ("history",),
    ("history", "--change-points"),
    ("compare",),
    ("compare", "--format", "markdown", "--metric", "all", "99", "latest"),
    ("gate", "latest", "--mark", "--rule", "tpot:5%"),
    ("gate", "99", "--no-mark", "--against", "6", "--format", "json"),
    ("comment", "99"),
    ("undecided", "99"),
    ("show",),
    ("show", "99", "-v"),
    ("advice", "99"),
    ("export", "--all", "--rounds"),
    ("export", "99", "--wide", "--format", "jsonl"),
    ("experts", "99"),
    ("experts", "99", "--format", "csv"),
    ("placement", "99", "--gpu-memory", "200MiB"),
    ("report", "99", "-o", "report.html"),
    ("report", "2", "99", "-o", "report.html"),
    ("site", "public", "--keep=1", "--again"),
    ("baseline", "list"),
    ("baseline", "set", "other", "99"),
)


def command(*arguments: str) -> Callable[[Path], None]:
    """Return a call of a command, in the folder that is given, that raises what the command does not catch."""

    def call(_: Path) -> None:
        done = CliRunner().invoke(app, arguments)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        if not 0 <= done.exit_code < 64:
            raise RuntimeError(f"exit code {done.exit_code} of {' '.join(arguments)}")

    call.__name__ = " ".join(("pytest-infer", *arguments))
    return call


def stored(*arguments: str) -> Callable[[Path], None]:
    """Return a call of a command over the storage."""
    return command(*arguments, "--storage", "results")


def resumed(folder: Path) -> None:
    """Do what a run does that resumes."""
    for record in journal.newest(journal.interrupted(folder / "results")).values():
        block.build(record)


def suite(name: str) -> Callable[[Path], None]:
    """Return a call that reads a prompt suite."""

    def call(folder: Path) -> None:
        with suppress(InferError):
            prompts.load(folder / "suite" / name)

    call.__name__ = name
    return call


def caches(_: Path) -> None:
    """Read what is kept between runs."""
    probes.load(2)
    launch_spreads.earlier("key")


@dataclass(frozen=True)
class Kind:
    """A kind of file: where it lies in the folder, how it is mutated, and what reads it."""

    path: str
    mutations: tuple[Mutation, ...]
    readers: tuple[Callable[[Path], None], ...]
    copy_of: str | None = None


RUN = f"results/{PLACE}/0099_fuzzed.json"
LAST = f"results/{PLACE}/{RUNS:04}_run"
OF_RUNS = tuple(stored(*arguments) for arguments in STORED)
IMPORT = command("experts", "import", "responses.json", "--model", "./mixture", "-o", "c.json")
JSON = (bytes_mutated, value_mutated, value_mutated)
KINDS = {
    "run": Kind(RUN, JSON, OF_RUNS, copy_of=f"{LAST}.json"),
    "arrays": Kind(
        f"{LAST}.npz",
        (bytes_mutated, arrays_mutated, arrays_mutated),
        (stored("report", "-o", "report.html"), stored("experts"), stored("placement", "--gpu-memory", "200MiB")),
    ),
    "journal": Kind("results/.journal/old.jsonl", (bytes_mutated, line_mutated), (resumed,)),
    "baselines": Kind(
        "results/baselines.ini", (bytes_mutated,), (stored("history"), stored("compare", "1", "main"), OF_RUNS[-2])
    ),
    "toml": Kind("suite/prompts.toml", (bytes_mutated,), (suite("prompts.toml"),)),
    "accepted": Kind("bench/accepted.toml", (bytes_mutated,), (stored("gate", "--no-mark"),)),
    "jsonl": Kind("suite/prompts.jsonl", (bytes_mutated, line_mutated), (suite("prompts.jsonl"),)),
    "prompt": Kind("suite/long.txt", (bytes_mutated,), (suite("prompts.toml"),)),
    "config": Kind("whole/config.json", JSON, (command("doctor", "--model", "./whole"),)),
    "safetensors": Kind(
        "whole/model.safetensors", (bytes_mutated, header_mutated), (command("doctor", "--model", "./whole"),)
    ),
    "index": Kind("sharded/model.safetensors.index.json", JSON, (command("doctor", "--model", "./sharded"),)),
    "gguf": Kind("x.gguf", (header_bytes_mutated,), (command("doctor", "--model", "./x.gguf"),)),
    "census": Kind(
        "census.json",
        JSON,
        (
            command("experts", "census.json"),
            command("placement", "census.json", "--gpu-memory", "200MiB"),
            command("experts", "export", "census.json", "again.json"),
        ),
    ),
    "responses": Kind(
        "responses.json",
        JSON,
        (command("experts", "import", "responses.json", "--model", "./mixture", "-o", "c.json"),),
    ),
    "mixture": Kind(
        "mixture/config.json",
        JSON,
        (
            command("doctor", "--model", "./mixture", "--ram", "1GiB", "--vram", "1MiB", "--reserve", "0B"),
            IMPORT,
        ),
    ),
    "ini": Kind("pyproject.toml", (bytes_mutated,), (stored("gate", "--no-mark"), command("history"))),
    "probes": Kind("cache/probes.json", JSON, (caches, command("doctor"))),
    "spreads": Kind("cache/launch-spreads.json", JSON, (caches,)),
}
WEIGHTS = {name: 8 if name == "run" else 3 if name in ("arrays", "config", "gguf") else 1 for name in KINDS}
OF_PYTEST = ("run", "arrays", "journal", "baselines", "toml", "prompt", "spreads")


# one file after the other


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong with one file."""

    number: int
    kind: str
    reader: str
    what: str
    trace: str = ""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Hang in the block once it has taken so long."""

    def late(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Bench:
    """A folder of good files, in which one at a time is damaged."""

    def __init__(self, folder: Path, seed: int, pytest_every: int) -> None:
        self.folder = folder
        self._seed = seed
        self._every = pytest_every
        self.pytest = Pytest() if pytest_every else None
        make_good(folder)
        (folder / "cache").mkdir()
        for name, content in CACHED.items():
            (folder / "cache" / name).write_text(content, encoding="utf-8")
        self._good = {name: (folder / (kind.copy_of or kind.path)).read_bytes() for name, kind in KINDS.items()}

    def try_file(self, number: int) -> Iterator[Fault]:
        """Make a file by its number, let its readers have it, and yield what goes wrong."""
        chance = random.Random(f"{self._seed}/{number}")  # noqa: S311 - not for secrets
        through_pytest = self._every and number % self._every == 0
        names = list(OF_PYTEST if through_pytest else KINDS)
        name = chance.choices(names, [WEIGHTS[name] for name in names])[0]
        kind = KINDS[name]
        path = self.folder / kind.path
        backup = None if kind.copy_of else path.read_bytes()
        remove(path)
        if chance.randrange(60) == 0:
            no_file(path, chance)
        else:
            path.write_bytes(chance.choice(kind.mutations)(self._good[name], chance))
        reader = self._run_pytest if through_pytest else chance.choice(kind.readers)
        try:
            yield from self._read(reader, number, name)
        finally:
            remove(path)
            if backup is not None:
                path.write_bytes(backup)

    def _run_pytest(self, folder: Path) -> None:
        if self.pytest is not None:
            run_pytest(folder, self.pytest)

    def _read(self, reader: Callable[[Path], None], number: int, name: str) -> Iterator[Fault]:
        called = reader.__name__
        try:
            with limited(HANG_S if reader != self._run_pytest else 10 * HANG_S):
                reader(self.folder)
        except Hang:
            yield Fault(number, name, called, "hang", traceback.format_exc())
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
            yield Fault(number, name, called, what, traceback.format_exc())


def work(numbers: Any, faults: Any, folder: Path, seed: int, every: int) -> None:
    """Try files by their numbers until there is None; put None where this script itself fails."""
    try:
        _work(numbers, faults, folder, seed, every)
    except BaseException:
        faults.put(None)
        raise


def _work(numbers: Any, faults: Any, folder: Path, seed: int, every: int) -> None:
    os.chdir(folder)
    os.environ["PYTEST_INFER_CACHE"] = str(folder / "cache")
    bench = Bench(folder, seed, every)
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + MOST_BYTES
    # So that what takes all memory ends in an exception of this process, not of another.
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 4 * MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    while (number := numbers.get()) is not None:
        for fault in bench.try_file(number):
            faults.put(fault)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > limit:
            faults.put(Fault(number, "?", "?", "memory"))
            limit *= 2
        faults.put(number)
    if bench.pytest is not None:
        bench.pytest.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--first", type=int, default=1, metavar="N", help="the first file's number, for a part of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int, help="this file alone")
    parser.add_argument("--pytest-every", type=int, default=200, help="0: no run of pytest")
    options = parser.parse_args()
    numbers = [options.only] if options.only is not None else list(range(options.first, options.first + options.files))
    began = time.monotonic()
    faults = tried(numbers, options.jobs, options.seed, options.pytest_every)
    counts = Counter((fault.kind, fault.reader.partition(" --storage")[0], fault.what) for fault in faults)
    for (kind, reader, what), count in counts.most_common():
        first = next(f for f in faults if (f.kind, f.reader.partition(" --storage")[0], f.what) == (kind, reader, what))
        print(f"{count:6}  {kind}: {reader}: {what}  (--seed {options.seed} --only {first.number})")
        if options.only is not None:
            print(first.trace)
    hangs, memory = (sum(fault.what == what for fault in faults) for what in ("hang", "memory"))
    print(
        f"{len(numbers)} files in {time.monotonic() - began:.0f} s: {len(faults) - hangs - memory} uncaught, "
        f"{hangs} hangs, {memory} above 1 GB"
    )
    raise SystemExit(bool(faults))


def tried(numbers: list[int], jobs: int, seed: int, every: int) -> list[Fault]:
    """Return what went wrong with the files of these numbers; a worker that says nothing for two minutes hangs."""
    context = multiprocessing.get_context("spawn")
    queue, found = context.Queue(), context.Queue()
    for number in [*numbers, *[None] * jobs]:
        queue.put(number)
    faults: list[Fault] = []
    with tempfile.TemporaryDirectory() as name:
        workers = []
        for job in range(min(jobs, len(numbers))):
            folder = Path(name) / str(job)
            folder.mkdir()
            worker = context.Process(target=work, args=(queue, found, folder, seed, every), daemon=True)
            worker.start()
            workers.append(worker)
        left = len(numbers)
        while left:
            try:
                said = found.get(timeout=12 * HANG_S)
            except Empty:
                faults.append(Fault(0, "?", "?", "hang", "no worker says anything"))
                break
            if said is None:
                raise SystemExit("a worker ended: the fault is in this script")
            if isinstance(said, Fault):
                faults.append(said)
            else:
                left -= 1
        for worker in workers:
            worker.terminate()
            worker.join()
    return faults


if __name__ == "__main__":
    main()
