"""What one does with the report, in a real browser: sort, filter, search, link, copy, save, see two runs at once."""

import csv
import io
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from pytest_infer.cli.main import app
from pytest_infer.report.html import page
from pytest_infer.report.html.compare import Compared
from pytest_infer.storage import runs

pytestmark = [pytest.mark.slow, pytest.mark.real]

LONG = "a-prompt-with-a-name_of/sixty-three-characters.that=is,never:cut"
OPEN_ALL = "() => document.querySelectorAll('details').forEach((one) => { one.open = true; })"
SEE_ALL = """async () => {
    for (const one of document.querySelectorAll("[data-chart], table")) {
        one.scrollIntoView();
        await new Promise((done) => requestAnimationFrame(done));
    }
}"""
VIEWS = [(390, "dark"), (1280, "light"), (1920, "dark")]
EVERY_VIEW = [(width, scheme) for width in (390, 1280, 1920) for scheme in ("light", "dark")]


def usage(counts):
    site = {"name": "l0", "layer": 0, "experts": 4, "slots": 4, "k": 2, "expert_bytes": 1024}
    tokens = {"prefill": 8, "decode": 8}
    return {"check": "passed", "tokens": tokens, "sites": [site], "counts": {"prefill": [counts], "decode": [counts]}}


def written(storage, make_block, names):
    """Write the report of two runs: a step of one a hundred times as long as the others, experts used otherwise."""
    paths = []
    for run, counts in enumerate(([8, 4, 4, 0], [4, 4, 4, 4])):
        blocks = []
        for number, name in enumerate(names, 1):
            took = number * (1 + run / 10)
            blocks.append(make_block(name, ttft_s=[took / 100, took / 99], experts=usage(counts)))
        paths.append(storage.add(blocks, commit=str(run) * 40))
        gaps = np.full(40, (2 + run) * 1_000_000)
        gaps[9] = 300_000_000
        stamps = {"bench/t.py::t[story]|0|stamps_ns": np.cumsum([9_000_000, *gaps])}
        np.savez_compressed(paths[-1].with_suffix(".npz"), **stamps)
    out = storage.folder.parent / "report.html"
    every = storage.load().runs
    compared = Compared(before=every[0].label, after=every[-1].label, judgements=(), earlier=every[0])
    page.write(out, runs.read(paths[-1]), every, [compared], "https://forge.example/a/b")
    return out


@pytest.fixture(scope="module")
def report(kept_storage, make_block):
    return written(kept_storage, make_block, ["story", LONG, *(f"p{number}" for number in range(7)), "=1+2|*x*"])


@pytest.fixture(scope="module")
def shared(chromium, report):
    with chromium.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True, offline=True) as context:
        yield context.new_page()


@pytest.fixture(params=VIEWS, ids=lambda view: f"{view[0]}-{view[1]}")
def tab(request, shared, report):
    width, scheme = request.param
    shared.set_viewport_size({"width": width, "height": 900})
    shared.emulate_media(color_scheme=scheme)
    said = []

    def hear(error):
        said.append(str(error))

    shared.on("pageerror", hear)
    shared.goto("about:blank")
    shared.goto(report.as_uri())
    yield shared
    shared.remove_listener("pageerror", hear)
    assert said == []


@pytest.fixture
def suite(tab):
    """Return the table of the suite, with its tools."""
    table = tab.locator("#overview table", has_text="mean").first
    table.scroll_into_view_if_needed()
    table.locator(".sort").first.wait_for()
    return table


def column(table, number):
    return table.locator(f"tbody:first-of-type tr:not([hidden]) > :nth-child({number})").all_inner_texts()


def test_a_table_is_sorted_by_any_column_and_back(suite):
    heads = suite.locator("thead th").all_inner_texts()
    at = 1 + next(number for number, text in enumerate(heads) if text.startswith("TTFT"))
    head = suite.locator(f"thead th:nth-child({at})")
    button = head.get_by_role("button", name="Sort by TTFT")
    before = column(suite, at)
    for way, reverse in (("descending", True), ("ascending", False)):
        button.click()
        assert head.get_attribute("aria-sort") == way
        assert [float(text) for text in column(suite, at)] == sorted((float(text) for text in before), reverse=reverse)
    # What sums up stays below.
    assert suite.locator("tr").last.inner_text().startswith("± sd")
    button.click()
    assert (head.get_attribute("aria-sort"), column(suite, at)) == (None, before)
    suite.get_by_role("button", name="Sort by prompt").press("Enter")
    assert [text.rstrip("! ") for text in column(suite, 1)][1:3] == [LONG, "p0"]


def test_rows_are_filtered_by_words_that_all_must_be_there(tab, suite):
    field = tab.get_by_role("searchbox", name="Filter Median of the timed rounds, a row a prompt")
    field.fill("P3")
    assert [text.rstrip("! ") for text in column(suite, 1)] == ["p3"]
    assert tab.get_by_role("status").filter(has_text="1 of 10").count() == 1
    field.fill("")
    assert len(column(suite, 1)) == 10


def test_what_is_searched_is_opened_and_has_an_address(tab):
    tab.keyboard.press("/")
    tab.get_by_role("searchbox", name="Prompts, figures, headings").fill("p4 ttft")
    tab.get_by_role("dialog").get_by_role("button", name=re.compile("TTFT .*p4")).click()
    row = tab.locator("#prompt-p4-ttft")
    assert row.is_visible()
    assert tab.evaluate("location.hash") == "#prompt-p4-ttft"
    tab.get_by_role("button", name="Search").click()
    tab.keyboard.press("Escape")
    assert not tab.get_by_role("dialog").is_visible()


def test_a_link_by_name_opens_what_it_leads_into(tab, report):
    tab.goto("about:blank")
    tab.goto(f"{report.as_uri()}#prompt-story-ttft")
    row = tab.locator("#prompt-story-ttft")
    assert row.is_visible()
    assert row.evaluate("one => { const y = one.getBoundingClientRect().y; return y >= 0 && y < innerHeight; }")
    # Headings offer their own addresses.
    heading = tab.locator("#history h3").first
    link = heading.locator(".permalink")
    heading.hover()
    assert link.is_visible()
    link.click()
    assert tab.evaluate("location.hash.slice(1)") == heading.get_attribute("id")
    assert heading.get_attribute("id").startswith("history-")
    offered = tab.locator(".permalink").evaluate_all(
        "links => links.map((one) => decodeURIComponent(one.hash.slice(1)))"
    )
    assert {"prompt-story", "chart-prompt-story-itl", "experts", "history-runs"} <= set(offered)
    assert len(offered) == len(set(offered))


def test_a_table_is_copied_as_markdown(tab, suite):
    tab.evaluate("""() => {
        navigator.clipboard.writeText = async (text) => { window.copied = text; };
        // What a button did is told for a moment only: here it stays.
        window.setTimeout = () => 0;
    }""")
    copy = tab.get_by_role("button", name="Copy Median of the timed rounds, a row a prompt as Markdown")
    copy.click()
    tab.wait_for_function("() => window.copied")
    lines = tab.evaluate("window.copied").splitlines()
    assert lines[0].startswith("| prompt | tokens in + out | TTFT ")
    assert lines[1].startswith("| --- | ---: | ---: |")
    assert lines[2].startswith("| story | ")
    assert lines[11].startswith("| =1+2\\|\\*x\\* | ")
    assert len(lines) == 2 + 10 + 2
    # A page that may not write there copies the older way.
    tab.evaluate("""() => {
        navigator.clipboard.writeText = () => Promise.reject(new Error("denied"));
        document.addEventListener("copy", () => { window.copied = document.getSelection().toString() || "some"; });
        window.copied = "";
    }""")
    copy.click()
    tab.wait_for_function("() => window.copied")
    tab.get_by_text("copied", exact=True).wait_for()


def saved(tab, name):
    with tab.expect_download() as download:
        # By its key: on a busy machine what comes into sight may still move what a mouse is pressed on.
        tab.get_by_role("button", name=name).press("Enter")
    return download.value.suggested_filename, download.value.path().read_bytes()


def test_a_chart_is_saved_as_a_picture_and_its_data_as_csv(tab):
    name, picture = saved(tab, "Save Inter-token latency by token, ms as PNG")
    assert name == "prompt-story-itl.png"
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000
    name, text = saved(tab, "Save Inter-token latency by token, ms as CSV")
    rows = list(csv.reader(io.StringIO(text.decode())))
    assert name == "prompt-story-itl.csv"
    assert rows[0] == [
        "token",
        *(f"{run} {what} ms" for run in ("0002", "0001") for what in ("median", "least", "most")),
    ]
    assert len(rows) == 1 + 40
    assert (rows[1], rows[10][1]) == (["2", "3", "3", "3", "2", "2", "2"], "300")
    # Without a kind of its own, a chart's CSV is the table below it, which holds all of it; no text is a formula.
    _, text = saved(tab, re.compile("Save Where the time goes, .* as CSV"))
    named = [row[0] for row in csv.reader(io.StringIO(text.decode()))]
    assert (named[1], named[-1]) == ("story", "'=1+2|*x*")


def test_both_curves_are_saved_whatever_is_a_point(shared, storage, make_block):
    """Both curves, where each puts another number of tokens into a point."""
    path = storage.add([make_block("a") | {"against": {"rev": "main"}}])
    sides = {"0": 4999, "before|0": 2499}
    stamps = {f"bench/t.py::t[a]|{side}|stamps_ns": np.arange(n) * 1_000_000 for side, n in sides.items()}
    np.savez_compressed(path.with_suffix(".npz"), **stamps)
    out = storage.folder.parent / "report.html"
    page.write(out, runs.read(path), [])
    shared.goto(out.as_uri())
    _, text = saved(shared, "Save Inter-token latency by token, ms as CSV")
    rows = list(csv.reader(io.StringIO(text.decode())))[1:]
    drawn = shared.evaluate("() => JSON.parse(document.getElementById('data').textContent)['prompt-a-itl']")
    assert [side["x"]["step"] for side in (drawn, drawn["before"])] == [3, 2]
    assert [sum(row[at] != "" for row in rows) for at in (1, 4)] == [1666, 1249]


def test_the_use_of_experts_is_shown_as_a_difference_of_two_runs(tab):
    chart = tab.locator("#chart-heat")
    chart.scroll_into_view_if_needed()
    chart.locator("canvas").first.wait_for()
    picture = "one => [...one.querySelectorAll('canvas')].map((layer) => layer.toDataURL()).join()"
    before = chart.evaluate(picture)
    chart.get_by_role("combobox", name="map").select_option("difference")
    assert chart.evaluate(picture) != before
    # Of 16 selections a layer, all prompts alike: 8 and 0 became 4 and 4.
    _, text = saved(tab, "Save Selections by layer and expert as CSV")
    rows = list(csv.DictReader(io.StringIO(text.decode())))
    assert [float(row["change of share, points"]) for row in rows] == [-25, 0, 0, 25]
    tab.evaluate(OPEN_ALL)
    told = tab.locator("#experts table", has_text="Percentage points of the layer's selections, 0002 less 0001")
    assert told.locator("tbody td").all_inner_texts() == ["−25.00", "+0.00", "+0.00", "+25.00"]


def test_a_choice_that_a_chart_lacks_shows_no_other(shared, storage, make_block):
    """A prompt of one token has no TPOT, another is new: neither is shown by another's figures."""
    step = dict.fromkeys(("tpot_s", "itl_p99_s", "decode_throughput"))
    one, two, new = (usage(counts) for counts in ([8, 4, 4, 0], [1, 2, 3, 4], [4, 4, 4, 4]))
    for number in range(3):
        blocks = [make_block("one", experts=one, **step), make_block("two", experts=two)]
        storage.add([*blocks, *([make_block("new", experts=new)] if number > 1 else [])])
    out = storage.folder.parent / "report.html"
    every = storage.load().runs
    compared = Compared(before=every[1].label, after=every[2].label, judgements=(), earlier=every[1])
    page.write(out, runs.read(every[2].path), every, [compared])
    shared.goto(out.as_uri())
    shown = """(key) => {
        const made = echarts.getInstanceByDom(document.querySelector(`#chart-${key} .canvas`)).getOption();
        const [first] = made.series || [];
        return [made.title ? made.title[0].text : null, first ? first.data.length : 0];
    }"""

    def look(key):
        chart = shared.locator(f"#chart-{key}")
        chart.scroll_into_view_if_needed()
        chart.locator("canvas").first.wait_for()
        return shared.evaluate(shown, key)

    assert look("trend-tpot_s") == ["no such figure of one", 0]
    assert look("trend-ttft_s") == [None, 3]
    name, text = saved(shared, "Save TPOT as CSV")
    assert (name, text.decode().splitlines()[0]) == ("trend-tpot_s.csv", "run,two ms")
    choose = shared.locator("#history").get_by_role("combobox", name="prompt")
    assert choose.locator("option").all_inner_texts() == ["one", "two"]
    choose.select_option("two")
    assert look("trend-tpot_s") == [None, 3]
    chart = shared.locator("#chart-heat")
    chart.get_by_role("combobox", name="map").select_option("difference")
    for prompt, said in (("new", "no selections of new in 0002"), ("one", None)):
        chart.get_by_role("combobox", name="prompt").select_option(prompt)
        assert look("heat")[0] == said


def test_both_runs_latencies_are_drawn_and_one_outlier_does_not_flatten_them(tab):
    chart = tab.locator("#chart-prompt-story-itl")
    chart.scroll_into_view_if_needed()
    chart.locator("canvas").first.wait_for()
    drawn = """() => {
        const made = echarts.getInstanceByDom(document.querySelector("#chart-prompt-story-itl .canvas")).getOption();
        return {
            names: made.legend[0].data,
            most: made.yAxis[0].max,
            beyond: made.series.filter((one) => one.name === "beyond the axis").map((one) => one.data[0].told),
        };
    }"""
    found = tab.evaluate(drawn)
    assert found["names"] == ["0002", "0001"]
    assert 3 < found["most"] < 30
    assert found["beyond"] == [300, 300]


def test_both_runs_gaps_are_distributed_in_one_drawing_as_shares(tab):
    chart = tab.locator("#chart-prompt-story-dist")
    chart.scroll_into_view_if_needed()
    chart.locator("canvas").first.wait_for()
    found = tab.evaluate("""() => {
        const made = echarts.getInstanceByDom(document.querySelector("#chart-prompt-story-dist .canvas")).getOption();
        const sum = (one) => one.data.reduce((total, at) => total + at[1], 0);
        return { names: made.legend[0].data, sums: made.series.map(sum) };
    }""")
    assert found["names"] == ["0002", "0001"]
    # Each height of the line stands at both ends of its bin.
    assert found["sums"] == pytest.approx([200, 100])


def test_no_label_is_cut(tab):
    chart = tab.locator("#chart-phases")
    chart.scroll_into_view_if_needed()
    chart.locator("canvas").first.wait_for()
    label = tab.evaluate(
        """(name) => {
        const made = echarts.getInstanceByDom(document.querySelector("#chart-phases .canvas")).getOption();
        return made.yAxis[0].axisLabel.formatter(name);
    }""",
        LONG,
    )
    assert label.replace("\n", "") == LONG
    assert max(map(len, label.split("\n"))) <= 24


@pytest.mark.parametrize(("width", "scheme"), EVERY_VIEW)
def test_every_view_shows_the_verdict_first_and_is_no_wider_than_its_page(shared, report, width, scheme):
    tab = shared
    tab.set_viewport_size({"width": width, "height": 844})
    tab.emulate_media(color_scheme=scheme)
    tab.goto("about:blank")
    tab.goto(report.as_uri())
    card = tab.locator(".verdict").first.bounding_box()
    assert card["y"] + 40 < 844
    tab.evaluate(OPEN_ALL)
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_site_leads_from_its_index_to_pages_that_draw(shared, report, kept_storage, scheme):
    out = report.parent / "site"
    result = CliRunner().invoke(app, ["site", str(out), f"--storage={kept_storage.folder}"])
    assert result.exit_code == 0, result.output
    said = []

    def hear(message):
        said.append(message.text)

    shared.on("console", hear)
    shared.emulate_media(color_scheme=scheme)
    shared.goto((out / "index.html").as_uri())
    for width in (390, 1920):
        shared.set_viewport_size({"width": width, "height": 900})
        assert shared.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert shared.locator("#runs tbody tr").count() == 2
    shared.locator("#branches tbody a").first.click()
    assert shared.get_by_role("link", name="all runs").is_visible()
    chart = shared.locator("#chart-phases")
    chart.scroll_into_view_if_needed()
    chart.locator("canvas").first.wait_for()
    assert said == []
    shared.remove_listener("console", hear)


def test_axe_finds_nothing_with_all_open(chromium, storage, make_block, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="it holds axe").Axe()
    report = written(storage, make_block, ["story"])
    # axe is a script that the page's own policy would refuse.
    with chromium.new_context(viewport={"width": 1280, "height": 900}, bypass_csp=True) as context:
        tab = context.new_page()
        CliRunner().invoke(app, ["site", str(tmp_path / "site"), f"--storage={storage.folder}"])
        for address in (report, tmp_path / "site" / "index.html"):
            tab.goto(address.as_uri())
            tab.evaluate(OPEN_ALL)
            tab.evaluate(SEE_ALL)
            # Rows of a table are of a few kinds, and a hundred of them take axe seconds.
            tab.evaluate("() => document.querySelectorAll('tbody tr:nth-child(n + 5)').forEach((row) => row.remove())")
            for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
                tab.emulate_media(color_scheme=scheme)
                found = axe.run(tab, options={"resultTypes": ["violations"], **rules})
                assert [(one["id"], one["nodes"][0]["html"]) for one in found.response["violations"]] == []
