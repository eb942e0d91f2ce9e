"""One prompt, measured in all launches: whole rounds, passes in turns of a token, and steps taken apart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pytest_infer.ab import apart, divergence, passes, protocol
from pytest_infer.ab.launch import Launch, disturbed
from pytest_infer.ab.other_commit import OtherCommit
from pytest_infer.ab.settling import CoreSchedule, most_threads
from pytest_infer.measure import rounds
from pytest_infer.measure.breakdown.taken import OFF
from pytest_infer.pytest_face.session import InferSession
from pytest_infer.records import PromptInfo, Reference, Turns

Chosen = Callable[[Sequence[protocol.Begun], int], Sequence[Launch]]
"""Given what both sides of the first launch need, and how many launches fit the time, returns those to use."""


class OnePrompt:
    """Measures one prompt in all launches."""

    def __init__(
        self,
        session: InferSession,
        commit: OtherCommit,
        info: PromptInfo,
        plan: rounds.RoundPlan,
        config: Mapping[str, str],
    ) -> None:
        self._session = session
        self._settings = session.settings
        self._commit = commit
        self._info = info
        self._plan = plan
        self._config = config
        # What the sides can do is known when the first launch has begun.
        self._threads: int | None = None
        self._takes_turns = self._windows = False
        self._no_turns: str | None = None

    def begin(self, nodeid: str, first: Launch) -> tuple[protocol.Begun, protocol.Begun]:
        """Begin in the first launch; raise SkippedError where a side skips it."""
        self._say("warm-up")
        return first.begin(nodeid)

    def measure(
        self, nodeid: str, begun: tuple[protocol.Begun, protocol.Begun], first: Launch, chosen: Chosen
    ) -> tuple[Sequence[Launch], Turns]:
        """Measure it, and return the launches that have whole rounds of it, which are still to finish, and what turns
        say."""
        self._first_pair(begun, first)
        asked = self._settings.launches
        fitting = self._parts(first, asked).launches
        used = chosen(begun, fitting)
        parts = self._parts(first, len(used))
        self._begin_others(nodeid, used, parts.whole)
        started = time.monotonic()
        reference = self._whole_or_followed(begun, used, parts)
        whole = [launch for launch in used if launch.pairs]
        others = used[len(whole) :]
        for number, launch in enumerate(others, len(whole)):
            if number < parts.whole and not self._plan.warmup:
                passes.warm_up(launch, self._threads)
            launch.adopt(first)
        left_s = self._settings.time_s - (time.monotonic() - started)
        if self._plan.profile:
            self._say("profile")
            self._profile(first, reference)
        found = self._turns(used, parts.rounds, left_s) if self._takes_turns else self._more(used, parts.rounds, left_s)
        if fitting < asked or (self._takes_turns and not used[-1].passes):
            self._session.note(
                f"--infer-time {self._settings.time_s:g}s is too short to measure each prompt in "
                f"{asked if fitting < asked else len(used)} launches: in fewer, how far they differ is known less well"
            )
        found = self._taken_apart(used, found)
        found = self._whole_text(whole, found)
        if found.undisturbed:
            self._session.note(
                "something else took cores now and then: where turns that hardly waited tell a time more exactly, "
                "they alone were compared"
            )
        for launch in others:
            # One that is gone is dropped after this test, which has all it needs.
            if (why := launch.abandon()) is not None:
                self._session.note(f"! {why}")
        return whole, found

    def _first_pair(self, begun: tuple[protocol.Begun, protocol.Begun], first: Launch) -> None:
        """Run a pair of whole rounds in the first launch, which tells what the prompt costs, and a short pass."""
        self._threads = most_threads(*(one.threads for one in begun))
        first.warm_up(self._plan.warmup)
        first.time(CoreSchedule(self._threads).of(0), after_first=False)
        if not all(one.turns for one in begun):
            self._no_turns = "this engine takes no turns of a token"
        elif not first.ticks_alike:
            # A turn of several tokens against one of a single token says nothing of the time per token.
            self._no_turns = "the sides return tokens in other portions"
        self._takes_turns = self._no_turns is None
        first.holds = sum(one.private_bytes or 0 for one in begun)
        self._windows = self._takes_turns and all(one.windows for one in begun) and first.tells_tokens
        if self._takes_turns:
            passes.try_out(first, self._threads)

    def _begin_others(self, nodeid: str, used: Sequence[Launch], whole: int) -> None:
        """Begin in the other launches; the first `whole` of all are to have whole rounds."""
        for number, launch in enumerate(used[1:], 2):
            self._say(f"warm-up · launch {number} of {len(used)}")
            launch.begin(nodeid)
            launch.holds = used[0].holds
            if self._takes_turns and (self._plan.warmup or number > whole):
                passes.warm_up(launch, self._threads)
            else:
                launch.warm_up(self._plan.warmup)

    def _parts(self, first: Launch, launches: int) -> passes.Parts:
        """Return what is measured in each of at most so many launches, if nothing else takes cores."""
        return self._planned(first).parts(
            self._settings.time_s, launches, self._plan.rounds, turns=self._takes_turns, windows=self._windows
        )

    def _planned(self, first: Launch) -> passes.Cost:
        """Return what the prompt costs. That something else takes cores now says nothing of the next minute, and passes
        of parts of the text can be planned anew; threads without a core each always wait for one another."""
        calm = self._windows and passes.waits_tell(self._threads)
        return passes.Cost.of(first.pairs, without_waits=calm)

    def _whole_or_followed(
        self, begun: Sequence[protocol.Begun], used: Sequence[Launch], parts: passes.Parts
    ) -> Reference:
        """Run the whole rounds of the prompt, and return the base's output; where the other's differs, run them again,
        and from now on both sides follow the base's."""
        whole, most_s = used[: parts.whole], self._settings.time_s / passes.WHOLE_PART
        most_s = max(most_s, parts.whole * parts.rounds * self._planned(used[0]).pair_s) if self._windows else math.inf
        self._whole_rounds(whole, parts.rounds, self._plan.repeat, most_s)
        able = all(one.follows for one in begun)
        traces = [one.trace for one in used[0].pairs[0]]
        tokens, others = (one.token_ids for one in traces)
        known, limits = begun[1].vocabulary, [one.requested_tokens for one in traces]
        reference = divergence.of(self._commit.name, tokens, others, follow=able, vocabulary=known, asked=limits)
        if able and reference.problem is None and any(launch.differs_from(tokens) for launch in used):
            # Times of different work say nothing: both sides do the base's.
            for launch in used:
                launch.follow(reference)
            self._whole_rounds(whole, parts.rounds, self._plan.repeat, most_s)
        return reference

    def _whole_rounds(self, used: Sequence[Launch], each: int, repeat: int, most_s: float = math.inf) -> None:
        """Run `each` whole rounds a launch, in turns; then up to `repeat` disturbed pairs again, in their launch.

        After `most_s` none is run again, and no launch but the fewest begins with them.
        """
        cores, until = CoreSchedule(self._threads), time.monotonic() + most_s

        def run(number: int, launch: Launch) -> None:
            self._say(f"whole rounds · launch {number + 1} of {len(used)}")
            turn = number + len(launch.pairs)
            launch.time(cores.of(turn), after_first=turn % 2 == 1)

        for number, launch in enumerate(used):
            if number >= passes.LEAST_LAUNCHES and time.monotonic() > until:
                break
            while len(launch.pairs) < each:
                run(number, launch)
        for number, launch in enumerate(used):
            had = len(launch.pairs)
            while time.monotonic() < until and rounds.needs_more(
                [disturbed(pair) for pair in launch.pairs], each, repeat
            ):
                run(number, launch)
            repeat -= len(launch.pairs) - had

    def _profile(self, first: Launch, reference: Reference) -> None:
        plan, files = self._plan, divergence.Files.within(self._commit.scratch)
        files.remove()
        trace = plan.experts and divergence.traceable(first.pairs[0][0])
        first.before.instrument(experts=plan.experts, trace=trace, reference=reference, full=files.before)
        first.after.instrument(experts=plan.experts, trace=trace or plan.trace, reference=reference, full=files.after)

    def _turns(self, used: Sequence[Launch], each: int, left_s: float) -> Turns:
        """Run passes in turns of a token."""
        left_s = max(left_s, self._settings.time_s / 2)
        return passes.measure(
            used,
            _cost(used),
            windows=self._windows,
            threads=self._threads,
            rounds=each,
            budget_s=left_s,
            enough=lambda turns: self._enough(turns, left_s - turns.seconds),
        )

    def _more(self, used: Sequence[Launch], each: int, left_s: float) -> Turns:
        """Run more whole rounds until they are settled or the time is up."""
        self._session.note(f"{self._info.name}: {self._no_turns}: whole rounds were compared")
        settings, started = self._settings, time.monotonic()
        while True:
            pairs = [launch.pairs[number] for launch in used for number in launch.kept(each)]
            before, after = (tuple(pair[side] for pair in pairs) for side in (0, 1))
            settled = len(pairs) >= settings.min_pairs and self._session.settled(
                self._info, before, after, self._config
            )
            spent = settings.time_s - left_s + time.monotonic() - started
            if settled or len(pairs) >= settings.max_rounds or spent * (1 + 1 / each) > settings.time_s:
                serials = tuple(launch.serial for launch in used)
                return Turns(every=0, cycles=0, seconds=spent, ratios={}, rounds=each, launches=serials)
            each += 1
            self._whole_rounds(used, each, 0)

    def _enough(self, turns: Turns, left_s: float) -> bool:
        """Return whether the prompt's interval is as narrow as it needs to be, or as passes can make it."""
        # Imported late: numpy and scipy are for runs that compare.
        from pytest_infer.analysis.compare import gate, launches  # noqa: PLC0415

        found = gate.precision(self._settings.gate or (), self._info.name, turns, self._config)
        known = "" if found is None else f" · ±{100 * found.half:.2g} % for {100 * found.threshold:g} %"
        self._say(f"turns of a token{known} · {max(0.0, left_s):.0f} s left")
        return (found is not None and found.enough) or launches.limited(turns)

    def _taken_apart(self, used: Sequence[Launch], found: Turns) -> Turns:
        """Return what turns said, with the steps by role where they are to be taken apart."""
        when = self._settings.breakdown
        if when != OFF:
            found = replace(found, parts=apart.tokenised(used))
        ran = [launch for launch in used if launch.passes]
        if not found.every or len(ran) < 2 or not apart.wanted(found, when):
            return found
        self._say("where the time goes")
        parts, why = apart.measure(ran, _cost(used), found, threads=self._threads, time_s=self._settings.time_s)
        if why is not None:
            self._session.note(f"{self._info.name}: steps were not taken apart: {why}")
        return replace(found, parts={**found.parts, **parts})

    def _whole_text(self, whole: Sequence[Launch], found: Turns) -> Turns:
        """Return what passes said; without steps, if they were of parts of the text and whole rounds tell another
        change."""
        # Imported late: numpy and scipy are for runs that compare.
        from pytest_infer.analysis.compare import launches  # noqa: PLC0415

        if found.tokens is not None:
            rounds_ = [[launch.pairs[number] for number in launch.kept(found.rounds)] for launch in whole]
            beside = launches.beside_parts([[(a.trace, b.trace) for a, b in pairs] for pairs in rounds_], found)
            if beside is not None:
                told = [f"{100 * math.expm1(one):+.1f} %".replace("-", "−") for one in beside]
                self._session.note(
                    f"! {self._info.name}: a step changed by {told[0]} in whole rounds, by {told[1]} in the two parts "
                    "of the text that there was time for: whole rounds count; give it more --infer-time"
                )
                first = {key: one for key, one in found.ratios.items() if key == launches.FIRST}
                shares = {key: one for key, one in found.undisturbed.items() if key in first}
                return replace(found, ratios=first, undisturbed=shares)
            self._session.note(
                f"--infer-time {self._settings.time_s:g}s is too short to measure each prompt whole: steps were "
                "compared in two parts of its text"
            )
        if launches.STEPS in found.ratios:
            self._session.note(
                f"{self._info.name}: not all steps changed alike: TPOT and decode count their sum, ITL p50 the middle"
            )
        return found

    def _say(self, what: str) -> None:
        self._session.live.show(f"{self._info.name} · {what}")


def _cost(used: Sequence[Launch]) -> passes.Cost:
    """Return what a prompt costs by all whole rounds, which may have taken another time than was planned, or follow the
    base's output by now."""
    return passes.Cost.of([pair for launch in used for pair in launch.pairs])
