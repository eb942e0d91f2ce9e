"""What a comparison may say where most rounds of a side were disturbed."""

import dataclasses
import json
from types import MappingProxyType

import pytest
from typer.testing import CliRunner

from pytest_infer.analysis.compare import comparison, disturbance
from pytest_infer.analysis.compare.comparison import RowPair, Wanted
from pytest_infer.analysis.compare.verdicts import Verdict
from pytest_infer.analysis.history import trends
from pytest_infer.cli.main import app
from pytest_infer.metrics import by_key
from pytest_infer.records import Turns
from pytest_infer.storage.schema import Values

CALM = [0.1, 0.1001, 0.0999, 0.1002, 0.0998]
STEADY = (0.1, 0.1004, 0.0996, 0.1002, 0.0998, 0.1001)
WHY = ["waited 12 % of its time for a core"]


def disturbed(count, timed=5):
    return {"timed": timed, "disturbed": {str(n): WHY for n in range(count)}}


@pytest.fixture
def judge(make_row):
    """Return a function that judges a figure of two rows, so many of whose five rounds were disturbed."""

    def run(marks, before, after, key="tpot_s", waits=(None, None), client=MappingProxyType({}), **pair):
        rows = [
            dataclasses.replace(
                make_row(**{"cpu_s": 1.0, "steal_s": None, "run_queue_wait_s": wait, **client, key: values}),
                disturbed=tuple(range(count)),
                timed=5,
            )
            for count, values, wait in zip(marks, (before, after), waits, strict=True)
        ]
        history = tuple(make_row(**{key: value}) for value in STEADY)
        made = RowPair(before=rows[0], after=rows[1], history=history, **pair)
        (judgement,) = comparison.judge([made], lambda _row: [Wanted(metric=by_key(key), threshold=0.05)])
        return judgement

    return run


@pytest.mark.parametrize("factor", [1.5, 1.0, 0.5])
@pytest.mark.parametrize(
    ("marks", "told"),
    [
        ((4, 0), "4 of 5 rounds of the earlier run were disturbed"),
        ((0, 3), "3 of 5 rounds of this run were disturbed"),
        ((5, 4), "5 of 5 rounds of the earlier run and 4 of 5 of this run were disturbed"),
    ],
)
def test_a_stored_comparison_is_at_most_inconclusive(judge, marks, told, factor):
    judgement = judge(marks, CALM, [factor * value for value in CALM])
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.reason.startswith(told)
    assert "--infer-against" in judgement.reason
    # What was seen is still shown.
    assert judgement.low < judgement.mid < judgement.high


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("waited", [0.05, 0.2])
def test_a_client_that_waited_for_a_core_tells_nothing_of_a_servers_times(judge, waited, paired):
    client = {"client_wait_s": [waited] * 5, "total_s": [1.0] * 5}
    judgement = judge((0, 0), CALM, [1.5 * value for value in CALM], client=client, paired=paired)
    late = judgement.verdict is Verdict.INCONCLUSIVE and "saw the server's tokens late" in judgement.reason
    assert late is (waited > 0.1)
    assert judge((0, 0), CALM, [3 * v for v in CALM], "peak_rss_bytes", client=client).verdict is Verdict.REGRESSED


SERVED = {"generation": {"do_sample": False, "prompt_cache": "off"}}


@pytest.mark.parametrize("marks", [(4, 0), (0, 0)])
def test_servers_are_sent_to_turns_of_two_servers(make_row, marks):
    rows = [
        dataclasses.replace(make_row(tpot_s=values, model=SERVED), disturbed=tuple(range(count)), timed=5)
        for count, values in zip(marks, (CALM, [1.02 * value for value in CALM]), strict=True)
    ]
    assert all(row.served for row in rows)
    assert not make_row().served
    made = RowPair(before=rows[0], after=rows[1], history=())
    (judgement,) = comparison.judge([made], lambda _row: [Wanted(metric=by_key("tpot_s"), threshold=0.05)])
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "measure both in one run (--infer-against-server)" in judgement.reason


@pytest.mark.parametrize(("factor", "verdict"), [(1.5, Verdict.REGRESSED), (1.0, Verdict.UNCHANGED)])
def test_a_few_disturbed_rounds_do_not_matter(judge, factor, verdict):
    assert judge((2, 2), CALM, [factor * value for value in CALM]).verdict is verdict


@pytest.mark.parametrize(
    "key", ["ttft_s", "load_s", "decode_throughput", "cpu_s", "major_faults", "swap_bytes", "cycles"]
)
def test_what_a_disturbance_moves(judge, key):
    assert judge((5, 0), CALM, [3 * value for value in CALM], key).verdict is Verdict.INCONCLUSIVE
    assert judge((5, 0), [0.1] * 5, [0.1] * 5, key).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("key", ["peak_rss_bytes", "uss_bytes", "kv_cache_bytes", "step_bytes"])
def test_what_no_disturbance_moves_is_judged(judge, key):
    assert judge((5, 5), CALM, [3 * value for value in CALM], key).verdict is Verdict.REGRESSED
    assert judge((5, 5), CALM, CALM, key).verdict is Verdict.UNCHANGED


def test_exact_figures_are_judged(judge):
    assert judge((5, 5), 5, 5, "generated_tokens").verdict is Verdict.UNCHANGED
    assert judge((5, 5), 5, 6, "generated_tokens").verdict is Verdict.INCOMPARABLE


def test_a_count_that_had_to_be_sampled_is_moved(make_row):
    row = dataclasses.replace(make_row(), disturbed=tuple(range(5)), timed=5)
    peaks = [
        dataclasses.replace(
            row, metrics={**row.metrics, "peak_rss_bytes": Values(value=v[0], rounds=v, quality="sampled")}
        )
        for v in (tuple(CALM), tuple(3 * value for value in CALM))
    ]
    made = RowPair(before=peaks[0], after=peaks[1])
    want = Wanted(metric=by_key("peak_rss_bytes"), threshold=0.05)
    assert comparison.judge([made], lambda _row: [want])[0].verdict is Verdict.INCONCLUSIVE


def test_pairs_share_what_disturbs_them(judge):
    before, slower = CALM * 2, [1.5 * value for value in CALM * 2]
    assert judge((5, 5), before, slower, paired=True).verdict is Verdict.REGRESSED
    assert judge((3, 2), before, slower, paired=True).verdict is Verdict.REGRESSED
    assert judge((0, 5), before, slower, "peak_rss_bytes", paired=True).verdict is Verdict.REGRESSED


@pytest.mark.parametrize(
    ("waits", "verdict"),
    [
        ((0.0, 0.4), Verdict.INCONCLUSIVE),  # 29 % of its time on one side: +50 % may come of it
        ((0.4, 0.0), Verdict.REGRESSED),  # the side that waited is the faster one
        ((0.0, 0.1), Verdict.REGRESSED),  # code that takes longer is disturbed longer
        ((0.3, 0.3), Verdict.REGRESSED),
        ((None, None), Verdict.INCONCLUSIVE),
        ((0.0, None), Verdict.INCONCLUSIVE),
    ],
)
def test_sides_that_were_not_disturbed_alike(judge, waits, verdict):
    before, slower = CALM * 2, [1.5 * value for value in CALM * 2]
    found = judge((0, 5), before, slower, waits=waits, paired=True)
    assert found.verdict is verdict
    if verdict is Verdict.INCONCLUSIVE:
        assert found.reason.startswith("0 of 5 rounds of the other side and 5 of 5 of this one were disturbed")
    assert judge((2, 3), before, slower, waits=waits, paired=True).verdict is Verdict.REGRESSED


@pytest.mark.parametrize(("key", "slower"), [("tpot_s", 1.4), ("decode_throughput", 1 / 1.4)])
@pytest.mark.parametrize("waits", [(0.0, 0.4), (0.4, 0.0)])
@pytest.mark.parametrize("worse", [True, False])
def test_only_a_side_that_waited_and_is_worse_is_explained_by_it(judge, key, slower, waits, worse):
    before, after = CALM * 2, [(slower if worse else 1 / slower) * value for value in CALM * 2]
    found = judge((5, 0) if waits[0] else (0, 5), before, after, key, waits=waits, paired=True)
    explained = worse is (waits[1] > 0)
    told = Verdict.INCONCLUSIVE if explained else Verdict.REGRESSED if worse else Verdict.IMPROVED
    assert found.verdict is told
    # A change may be hidden where nothing is seen of it.
    same = judge((5, 0) if waits[0] else (0, 5), before, before, key, waits=waits, paired=True)
    assert same.verdict is Verdict.INCONCLUSIVE
    assert "disturbed, which may hide a change: end" in same.reason
    assert not explained or "disturbed, which explains the change: end" in found.reason


def test_blocks_of_rounds_share_nothing(judge):
    spread = {"tpot_s": 0.001}
    assert judge((5, 5), CALM, [1.5 * v for v in CALM], block_spread=spread).verdict is Verdict.INCONCLUSIVE
    assert judge((1, 1), CALM, [1.5 * v for v in CALM], block_spread=spread).verdict is Verdict.REGRESSED


def test_turns_of_a_token_are_judged_by_themselves(judge):
    launches = tuple((0.4 + 0.001 * n, 0.401, 0.399, 0.4, 0.402, 0.398) for n in range(8))
    turns = Turns(every=1, cycles=6, seconds=1.0, ratios={"first": launches, "step": launches})
    found = judge((0, 5), CALM, CALM, turns=turns, paired=True)
    assert found.verdict is Verdict.REGRESSED


# stored runs, as the commands see them


@pytest.fixture
def add(storage, make_block):
    def run(factor=1.0, marks=0):
        made = make_block(only=("prompt_tokens", "output_sha256"), tpot_s=[factor * v for v in CALM])
        made["rounds"] = disturbed(marks)
        return storage.add([made])

    return run


def command(storage, *arguments):
    return CliRunner().invoke(app, [*arguments, f"--storage={storage.folder}"], env={"COLUMNS": "200"})


def test_compare_and_gate_say_why(storage, add):
    for factor in (1.0, 1.004, 0.996, 1.002, 0.998):
        add(factor)
    add(marks=4)
    add(1.5)
    gated = command(storage, "gate", "--rule=tpot:5%", "--format=json", "--no-mark", "--against=6")
    (judgement,) = [j for j in json.loads(gated.stdout)["judgements"] if j["rule"] == "tpot:5%"]
    assert judgement["verdict"] == "inconclusive"
    assert judgement["reason"].startswith("4 of 5 rounds of the earlier run were disturbed")
    shown = command(storage, "compare", "6", "7").stdout
    assert "inconclusive" in shown
    assert "4 of 5 rounds of the earlier run were disturbed" in shown
    assert "regressed" in command(storage, "compare", "5", "7").stdout


def test_a_block_of_an_older_version_does_not_say_how_many_rounds_there_were(storage, add, make_row):
    assert make_row(tpot_s=CALM).timed == 4  # as the golden record says
    path = add(marks=4)
    document = json.loads(path.read_text())
    del document["benchmarks"][0]["extra_info"]["pytest_infer"]["rounds"]["timed"]
    path.write_text(json.dumps(document))
    (row,) = storage.load().runs[0].rows
    assert (len(row.disturbed), row.timed) == (4, 5)


def shifts(storage):
    return trends.told(storage.load().runs, [by_key("tpot_s"), by_key("mbu")]).shifts


def test_a_change_point_after_which_most_runs_were_disturbed_is_in_doubt(storage, add):
    for number in range(12):
        add((1.0 + 0.002 * (number % 3)) * (1.2 if number > 7 else 1.0), marks=5 if number > 8 else 0)
    (found,) = shifts(storage)
    assert (found.worse, found.doubt) == (None, "most rounds of 3 of 4 runs since were disturbed")
    shown = command(storage, "history", "--change-points", "--metric=tpot").stdout
    assert "most rounds of 3 of 4 runs since were disturbed" in shown


def test_a_change_point_among_calm_runs_is_worse(storage, add):
    for number in range(12):
        add((1.0 + 0.002 * (number % 3)) * (1.2 if number > 7 else 1.0), marks=5 if number in (2, 9) else 0)
    (found,) = shifts(storage)
    assert (found.worse, found.doubt) == (True, None)


def test_steal_is_shared_with_others_whose_cores_it_is_of(make_row):
    row = make_row(cpu_s=1.0, total_s=1.0, steal_s=0.5, other_cpu_s=94.5, run_queue_wait_s=None)
    assert disturbance._waited(row) == pytest.approx(0.5 / 96, rel=0.01)
