"""The static site: a page a run, an index of what the pages hold, and nothing of what others wrote is believed."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_html_report import BIDI, EVIL, Page
from typer.testing import CliRunner

import pytest_infer
from pytest_infer.cli.main import app
from pytest_infer.report.html import page
from pytest_infer.storage import runs

REPOSITORY = "https://forge.example/a/b"


@pytest.fixture
def made(storage, tmp_path):
    def run(*more):
        command = ["site", str(tmp_path / "site"), f"--storage={storage.folder}", f"--repo-url={REPOSITORY}", *more]
        return CliRunner().invoke(app, command)

    run.folder = tmp_path / "site"
    run.pages = lambda: sorted(path.name for path in run.folder.glob("runs/*.html"))
    run.index = lambda: Page(run.folder.joinpath("index.html").read_text(encoding="utf-8"))
    return run


def add(storage, make_block, value=0.1, **more):
    made = make_block("a", ttft_s=[value, 1.01 * value, 0.99 * value], machine=more.pop("machine", None))
    return storage.add([made], **more)


def test_it_grows_by_one_page_a_run(storage, make_block, made):
    for number in range(2):
        add(storage, make_block, commit=f"{number:040x}")
    assert made().stdout == f"{made.folder / 'index.html'}: 2 runs, 2 added\n"
    before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    assert made().stdout.endswith("2 runs, 0 added\n")
    add(storage, make_block, commit=f"{2:040x}")
    assert made().stdout.endswith("3 runs, 1 added\n")
    after = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    assert {path for path in before if after[path] != before[path]} == {made.folder / "index.html"}
    (new,) = after.keys() - before.keys()
    assert new.name == made.pages()[-1]
    assert new.name.startswith("20260101T000300Z-00000000-")
    links = {given["href"] for tag, given in made.index().attributes if tag == "a"}
    assert {f"runs/{name}" for name in made.pages()} <= links
    assert f"{REPOSITORY}/commit/{2:040x}" in links


def test_what_may_differ_by_the_ini_file_may_differ_here(storage, make_block, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\ninfer_allow_different = cpu\n")
    add(storage, make_block, machine={"cpu": "another"})
    add(storage, make_block)
    made()
    text = " ".join(Page(made.folder.joinpath("runs", made.pages()[-1]).read_text(encoding="utf-8")).text)
    assert "0001 cccccccc (main) → 0002 cccccccc (main)" in text
    assert "differ: cpu" not in text


def test_a_page_outlives_its_run(storage, make_block, made):
    gone = add(storage, make_block)
    made()
    gone.unlink()
    add(storage, make_block, branch="feature")
    assert made().stdout.endswith("2 runs, 1 added\n")
    shown = made.index().shown
    assert "main2026-01-01 00:01" in shown
    assert "feature2026-01-01 00:02" in shown


def test_a_branch_shows_its_newest_run_and_what_changed(storage, make_block, made):
    for number in range(12):
        add(storage, make_block, 0.1 if number < 6 else 0.13, commit=f"{number:040x}")
    mark = {"result": "regressed", "against": "0001", "judgements": [], "headline": "prefill 30 % slower [29, 31]; x"}
    judged = {"test": "t", "prompt": "a", "metric": "ttft_s", "before": 0.1, "after": 0.13, "verdict": "regressed"}
    add(storage, make_block, 0.13, branch="feature", gate={**mark, "judgements": [judged]})
    made()
    branches = made.index().shown.partition("Branches")[2].partition("All runs")[0]
    assert re.search(r"main2026-01-01 00:1212prefill 30 % slower, for 6 runs now", branches)
    assert re.search(r"feature2026-01-01 00:131.*prefill 30 % slower \[29, 31\]", branches)
    runs = made.index().shown.partition("All runs")[2]
    assert runs.count("regressed") == 1


def test_a_gate_of_bounds_alone_is_against_nothing(storage, make_block, made):
    judged = {"test": "t", "prompt": "a", "metric": "ttft_s", "after": 0.13, "verdict": "regressed"}
    kept = {"result": "regressed", "judgements": [judged], "headline": "TTFT of a beyond its bound"}
    add(storage, make_block, gate=kept)
    add(storage, make_block, gate={**kept, "against": "main (1a2b)"})
    made()
    said = made.index().shown
    assert said.count("beyond its bound, against main (1a2b)") == 2, "as the branch's newest, and in its row"
    assert "bounds only" not in said


def test_a_lasting_change_that_the_gate_found_is_one_too(storage, make_block, made):
    """The comparison explains it, and so it has no card of its own."""
    for number in range(14):
        gate = {} if number < 10 else {"gate": {"result": "regressed"}}
        add(storage, make_block, 0.1 if number < 10 else 0.13, **gate)
    made()
    assert "prefill 30 % slower, for 4 runs now" in made.index().shown


def test_a_run_is_compared_with_the_newest_of_its_machine(storage, make_block, made):
    for cpu in (0, 1, 0, 1):
        add(storage, make_block, machine={"cpu": f"CPU {cpu}"})
    made()
    said = made.index().shown
    for number, before in ((2, 1), (3, 1), (4, 2)):
        page_of = next(made.folder.glob(f"runs/20260101T000{number}*")).read_text(encoding="utf-8")
        assert f"000{before} cccccccc (main) → 000{number} cccccccc (main)" in page_of
    assert said.count(", against 0001 cccccccc (main)") == 2
    assert "differ: cpu CPU 0 → CPU 1, against 0001 cccccccc (main)" in said


def test_the_first_run_of_a_machine_has_its_message_and_says_that_there_are_others(
    storage, make_block, made, monkeypatch
):
    monkeypatch.setattr("pytest_infer.report.html.history.subjects", lambda commits: dict.fromkeys(commits, "Mend it"))
    for cpu in (0, 0, 1):
        add(storage, make_block, machine={"cpu": f"CPU {cpu}"})
    made()
    assert made.index().shown.partition("All runs")[2].count("Mend it") == 3
    first = next(made.folder.glob("runs/20260101T0003*")).read_text(encoding="utf-8")
    assert "the storage holds no earlier run of this machine that led to it, and 2 others: a trend" in first


def test_the_newest_are_kept_where_so_many_are_asked_for(storage, make_block, made):
    for _ in range(4):
        add(storage, make_block)
    made()
    first = made.pages()
    assert made("--keep=2").stdout.endswith("2 runs, 0 added, 2 removed\n")
    assert made.pages() == first[2:]
    assert made("--keep=2").stdout.endswith("2 runs, 0 added\n")


def test_a_page_is_written_anew_only_if_asked(storage, make_block, made):
    add(storage, make_block)
    made()
    (path,) = made.folder.glob("runs/*.html")
    path.write_text(path.read_text(encoding="utf-8").replace("<h1>", "<h1>old "), encoding="utf-8")
    made()
    assert "<h1>old " in path.read_text(encoding="utf-8")
    assert made("--again").stdout.endswith("1 run, 1 added\n")
    assert "<h1>old " not in path.read_text(encoding="utf-8")


def test_a_run_that_was_moved_keeps_its_page(storage, make_block, made):
    path = add(storage, make_block)
    made()
    path.rename(storage.folder / "0001_x.json")
    assert made().stdout.endswith("1 run, 0 added\n")
    assert made("--again").stdout.endswith("1 run, 1 added\n")


def test_a_run_with_two_pages_is_listed_once(storage, make_block, made):
    """As an earlier version left it, whose pages had other names."""
    for _ in range(2):
        add(storage, make_block)
    made()
    old = [(made.folder / "runs" / name).rename(made.folder / "runs" / f"0-{name}") for name in made.pages()]
    first, second = (path.name for path in old)
    (made.folder / "runs" / second[2:]).write_bytes(old[1].read_bytes())
    assert made().stdout.endswith("2 runs, 0 added\n")
    links = {given["href"] for tag, given in made.index().attributes if tag == "a"}
    assert {f"runs/{first}", f"runs/{second[2:]}"} == {link for link in links if link.startswith("runs/")}
    assert made("--keep=1").stdout.endswith("1 run, 0 added, 1 removed\n")
    assert made.pages() == [second, second[2:]]


def test_pages_share_the_library_and_allow_only_what_lies_beside_them(storage, make_block, made):
    add(storage, make_block)
    made()
    text = next(made.folder.glob("runs/*.html")).read_text(encoding="utf-8")
    found = Page(text)
    policy = next(given["content"] for tag, given in found.attributes if "http-equiv" in given)
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'self'( 'sha256-[^']+')+$", policy)
    (source,) = (given["src"] for tag, given in found.attributes if tag == "script" and "src" in given)
    library = page.ECHARTS.joinpath("echarts.min.js").read_text(encoding="utf-8")
    assert (made.folder / "runs" / source).read_text(encoding="utf-8") == library
    assert library not in text
    assert len(list(made.folder.glob("assets/*LICENSE*"))) == 1


def test_what_runs_and_pages_hold_is_text(storage, make_block, made, monkeypatch):
    monkeypatch.setattr("pytest_infer.report.html.history.subjects", lambda commits: dict.fromkeys(commits, EVIL))
    for _ in range(2):
        storage.add([make_block("a", model={"name": EVIL})], branch=EVIL)
    made()
    for path in (made.folder / "index.html", *made.folder.glob("runs/*.html")):
        text = path.read_text(encoding="utf-8")
        found = Page(text)
        assert "img" not in found.tags
        assert not [given for _, given in found.attributes if any(name.startswith("on") for name in given)]
        assert not [c for c in text if (ord(c) < 32 and c != "\n") or ord(c) == 127 or c in BIDI]
    assert "<script>alert(1)</script>" in made.index().shown


def test_what_is_no_page_of_a_site_is_left_out_and_said(storage, make_block, made):
    add(storage, make_block)
    made()
    folder = made.folder / "runs"
    mine = next(folder.glob("*.html")).read_text(encoding="utf-8")
    told = json.loads(re.search(r'id="run">(.*?)</script>', mine)[1])
    bad = {
        "empty.html": "",
        "foreign.html": "<!doctype html><p>hello",
        "cut.html": mine[:200],
        "other.html": mine.replace('"tests": 1', '"tests": "many"'),
        "late.html": "x" * 100_000 + mine,
    }
    for name, text in bad.items():
        (folder / name).write_text(text, encoding="utf-8")
    odd = json.dumps({**told, "time": "yesterday", "commit": "javascript:alert(1)", "figures": {"mood": 1.0}})
    (folder / "odd.html").write_text(f'<script type="application/json" id="run">{odd}</script>', encoding="utf-8")
    result = made()
    assert sorted(re.findall(r"/(\w+\.html) is no page", result.stderr)) == sorted(bad)
    assert result.stdout.endswith("2 runs, 0 added\n")
    links = [given["href"] for tag, given in made.index().attributes if tag == "a"]
    assert not [link for link in links if "javascript" in link]


def test_a_run_damaged_within_a_test_has_no_page_and_is_compared_with_nothing(storage, make_block, made):
    add(storage, make_block)
    broken = storage.add([make_block("a", ttft_s="fast")])
    add(storage, make_block)
    for added in (2, 0):
        result = made()
        assert (result.exit_code, result.stderr.count(f"left out: {broken}: ")) == (0, 1)
        assert result.stdout.endswith(f"2 runs, {added} added\n")


def test_a_run_damaged_elsewhere_is_left_out_and_all_others_have_a_page(storage, make_block, made):
    """What comparisons read of it is sound: it is not even damaged, for them."""
    add(storage, make_block)
    broken = storage.add([make_block("a") | {"output": 3}])
    storage.add([make_block("a") | {"breakdown": 3}], branch="feature")
    add(storage, make_block)
    for added in (2, 0):
        result = made()
        assert (result.exit_code, result.stderr.count("left out: ")) == (0, 2)
        assert result.stderr.count(f"left out: {broken}: ") == 1
        assert result.stdout.endswith(f"2 runs, {added} added\n")
    newest = (made.folder / "runs" / made.pages()[-1]).read_text(encoding="utf-8")
    assert "0001 cccccccc (main) → 0004 cccccccc (main)" in newest


def test_only_runs_without_a_page_are_read_and_none_is_kept(storage, make_block, made, monkeypatch):
    for _ in range(3):
        add(storage, make_block)
    made()
    add(storage, make_block)
    seen, kept = [], []
    read, render = runs.rows, page.render
    monkeypatch.setattr(runs, "rows", lambda path, *more: seen.append(path.name[:4]) or read(path, *more))

    def render_and_keep(run, others, *more):
        kept[:] = others
        return render(run, others, *more)

    monkeypatch.setattr(page, "render", render_and_keep)
    made()
    assert "0004" in seen
    assert not [run for run in kept if "rows" in vars(run)]
    seen.clear()
    made()
    assert seen == []


def test_without_a_run_or_a_page_there_is_no_site(made):
    result = made()
    assert (result.exit_code, result.stdout) == (11, "")
    assert "pytest bench --benchmark-autosave makes a run" in result.stderr
    assert not (made.folder / "index.html").exists()


def test_a_folder_that_cannot_be_written_is_one_line(storage, make_block, made):
    add(storage, make_block)
    made.folder.parent.joinpath("site").write_text("a file")
    result = made()
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


# docs/report.md

DOCS = Path(__file__).parents[2] / "docs" / "report.md"


def blocks():
    text = DOCS.read_text(encoding="utf-8") if DOCS.exists() else ""
    return re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not DOCS.exists(), reason="the wheel is tested without docs/")
def test_the_pages_commands_work(storage, make_block, monkeypatch):
    for number, branch in enumerate(("main", "feature")):
        add(storage, make_block, commit=f"{number:040x}", branch=branch)
    monkeypatch.chdir(storage.folder.parent)
    lines = [line for block in blocks()[:2] for line in block.splitlines() if line.startswith("pytest-infer ")]
    assert len(lines) == 3
    for line in lines:
        result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        assert (result.exit_code, result.stderr) == (0, ""), line
    assert {"report.html", "compare.html", "public"} <= {path.name for path in Path().iterdir()}


@pytest.mark.skipif(not DOCS.exists(), reason="the wheel is tested without docs/")
def test_the_pages_pipeline_publishes_on_a_branch(storage, make_block, tmp_path):
    add(storage, make_block)
    here, remote = storage.folder.parent, tmp_path / "remote.git"
    who = {f"GIT_{role}_{what}": "x@x.example" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    paths = [str(Path(pytest_infer.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    command = here / "bin" / "pytest-infer"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom pytest_infer.cli.main import app\napp()\n")
    command.chmod(0o755)
    environment = {
        **os.environ,
        **who,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
    }

    def shell(text):
        done = subprocess.run(
            ["bash", "-euc", text], cwd=here, env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (made_once,) = re.findall(r"with\s`(git push [^`]+)`", DOCS.read_text(encoding="utf-8"))
    shell(f"git init -q --bare {remote}; git init -q .; git remote add origin {remote}; {made_once}; {blocks()[2]}")
    listed = shell(f"git -C {remote} ls-tree -r --name-only gh-pages").split()
    assert len([name for name in listed if name.startswith("runs/")]) == 1
    assert "index.html" in listed
