"""What of a prompt is measured in which launches, as the clock and the neighbours allow."""

from types import SimpleNamespace

import pytest

from pytest_infer.ab import one_prompt, passes, protocol
from pytest_infer.ab.launch import Launch
from pytest_infer.ab.one_prompt import OnePrompt
from pytest_infer.errors import AgainstError
from pytest_infer.measure.rounds import RoundPlan
from pytest_infer.records import Pass, Round, TokenTrace
from pytest_infer.records.reading import Reading

TOKENS, STEP_S, FIRST_S = 32, 0.06, 0.11
"""A pair of whole rounds takes 3.94 s: whole, eight launches would take a minute and a half."""


class Machine:
    """A clock that the sides let pass. Something else takes cores: all takes `slower` times as long, and threads wait
    for the rest."""

    dying = False
    """Whether processes die where they are to leave a test."""

    def __init__(self, slower=1.0, **able):
        self.s, self.slower = 0.0, slower
        self.begun = protocol.Begun(**{"threads": 1, "turns": True, "windows": True} | able)

    def passes(self, seconds):
        self.s += self.slower * seconds
        return round(1e9 * self.slower * seconds)


class Side:
    """One side's process."""

    pid, gone, broken = 1, False, False

    def __init__(self, machine, tokens):
        self._machine, self._tokens, self.did = machine, tokens, []

    def check(self):
        pass

    def go(self, nodeid):
        self.did.append("begun")

    def begun(self):
        return self._machine.begun

    def warm_up(self):
        self.did.append("warm-up")

    def time(self, cores):
        self.did.append("whole")
        stamps, seconds = [], [FIRST_S, *[STEP_S] * (len(self._tokens) - 1)]
        for one in seconds:
            stamps.append((stamps or [0])[-1] + self._machine.passes(one))
        waited = Reading(value=(1 - 1 / self._machine.slower) * stamps[-1] / 1e9, source="a test")
        trace = TokenTrace(
            prompt_tokens=10, requested_tokens=TOKENS, start_ns=0, stamps_ns=tuple(stamps),
            tick_sizes=(1,) * len(stamps), token_ids=self._tokens,
        )  # fmt: skip
        return Round(trace=trace, counters=SimpleNamespace(run_queue_wait_s=waited))

    def take_turns(self, asked):
        self.did.append(f"pass of {asked.tokens}")
        tokens = asked.tokens or len(self._tokens)
        seconds = [FIRST_S, *[STEP_S] * (tokens - 1)]
        stamps = [sum(seconds[: n + 1]) for n in range(tokens)]
        self._took = Pass(
            start_ns=0, stamps_ns=tuple(round(1e9 * one) for one in stamps), tick_sizes=(1,) * tokens,
            token_ids=self._tokens[asked.skip or 0 :][:tokens], begins=asked.begins,
        )  # fmt: skip
        self._machine.passes(stamps[-1])

    def says(self, patience_s):
        return True

    def took_turns(self):
        return protocol.TookTurns(taken=self._took, wall_ns=round(2 * self._machine.slower * self._took.stamps_ns[-1]))

    def adopt(self, trace):
        self.did.append("adopted")

    def follow(self, reference):
        self.did.append("follows")
        self._tokens = reference.tokens

    def instrument(self, **asked):
        self.did.append("profile")
        self._machine.s += 100

    def abandon(self):
        self.did.append("abandoned")

    def abandoned(self):
        if self._machine.dying:
            raise AgainstError("the run of main ended early")


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Measures a prompt on a machine; returns the launches, what turns said, and the lines for the summary."""

    def run(machine, launches=8, others=TOKENS, **planned):
        for module in (one_prompt, passes):
            monkeypatch.setattr(module.time, "monotonic", lambda: machine.s)
        base, ours = tuple(range(TOKENS)), tuple(range(others))
        there = [Launch(serial=n, before=Side(machine, base), after=Side(machine, ours)) for n in range(launches)]
        notes = []
        session = SimpleNamespace(
            settings=SimpleNamespace(launches=8, time_s=60.0, gate=None, breakdown="off"),
            live=SimpleNamespace(show=lambda line: None),
            note=notes.append,
        )
        plan = RoundPlan(**{"warmup": 1, "rounds": 5, "profile": False, "experts": False} | planned)
        prompt = OnePrompt(
            session, SimpleNamespace(name="main", scratch=tmp_path), SimpleNamespace(name="story"), plan, {}
        )
        begun = prompt.begin("test", there[0])
        whole, found = prompt.measure("test", begun, there[0], lambda begun, fitting: there[:fitting])
        assert [launch for launch in there if launch.pairs] == whole
        for launch in there:
            # Each ends once: what has whole rounds is still to finish.
            ends = [] if launch in whole or "begun" not in launch.before.did else ["abandoned"]
            assert [did for did in launch.after.did if did == "abandoned"] == ends
        return there, found, notes

    return run


def counts(launches):
    """How many pairs of whole rounds, and passes of more than one token, each launch has."""
    return [len(one.pairs) for one in launches], [len(one.passes) for one in launches]


def too_short(notes):
    """Whether a line says that the time was too short for all launches."""
    return any(note.startswith("--infer-time 60s is too short to measure each prompt in 8 launches") for note in notes)


def test_on_a_calm_machine_all_launches_have_passes_within_the_time(measure):
    machine = Machine()
    launches, found, notes = measure(machine)
    whole, ran = counts(launches)
    assert whole == [1, 1, 1, 1, 1, 0, 0, 0]
    assert ran == [2] * 8
    assert 12 <= found.tokens <= 18
    assert found.seconds <= 42
    assert not too_short(notes)


def test_beside_a_neighbour_whole_rounds_leave_the_passes_their_time(measure):
    # Whole rounds of the first three take 35 s; half of the time is left for passes, of nine tokens.
    launches, found, notes = measure(Machine(slower=3.0), repeat=3)
    whole, ran = counts(launches)
    assert whole == [1, 1, 1, 0, 0, 0, 0, 0]
    assert found.tokens == 9
    assert ran[:3] == [2, 2, 2]
    assert ran == sorted(ran, reverse=True)
    assert ran[-1] == 0
    assert [len(told) for told in found.ratios["step"]] == [count // 2 for count in ran]
    assert too_short(notes)
    # Those that were to have whole rounds, too, go on from the first one's.
    assert all("adopted" in launch.after.did for launch in launches[3:])


def test_what_waiting_costs_is_no_reason_for_fewer_launches(measure):
    begun = [launch for launch in measure(Machine(slower=2.0))[0] if launch.after.did]
    assert len(begun) == 8
    # Unless it is the threads themselves that wait for one another: then it always costs that, as without windows.
    for able in ({"threads": 10**6}, {"windows": False}):
        launches, _, notes = measure(Machine(slower=2.0, **able))
        assert len([launch for launch in launches if launch.after.did]) < 8
        assert too_short(notes)


def test_passes_that_can_be_no_shorter_are_run_in_all_launches(measure):
    launches, found, _ = measure(Machine(slower=1.5, windows=False))
    whole, ran = counts(launches)
    assert whole == [1 if one else 0 for one in ran]
    assert sum(map(bool, ran)) >= 3
    assert found.tokens is None


def test_a_launch_that_dies_when_nothing_more_is_needed_of_it_is_told(measure):
    machine = Machine()
    machine.dying = True
    _, found, notes = measure(machine)
    assert found.ratios
    assert notes.count("! the run of main ended early") == 3


def test_the_profile_round_takes_nothing_of_the_time(measure):
    launches, found, _ = measure(Machine(), profile=True)
    assert launches[0].after.did.count("profile") == 1
    calm = measure(Machine())
    assert counts(launches) == counts(calm[0])
    assert found.tokens == calm[1].tokens


@pytest.mark.parametrize("warmup", [0, 1])
def test_no_launch_begins_with_a_pass_that_counts(measure, warmup):
    launches, _, _ = measure(Machine(slower=3.0), warmup=warmup)
    for launch in launches[1:]:
        first = next(did for did in launch.after.did if did != "begun")
        assert first == ("whole" if launch.pairs and not warmup else "pass of 4")


def test_what_follows_the_other_sides_output_is_planned_by_it(measure):
    # This checkout's output ends after ten tokens; both then generate all of the base's.
    launches, found, _ = measure(Machine(follows=True, vocabulary=100), others=10)
    assert [launch.after.did.count("follows") for launch in launches] == [1] * 8
    assert all(len(pair[1].trace.token_ids) == TOKENS for launch in launches for pair in launch.pairs)
    assert found.strayed == 0
    assert 9 <= found.tokens < TOKENS


@pytest.mark.parametrize(
    ("base", "ours", "alike"),
    [
        (((1, 1, 1), (7, 8, 9)), ((1, 1, 1), (7, 8, 9)), True),
        (((1, 1, 1, 1), (7, 8, 9, 4)), ((1, 2, 1), (7, 8, 9, 4)), False),
        (((1, 2, 1), (7, 8, 9, 4)), ((1, 1, 2), (7, 8, 5, 4)), True),  # another text, which may come otherwise
        (((1, 1, 2), (7, 5, 9, 4)), ((1, 1, 1, 1), (7, 8, 9, 4)), True),
        (((1, 1, 1), ()), ((1, 2), ()), False),  # without ids nothing says that the text is why
        (((1,), (7,)), ((1, 2), (7, 8, 9)), True),  # one ends
    ],
)
def test_ticks_are_held_against_each_other_as_far_as_the_text_is_the_same(base, ours, alike):
    def side(sizes, ids):
        trace = TokenTrace(
            prompt_tokens=1, requested_tokens=4, start_ns=0, stamps_ns=tuple(range(len(sizes))), tick_sizes=sizes,
            token_ids=ids,
        )  # fmt: skip
        return SimpleNamespace(trace=trace)

    launch = Launch(serial=0, before=None, after=None, pairs=[(side(*base), side(*ours))])
    assert launch.ticks_alike is alike
