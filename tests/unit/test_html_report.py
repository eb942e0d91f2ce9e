"""The HTML report: its numbers are the run file's, nothing in it is live, and what is absent says why."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.cli.main import app
from pytest_infer.metrics import METRICS
from pytest_infer.report.compare import exports
from pytest_infer.report.html import page
from pytest_infer.report.html.compare import Compared
from pytest_infer.report.html.parts import Item
from pytest_infer.storage.runs import read

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x1b[31m\u202eevil\u2066\u2028\x00\x7f"
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u2028\u2029"


class Page(HTMLParser):
    """What a browser makes of the file: its elements, attributes, and the text of each script and style."""

    VOID = frozenset({"meta", "link", "br", "input"})

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.raw, self.text = [], [], [], []
        self.stack = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)
        if tag in ("script", "style"):
            self.raw.append([tag, dict(attrs), ""])

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] in ("script", "style"):
            self.raw[-1][2] += data
        else:
            self.text.append(data)

    @property
    def data(self):
        return json.loads(next(text for tag, given, text in self.raw if given.get("id") == "data"))

    @property
    def shown(self):
        return " ".join("".join(self.text).split())


def sidecar(path, tests, *, rounds=3, tokens=30, timeline=True, seed=1):
    rng = np.random.default_rng(seed)
    arrays = {}
    for test in tests:
        for number in range(rounds):
            gaps = rng.lognormal(np.log(3e6), 0.2, tokens).astype(np.int64)
            arrays[f"{test}|{number}|stamps_ns"] = np.cumsum(gaps)
        if timeline:
            at = np.arange(0, 200_000_000, 10_000_000)
            arrays |= {
                f"{test}|timeline|at_ns": at,
                f"{test}|timeline|rss_bytes": np.arange(len(at)) * 2**20 + 400 * 2**20,
                f"{test}|timeline|core_busy_s": np.outer(at / 1e9, [0.9, 0.5]),
                f"{test}|timeline|first_token_ns": np.int64(20_000_000),
                f"{test}|timeline|end_ns": np.int64(180_000_000),
            }
    np.savez_compressed(path.with_suffix(".npz"), **arrays)


def render(path, runs=(), compared=()):
    return page.render(read(path), runs, compared)


def test_the_heat_map_holds_the_run_files_own_counts(storage, make_block):
    usage = {
        "check": "passed",
        "tokens": {"prefill": 6, "decode": 4},
        "sites": [
            {"name": f"l{n}", "layer": n, "experts": 4, "slots": 4 + n, "k": 2, "expert_bytes": 1024} for n in (0, 1)
        ],
        "counts": {"prefill": [[6, 3, 2, 1], [3, 3, 3, 3, 0]], "decode": [[4, 2, 2, 0], [2, 2, 2, 1, 1]]},
    }
    path = storage.add([make_block("a", experts=usage), make_block("b", experts=usage)])
    heat = Page(render(path)).data["heat"]
    stored = [r["extra_info"]["pytest_infer"]["experts"]["counts"] for r in json.loads(path.read_text())["benchmarks"]]
    every, *each = heat["choices"]
    assert [choice["name"] for choice in each] == ["a", "b"]
    for choice, counts in zip(each, stored, strict=True):
        assert {phase: choice[phase] for phase in counts} == counts
    assert every["decode"] == [[8, 4, 4, 0], [4, 4, 4, 2, 2]]
    assert every["prefill"] == [[12, 6, 4, 2], [6, 6, 6, 6, 0]]
    assert heat["experts"] == [4, 4]


@pytest.mark.parametrize("check", ["passed", "6 of 8 selections"])
def test_the_experts_of_an_abs_other_side_are_beside_ours(storage, make_block, check):
    site = {"name": "l0", "layer": 0, "experts": 4, "slots": 4, "k": 2, "expert_bytes": 1024}

    def used(counts):
        counted = {"prefill": [counts], "decode": [counts]}
        return {"check": "passed", "tokens": {"prefill": 4, "decode": 4}, "sites": [site], "counts": counted}

    made = make_block("a", experts=used([2, 2, 2, 2]))
    made["against"] = {"rev": "HEAD~1", "metrics": {}, "experts": {**used([4, 4, 0, 0]), "check": check}}
    found = Page(render(storage.add([made])))
    heat = found.data["heat"]
    if check == "passed":
        assert heat["sides"] == ["HEAD~1", "this checkout"]
        assert heat["choices"][0]["before"] == {"prefill": [[4, 4, 0, 0]], "decode": [[4, 4, 0, 0]]}
        assert "What changed since HEAD~1" in found.shown
        assert "L0−25.00−25.00+25.00+25.00" in found.shown.replace(" ", "")
    else:
        assert heat["sides"] == []
        assert "before" not in heat["choices"][0]


def test_nothing_that_names_outputs_or_commits_hold_is_live(storage, make_block, tmp_path, monkeypatch):
    made = make_block(EVIL, prompt={"group": EVIL, "tags": [EVIL]}, model={"name": EVIL, "revision": EVIL})
    made["output"] = {"text": f"one\n{EVIL}\n\u202etwo", "sha256": "x", "equal": True}
    made["cautions"] = [{"kind": EVIL, "text": EVIL}]
    made["absent"] = {"energy_j": EVIL}
    made["timeline"] = {"absent": EVIL}
    judged = Judgement(test=EVIL, name=EVIL, verdict=Verdict.REGRESSED, metric_key="ttft_s", reason=EVIL, rule=EVIL)
    monkeypatch.setattr("pytest_infer.report.html.history.subjects", lambda commits: dict.fromkeys(commits, EVIL))
    for _ in range(3):
        path = storage.add([made], branch=EVIL, failed={EVIL: {}}, unmeasured=[EVIL])
    text = render(path, storage.load().runs, [Compared(before=EVIL, after=EVIL, judgements=(judged,))])

    found = Page(text)
    assert found.tags.count("script") == 8
    assert {given.get("type") for tag, given in found.attributes if tag == "script"} == {None, "application/json"}
    assert "img" not in found.tags
    assert not [given for _, given in found.attributes if any(name.startswith("on") for name in given)]
    assert not [given for _, given in found.attributes if "style" in given]
    library = page.ECHARTS.joinpath("echarts.min.js").read_text(encoding="utf-8")
    ours = text.replace(library, "")
    assert not [c for c in ours if (ord(c) < 32 and c != "\n") or ord(c) == 127 or c in BIDI]
    assert "\\u202eevil" in found.shown
    assert "\\x1b[31m" in found.shown
    # As text it is there, every time.
    assert found.shown.count("<script>alert(1)</script>") > 10
    assert EVIL.count("<") == 3
    assert "<" not in next(raw for tag, given, raw in found.raw if given.get("id") == "data")


def test_markup_right_to_left_text_and_lines_of_an_output_stay_readable(storage, make_block):
    made = make_block("a")
    made["output"] = {"text": "שלום & <b>\nsecond", "sha256": "x", "equal": True}
    text = render(storage.add([made]))
    assert '<pre class="output" dir="auto">\n' + "שלום &amp; &lt;b&gt;\nsecond\n</pre>" in text
    made["output"]["text"] = "\nsecond line"
    assert '<pre class="output" dir="auto">\n\nsecond line\n</pre>' in render(storage.add([made]))


def test_scripts_and_style_are_those_that_the_policy_names(storage, make_block):
    found = Page(render(storage.add([make_block()])))
    policy = next(given["content"] for tag, given in found.attributes if "http-equiv" in given)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag, given, text in found.raw:
        if given.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy.partition(f"{tag}-src")[2].partition(";")[0]


def test_it_needs_nothing_from_elsewhere(storage, make_block):
    found = Page(render(storage.add([make_block()])))
    assert {tag for tag, given in found.attributes if "src" in given} == set()
    links = [given.get("href", "") for _, given in found.attributes if "href" in given]
    assert all(link.startswith(("#", "data:")) for link in links)


def test_links_lead_to_anchors_that_are_there_once(storage, make_block):
    path = storage.add([make_block("a"), make_block("b")])
    sidecar(path, ["bench/t.py::t[a]"])
    found = Page(render(path, storage.load().runs))
    ids = [given["id"] for _, given in found.attributes if "id" in given]
    assert len(ids) == len(set(ids))
    targets = {given["href"][1:] for tag, given in found.attributes if tag == "a"}
    assert targets <= set(ids)
    assert {f"def-{metric.key}" for metric in METRICS} <= set(ids)
    labels = {given["aria-labelledby"] for _, given in found.attributes if "aria-labelledby" in given}
    assert labels <= set(ids)


def test_every_chart_has_words_and_a_table_behind_it(storage, make_block):
    path = storage.add([make_block("a")])
    sidecar(path, ["bench/t.py::t[a]"])
    text = render(path)
    found = Page(text)
    charts = [given["data-chart"] for _, given in found.attributes if "data-chart" in given]
    assert set(charts) == set(found.data)
    assert {"phases", "heat", "coverage", "placement", "prompt-a-itl", "prompt-a-dist", "prompt-a-memory"} - {
        "placement"
    } <= set(charts)
    for chart in charts:
        figure = text.partition(f'id="chart-{chart}"')[2].partition("</figure>")[0]
        assert "<table>" in figure
        assert re.search(r'role="img" aria-label="[^"]{20,}"', figure)
        assert found.data[chart]["says"]


def test_latencies_are_the_sidecars(storage, make_block):
    path = storage.add([make_block("a")])
    stamps = {0: [5_000_000, 7_000_000, 10_000_000], 1: [4_000_000, 8_000_000, 10_000_000, 15_000_000]}
    keys = {f"bench/t.py::t[a]|{n}|stamps_ns": np.asarray(s) for n, s in stamps.items()}
    np.savez_compressed(path.with_suffix(".npz"), **keys)
    chart = Page(render(path)).data["prompt-a-itl"]
    assert (chart["unit"], chart["x"]) == ("ms", {"name": "token", "start": 2, "step": 1})
    assert (chart["low"], chart["median"], chart["high"]) == ([2, 2, 5], [3, 2.5, 5], [4, 3, 5])
    assert sum(Page(render(path)).data["prompt-a-dist"]["counts"]) == 5


def test_both_sides_latencies_of_an_ab_are_in_one_drawing(storage, make_block):
    made = make_block("a")
    made["against"] = {"rev": "HEAD~1", "metrics": {}}
    path = storage.add([made])
    sides = {"0": [5, 7, 10], "before|0": [5, 9, 15]}
    keys = {f"bench/t.py::t[a]|{side}|stamps_ns": np.asarray(s) * 1_000_000 for side, s in sides.items()}
    np.savez_compressed(path.with_suffix(".npz"), **keys)
    found = Page(render(path))
    chart = found.data["prompt-a-itl"]
    assert (chart["name"], chart["median"]) == ("this checkout", [2, 3])
    assert (chart["before"]["name"], chart["before"]["median"]) == ("HEAD~1", [4, 6])
    assert "This checkout over HEAD~1, which is dashed." in found.shown
    assert "median of the other side" in found.shown
    both = found.data["prompt-a-dist"]
    assert len(both["before"]) == len(both["counts"])
    assert both["names"] == ["HEAD~1", "this checkout"]
    assert "this checkout over HEAD~1, the line." in found.shown
    assert "gaps of the other side" in found.shown


def test_the_table_has_the_other_sides_median_of_the_same_tokens(storage, make_block):
    path = storage.add([make_block("a")])
    sides = {"0": [*[1] * 24, *[2] * 24], "before|0": [4, 6] * 12}
    keys = {f"bench/t.py::t[a]|{side}|stamps_ns": np.cumsum([1, *gaps]) * 1_000_000 for side, gaps in sides.items()}
    np.savez_compressed(path.with_suffix(".npz"), **keys)
    table = Page(render(path)).shown.partition("Gaps before the tokens, ms")[2].partition("Inter-token latency")[0]
    told = re.findall(r"\d+–\d*\d(?:[12]\.00){3}(\S+) ", table)
    assert told == ["5.00"] * 12 + ["—"] * 12


def test_the_longest_gap_of_a_group_has_the_groups_range(storage, make_block):
    path = storage.add([make_block("a")])
    gaps = np.full(4999, 1_000_000)
    gaps[3000] = 9_000_000
    np.savez_compressed(path.with_suffix(".npz"), **{"bench/t.py::t[a]|0|stamps_ns": np.cumsum([1_000_000, *gaps])})
    chart = Page(render(path)).data["prompt-a-itl"]
    # Gap n ends at token n + 2, and three are a point: 3000 is the first of its.
    assert chart["x"]["step"] == 3
    assert "9.00 ms, ends at one of the tokens 3,002–3,004." in chart["says"]


def test_an_engine_that_delivers_several_tokens_at_once_has_ticks(storage, make_block):
    path = storage.add([make_block("a")])
    arrays = {"stamps_ns": np.asarray([1, 3, 6]) * 1_000_000, "tick_sizes": np.asarray([1, 4, 4])}
    np.savez_compressed(path.with_suffix(".npz"), **{f"bench/t.py::t[a]|0|{key}": held for key, held in arrays.items()})
    found = Page(render(path))
    assert found.data["prompt-a-itl"]["x"]["name"] == "tick"
    assert "Inter-token latency by tick, ms" in found.shown


def experts_of(layers, experts, most, seed=2):
    """Return usage of a prompt, with counts of any size below `most`."""
    counts = np.random.default_rng(seed).integers(0, most, (layers, experts)).tolist()
    sites = [
        {"name": f"l{n}", "layer": n, "experts": experts, "slots": experts, "k": 8, "expert_bytes": 1024}
        for n in range(layers)
    ]
    tokens = {"prefill": 4000, "decode": 2000}
    return {"check": "passed", "tokens": tokens, "sites": sites, "counts": {"prefill": counts, "decode": counts}}


def test_maps_of_prompts_are_left_out_above_half_a_million_counts(storage, make_block):
    """Of 48 layers of 512 experts, two phases: 10 prompts and their sum are 540,672 counts."""
    blocks = [make_block(f"p{n}", experts=experts_of(48, 512, 100)) for n in range(10)]
    heat = Page(render(storage.add(blocks))).data["heat"]
    assert (len(heat["choices"]), "left out for its size" in heat["says"]) == (1, True)


def test_twenty_prompts_of_two_thousand_tokens_stay_under_six_megabytes(storage, make_block):
    # Twenty prompts and their sum: 494,592 counts, almost the most that are shown.
    usage = experts_of(46, 256, 500)
    names = [f"prompt {n}" for n in range(20)]
    blocks = [make_block(name, experts=usage) for name in names]
    for made in blocks:
        made["output"]["text"] = "some words of it " * 500
    path = storage.add(blocks)
    sidecar(path, [f"bench/t.py::t[{name}]" for name in names], rounds=5, tokens=2000)
    text = render(path)
    assert len(Page(text).data["heat"]["choices"]) == 21
    assert len(text.encode()) < 6e6
    assert len(Page(text).data["prompt-prompt-19-itl"]["median"]) == 1999


def test_verdicts_come_first(storage, make_block):
    rows = [
        Judgement(test="t[a]", name="a", verdict=Verdict.UNCHANGED, metric_key="tpot_s", before=0.01, after=0.01),
        Judgement(
            test="t[a]",
            name="a",
            verdict=Verdict.REGRESSED,
            metric_key="ttft_s",
            before=0.1,
            after=0.12,
            low=0.15,
            mid=0.2,
            high=0.25,
            p=0.0001,
            p_adjusted=0.0002,
            threshold=0.02,
            rounds=(5, 5),
        ),
    ]
    mark = {"result": "regressed", "against": "0001 abc", "rules": [], "judgements": [exports.flat(j) for j in rows]}
    found = Page(render(storage.add([make_block("a")], gate=mark)))
    overview = found.shown.partition("Skip to the report")[2].partition("The suite")[0]
    assert "1 figure regressed" in overview
    assert "0001 abc → 0001 cccccccc (main)" in overview
    assert "100 ms → 120 ms" in overview
    assert "[+15 % +20 % +25 %]" in overview
    assert "1 unchanged" in overview


def test_a_gates_text_of_an_unknown_metric_is_shown(storage, make_block):
    judged = {"test": "t", "prompt": "a", "metric": "mood", "before": "calm", "after": "hasty", "verdict": "regressed"}
    path = storage.add([make_block("a")], gate={"result": "regressed", "judgements": [judged]})
    assert "hasty" in Page(render(path)).shown


def test_a_trend_has_its_change_point_with_the_commit_message(storage, make_block, tmp_path, monkeypatch):
    values = [0.100, 0.101, 0.099, 0.100, 0.1005, 0.120, 0.121, 0.1195, 0.1205, 0.120]
    commits = [f"{n:040x}" for n in range(len(values))]
    for value, commit in zip(values, commits, strict=True):
        path = storage.add([make_block("a", ttft_s=[value, value, value])], commit=commit)
    monkeypatch.setattr("pytest_infer.report.html.history.subjects", lambda _: {commits[5]: "Make it slow"})
    found = Page(render(path, storage.load().runs))
    choice = found.data["trend-ttft_s"]["choices"][0]
    assert (choice["unit"], choice["values"]) == ("ms", [1000 * value for value in values])
    assert [(change["at"], change["worse"]) for change in choice["changes"]] == [(5, True)]
    assert [(level["from"], level["to"], level["value"]) for level in choice["levels"]] == [(0, 4, 100), (5, 9, 120)]
    history = found.shown.partition("Change points")[2]
    assert "Make it slow" in history.partition("Trends")[0]
    assert len(found.data["trend-ttft_s"]["runs"]) == 10


def test_a_step_of_one_configuration_is_drawn_there_alone(storage, make_block):
    """Two configurations of one prompt, and a third test of it: each has its own name, figures and changes."""
    for slow in (0, 0, 0, 0, 0, 1, 1, 1, 1, 1):
        rows = []
        for threads, value in (("1", 0.1 + slow * 0.02), ("2", 0.05)):
            made = make_block("a", ttft_s=value + len(storage.load().runs) * 1e-5)
            rows.append(row_of({**made, "config": {"threads": threads}}, f"t.py::t[a-threads={threads}]"))
        path = storage.add([*rows, row_of(make_block("a threads=2", ttft_s=0.3), "t.py::t[x]")])
    found = Page(render(path, storage.load().runs))
    choices = found.data["trend-ttft_s"]["choices"]
    names = [choice["name"] for choice in choices]
    assert names == ["a threads=1", "t[a-threads=2]", "t[x]"]
    assert [[change["at"] for change in choice["changes"]] for choice in choices] == [[5], [], []]
    assert [len(choice["levels"]) for choice in choices] == [2, 0, 0]
    said = CliRunner().invoke(app, ["history", "--change-points", "--storage", str(storage.folder)]).stdout
    assert said.count("threads=1") == 1
    assert "threads=2" not in said


def test_experts_of_several_models_are_seen_with_the_command_for_them(storage, make_block):
    blocks = [make_block(name, model={"name": name}, experts=experts_of(1, 4, 9)) for name in ("one", "two")]
    shown = Page(render(storage.add(blocks))).shown
    assert "of several models (one, two); see those of one with `pytest-infer experts -k TEXT`." in shown


def test_choices_that_would_read_alike_are_numbered(storage, make_block):
    """A choice is found by its name: one called like the sum of all, and two whose characters are shown alike."""
    usage = {
        "check": "passed",
        "tokens": {"prefill": 6, "decode": 4},
        "sites": [{"name": "l0", "layer": 0, "experts": 4, "slots": 4, "k": 2, "expert_bytes": 1024}],
        "counts": {"prefill": [[6, 3, 2, 1]], "decode": [[4, 2, 2, 0]]},
    }
    names = ("all prompts", "x\x1b", "x\\x1b")
    for _ in range(2):
        path = storage.add([make_block(name, experts=usage) for name in names])
    found = Page(render(path, storage.load().runs)).data
    shown = ["x\\x1b", "x\\x1b (2)"]
    assert [choice["name"] for choice in found["trend-ttft_s"]["choices"]] == ["all prompts", *shown]
    assert [choice["name"] for choice in found["heat"]["choices"]] == ["all prompts", "all prompts (2)", *shown]


def test_later_runs_are_no_part_of_an_earlier_ones_report(storage, make_block):
    paths = [storage.add([make_block("a")]) for _ in range(4)]
    assert len(Page(render(paths[1], storage.load().runs)).data["trend-ttft_s"]["runs"]) == 2


def test_what_is_absent_says_why(storage, make_block):
    made = make_block("a", experts={"absent": "the model has no experts"})
    made["timeline"] = {"absent": "left out with --infer-timeline=off"}
    shown = Page(render(storage.add([made]))).shown
    assert "0001_cccccccc_x.npz is not beside the run file" in shown
    assert "No timeline of the profile round: left out with --infer-timeline=off." in shown
    assert "no expert usage in run 0001 cccccccc (main): the model has no experts" in shown
    assert "one run is shown and no gate judged it" in shown
    assert "the storage holds no earlier run" in shown
    assert "no option was swept" in shown
    assert "No utilisation of the machine's limits: " in shown


def test_a_run_of_an_older_version_and_one_without_us_are_shown(storage, make_block):
    old = make_block("a", only=["ttft_s", "total_s"])
    for key in ("absent", "timeline", "cautions", "rounds", "output", "experts"):
        old.pop(key)
    shown = Page(render(storage.add([old]))).shown
    assert "this run's version of pytest-infer did not measure it" in shown
    plain = {"group": None, "name": "t", "fullname": "b.py::t", "stats": {"median": 0.1, "data": [0.1]}}
    shown = Page(render(storage.add([plain]))).shown
    assert "no test was measured with `infer`: its 1 tests are pytest-benchmark's own" in shown


def test_a_run_whose_only_measured_test_failed_says_so(storage, make_block):
    shown = Page(render(storage.add([], failed={"t.py::t[a]": make_block("a")}, unmeasured=["t.py::t[b]"]))).shown
    assert shown.count("Nothing to show here: every test measured with `infer` failed.") == 5
    assert "t.py::t[a] failed after it was measured" in shown
    assert "t.py::t[b] was not measured." in shown
    assert "no test was measured" not in shown


@pytest.mark.parametrize(
    ("names", "threads", "said"),
    [
        ("ab", "", "A CPU × 2 cores · 2 prompts"),
        ("a", "", "A CPU × 2 cores · 1 prompt"),
        ("a", "12", "A CPU × 2 cores · 2 tests of 1 prompt"),
        ("ab", "12", "A CPU × 2 cores · 4 tests of 2 prompts"),
        ("", "", "host · no test"),
    ],
)
def test_the_head_counts_prompts_and_names_the_machine(storage, make_block, names, threads, said):
    rows = [
        row_of({**make_block(name), "config": {"threads": n} if n else {}}, f"t.py::t[{name}-{n}]")
        for name in names
        for n in threads or [""]
    ]
    text = render(storage.add(rows, failed={} if rows else {"t.py::t[a]": make_block("a")}))
    assert f" UTC · <bdi>{said.replace(' ·', '</bdi> ·')}</p>" in text


def test_a_run_without_us_has_neither_cores_nor_a_trend(storage, make_block):
    for _ in range(3):
        storage.add([make_block("a")])
    path = storage.add([{"name": "t", "fullname": "b.py::t", "stats": {"median": 0.1, "data": [0.1]}}])
    found = Page(render(path, storage.load().runs))
    assert "UTC · host · 1 test " in found.shown
    assert "this run is pytest-benchmark's own: there is no trend up to it" in found.shown
    assert not [key for key in found.data if key.startswith("trend-")]


def test_what_a_machine_does_not_tell_is_not_made_up(storage, make_block):
    """The range that is drawn stands in the table too."""
    told = {"probe": {"read_bandwidth": 4e10}, "accelerators": None}
    shown = Page(render(storage.add([make_block("a", machine=told, mbu=[0.5, 0.6, 0.55], mfu=0.3)]))).shown
    assert "read bandwidth40.0 GB/s " in shown
    assert "acceleratorsnone" not in shown
    table = shown.partition("Utilisation of the machine's limits")[2].partition("What was measured")[0]
    assert re.search(r"a55\.0!\([^)]*\)50\.0–60\.0", table)
    assert re.search(r"30\.0!\([^)]*\)—$", table.strip())
    told = {"probe": {"read_bandwidth": 4e10, "read_bandwidth_spread": 0.0}, "accelerators": []}
    shown = Page(render(storage.add([make_block("a", machine=told)]))).shown
    assert "read bandwidth40.0 GB/s ± 0 %" in shown
    assert "acceleratorsnone" in shown


def test_a_damaged_sidecar_is_said_to_be_one(storage, make_block):
    path = storage.add([make_block("a")])
    path.with_suffix(".npz").write_bytes(b"no archive")
    assert "0001_cccccccc_x.npz cannot be read" in Page(render(path)).shown


def test_a_sweep_begins_with_what_it_recommends(storage, make_block):
    blocks = []
    for threads, factor in (("1", 1.0), ("2", 0.5)):
        made = make_block(
            "a",
            ttft_s=[factor * v for v in (0.100, 0.101, 0.102)],
            decode_throughput=[v / factor for v in (10.0, 10.1, 10.2)],
            peak_rss_bytes=[1e8, 1e8, 1e8],
        )
        made["config"] = {"threads": threads}
        blocks.append(made)
    rows = [row_of(made, f"bench/t.py::t[a-threads={made['config']['threads']}]") for made in blocks]
    found = Page(render(storage.add(rows)))
    assert "What the sweep recommends best decode: threads=2" in found.shown
    assert "2.00× [" in found.shown
    assert "--infer-threads 2" in found.shown
    first, second = found.data["pareto"]["points"]
    assert (first["front"], second["front"]) == (False, True)
    assert (first["y"], second["y"]) == (10.1, 20.2)


@pytest.mark.parametrize(
    ("line", "spelt"),
    [
        ("threads=2 dtype=bfloat16: 1.8× decode", True),
        ("no difference found", False),
        ("", False),
        ("it is a=b", False),
    ],
)
def test_an_options_name_keeps_its_small_letter(line, spelt):
    made = page.environment().get_template("macros.html.j2").module.item(Item(text=(line,)))
    assert ('class="lead as-is"' in made) is spelt
    assert ('class="lead"' in made) is not spelt


def row_of(made, fullname):
    stats = {"median": 0.3, "data": [0.3]}
    return {"name": fullname, "fullname": fullname, "stats": stats, "extra_info": {"pytest_infer": made}}


def test_points_of_a_curve_are_drawn_over_their_lengths(storage, make_block):
    rows = []
    for length in (64, 16, 256, 32, 128):
        made = make_block("p", ttft_s=length / 1000, tpot_s=0.01, generated_tokens=4)
        made["curve"] = {"axis": "prompt_tokens", "value": length}
        made["config"] = {"prompt-tokens": str(length)}
        rows.append(row_of(made, f"bench/t.py::t[p-prompt-tokens={length}]"))
    found = Page(render(storage.add(rows)))
    lengths = [16, 32, 64, 128, 256]
    measured, fit = found.data["curve-1-ttft"]["series"]
    assert (measured["at"], measured["values"]) == (lengths, lengths)
    assert (fit["at"][0], fit["values"][0], fit["at"][-1]) == (16, pytest.approx(16, rel=1e-3), 256)
    assert found.data["curve-1-tpot"]["series"][0]["at"] == [length + 2 for length in lengths]
    assert "By prompt length: p" in found.shown


def test_the_library_is_the_published_one():
    import tomllib

    about = tomllib.loads(page.ECHARTS.joinpath("VERSION.toml").read_text(encoding="utf-8"))
    library = page.ECHARTS.joinpath("echarts.min.js").read_bytes()
    assert hashlib.sha256(library).hexdigest() == about["sha256"]
    assert f'version="{about["version"]}"'.encode() in library or about["version"].encode() in library
    assert "Apache ECharts" in page.ECHARTS.joinpath("NOTICE").read_text(encoding="utf-8")
    assert "Apache License" in page.ECHARTS.joinpath("LICENSE").read_text(encoding="utf-8")


# the command


def run(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no names of open files here")
def test_a_page_on_stdout_is_alone_there(storage, make_block, capfd):
    storage.add([make_block("a")])
    result = run("--storage", storage.folder, "-o", "/dev/stdout")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "/dev/stdout: 0001 cccccccc (main)\n")
    assert capfd.readouterr().out.endswith("</html>")


def test_the_command_writes_the_newest_run(storage, make_block, tmp_path):
    storage.add([make_block("old")])
    storage.add([make_block("new")])
    result = run("--storage", storage.folder, "-o", tmp_path / "out" / "r.html")
    assert (result.exit_code, result.output.split(" MiB")[0][-3:-2].isdigit()) == (0, True)
    shown = Page((tmp_path / "out" / "r.html").read_text(encoding="utf-8")).shown
    assert "0002 cccccccc (main)" in shown
    assert "Nothing to show here: one run is shown" in shown


def test_the_command_compares_the_last_run_with_the_first(storage, make_block, tmp_path):
    for value in (0.10, 0.20, 0.10, 0.20, 0.10, 0.20, 0.40):
        storage.add([make_block("a", peak_rss_bytes=[value * 1e9] * 3)])
    result = run("latest~1", "latest", "--storage", storage.folder, "-o", tmp_path / "r.html")
    assert result.exit_code == 0
    found = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "0006 cccccccc (main) → 0007 cccccccc (main)" in found.shown
    assert "191 MiB → 381 MiB" in found.shown


@pytest.mark.parametrize(
    ("arguments", "code", "said"), [(["nonesuch"], 2, "no run 'nonesuch'"), ([], 11, "no run in")], ids=["name", "none"]
)
def test_the_command_without_a_run(storage, make_block, tmp_path, arguments, code, said):
    if arguments:
        storage.add([make_block()])
    result = run(*arguments, "--storage", storage.folder, "-o", tmp_path / "r.html")
    assert (result.exit_code, said in result.output) == (code, True)
    assert not (tmp_path / "r.html").exists()


def test_a_linked_report_stays_linked_and_private(storage, make_block, tmp_path):
    storage.add([make_block("a")])
    file, link = tmp_path / "kept.html", tmp_path / "r.html"
    file.touch(mode=0o600)
    link.symlink_to(file)
    assert run("latest", "-o", link, "--storage", storage.folder).exit_code == 0
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().startswith("<!DOCTYPE html>")


def test_a_place_that_cannot_be_written_is_one_line(storage, make_block, tmp_path):
    storage.add([make_block()])
    (tmp_path / "file").write_text("")
    result = run("--storage", storage.folder, "-o", tmp_path / "file" / "r.html")
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
    assert "choose another file" in result.output


def test_no_template_leaves_anything_unfilled(storage, make_block):
    text = render(storage.add([make_block()]))
    assert "{{" not in text.replace(page.ECHARTS.joinpath("echarts.min.js").read_text(encoding="utf-8"), "")
    assert "None" not in Page(text).shown
