"""The curve of latency against throughput: its points with their intervals, its knee, and how both are shown."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from test_html_report import Page

from pytest_infer.analysis.load import curve
from pytest_infer.analysis.load.curve import Estimate
from pytest_infer.measure.load import marks
from pytest_infer.metrics import by_key, summarize
from pytest_infer.metrics.load import COUNTED
from pytest_infer.records import PromptRecord, WarningKind
from pytest_infer.report import load as report
from pytest_infer.report.html import page
from pytest_infer.report.text import collected, console
from pytest_infer.storage import block, results, runs
from pytest_infer.storage.runs import Row
from pytest_infer.storage.schema import StoredLoad, Values
from pytest_infer.units import Unit
from queueing import at_rate, simulated

DATA = Path(__file__).parents[1] / "data"
DRAW_ALL = """async () => {
    for (const node of document.querySelectorAll("[data-chart]")) {
        node.scrollIntoView();
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 20)));
    }
    return {
        charts: document.querySelectorAll("[data-chart]").length,
        drawn: document.querySelectorAll("[data-chart]:has(canvas)").length,
    };
}"""


def level(name):
    kind, _, value = name.partition("=")
    rate, _, arrivals = value.partition(":")
    found = {"kind": kind, "value": float(rate) if rate else None, "arrivals": arrivals or None}
    return {key: value for key, value in found.items() if value is not None}


def row(name, throughput, latency, *, marks=(), **figures):
    """Return a level whose repetitions have these throughputs and median latencies."""
    values = {"throughput": throughput, "latency_p50_s": latency, "latency_p99_s": [2 * x for x in latency], **figures}
    metrics = {f"level_{key}": Values(value=found[0], rounds=tuple(found)) for key, found in values.items()}
    under = StoredLoad(**{**_converted(name), "marks": tuple(marks)})
    return Row(test=f"bench/t.py::test_load[{name}]", name=name, metrics=metrics, under_load=under)


def _converted(name):
    return {"level": msgspec.convert(level(name), curve.Level)}


def scattered(value, spread=0.01):
    return [value * (1 + spread * step) for step in (-1, 0.3, 1, -0.3)]


SATURATING = [
    row("concurrency=1", scattered(10), scattered(1.0)),
    row("concurrency=2", scattered(19), scattered(1.05)),
    row("concurrency=4", scattered(30), scattered(1.3)),
    row("concurrency=8", scattered(31), scattered(2.6)),
]


def test_levels_are_in_order_and_the_knee_is_where_power_is_greatest():
    (found,) = curve.curves(reversed(SATURATING))
    assert [point.level.name for point in found.points] == [f"concurrency={n}" for n in (1, 2, 4, 8)]
    assert found.test == "bench/t.py::test_load"
    assert found.knee.level.name == "concurrency=4"
    assert (found.knee.alike, found.knee.first, found.knee.last) == ((), False, False)
    assert list(report.lines(found)) == ["knee at concurrency=4 (greatest throughput / median latency)"]


@pytest.mark.parametrize(
    ("test", "named"),
    [
        ("bench/test_throughput.py::test_throughput[throughput]", "bench/test_throughput.py::test_throughput"),
        ("t.py::t[throughput-long]", "t.py::t[long]"),
        ("t.py::t[no-throughput]", "t.py::t[no]"),
        ("t.py::t[max_throughput-throughput-x]", "t.py::t[max_throughput-x]"),
        ("t.py::throughput", "t.py::throughput"),
        ("a[0]/t.py::T::t[a[0]-throughput]", "a[0]/t.py::T::t[a[0]]"),
        ("t.py::t[throughput-a::b[0]]", "t.py::t[a::b[0]]"),
        ("a[0]/t.py::t", "a[0]/t.py::t"),
        ("t.py::t[-1-throughput]", "t.py::t[-1]"),
    ],
)
def test_the_level_is_taken_from_a_tests_parameters_alone(test, named):
    (found,) = curve.curves([replace(row("throughput", [1.0], [1.0]), test=test)])
    assert found.test == named


def test_levels_whose_power_is_alike_are_named():
    rows = [*SATURATING[:2], row("concurrency=4", scattered(30, 0.5), scattered(1.3)), SATURATING[3]]
    (found,) = curve.curves(rows)
    assert "concurrency=2" in [one.name for one in found.knee.alike]
    assert "cannot be told from" in next(report.lines(found))


def test_a_knee_at_the_last_level_may_lie_beyond():
    (found,) = curve.curves(SATURATING[:3])
    assert found.knee.last
    assert "or above: no higher level tells of the server" in next(report.lines(found))


@pytest.mark.parametrize("few", [SATURATING[:2], [row("throughput", [30, 31], [1.0, 1.1])]])
def test_few_levels_have_no_knee(few):
    (found,) = curve.curves(few)
    assert found.knee is None
    assert list(report.lines(found)) == []


def test_a_level_that_was_bound_by_the_sender_says_nothing_of_the_server():
    bound = row("concurrency=16", scattered(90), scattered(1.0), marks=[WarningKind.CLIENT_BOUND.value])
    (found,) = curve.curves([*SATURATING, bound])
    assert found.knee.level.name == "concurrency=4"
    assert next(report.lines(found)).startswith("the sender was the bottleneck at concurrency=16")


def test_kinds_and_spacings_are_curves_of_their_own():
    names = ["concurrency=1", "rate=1:poisson", "rate=2:poisson", "rate=1:constant", "throughput"]
    found = curve.curves(row(name, [1.0, 1.1], [1.0, 1.1]) for name in names)
    assert [len(one.points) for one in found] == [1, 2, 1, 1]


@pytest.mark.parametrize(
    ("values", "value", "low", "high"),
    [
        ([2.0], 2.0, None, None),
        ([0.0], 0.0, None, None),
        ([2.0, 2.0], 2.0, 2.0, 2.0),
        # Mean of logarithms, t of one degree of freedom: 12.706.
        ([1.0, 4.0], 2.0, 2.0 / 2.718281828 ** (12.706 * 0.98026 / 2**0.5), None),
        ([0.0, 10.0], 5.0, 5.0 - 12.706 * 5.0, 5.0 + 12.706 * 5.0),
    ],
)
def test_a_figure_has_students_interval_over_repetitions(values, value, low, high):
    found = curve.estimate(values, Unit.SECONDS)
    assert found.value == pytest.approx(value)
    if low is not None:
        assert found.low == pytest.approx(low, rel=1e-3)
    if high is not None:
        assert found.high == pytest.approx(high, rel=1e-3)
    assert (found.low is None) == (len(values) == 1)


@pytest.mark.parametrize("values", [[1.0, 1.0, 50.0], [0.0, 1.0, 50.0]])
def test_shares_are_averaged_as_they_are(values):
    assert curve.estimate(values, Unit.PERCENT).value == pytest.approx(sum(values) / 3)


def test_a_replay_that_takes_longer_asks_for_less():
    rows = [row(f"replay={n}", scattered(rate), scattered(1.0)) for n, rate in ((0.5, 40), (1, 20), (2, 10))]
    (found,) = curve.curves(rows)
    assert [point.level.name for point in found.points] == ["replay=2", "replay=1", "replay=0.5"]
    assert (found.knee.level.name, found.knee.first, found.knee.last) == ("replay=0.5", False, True)


@pytest.mark.parametrize("place", ["[{}-concurrency=1]", "[concurrency=1-{}]"])
def test_what_else_a_test_is_parametrized_by_makes_another_curve(place):
    rows = [
        replace(one, test=f"bench/t.py::test_load{place.format(engine).replace('concurrency=1', one.name)}")
        for engine in ("a", "b")
        for one in SATURATING
    ]
    found = curve.curves(rows)
    assert [(one.test, len(one.points)) for one in found] == [(f"bench/t.py::test_load[{e}]", 4) for e in "ab"]


def test_half_an_interval_is_told_as_a_share():
    assert report.interval(Estimate(value=2.0, low=1.9, high=2.1)) == "± 5.00 %"
    assert report.interval(Estimate(value=2.0)) == ""
    assert report.interval(None) == ""


@pytest.mark.parametrize("width", [80, 120])
def test_a_level_is_a_line(width):
    rows = [
        row(name, scattered(10), scattered(1.0), misses=[0.0, 0.0], ttft_p99_s=[0.5, 0.5], offered=[1.0, 1.0])
        for name in ("concurrency=1", "rate=0.25:constant")
    ]
    screen = console(width, color=False)
    report.write(screen, curve.curves(rows))
    lines = collected(screen).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == 4
    assert lines[2].split()[0] == "concurrency=1"
    assert ("offered" in lines[0]) == (width >= 100)


# stored, shown again, drawn


@pytest.fixture
def page_of(storage):
    """Return a function that stores levels of simulated queues and returns the run's file and its report."""
    whole = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)

    def make(rates, **more):
        blocks = []
        for rate in rates:
            sent = [simulated(rate, 0.05, 200, seed, exponential=True) for seed in range(3)]
            counted = [replace(one, counters=r.counters) for one, r in zip(sent, whole.rounds, strict=False)]
            of = at_rate(counted, rate, latency_s=0.3)
            record = replace(
                whole,
                nodeid=f"bench/t.py::t[{of.level.name}]",
                prompt=replace(whole.prompt, name=of.level.name),
                rounds=(),
                profile=None,
                reference=None,
                breakdown=None,
                breakdown_absent="a load test",
                warnings=marks.find(of, bust=True),
                under_load=of,
            )
            blocks.append(block.build(record))
        path = storage.add(blocks, **more)
        out = storage.folder / "report.html"
        page.write(out, runs.read(path), storage.load().runs)
        return path, out

    return make


def test_what_is_stored_of_levels_is_read_again(page_of):
    path, _ = page_of([2, 10])
    found = results.shown(path)
    assert [result.under_load.name for result in found.results] == ["rate=2:poisson", "rate=10:poisson"]
    assert found.results[0].timed_rounds == 3
    assert found.results[0].figures["ttft_s"].reason == "not measured under load"
    assert found.results[0].figures["level_tpot_p50_s"].value > 0
    (drawn,) = curve.curves(runs.read(path).rows)
    assert [len(point.repetitions["level_throughput"]) for point in drawn.points] == [3, 3]


def test_the_servers_counters_are_stored_for_each_repetition_and_shown(page_of):
    path, out = page_of([2, 10])
    whole = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    (drawn,) = curve.curves(runs.read(path).rows)
    spent = [r.counters.cpu_s.value for r in whole.rounds[:3]]
    assert [point.repetitions["cpu_s"] for point in drawn.points] == [pytest.approx(spent)] * 2
    (line,) = (line for line in report.lines(drawn) if line.startswith("the server"))
    assert "CPU 361 ms, peak memory 400 MiB, cached tokens 1, KV cache 25.0 %" in line
    table = re.search(r"<table[^>]*>(?:(?!<table).)*Every level.*?</table>", out.read_text(), re.DOTALL)[0]
    for key in COUNTED:
        assert f">{by_key(key).label}<" in table, key


def test_the_page_of_levels_alone_says_so_and_names_model_and_machine(page_of):
    _, out = page_of([2, 10])
    shown = Page(out.read_text()).shown
    assert "the run measured levels of load alone, which are under Load" in shown
    assert "no test was measured" not in shown
    machine = shown.partition("What was measured with")[2].partition("Sweep")[0]
    assert "hand-made" in machine
    assert "A CPU" in machine
    assert " · A CPU × 2 cores · 2 levels of load " in shown


def test_the_page_of_levels_beside_prompts_that_failed_says_what_passed(page_of):
    _, out = page_of([2], failed={"bench/t.py::t[a]": {}})
    shown = Page(out.read_text()).shown
    assert "no test but levels of load passed, which are under Load" in shown
    assert "levels of load alone" not in shown


@pytest.mark.parametrize(("high", "said"), [(1.2, "± 10.0 %"), (1e12, "± over 1000 %"), (None, "")])
def test_an_interval_that_says_nothing_is_not_drawn_out(high, said):
    assert report.interval(Estimate(value=1.0, low=None if high is None else 1.0, high=high)) == said


def test_a_run_from_before_the_servers_counters_has_none():
    of = at_rate([simulated(2, 0.05, 50, 1)], 2)
    stored = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    found = summarize(replace(stored, under_load=of))["cpu_s"]
    assert (found.value, found.reason) == (None, "no counter was read")


def test_levels_are_drawn_with_their_intervals_and_the_knee(page_of, chromium):
    _, out = page_of([2, 10, 18])
    text = out.read_text()
    assert "3 levels of load" in text
    assert "no inter-token latencies under load" in " ".join(text.split())
    with chromium.new_context(viewport={"width": 1280, "height": 900}, offline=True) as context:
        tab, said = context.new_page(), []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(out.as_uri())
        found = tab.evaluate(DRAW_ALL)
        assert said == []
        assert found["charts"] == found["drawn"] >= 2
        heads = tab.locator("#load h3").all_inner_texts()
        assert heads[0].strip() == "By rate, poisson: bench/t.py::t"
        assert tab.locator("#load table").count() == 3
        with tab.expect_download() as download:
            tab.get_by_role("button", name=re.compile("Save TTFT by throughput, .* as CSV")).click()
        head, *rows = csv.reader(io.StringIO(download.value.path().read_text()))
    assert head[-2:] == ["low", "high"]
    assert len(rows) == 6
    assert all(float(low) <= float(value) <= float(high) for *_, value, low, high in rows)
