"""Resident memory of a tree of processes, now and at most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_infer.measure.counters.elsewhere.tree import GONE, Tree
from pytest_infer.measure.counters.kernel_files import FAILURES, Sample, Unavailable, now, why
from pytest_infer.measure.counters.memory import SIZES, parse_smaps_rollup, parse_status, resident_of
from pytest_infer.measure.counters.peak import RESET, HelperPeak, Peak, interval_s, known_problem
from pytest_infer.records import Quality, Reading, absent

SUMMED = ", pages that they share counted in each"


class TreeMemory:
    """Resident and swapped bytes, summed over the processes; exact for a single one."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def read(self) -> Sample | Unavailable:
        """Return sums of bytes, as `parse_status` names them."""
        total: Sample = {}
        try:
            for _, one in self._tree.each(lambda m: parse_status(m.read("status"))):
                for name, value in one.items():
                    total[name] = total.get(name, 0) + value
        except FAILURES as error:
            return Unavailable(why(error, self._tree.source("status")))
        missing = self._tree.missing()
        return total if missing is None else Unavailable(missing)

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the sizes at the end of the window, and the resident and anonymous sizes before it."""
        shared, quality = ("", Quality.EXACT) if self._tree.size == 1 else (SUMMED, Quality.ESTIMATED)
        return {
            name: now(after if at_end else before, key, self._tree.source(f"status {what}{shared}"), quality)
            for name, (key, what, at_end) in SIZES.items()
        }

    def close(self) -> None:
        """The tree is closed by whoever made it."""


class TreePeak:
    """The kernel's own marks, VmHWM of each process, reset through clear_refs: exact for a single process.

    Of several the marks are added, each of which was reached at its own moment: as much as the highest sum, or more.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._seen: set[str] = set()
        self._several = self._ended = False

    @property
    def source(self) -> str:
        """Name the source of the value."""
        several = f", sum of marks that each reached at its own time{SUMMED}" if self._several else ""
        return self._tree.source(f"status VmHWM, reset before{several}") + (
            ", without children that ended" if self._ended else ""
        )

    @property
    def quality(self) -> Quality:
        """Return whether it is one process's mark."""
        return Quality.BOUND if self._ended else Quality.ESTIMATED if self._several else Quality.EXACT

    def take(self) -> float | Unavailable:
        """Return the sum of the marks, and reset each to the present size."""
        self._tree.refresh()
        total, taken = 0, set()
        try:
            for member, one in self._tree.each(lambda m: parse_status(m.read("status"))):
                taken.add(member.key)
                # One that has ended and was not waited for has no memory.
                total += int(one.get("peak", 0))
                try:
                    member.write("clear_refs", RESET)
                except GONE:
                    continue
        except FAILURES as error:
            return Unavailable(why(error, self._tree.source("clear_refs")))
        self._several, self._ended = len(taken | self._seen) > 1, bool(self._seen - taken)
        self._seen = taken
        return total or Unavailable(self._tree.missing() or f"{self._tree.source('status')} has no VmHWM")

    def close(self) -> None:
        """The tree is closed by whoever made it."""


def peak_of(tree: Tree, proc: Path, usable_cores: float) -> Peak:
    """Choose the kernel's marks where they can be reset from here, a sampling helper process elsewhere."""
    problem = known_problem(proc)
    if problem is None:
        kernel = TreePeak(tree)
        taken = kernel.take()
        if not isinstance(taken, Unavailable):
            return Peak(kernel)
        problem = taken.reason
    return Peak(HelperPeak(interval_s(usable_cores), linux=True, pids=tree.roots), problem)


def footprint(tree: Tree) -> tuple[Reading, Reading]:
    """Return the sums of the (proportional, unique) set sizes, bytes: what several share is counted once, or not."""
    total = {"pss": 0.0, "uss": 0.0}
    source = tree.source("smaps_rollup")
    try:
        tree.refresh()
        for _, one in tree.each(lambda m: parse_smaps_rollup(m.whole("smaps_rollup"))):
            total = {name: value + one[name] for name, value in total.items()}
        missing = tree.missing()
        sample: Sample | Unavailable = total if missing is None else Unavailable(missing)
    except FAILURES as error:
        sample = Unavailable(why(error, source))
    return now(sample, "pss", f"{source} Pss"), now(sample, "uss", f"{source} Private_*")


def mapped(tree: Tree, files: Sequence[Path]) -> Reading:
    """Return the resident bytes of these files that the processes have mapped; of several, the most that one has."""
    source = tree.source("smaps Rss - Anonymous")
    if not files:
        return absent("the engine does not tell the files of the weights", source)
    try:
        # They are the same pages, in whichever process.
        most = max((resident_of(text, files) for _, text in tree.each(lambda m: m.whole("smaps"))), default=0)
    except FAILURES as error:
        return absent(why(error, source), source)
    missing = tree.missing()
    return Reading(value=most, source=source) if missing is None else absent(missing, source)
