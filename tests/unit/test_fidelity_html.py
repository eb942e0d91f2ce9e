"""The report's texts, token by token: both sides' probabilities, where they part, and tokens that would be markup."""

from dataclasses import replace

import pytest
import scored
from test_html_report import BIDI, EVIL, Page
from typer.testing import CliRunner

from pytest_infer.cli.main import app
from pytest_infer.report.html import page
from pytest_infer.storage import block, sidecar
from pytest_infer.storage.runs import read

LOGITS = scored.logits()
TEST = "bench/t.py::t[guide]"


@pytest.fixture
def add(storage):
    def run(record):
        path = storage.add([block.build(record)])
        sidecar.write(path, [record])
        return path

    return run


def followed(by=2.0, **changes):
    moved = scored.around(LOGITS, by)
    return scored.record(moved, reference=LOGITS, free=scored.greedy(moved), timed=True, test=TEST, **changes)


def classes(shown):
    return [given["class"].split() for tag, given in shown.attributes if "token" in given.get("class", "").split()]


def test_a_run_that_followed_a_reference_shows_its_text(add):
    record = followed()
    shown = Page(page.render(read(add(record)), [], []))
    tokens = classes(shown)
    assert len(tokens) == LOGITS.shape[1]
    (at,) = [number for number, look in enumerate(tokens) if "split" in look]
    assert at == record.fidelity.split.position
    assert any("down3" in look for look in tokens)
    assert any("up1" in look or "up2" in look or "up3" in look for look in tokens)
    assert f"token {at + 1}" in shown.shown
    assert "another model" in shown.shown
    chart = shown.data["kl-guide"]
    assert chart["series"][0]["values"] == pytest.approx(
        [token.kl for token in scored.tokens_of(record)], rel=1e-3, abs=1e-9
    )


def test_what_is_alike_has_no_colour_and_no_split(add):
    shown = Page(page.render(read(add(followed(by=1e-7))), [], []))
    assert {*map(tuple, classes(shown))} == {("token",)}
    assert "arithmetic" in shown.shown


def test_logits_that_are_not_finite_leave_their_token_bare(add):
    moved = scored.around(LOGITS, 2.0)
    moved[0, 4] = float("nan")
    record = scored.record(moved, reference=LOGITS, free=(1, 2, 3), timed=True, test=TEST)
    shown = Page(page.render(read(add(record)), [], []))
    assert classes(shown)[4] == ["token", "other"]
    assert shown.data["kl-guide"]["series"][0]["values"][4] is None


def test_two_runs_are_shown_side_by_side(storage, add, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add(scored.record(LOGITS, test=TEST))
    add(scored.record(scored.around(LOGITS, 0.2), test=TEST))
    result = CliRunner().invoke(app, ["report", "1", "2", f"--storage={storage.folder}", "--output=r.html"])
    assert result.exit_code == 0, result.output
    shown = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert classes(shown)
    assert "each text as 0001" in shown.shown


def test_a_test_that_the_earlier_run_lacks_is_beside_nothing(storage, add, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = scored.record(LOGITS, test="bench/t.py::t[other]")
    add(replace(other, prompt=replace(other.prompt, name="other")))
    add(followed())
    result = CliRunner().invoke(app, ["report", "1", "2", f"--storage={storage.folder}", "--output=r.html"])
    assert result.exit_code == 0, result.output
    shown = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not classes(shown)
    assert "the earlier run does not have it" in shown.shown


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, "nothing was followed: --infer-replay RUN"),
        ({"profile": None, "profile_absent": "left out"}, "left out"),
    ],
)
def test_without_a_reference_it_says_how_to_have_one(add, change, why):
    shown = Page(page.render(read(add(replace(scored.record(LOGITS, test=TEST), **change))), [], []))
    assert why in shown.shown
    assert not classes(shown)


@pytest.mark.parametrize("text", [EVIL, BIDI, "\x00\x1b[31m", "'\"><b onmouseover=alert(1)>", "x" * 10_000, ""])
def test_tokens_are_text(add, text):
    harmless = Page(page.render(read(add(followed())), [], []))
    pieces = dict.fromkeys(range(LOGITS.shape[-1]), text)
    html = page.render(read(add(followed(pieces=pieces))), [], [])
    shown = Page(html)
    assert shown.tags == harmless.tags
    assert not any(name.startswith("on") for _, given in shown.attributes for name in given)
    assert not {*BIDI, "\x00", "\x1b"} & {*html}
    assert len(html) < len(page.render(read(add(followed())), [], [])) + 600_000
