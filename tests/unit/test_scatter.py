"""Whether disturbed rounds show in a test's times, and who is told of it."""

import dataclasses
from pathlib import Path

import msgspec
import pytest

from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.measure import warnings
from pytest_infer.metrics import result, scatter
from pytest_infer.records import PromptRecord, WarningKind
from pytest_infer.report.show.summary import render
from pytest_infer.storage import block, results, schema

DATA = Path(__file__).parents[1] / "data"
WHY = ("waited 12 % of its time for a core",)


@pytest.mark.parametrize(
    ("totals", "disturbed", "shown"),
    [
        # Two undisturbed or more: beyond all of them by more than they differ, and by more than 2 %.
        ([1.00, 1.01, 1.00, 1.02, 1.01], [3], False),
        ([1.00, 1.01, 1.00, 1.03, 1.01], [3], False),
        ([1.00, 1.01, 1.00, 1.04, 1.01], [3], True),
        ([1.00, 1.10, 1.00, 1.15, 1.05], [3], False),
        ([1.00, 1.10, 1.00, 1.25, 1.05], [3], True),
        ([1.00, 1.30, 1.00, 1.00, 1.01], [0, 2, 3], False),  # it is another one that was slow
        ([1.00, 0.50, 1.00, 1.01, 1.00], [1], False),  # faster is no disturbance
        ([1.00, 1.30, 1.00, 1.30, 1.01], [1, 3], True),
        # None or one undisturbed: by the scatter of all, 2 s / √n above 5 %.
        ([1.00, 1.01, 1.00, 1.02, 1.01], [0, 1, 2, 3, 4], False),
        ([1.00, 1.10, 0.90, 1.12, 1.00], [0, 1, 2, 3, 4], True),
        ([1.00, 1.10, 0.90, 1.12, 1.00], [1, 2, 3, 4], True),
        ([1.00, 1.20], [0, 1], True),
        ([1.00, 1.01], [0, 1], False),
        # Nothing to show it in.
        ([1.0], [0], False),
        ([], [0], False),
        ([1.0, 2.0, 3.0], [], False),
        ([1.0, 2.0, 3.0], [7], False),
    ],
)
def test_disturbed_rounds_that_show(totals, disturbed, shown):
    assert scatter.shows(totals, disturbed) is shown


@pytest.fixture
def make():
    """Return a function that makes a record of rounds of these times, ms, some of which were disturbed."""
    golden = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    # Its steps were taken apart beside rounds of other times, which has a mark of its own.
    golden = dataclasses.replace(golden, breakdown=None)

    def record(totals, disturbed, *, repeated=0, name="guide"):
        rounds = tuple(
            dataclasses.replace(
                golden.rounds[0],
                trace=dataclasses.replace(
                    golden.rounds[0].trace,
                    stamps_ns=tuple(golden.rounds[0].trace.start_ns + ms * 200_000 * n for n in range(1, 6)),
                ),
                disturbed=WHY if number in disturbed else (),
            )
            for number, ms in enumerate(totals)
        )
        again = rounds[:1] * repeated
        prompt = dataclasses.replace(golden.prompt, name=name)
        found = dataclasses.replace(golden, nodeid=name, rounds=rounds, repeated=again, prompt=prompt)
        return dataclasses.replace(found, warnings=warnings.find(rounds, None, found.output, again))

    return record


def summary(*records, width=120, verbose=True):
    return render(RunSummary(results=tuple(map(result.of_record, records))), width=width, color=False, verbose=verbose)


def marked(text):
    return [line for line in text.splitlines() if "!" in line]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_mark_only_where_it_shows(make, width):
    calm, slowed = make([100, 101, 100, 102], [0, 1, 2, 3]), make([100, 150, 100, 101], [1], name="slowed")
    assert marked(summary(calm, width=width)) == []
    assert "4 of 4 rounds were disturbed; its times do not show it" in " ".join(summary(calm, width=width).split())
    assert "disturbed" not in summary(calm, width=width, verbose=False)
    assert "machine quiet but for moments" in " ".join(summary(calm, width=width, verbose=False).split())
    assert "machine busy in 1 of 2 prompts" in " ".join(summary(calm, slowed, width=width, verbose=False).split())
    row, remark = [line for line in marked(summary(calm, slowed, width=width)) if "slowed" in line]
    assert "slowed !" in row
    assert remark.startswith("! slowed: 1 of 4 rounds were disturbed (round 2: waited 12 %")


def test_the_only_round_is_not_called_quiet_where_it_was_disturbed(make):
    head = "machine busy: one round cannot show how much"
    record = make([100], [0], repeated=3)
    assert head in summary(record, verbose=False).splitlines()[0]
    assert "one round cannot show it" in summary(record)
    stored = results.result_of("t", schema.of_block(block.build(record), schema.WHOLE_BLOCK))
    assert stored.unseen
    for calm in (make([100], [], repeated=3), make([100, 101, 100, 102], [0, 1, 2, 3])):
        assert "machine quiet but for moments" in summary(calm, verbose=False).splitlines()[0]


def test_rounds_that_were_measured_again_have_no_mark(make):
    found = summary(make([100, 101, 100, 102], [], repeated=2))
    assert marked(found) == []
    assert "2 rounds were disturbed and measured again" in found


def test_many_quiet_tests_are_two_lines(make):
    text = summary(*(make([100, 101, 100, 102], [0, 1], name=f"p{n}") for n in range(9)))
    assert marked(text) == []
    assert "9 of 9 tests had disturbed rounds whose times do not show it\n(p0: 2 of 4 rounds were disturbed)" in text


def test_other_warnings_keep_their_mark(make):
    cold = make([300, 100, 101, 100], [2])
    assert [w.kind for w in result.of_record(cold).warnings] == [WarningKind.COLD_FIRST_ROUND]
    assert "guide !" in summary(cold)


@pytest.mark.parametrize(("totals", "shown"), [([100, 101, 100, 102], False), ([100, 101, 150, 102], True)])
def test_what_is_stored_keeps_every_mark_and_is_shown_alike(make, totals, shown):
    record = make(totals, [2])
    stored = block.build(record)
    assert stored["rounds"]["disturbed"] == {"2": list(WHY)}
    assert [caution["kind"] for caution in stored["cautions"]] == ["rounds were disturbed"]
    read = results.result_of("t", schema.of_block(stored, schema.WHOLE_BLOCK))
    of_record = result.of_record(record)
    assert (read.warnings, read.quiet) == (of_record.warnings, of_record.quiet)
    assert bool(read.warnings) is shown
    assert bool(read.quiet) is not shown
