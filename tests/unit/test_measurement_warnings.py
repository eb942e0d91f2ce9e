"""What is doubtful about a record: each doubt alone, and its words."""

import dataclasses
import hashlib
from pathlib import Path

import msgspec
import pytest

from pytest_infer.measure import warnings
from pytest_infer.records import PromptRecord, Reading, WarningKind, absent

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def record():
    found = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    return dataclasses.replace(found, rounds=tuple(dataclasses.replace(r, disturbed=()) for r in found.rounds))


def with_ids(record, *ids):
    return tuple(
        dataclasses.replace(r, trace=dataclasses.replace(r.trace, token_ids=i))
        for r, i in zip(record.rounds, ids, strict=False)
    )


def lasting(record, *totals_ms):
    return tuple(
        dataclasses.replace(r, trace=dataclasses.replace(r.trace, stamps_ns=(r.trace.start_ns + ms * 1_000_000,)))
        for r, ms in zip(record.rounds, totals_ms, strict=False)
    )


def test_a_clean_record_has_none(record):
    assert warnings.find(record.rounds, record.profile, record.output) == ()
    assert warnings.find(record.rounds, None, record.output) == ()


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ([(1, 2, 3), (1, 2, 3), (1, 2, 3)], None),
        ([(1, 2, 3), (1, 2, 3), (1, 9, 3)], (2, 1)),
        ([(1, 2, 3), (9, 2, 3), (1, 9, 3)], (1, 0)),
        ([(1, 2, 3), (1, 2)], (1, 2)),
        ([(1, 2), (1, 2, 3)], (1, 2)),
        ([(1, 2)], None),
    ],
)
def test_the_first_token_that_differs(record, rounds, expected):
    assert warnings.first_difference(with_ids(record, *rounds)) == expected


def test_the_hash_of_the_ids():
    assert warnings.hash_ids([1, 22, 333]) == hashlib.sha256(b"1,22,333").hexdigest()
    assert warnings.hash_ids([1, 2]) != warnings.hash_ids([12])


def test_output_that_differs_is_said_first_and_counted_from_one(record):
    output = dataclasses.replace(record.output, equal=False, first_difference=(2, 1))
    profile = dataclasses.replace(record.profile, tokens_equal=False)
    first, second = warnings.find(record.rounds, profile, output)
    assert first.kind is WarningKind.OUTPUT_DIFFERS
    assert "round 3 differs from round 1 at generated token 2" in first.text
    assert second.kind is WarningKind.PROFILE_DIFFERS


def test_experts_that_do_not_add_up(record):
    usage = dataclasses.replace(record.profile.experts, check="layer 3: 19, not 20")
    (warning,) = warnings.find(record.rounds, dataclasses.replace(record.profile, experts=usage), record.output)
    assert warning.kind is WarningKind.EXPERTS_DO_NOT_ADD_UP
    assert "layer 3: 19, not 20" in warning.text


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Reading(value=3, source="hook"), "3 of 4 forward passes gave logits that are NaN or infinite"),
        (Reading(value=1, source="hook"), "1 of 4 forward passes"),
        (Reading(value=0, source="hook"), None),
        (absent("no forward pass was seen"), None),
    ],
    ids=str,
)
def test_logits_that_are_no_numbers(record, found, said):
    profile = dataclasses.replace(record.profile, nonfinite_logits=found, passes=4)
    texts = [w.text for w in warnings.find(record.rounds, profile, record.output) if w.kind is WarningKind.NOT_FINITE]
    assert [said in text for text in texts] == ([True] if said else [])


@pytest.mark.parametrize(
    ("totals", "said"),
    [
        ((300, 100, 100, 100), "3.0×"),
        ((151, 100, 100, 100), "1.5×"),
        ((149, 100, 100, 100), None),
        ((300, 100), None),  # too few rounds to tell
        ((100, 300, 300, 300), None),
    ],
)
def test_a_cold_first_round(record, totals, said):
    found = warnings.find(lasting(record, *totals), None, record.output)
    assert [c.kind for c in found] == ([WarningKind.COLD_FIRST_ROUND] if said else [])
    if said:
        assert said in found[0].text
        assert "--infer-warmup" in found[0].text


def test_disturbed_rounds_are_counted_and_the_first_is_explained(record):
    why = {1: ("steal 12 %", "waited 3 ms"), 3: ("steal 9 %",)}
    rounds = tuple(dataclasses.replace(r, disturbed=why.get(n, ())) for n, r in enumerate(record.rounds))
    (warning,) = warnings.find(rounds, None, record.output)
    assert warning.kind is WarningKind.DISTURBED
    assert "2 of 4 rounds were disturbed (round 2: steal 12 %; waited 3 ms)" in warning.text


def test_the_most_serious_comes_first(record):
    output = dataclasses.replace(record.output, equal=False, first_difference=(1, 0))
    usage = dataclasses.replace(record.profile.experts, check="layer 3: 19, not 20")
    profile = dataclasses.replace(record.profile, tokens_equal=False, experts=usage)
    rounds = tuple(dataclasses.replace(r, disturbed=("steal 9 %",)) for r in lasting(record, 300, 100, 100, 100))
    assert [c.kind for c in warnings.find(rounds, profile, output)] == [
        WarningKind.OUTPUT_DIFFERS,
        WarningKind.PROFILE_DIFFERS,
        WarningKind.EXPERTS_DO_NOT_ADD_UP,
        WarningKind.COLD_FIRST_ROUND,
        WarningKind.DISTURBED,
    ]


def test_each_warning_says_what_to_do(record):
    output = dataclasses.replace(record.output, equal=False, first_difference=(1, 0))
    (differs,) = warnings.find(record.rounds, None, output)
    assert "set one thread, a seed, or a deterministic kernel" in differs.text
    rounds = tuple(dataclasses.replace(r, disturbed=("steal 9 %",)) for r in record.rounds)
    (disturbed,) = warnings.find(rounds, None, record.output)
    assert "stop what else runs, or trust medians only" in disturbed.text


def test_rounds_that_were_measured_again_are_told_and_those_still_disturbed(record):
    again = tuple(dataclasses.replace(r, disturbed=("steal 9 %",)) for r in record.rounds[:2])
    (warning,) = warnings.find(record.rounds, None, record.output, again)
    assert warning.text == "2 rounds were disturbed and measured again"
    (one,) = warnings.find(record.rounds, None, record.output, again[:1])
    assert one.text == "1 round was disturbed and measured again"
    rounds = (*again[:1], *record.rounds[1:])
    (both,) = warnings.find(rounds, None, record.output, again)
    assert both.text.startswith("2 rounds were disturbed and measured again; still 1 of 4 rounds were disturbed")


def at(record, *hertz):
    readings = [absent("no cpufreq") if hz is None else Reading(value=hz, source="cpufreq") for hz in hertz]
    return tuple(
        dataclasses.replace(r, counters=dataclasses.replace(r.counters, frequency_hz=reading))
        for r, reading in zip(record.rounds, readings, strict=False)
    )


def test_rounds_at_different_frequencies(record):
    (warning,) = warnings.find(at(record, 3.5e9, 3.4e9, 2.8e9, 3.5e9), None, record.output)
    assert warning.kind is WarningKind.FREQUENCY
    assert "2.80 GHz in one round and at 3.50 GHz" in warning.text


@pytest.mark.parametrize("hertz", [(3.5e9, 3.4e9, 3.2e9, 3.5e9), (None, None, None, None), (None, 3e9, None, None)])
def test_frequencies_that_say_nothing(record, hertz):
    assert warnings.find(at(record, *hertz), None, record.output) == ()


def busy(record, *cores):
    readings = [absent("the model runs in this process") if c is None else c for c in cores]
    return tuple(
        dataclasses.replace(
            r,
            counters=dataclasses.replace(
                r.counters,
                client_cpu_s=c if isinstance(c, Reading) else Reading(value=c * r.counters.wall_s, source="clock"),
            ),
        )
        for r, c in zip(record.rounds, readings, strict=True)
    )


def test_a_client_that_is_busy_itself(record):
    (warning,) = warnings.find(busy(record, 0.9, 0.8, 0.1, 0.9), None, record.output)
    assert warning.kind is WarningKind.CLIENT_BUSY
    assert "used 85 % of a core" in warning.text


@pytest.mark.parametrize("cores", [(0.1, 0.9, 0.1, 0.1), (None, None, None, None)])
def test_a_client_that_mostly_waits(record, cores):
    assert warnings.find(busy(record, *cores), None, record.output) == ()
