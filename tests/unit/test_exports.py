"""Comparisons for machines and pull requests: complete, and harmless whatever names and outputs hold."""

import csv
import io
import json

import pytest

from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.metrics import METRICS
from pytest_infer.report.compare import exports, words
from pytest_infer.report.compare import terminal as comparison

KEYS = {m.key: m for m in METRICS}


def judgement(name="story", **changes):
    fields = {
        "test": f"t.py::t[{name}]",
        "name": name,
        "verdict": Verdict.REGRESSED,
        "metric": KEYS["tpot_s"],
        "rule": "tpot:3%",
        "before": 0.05,
        "after": 0.06,
        "low": 0.15,
        "mid": 0.2,
        "high": None,
        "p": 0.0001,
        "p_adjusted": 0.0002,
        "rounds": (5, 6),
        "threshold": 0.03,
    }
    fields |= changes
    metric = fields.pop("metric")
    return Judgement(**fields, metric_key=metric and metric.key, unit=metric and metric.unit.value)


PLAIN = {"before": None, "after": None, "low": None, "mid": None, "p": None, "p_adjusted": None, "threshold": None}
ALL = [
    judgement(),
    judgement("b", verdict=Verdict.UNCHANGED, rule=None, high=0.25),
    judgement("c", verdict=None, rule=None, metric=KEYS["cores_used"], **PLAIN),
    judgement("d", verdict=Verdict.MISSING, metric=None, rule=None, reason="gone", **PLAIN),
    judgement("e", verdict=Verdict.NEW, metric=None, rule=None, **PLAIN),
    judgement("f", verdict=Verdict.IMPROVED, mid=-0.2, low=-0.3, high=-0.1),
    judgement("g", verdict=Verdict.INCONCLUSIVE, reason="more rounds"),
    judgement("h", verdict=Verdict.INCOMPARABLE, metric=KEYS["output_sha256"], **{**PLAIN, "before": "b" * 64}),
]


def test_a_value_of_an_unknown_metric_is_shown_whatever_it_is():
    shown = {value: words.values(judgement(metric=None, after=value)) for value in (0.01234, 3, "a\x1b[2J", None)}
    assert shown == {0.01234: "0.012", 3: "3.000", "a\x1b[2J": "a\\x1b[2J", None: ""}


def test_json_is_complete():
    text = exports.as_json_rows([exports.flat(j) for j in ALL], runs=["a.json", "b.json"])
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["runs"] == ["a.json", "b.json"]
    assert found["judgements"][0] == {
        "test": "t.py::t[story]",
        "prompt": "story",
        "metric": "tpot_s",
        "unit": "s",
        "rule": "tpot:3%",
        "before": 0.05,
        "after": 0.06,
        "change_low": 0.15,
        "change": 0.2,
        "change_high": None,
        "p": 0.0001,
        "p_adjusted": 0.0002,
        "rounds": [5, 6],
        "threshold": 0.03,
        "verdict": "regressed",
        "reason": None,
        "note": None,
        "carried": None,
        "conclusive": True,
    }
    assert [row["verdict"] for row in found["judgements"]] == [j.verdict.value if j.verdict else None for j in ALL]
    assert text.endswith("}\n")


def test_csv_has_a_row_for_each_with_what_stands_before():
    rows = list(
        csv.DictReader(io.StringIO(exports.as_csv([{"run": "b.json", **exports.flat(j)} for j in ALL], ("run",))))
    )
    assert len(rows) == len(ALL)
    assert rows[0]["rounds"] == "5;6"
    assert list(rows[0])[:4] == ["run", "test", "prompt", "metric"]
    assert (rows[0]["run"], rows[0]["change"], rows[0]["change_high"], rows[0]["verdict"]) == (
        "b.json",
        "0.2",
        "",
        "regressed",
    )
    assert exports.as_csv([]).startswith("test,prompt,metric,")


def test_csv_keeps_commas_and_quotes_and_shows_line_breaks_as_text():
    hostile = 'a,"b"\nc;=1+1'
    (row,) = csv.DictReader(io.StringIO(exports.as_csv([exports.flat(judgement(hostile))])))
    assert row["prompt"] == 'a,"b"\\nc;\'=1+1'


def test_markdown_shows_what_matters_first_and_folds_the_rest():
    text = exports.as_markdown(ALL, ["A → B", "99 % intervals"])
    first, _, folded = text.partition("<details>")
    assert first.startswith("**A → B**  \n**99 % intervals**  \n\n")
    assert "🔴 1 regressed, 🟢 1 improved, ⚪ 1 unchanged, 🟡 1 inconclusive" in first
    line = (
        "| 🔴 | story | tpot:3% | 50.0 ms → 60.0 ms | \\[+15 % +20 % +∞\\] | p &lt; 0.001 | regressed (threshold 3 %) |"
    )
    assert line in first
    assert [line.split(" | ")[1] for line in first.splitlines() if line.startswith("| ") and "| |" not in line[:4]] == [
        "story",
        "d",
        "e",
        "f",
        "g",
        "h",
    ]
    assert [line.split(" | ")[1] for line in folded.splitlines() if line.startswith("| ⚪")] == ["b"]
    assert "|  | c |" in folded
    assert text.endswith("- missing: gone\n- inconclusive: more rounds\n")


def test_markdown_of_nothing():
    assert exports.as_markdown([], ["A"]) == "**A**  \n\nnothing to compare\n"


HOSTILE = "a|b <script>alert(1)</script>\n\x1b[31m::error::x `c` [l](http://e) **b** @user #1 ~x~ &amp; \u202e"


def test_markdown_escapes_names_and_headings():
    changes = {"reason": HOSTILE, "metric": KEYS["hottest_experts"], "before": HOSTILE, "after": "x", "rule": HOSTILE}
    text = exports.as_markdown([judgement(HOSTILE, **changes)], [HOSTILE])
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\n::error" not in text
    assert "`c`" not in text.replace("\\`", "")
    assert "@user" not in text.replace("\\@", "")
    assert "**b**" not in text.replace("\\*", "")
    assert "[l]" not in text.replace("\\[", "")
    (row,) = [line for line in text.splitlines() if line.startswith("| 🔴")]
    assert row.replace("\\|", "").count("|") == 8


def test_annotations_are_a_line_each_with_levels():
    lines = exports.github_annotations(ALL).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["::error", "::error", "::warning", "::warning"]
    assert lines[0] == (
        "::error title=story%3A tpot%3A3%25::50.0 ms → 60.0 ms  [+15 %25 +20 %25 +∞]  p < 0.001  "
        "regressed (threshold 3 %25)"
    )
    assert lines[1] == "::error title=d%3A missing::missing  gone"


def test_annotations_cannot_be_broken_out_of():
    found = exports.github_annotations(
        [judgement(HOSTILE + ",file=x", rule=HOSTILE, reason=HOSTILE + "\r%0A::error::y")]
    )
    assert found.count("\n") == 1
    assert found.endswith("\n")
    assert found.isprintable() is False  # the newline
    assert found[:-1].isprintable()
    title = found.removeprefix("::error title=").partition("::")[0]
    assert ":" not in title
    assert "," not in title
    assert "%0A::error" not in found.replace("%250A", "")


def test_tests_with_a_prompt_in_common_are_told_apart():
    two = [judgement(test="a.py::t[story]"), judgement(test="b.py::t[story]"), judgement("other")]
    assert words.titles(two) == {
        "a.py::t[story]": "a.py::t[story]",
        "b.py::t[story]": "b.py::t[story]",
        "t.py::t[other]": "other",
    }
    shown = comparison.render_judgements(two, heading=[], width=120, color=False)
    assert [line for line in shown.splitlines() if line and line[0] != " "][:3] == [
        "a.py::t[story]",
        "b.py::t[story]",
        "other",
    ]
    assert "b.py::t\\[story\\]" in exports.as_markdown(two, [])
    assert "title=b.py%3A%3At[story]%3A" in exports.github_annotations(two)


@pytest.mark.parametrize("by_metric", [False, True])
@pytest.mark.parametrize("width", [40, 72, 120])
def test_the_terminal_shows_hostile_names_and_markup_as_they_are(width, by_metric):
    named = judgement("[/red] [bold]x", rule="tpot[story]:3%", reason="[x]\x1b[31m")
    hostile = judgement(HOSTILE, metric=KEYS["hottest_experts"], rule=None, before="\x1b[31m", after="[/b]")
    shown = comparison.render_judgements(
        [named, hostile], heading=["[i]h"], width=width, color=False, by_metric=by_metric
    )
    assert "\x1b" not in shown
    said = " ".join(shown.split())
    for part in ("[/red] [bold]x", "tpot[story]:3%", "[x]", "[i]h", "[/b]"):
        assert part in said
    assert max(map(len, shown.splitlines())) <= width


def test_colours_are_escapes_on_demand_only():
    shown = {color: comparison.render_judgements(ALL, heading=["h"], width=120, color=color) for color in (True, False)}
    assert "\x1b[" in shown[True]
    assert "\x1b" not in shown[False]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0244, "+2.4 %"), (-0.12, "−12 %"), (0.0, "0.0 %"), (-0.0001, "0.0 %"), (0.0999, "+10.0 %"), (3.0, "+300 %")],
)
def test_shares(value, shown):
    assert words.share(value) == shown


def test_an_interval_without_any_end_is_one():
    assert words.change(judgement(low=None, high=None)) == "[−∞ +20 % +∞]"
    assert words.change(judgement(low=0.2, high=0.2)) == words.change(judgement(p=None)) == "+20 %"


def test_whatever_changed_is_worth_showing():
    def shown(key, verdict):
        return bool(words.worth_showing([judgement(metric=KEYS[key], rule=None, verdict=verdict)], None))

    changed = (Verdict.REGRESSED, Verdict.IMPROVED, Verdict.MISSING, Verdict.NEW)
    for key in ("nonfinite_logits", "minor_faults"):
        assert all(shown(key, verdict) for verdict in changed)
        assert not any(shown(key, verdict) for verdict in (Verdict.UNCHANGED, Verdict.INCONCLUSIVE, None))
    # What must be the same is not, whatever else differs; a time is one of another machine.
    assert shown("nonfinite_logits", Verdict.INCOMPARABLE)
    assert not shown("minor_faults", Verdict.INCOMPARABLE)


def test_open_ends_and_p_values():
    assert (words.share(None), words.share(None, end=-1)) == ("+∞", "−∞")
    assert [words.p_value(p) for p in (None, 0.0, 0.00099, 0.0123, 0.5, 1.0)] == [
        "",
        "p < 0.001",
        "p < 0.001",
        "p = 0.012",
        "p = 0.50",
        "p = 1.00",
    ]
