"""A launch: two processes of the same age, one a side, which measure a prompt whole or in turns of a token."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean, median

from msgspec.structs import replace

from pytest_infer.ab import protocol
from pytest_infer.ab.child_process import LOOK_S, ChildProcess
from pytest_infer.errors import AgainstError, SkippedError
from pytest_infer.measure import rounds
from pytest_infer.records import Pass, PromptRecord, Reference, Round


@dataclass(slots=True)
class Launch:
    """Two processes, the commit's and this checkout's, and what they measured of the test at hand.

    `serial` is its number in the run, which no other launch has.
    """

    serial: int
    before: ChildProcess
    after: ChildProcess
    holds: int = 0
    """The memory that both sides' models take, bytes, as far as it is known."""
    pairs: list[tuple[Round, Round]] = field(default_factory=list)
    passes: list[tuple[Pass, Pass]] = field(default_factory=list)
    first_tokens: list[tuple[Pass, Pass]] = field(default_factory=list)
    strayed: int = 0
    """How many halves of the kept passes generated other tokens than the first whole round of their side."""
    _like: tuple[Round, Round] | None = None
    _turns: int = 0
    _stops: bool = False

    def begin(self, nodeid: str) -> tuple[protocol.Begun, protocol.Begun]:
        """Let both sides run a test up to its first round, at the same time; raise SkippedError where one skips it."""
        for side in (self.before, self.after):
            side.check()
        self._forget()
        self.before.go(nodeid)
        self.after.go(nodeid)
        after = None
        while not self.before.says(LOOK_S):
            # What one cannot load is told before the other has loaded.
            if after is None and self.after.says(0):
                after = self.after.begun()
        try:
            before = self.before.begun()
        except SkippedError:
            # This side goes on alone.
            if after is None:
                self.after.begun()
            raise
        begun = before, after or self.after.begun()
        # A single thread sleeps in its read; of several, those that are idle spin.
        self._stops = any(one.threads != 1 for one in begun)
        return begun

    def warm_up(self, rounds: int) -> None:
        """Run whole rounds on each side that do not count."""
        for _ in range(rounds):
            self.before.warm_up()
            self.after.warm_up()

    def time(self, cores: tuple[int, ...], *, after_first: bool) -> None:
        """Run a whole round on each side."""
        if after_first:
            after = self.after.time(cores)
            self.pairs.append((self.before.time(cores), after))
        else:
            before = self.before.time(cores)
            self.pairs.append((before, self.after.time(cores)))

    def adopt(self, first: Launch) -> None:
        """Take the first whole rounds of another launch for those of this one, which has none of its own."""
        self._like = first.like
        for side, one in zip((self.before, self.after), self._like, strict=True):
            side.adopt(one.trace)

    @property
    def tells_tokens(self) -> bool:
        """Return whether the first whole rounds told the id of each token."""
        traces = [one.trace for one in self.like]
        return all(len(one.token_ids) == sum(one.tick_sizes) for one in traces)

    @property
    def ticks_alike(self) -> bool:
        """Return whether both sides' first whole rounds returned as many tokens at each tick, as far as both returned
        the same ones: what comes at once may depend on the text."""
        (one, other), done = [half.trace for half in self.like], 0
        for size, others in zip(one.tick_sizes, other.tick_sizes, strict=False):
            end = done + max(size, others)
            if one.token_ids[done:end] != other.token_ids[done:end]:
                return True
            if size != others:
                return False
            done = end
        return True

    @property
    def like(self) -> tuple[Round, Round]:
        """Return the whole rounds whose tokens passes generate, too."""
        return self._like or self.pairs[0]

    def differs_from(self, tokens: tuple[int, ...]) -> bool:
        """Return whether either side has generated other tokens in a whole round."""
        return any(one.trace.token_ids != tokens for pair in self.pairs for one in pair)

    def follow(self, reference: Reference) -> None:
        """Let both sides follow a reference from now on, and forget what they measured of the test until now."""
        for side in (self.before, self.after):
            side.follow(reference)
        self._forget()

    def _forget(self) -> None:
        self.pairs, self.passes, self.first_tokens, self.strayed, self._like = [], [], [], 0, None

    def take_turns(
        self, asked: protocol.TakeTurns, *, counts: bool = True
    ) -> tuple[protocol.TookTurns, protocol.TookTurns]:
        """Run a pass and return both halves; `asked` is what this checkout's side does, which begins or not."""
        self._let(asked)
        if not counts:
            # Cores are shifted with every second number: pairs of later passes stay pairs.
            self._turns += 1
        return self.before.took_turns(), self.after.took_turns()

    def take_apart(self, asked: protocol.TakeTurns) -> tuple[protocol.TookApart, protocol.TookApart]:
        """Run a pass whose steps are observed on both sides."""
        self._let(replace(asked, observe=True))
        return self.before.took_apart(), self.after.took_apart()

    def encode(self, times: int) -> tuple[float, float]:
        """Return how long each side's tokeniser takes, nanoseconds: means of the medians of two tries, A B B A."""
        before = [self.before.encode(times)]
        after = [self.after.encode(times), self.after.encode(times)]
        before.append(self.before.encode(times))
        return fmean(map(median, before)), fmean(map(median, after))

    def _let(self, asked: protocol.TakeTurns) -> None:
        """Let both sides run a pass, and wait for its end."""
        self._turns += 1
        theirs, ours = (side.pid if self._stops else 0 for side in (self.before, self.after))
        self.before.take_turns(replace(asked, number=self._turns, begins=not asked.begins, partner=ours))
        self.after.take_turns(replace(asked, number=self._turns, partner=theirs))
        for side, partner in ((self.before, self.after), (self.after, self.before)):
            while not side.says(LOOK_S):
                if partner.gone:
                    # Stopped by it, or with a turn to come of it that never will.
                    side.end_with(partner)

    def keep(
        self,
        took: tuple[protocol.TookTurns, protocol.TookTurns],
        *,
        tokens: int | None = None,
        skip: int | None = None,
    ) -> None:
        """Keep a pass, which was of so many tokens, or all, and began behind so many."""
        one = took[0].taken, took[1].taken
        (self.first_tokens if tokens == 1 else self.passes).append(one)
        for half, whole in zip(one, self.like, strict=True):
            self.strayed += half.token_ids != whole.trace.token_ids[skip or 0 :][:tokens]

    def finish(
        self, keep: tuple[int, ...], *, tell: bool
    ) -> tuple[tuple[PromptRecord, str | None], tuple[PromptRecord, str | None]]:
        """End the test on both sides; return the record of each, the commit's first, and why it did not pass after
        all. `tell` what failed beside the rounds, which each launch says anew."""
        return self.before.finish(keep, tell=tell), self.after.finish(keep, tell=tell)

    def kept(self, each: int) -> tuple[int, ...]:
        """Return the numbers of the pairs of whole rounds that count, `each` of them."""
        return rounds.rounds_to_keep([disturbed(pair) for pair in self.pairs], each)

    def abandon(self, *, loading: bool = True) -> str | None:
        """End the test on both sides, at the same time, without a record; return why one cannot go on, if so.

        Without `loading` what still loads its model is waited for when the next test begins.
        """
        try:
            for side in (self.before, self.after):
                side.abandon()
            for side in (self.before, self.after):
                if loading or not side.loading:
                    side.abandoned()
        except AgainstError as error:
            return str(error)
        return None

    @property
    def broken(self) -> bool:
        """Whether a side cannot go on."""
        return self.before.broken or self.after.broken

    def hang_up(self) -> None:
        """Let both processes end; `close` waits for them."""
        self.before.hang_up()
        self.after.hang_up()

    def close(self) -> None:
        """End both processes, at once."""
        self.hang_up()
        self.before.close()
        self.after.close()


def disturbed(pair: tuple[Round, Round]) -> bool:
    """Return whether either round of a pair was."""
    return any(one.disturbed for one in pair)


@contextmanager
def pipes() -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the ends of two pipes, a pair of ends for each side, and close them here: their processes have them."""
    ends: list[int] = []
    try:
        try:
            ends += os.pipe()
            ends += os.pipe()
        except OSError as error:
            raise AgainstError(f"a launch cannot be started: {error.strerror}") from error
        read_a, write_b, read_b, write_a = ends
        yield (read_a, write_a), (read_b, write_b)
    finally:
        for end in ends:
            os.close(end)
