"""A prompt in turns of a token: what a pass is, how many fit the time, and when there are enough."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from msgspec.structs import replace

from pytest_infer.ab import protocol
from pytest_infer.ab.launch import Launch
from pytest_infer.ab.settling import CoreSchedule
from pytest_infer.records import Round, Turns

WARM_TOKENS = 4
"""So many tokens warm up a launch but the first: the prefill's shape and a few steps."""
LEAST_LAUNCHES = 3
"""Fewer cannot tell how far launches lie apart: so many are measured whatever the time."""
_SHORT = (False, True, True, False)
"""Whether this checkout begins, in passes of one token. Such a pass has no neighbours within to average over, and who
ended a pass finds its own weights in the caches if it begins the next: in this order either side does equally often."""
_LEAST_QUADS = 4
"""Turns are short enough for so many quads in a pass, whatever that costs."""
LEAST_TOKENS = 1 + 2 * _LEAST_QUADS
"""A pass is of no fewer tokens, if the prompt has as many."""
_LITTLE = 0.25
"""Passes are of as many tokens as cost this share of the prefills in a cycle, whatever the time: so long a prompt would
be read for little."""
_READ = 0.04
"""A token that is read costs at least this share of one that is generated, which a short prompt does not show."""
WHOLE_PART = 3
"""Where there is too little time, whole rounds take one part of so many, as passes tell a time more exactly."""
_MOST_OVERHEAD = 2.0
"""A turn may cost so many times what is computed in it; else it takes several tokens."""
_HARDLY_MORE = 1.1
"""All tokens are measured, and in all launches, even if that takes up to so many times the time there is."""
MOST_PACE = 1.3
"""Passes are planned to take at most so many times what whole rounds of as many tokens do."""
_LEAST_RUNNING = 0.5
"""A round is taken to have run for at least this share of its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a prompt costs, by pairs of whole rounds: seconds of both sides, and of both first tokens.

    `prompt` tokens were given, and at least `generated` ones returned on either side.
    """

    pair_s: float
    first_s: float
    prompt: int
    generated: int

    @classmethod
    def of(cls, pairs: Sequence[tuple[Round, Round]], *, without_waits: bool = False) -> Cost:
        """Return that of some pairs, their mean; or what it would be if their threads had not waited for cores."""
        firsts, wholes = [], []
        for one in (one for pair in pairs for one in pair):
            running = _running(one) if without_waits else 1.0
            firsts.append(running * (one.trace.stamps_ns[0] - one.trace.start_ns))
            wholes.append(running * (one.trace.stamps_ns[-1] - one.trace.start_ns))
        traces = [one.trace for one in pairs[0]]
        return cls(
            pair_s=2 * fmean(wholes) / 1e9,
            first_s=2 * fmean(firsts) / 1e9,
            prompt=max(1, traces[0].prompt_tokens),
            generated=min(sum(one.tick_sizes) for one in traces),
        )

    @property
    def token_s(self) -> float:
        """Return what a further token costs."""
        return (self.pair_s - self.first_s) / max(1, self.generated - 1)

    def short(self, tokens: int) -> int:
        """Return how many passes of one token a cycle has: fewer where its two others are not of all tokens, or these
        would cost more than those."""
        more = 2 * len(_SHORT)
        return more if tokens == self.generated and more * self.first_s <= 2 * self.pair_s else len(_SHORT)

    def parts(self, budget_s: float, launches: int, rounds: int, *, turns: bool, windows: bool) -> Parts:
        """Return what is measured in each of at most so many launches, so that it fits the time.

        Without turns of a token that is three pairs of whole rounds; else a pair of them and a cycle of passes.
        There are more such pairs if there is time, until all launches have `rounds` together. If there is too little,
        and passes may be `windows`, these are as short as need be, and whole rounds are a pair in fewer launches, no
        more than fit a third of the time or leave none for a cycle. `LEAST_LAUNCHES` are measured anyway.
        """
        least = min(launches, LEAST_LAUNCHES)
        cycle_s = self._cycle_s(self.generated) if turns else 2 * self.pair_s
        fit = min(launches, int(budget_s / (self.pair_s + cycle_s)))
        count = max(least, fit)
        room = budget_s / count - cycle_s if turns else budget_s / count
        each = max(1, min(math.ceil(rounds / count), int(room / self.pair_s)))
        all_whole = Parts(launches=count, whole=count, rounds=each)
        if fit == launches or not windows:
            return all_whole
        fitting = int(budget_s / max(WHOLE_PART * self.pair_s, self.pair_s + self._cycle_s(self._fewest)))
        whole = max(least, min(launches, rounds, fitting))
        room = max(budget_s / 2, budget_s - whole * self.pair_s)
        launches = min(launches, max(whole, int(room / self._cycle_s(self._fewest))))
        return all_whole if launches <= fit else Parts(launches=launches, whole=whole, rounds=1)

    def over(self, room_s: float, launches: int) -> Windows:
        """Return what passes are of if each of so many launches has a cycle of them: all tokens, if these take hardly
        more than the time, else as many as fit it, and a few at least."""
        if launches * self._cycle_s(self.generated) <= _HARDLY_MORE * room_s:
            return Windows(tokens=self.generated)
        tokens = self._fewest
        while tokens < self.generated and launches * self._cycle_s(tokens + 1) <= room_s:
            tokens += 1
        return Windows.over(self.generated, tokens)

    def at_pace(self, took_s: float, tokens: int) -> Cost:
        """Return the cost by what a pass of so many tokens took, which handing over makes dearer; a single pass that
        took far longer was disturbed."""
        pace = min(MOST_PACE, max(1.0, took_s / self._pass_s(tokens)))
        return dataclasses.replace(self, pair_s=pace * self.pair_s, first_s=pace * self.first_s)

    @property
    def _fewest(self) -> int:
        """Return of how many tokens a pass is at least."""
        cheap = int(_LITTLE * self._cycle_s(1) / max(2 * self.token_s, 1e-9))
        return min(self.generated, max(LEAST_TOKENS, cheap))

    def _pass_s(self, tokens: int) -> float:
        """Return what a pass of so many tokens costs; one that begins further on has read the tokens before it."""
        reads = max(_READ * self.token_s, (self.first_s - self.token_s) / max(1, self.prompt - 1))
        behind = (self.generated - tokens) / 2
        return self.first_s + min(reads, self.first_s / self.prompt) * behind + self.token_s * (tokens - 1)

    def _cycle_s(self, tokens: int) -> float:
        return self.short(tokens) * self.first_s + 2 * self._pass_s(tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Which of a prompt's tokens passes generate: `tokens` of them, behind so many in the first pass of a cycle that is
    not of the first token only, and in the second.

    All of them in both passes, if there is time. Else the middles of the two windows lie as far before the middle of
    the text as behind it, at a quarter and at three quarters where they fit there: a change that grows with the length
    of the text counts as it does in the time per token, and every launch measures the same.
    """

    tokens: int
    skips: tuple[int, int] = (0, 0)

    @classmethod
    def over(cls, generated: int, tokens: int) -> Windows:
        """Return the windows of so many tokens."""
        first = max(0, round(generated / 4 - tokens / 2))
        return cls(tokens=tokens, skips=(first, generated - tokens - first))

    @property
    def whole(self) -> bool:
        """Whether they are all tokens."""
        return not any(self.skips)

    @property
    def asked(self) -> tuple[dict[str, int], ...]:
        """Return what both passes are asked for; nothing where they are of all tokens."""
        return tuple({} if self.whole else {"tokens": self.tokens, "skip": skip} for skip in self.skips)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """In how many `launches` a prompt is measured, in how many of these whole too, and by how many `rounds` in each.

    The launches without whole rounds are the last ones.
    """

    launches: int
    whole: int
    rounds: int


def _cycle(short: int, windows: Windows, *, reverse: bool) -> list[tuple[bool, dict[str, int]]]:
    """Return the passes of a launch in a cycle, whether this checkout begins and what they are asked for: the short
    ones, then the two windows. In reverse the other side begins them."""
    one, other = windows.asked
    passes = [*((begins, {"tokens": 1}) for begins in _SHORT * (short // len(_SHORT))), (True, one), (False, other)]
    return [(begins is not reverse, asked) for begins, asked in passes]


def measure(
    launches: Sequence[Launch],
    cost: Cost,
    *,
    windows: bool,
    threads: int | None,
    rounds: int,
    budget_s: float,
    enough: Callable[[Turns], bool],
) -> Turns:
    """Run cycles of passes in all launches until there are enough or the time is up, and return the ratios.

    Passes are of all tokens, or may be `windows` of them. `rounds` whole ones were measured in each launch that has
    any; `budget_s` is what the passes may take. Of the last cycle as many launches as fit have theirs. Of the first one
    all have, or of windows those that begin when hardly more time than that is over, and `LEAST_LAUNCHES`.
    """
    # Imported late: numpy and scipy are for runs that compare.
    from pytest_infer.analysis.compare import launches as estimates  # noqa: PLC0415
    from pytest_infer.analysis.compare import undisturbed  # noqa: PLC0415

    started = time.monotonic()
    over = cost.over(budget_s, len(launches)) if windows else Windows(tokens=cost.generated)
    probed = launches[0].take_turns(replace(asked(threads), **over.asked[0]))
    if windows:
        took_s = max(one.wall_ns for one in probed) / 1e9
        over = cost.at_pace(took_s, over.tokens).over(budget_s - took_s, len(launches))
    how = replace(asked(threads), every=_ticks_a_turn(probed, over.tokens))
    short, tell = cost.short(over.tokens), waits_tell(threads)
    cycles, took_s = 0, 0.0
    while True:
        begun, ran = time.monotonic(), 0
        # There may be no time for all: it is best spent where least is known.
        known = [undisturbed.count(one.passes, how.every) if tell else 0 for one in launches]
        for number in sorted(range(len(launches)), key=known.__getitem__):
            spent_s = time.monotonic() - started
            if cycles and spent_s + took_s / 2 > budget_s:
                break
            if windows and ran >= LEAST_LAUNCHES and spent_s > _HARDLY_MORE * budget_s:
                break
            # Who begins and which window it is would be one thing if it were the same in all launches.
            _run(launches[number], how, _cycle(short, over, reverse=(cycles + number) % 2 == 1))
            ran += 1
            took_s = (time.monotonic() - begun) / ran
        cycles += ran == len(launches) or not cycles
        taken = [(one.first_tokens, one.passes) for one in launches]
        ratios, shares = estimates.ratios(taken, how.every, waits_tell=tell)
        found = Turns(
            every=how.every,
            cycles=cycles,
            seconds=time.monotonic() - started,
            ratios=ratios,
            rounds=rounds,
            tokens=None if over.whole else over.tokens,
            undisturbed=shares,
            launches=tuple(launch.serial for launch in launches),
        )
        if enough(found) or ran < len(launches) or found.seconds + took_s / 2 > budget_s:
            return dataclasses.replace(found, strayed=sum(launch.strayed for launch in launches))


def waits_tell(threads: int | None) -> bool:
    """Return whether threads that wait for a core tell of something else that runs: without a core each they wait for
    one another."""
    return threads is None or threads <= len(CoreSchedule(None).all)


def _run(launch: Launch, how: protocol.TakeTurns, cycle: Sequence[tuple[bool, dict[str, int]]]) -> None:
    """Run the passes of a cycle, and keep them."""
    for begins, of in cycle:
        one = replace(how, begins=begins, **of)
        launch.keep(launch.take_turns(one), tokens=one.tokens, skip=one.skip)


def try_out(launch: Launch, threads: int | None) -> None:
    """Run one token on both sides, which does not count: what only a short pass shows is told before all others."""
    launch.take_turns(replace(asked(threads), tokens=1), counts=False)


def warm_up(launch: Launch, threads: int | None) -> None:
    """Run a few tokens on both sides, which do not count."""
    launch.take_turns(replace(asked(threads), tokens=WARM_TOKENS))


def asked(threads: int | None) -> protocol.TakeTurns:
    """Return what every pass of a prompt has in common."""
    cores = CoreSchedule(None).all if threads == 1 else ()
    return protocol.TakeTurns(number=0, begins=False, every=1, cores=cores)


def _ticks_a_turn(took: Sequence[protocol.TookTurns], tokens: int) -> int:
    """Return how many ticks a turn should have, by what handing over cost in a pass with one tick a turn; passes will
    be of so many tokens."""
    own = [(one.taken.stamps_ns[-1] - one.taken.start_ns) for one in took]
    ticks = sum(len(one.taken.stamps_ns) for one in took)
    overhead = max(0, max(one.wall_ns for one in took) - sum(own)) / ticks
    most = (min(tokens, *(len(one.taken.stamps_ns) for one in took)) - 1) // (2 * _LEAST_QUADS)
    return max(1, min(most, math.ceil(overhead / (_MOST_OVERHEAD * sum(own) / ticks))))


def _running(one: Round) -> float:
    """Return the share of a round in which its threads did not wait for a core, as far as that is known.

    Waits of several threads at once add up to more than what they cost.
    """
    waited, took_s = one.counters.run_queue_wait_s.value, (one.trace.stamps_ns[-1] - one.trace.start_ns) / 1e9
    return 1.0 if waited is None else max(_LEAST_RUNNING, 1 - waited / took_s)
