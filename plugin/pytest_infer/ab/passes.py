"""A prompt in turns of a token: what a pass is, how many fit the time, and when there are enough."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
_MOST_OVERHEAD = 2.0
"""A turn may cost so many times what is computed in it; else it takes several tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a prompt costs, by a pair of whole rounds: seconds of both, and of both first tokens.

    `prompt` tokens were given, and at least `generated` ones returned on either side.
    """

    pair_s: float
    first_s: float
    prompt: int
    generated: int

    @classmethod
    def of(cls, pair: tuple[Round, Round]) -> Cost:
        """Return that of a pair."""
        traces = [one.trace for one in pair]
        return cls(
            pair_s=sum(one.stamps_ns[-1] - one.start_ns for one in traces) / 1e9,
            first_s=sum(one.stamps_ns[0] - one.start_ns for one in traces) / 1e9,
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

        Of an engine that takes no turns that is three pairs of whole rounds; else a pair of them and a cycle of passes.
        There are more such pairs if there is time, until all launches have `rounds` together. If there is too little,
        and passes may be `windows`, these are as short as need be, and whole rounds are a pair in fewer launches, no
        more than fit half of the time or leave none for a cycle. `LEAST_LAUNCHES` are measured anyway.
        """
        least = min(launches, LEAST_LAUNCHES)
        cycle_s = self._cycle_s(self.generated) if turns else 2 * self.pair_s
        fit = min(launches, int(budget_s / (self.pair_s + cycle_s)))
        count = max(least, fit)
        room = budget_s / count - cycle_s if turns else budget_s / count
        all_whole = Parts(
            launches=count,
            whole=count,
            rounds=max(1, min(math.ceil(rounds / count), int(room / self.pair_s))),
            windows=Windows(tokens=self.generated),
        )
        if fit == launches or not windows:
            return all_whole
        cheap = int(_LITTLE * self._cycle_s(1) / max(2 * self.token_s, 1e-9))
        tokens = min(self.generated, max(LEAST_TOKENS, cheap))
        fitting = int(budget_s / max(2 * self.pair_s, self.pair_s + self._cycle_s(tokens)))
        whole = max(least, min(launches, rounds, fitting))
        room = max(budget_s / 2, budget_s - whole * self.pair_s)
        launches = min(launches, max(whole, int(room / self._cycle_s(tokens))))
        if launches <= fit:
            return all_whole
        while tokens < self.generated and launches * self._cycle_s(tokens + 1) <= room:
            tokens += 1
        return Parts(launches=launches, whole=whole, rounds=1, windows=Windows.over(self.generated, tokens))

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
    """In how many `launches` a prompt is measured, in how many of these whole too, by how many `rounds` in each, and
    what passes are of.

    The launches without whole rounds are the last ones.
    """

    launches: int
    whole: int
    rounds: int
    windows: Windows


def _cycle(short: int, windows: Windows, *, reverse: bool) -> list[tuple[bool, dict[str, int]]]:
    """Return the passes of a launch in a cycle, whether this checkout begins and what they are asked for: the short
    ones, then the two windows. In reverse the other side begins them."""
    one, other = windows.asked
    passes = [*((begins, {"tokens": 1}) for begins in _SHORT * (short // len(_SHORT))), (True, one), (False, other)]
    return [(begins is not reverse, asked) for begins, asked in passes]


def measure(
    launches: Sequence[Launch],
    cost: Cost,
    windows: Windows,
    *,
    threads: int | None,
    rounds: int,
    budget_s: float,
    enough: Callable[[Turns], bool],
) -> Turns:
    """Run cycles of passes in all launches until there are enough or the time is up, and return the ratios.

    `rounds` whole ones were measured in each that has any; `budget_s` is what the passes may take: of a last cycle, as
    many launches as fit.
    """
    # Imported late: numpy and scipy are for runs that compare.
    from pytest_infer.analysis.compare import launches as estimates  # noqa: PLC0415

    started = time.monotonic()
    how, short = asked(threads), cost.short(windows.tokens)
    how = replace(how, every=_ticks_a_turn(launches[0].take_turns(replace(how, **windows.asked[0]))))
    # Threads without a core each wait for one another.
    waits_tell = threads is None or threads <= len(CoreSchedule(None).all)
    cycles, took_s, over = 0, 0.0, False
    while True:
        begun = time.monotonic()
        for number, launch in enumerate(launches):
            over = cycles > 0 and time.monotonic() - started + took_s > budget_s
            if over:
                break
            # Who begins and which window it is would be one thing if it were the same in all launches.
            _run(launch, how, _cycle(short, windows, reverse=(cycles + number) % 2 == 1))
        now = time.monotonic()
        cycles += not over
        took_s = (now - begun) / len(launches)
        taken = [(one.first_tokens, one.passes) for one in launches]
        ratios, undisturbed = estimates.ratios(taken, how.every, waits_tell=waits_tell)
        found = Turns(
            every=how.every,
            cycles=cycles,
            seconds=now - started,
            ratios=ratios,
            rounds=rounds,
            tokens=None if windows.whole else windows.tokens,
            undisturbed=undisturbed,
        )
        if enough(found) or over or now - started + took_s > budget_s:
            return dataclasses.replace(found, strayed=sum(launch.strayed for launch in launches))


def _run(launch: Launch, how: protocol.TakeTurns, cycle: Sequence[tuple[bool, dict[str, int]]]) -> None:
    """Run the passes of a cycle, and keep them."""
    for begins, of in cycle:
        one = replace(how, begins=begins, **of)
        launch.keep(launch.take_turns(one), first_token=one.tokens == 1, skip=one.skip)


def warm_up(launch: Launch, threads: int | None) -> None:
    """Run a few tokens on both sides, which do not count."""
    launch.take_turns(replace(asked(threads), tokens=WARM_TOKENS))


def asked(threads: int | None) -> protocol.TakeTurns:
    """Return what every pass of a prompt has in common."""
    cores = CoreSchedule(None).all if threads == 1 else ()
    return protocol.TakeTurns(number=0, begins=False, every=1, cores=cores)


def _ticks_a_turn(took: Sequence[protocol.TookTurns]) -> int:
    """Return how many ticks a turn should have, by what handing over cost in a pass with one tick a turn."""
    own = [(one.taken.stamps_ns[-1] - one.taken.start_ns) for one in took]
    ticks = sum(len(one.taken.stamps_ns) for one in took)
    overhead = max(0, max(one.wall_ns for one in took) - sum(own)) / ticks
    most = (min(len(one.taken.stamps_ns) for one in took) - 1) // (2 * _LEAST_QUADS)
    return max(1, min(most, math.ceil(overhead / (_MOST_OVERHEAD * sum(own) / ticks))))
