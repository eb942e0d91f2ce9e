"""The comment on a pull request: its text, and what is asked of GitHub and GitLab; here they are a server of ours."""

import os
from pathlib import Path

import msgspec
import pytest
from planted import NAMES, Suites
from typer.testing import CliRunner

from fake_host import TOKEN, Server, comment_of
from pytest_infer.analysis.compare import gate, rules
from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.cli import posting
from pytest_infer.cli.main import app
from pytest_infer.errors import OptionError
from pytest_infer.report.compare import comment, headline

GOLDEN = Path(__file__).parents[1] / "data" / "comment.md"


@pytest.fixture
def run(storage, make_block, make_row, monkeypatch, tmp_path):
    """Return a function that stores a run with what a gate of it found, `decode` times slower in two prompts."""
    monkeypatch.chdir(tmp_path)

    def add(decode=1.1, changes=None, **whole):
        pairs = Suites(make_row).rounds(decode=decode, of=NAMES[:2], names=NAMES[:3])
        found = gate.judge(pairs, rules.parse(["tpot:3%", "output:exact"]), against="main (1a2b3c4d)")
        judgements = [changes(j) if changes else j for j in found.judgements]
        kept = {
            "result": found.exit.word,
            "against": found.against,
            "rules": [rule.text for rule in found.rules],
            "headline": headline.in_words(found.headline, found.judgements),
            "judgements": msgspec.to_builtins(judgements),
            "suite": msgspec.to_builtins(found.suite),
        }
        return storage.add([make_block(name) for name in NAMES[:3]], gate=kept, **whole)

    return add


def infer(storage, *arguments):
    result = CliRunner().invoke(app, [*arguments, f"--storage={storage.folder}"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_its_text(run, storage):
    run()
    result = infer(storage, "comment")
    assert result.exit_code == 0
    if os.environ.get("UPDATE_GOLDENS"):
        GOLDEN.write_text(result.stdout, encoding="utf-8")
    assert result.stdout == GOLDEN.read_text(encoding="utf-8"), "UPDATE_GOLDENS=1 renews it"
    assert infer(storage, "comment", "--output=comment.md").stdout == ""
    assert Path("comment.md").read_text(encoding="utf-8") == result.stdout


def test_a_file_of_its_own_needs_no_stored_run(run, storage, tmp_path):
    file = run().rename(tmp_path / "artifact.json")
    result = infer(storage, "comment", str(file))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "story and chat 9.9 % slower" in result.stdout


def test_a_full_disk_keeps_the_earlier_file(run, storage, full_disk):
    run()
    Path("comment.md").write_text("the earlier one")
    with full_disk():
        result = infer(storage, "comment", "--output=comment.md")
    assert (result.exit_code, result.stderr) == (
        2,
        "pytest-infer: --output comment.md: File too large; choose another file\n",
    )
    assert Path("comment.md").read_text() == "the earlier one"


def test_a_long_one_is_cut_with_what_is_folded_closed(run, storage):
    pairs = [
        Judgement(test=f"t[{n}]" + "a" * 60, name="x", rule="tpot:3%", verdict=Verdict.UNCHANGED) for n in range(900)
    ]
    run()
    mark = storage.load().runs[-1]
    found = comment.CommentedRun(
        run=mark, mark=msgspec.convert({"result": "passed"}, comment.JudgedMark), judgements=pairs, suite=(), name="x"
    )
    text = comment.as_markdown(found)
    assert 50_000 < len(text) < 65_536
    assert text.count("<details>") == text.count("</details>") == 1
    assert "More is in the job's summary and its report." in text


def test_a_run_without_a_gate_and_none_at_all(storage, make_block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for command in ("comment", "undecided"):
        assert infer(storage, command).exit_code == 11
    storage.add([make_block()])
    for command in ("comment", "undecided"):
        result = infer(storage, command)
        assert result.exit_code == 11
        assert result.stderr.startswith("pytest-infer: run 0001 cccccccc (main) keeps no verdicts: run pytest with")


def test_what_is_undecided_is_listed_alone(run, storage):
    run()
    assert infer(storage, "undecided").exit_code == 11

    def doubt(j):
        return msgspec.structs.replace(j, verdict=Verdict.INCONCLUSIVE) if j.name == "code" else j

    run(1.0, doubt)
    result = infer(storage, "undecided")
    assert (result.exit_code, result.stdout) == (0, "bench/t.py::t[code]\n")
    run(1.0, lambda j: msgspec.structs.replace(doubt(j), verdict=Verdict.INCOMPARABLE, reason="differ: torch"))
    never = infer(storage, "undecided")
    assert (never.exit_code, never.stdout) == (10, "")
    assert "incomparable, which no further measurement decides: differ: torch" in never.stderr


def test_it_is_listed_as_pytest_takes_it_in_this_folder(run, storage, monkeypatch, tmp_path):
    run(1.0, lambda j: msgspec.structs.replace(j, test="sub/bench/t.py::t[https://a/b]", verdict=Verdict.INCONCLUSIVE))
    (tmp_path / "sub" / "bench").mkdir(parents=True)
    (tmp_path / "sub" / "bench" / "t.py").write_text("")
    monkeypatch.chdir(tmp_path / "sub")
    assert infer(storage, "undecided").stdout == "bench/t.py::t[https://a/b]\n"
    monkeypatch.chdir(tmp_path)
    assert infer(storage, "undecided").stdout == "sub/bench/t.py::t[https://a/b]\n"


def test_what_was_measured_again_takes_the_place_of_what_was_said_of_it(run, storage):
    def doubt(j):
        return msgspec.structs.replace(j, verdict=Verdict.INCONCLUSIVE) if j.name == "code" else j

    def only(j):
        return j if j.name == "code" else msgspec.structs.replace(j, test="bench/t.py::t[code]", name="code")

    run(1.0, doubt)
    run(1.0, only)
    text = infer(storage, "comment", "latest~1", "latest").stdout
    assert "**gate against main (1a2b3c4d): passed**" in text
    assert "**1 of 3 prompts measured again; before: no change beyond " in text
    assert "🟡" not in text
    assert "| suite |" not in text
    # The other way round the doubt is the last word.
    text = infer(storage, "comment", "latest", "latest~1").stdout
    assert "### 🟡 " in text
    assert "**gate against main (1a2b3c4d): inconclusive**" in text


def test_a_damaged_file_is_named_once_beside_several_runs(run, storage):
    run(1.0)
    run(1.0)
    storage.folder.joinpath("0009_x.json").write_text("")
    result = infer(storage, "comment", "latest~1", "latest")
    assert (result.exit_code, result.stderr.count("0009_x.json")) == (0, 1)


def test_what_another_commit_was_judged_is_no_part_of_a_comment(run, storage):
    run()
    run(decode=1.0, commit="d" * 40)
    result = infer(storage, "comment", "latest~1", "latest")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "0001 cccccccc (main), 0002 dddddddd (main): a comment is about one commit" in result.stderr
    assert infer(storage, "comment", "latest").exit_code == 0


def test_the_headline_is_about_all_prompts_whichever_were_measured_again(run, storage):
    def one(j):
        return msgspec.structs.replace(j, test="bench/t.py::t[code]", name="code")

    run(1.1)
    run(1.0, one)
    text = infer(storage, "comment", "latest~1", "latest").stdout
    assert "### 🔴 gate: regressed\n" in text
    assert "**measured again: no change beyond " in text
    run(1.0)
    assert "### 🟢 no change beyond " in infer(storage, "comment", "latest~2", "latest").stdout


# posting


@pytest.fixture
def server(monkeypatch):
    with Server() as made:
        for name in ("HTTP_PROXY", "http_proxy", "GITHUB_EVENT_PATH"):
            monkeypatch.delenv(name, raising=False)
        for name, value in made.variables.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.mark.parametrize(
    ("host", "place", "edit", "token"),
    [
        ("github", "/repos/o/r/issues/5/comments", "PATCH /repos/o/r/issues/comments/101", f"Bearer {TOKEN}"),
        ("gitlab", "/projects/g%2Fp/merge_requests/5/notes", "PUT /projects/g%2Fp/merge_requests/5/notes/101", TOKEN),
    ],
)
def test_one_comment_is_posted_then_updated_in_place_and_only_if_it_changed(
    run, storage, server, host, place, edit, token
):
    # A page of others, and one of another's that begins like ours, which is his.
    server.comments += [comment_of(n, "words") for n in range(100)]
    server.comments.append(comment_of(100, "<!-- pytest-infer: inference benchmarks -->\nfalse", "mallory", 13))
    run(1.0)
    assert infer(storage, "comment", f"--post={host}").stdout == "nothing moved: no comment\n"
    assert len(server.comments) == 101
    run()
    assert infer(storage, "comment", f"--post={host}").stdout == "posted: 101\n"
    assert server.comments[101]["body"] == GOLDEN.read_text(encoding="utf-8")
    # As hosts keep it.
    server.comments[101]["body"] = server.comments[101]["body"].replace("\n", "\r\n").rstrip()
    assert infer(storage, "comment", f"--post={host}").stdout == "nothing changed: 101\n"
    run(1.0)
    assert infer(storage, "comment", f"--post={host}").stdout == "updated: 101\n"
    assert "🟢" in server.comments[101]["body"]
    assert len(server.comments) == 102
    assert server.comments[100]["body"].endswith("false")
    assert {sent for _, _, sent in server.asked} == {token}
    assert [f"{method} {path}" for method, path, _ in server.asked if method != "GET"] == [f"POST {place}", edit]


@pytest.mark.parametrize(("code", "advice"), [(403, "pull-requests: write"), (500, ""), (302, "")])
def test_a_refusal_is_one_line_without_the_token(run, storage, server, code, advice):
    run()
    server.refuse = code
    result = infer(storage, "comment", "--post=github")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"pytest-infer: github: GET /repos/o/r/issues/5/comments: {code} not with ghs…")
    assert advice in line
    assert TOKEN not in result.output
    assert len(server.asked) == 1, "a redirect is not followed: it would be given the token"


def test_a_server_that_is_gone_is_one_line(run, storage, server, monkeypatch):
    run()
    monkeypatch.setenv("GITHUB_API_URL", "http://127.0.0.1:9")
    result = infer(storage, "comment", "--post=github")
    assert result.exit_code == 2
    assert result.stderr.startswith("pytest-infer: github: GET /repos/o/r/issues/5/comments: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "BadStatusLine: SSH-2.0-OpenSSH"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n[{", "IncompleteRead"),
        (b"HTTP/1.1 502 Gone\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{", "502 Gone"),
    ],
)
def test_a_broken_answer_is_one_line(run, storage, server, answer, line):
    run()
    server.broken = answer
    result = infer(storage, "comment", "--post=github")
    assert result.exit_code == 2
    assert f"comments: {line}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("host", "changes", "line"),
    [
        ("github", {"GITHUB_TOKEN": ""}, "--post needs GITHUB_TOKEN, which is not set"),
        ("github", {"GITHUB_TOKEN": "a\nb"}, "GITHUB_TOKEN cannot be used"),
        ("github", {"GITHUB_REPOSITORY": "o/r/../x"}, "GITHUB_REPOSITORY cannot be used: 'o/r/../x'"),
        ("github", {"GITHUB_REF": "refs/heads/main"}, "--post github: this job is for no pull request"),
        ("github", {"GITHUB_API_URL": "file:///etc"}, "GITHUB_API_URL is no address of a web server"),
        ("gitlab", {"CI_MERGE_REQUEST_IID": ""}, "--post needs CI_MERGE_REQUEST_IID, which is not set"),
        ("gitlab", {"GITLAB_TOKEN": "a b"}, "GITLAB_TOKEN cannot be used"),
    ],
)
def test_a_job_that_lacks_something_is_told_before_anything_is_sent(server, host, changes, line):
    with pytest.raises(OptionError, match=line.replace("(", r"\(")):
        posting.HOSTS[host]({**os.environ, **changes}, "me")
    assert server.asked == []


def test_the_number_is_also_taken_from_the_event(server, tmp_path):
    event = tmp_path / "event.json"
    event.write_text('{"pull_request": {"number": 12}}')
    found = posting.github({**os.environ, "GITHUB_REF": "", "GITHUB_EVENT_PATH": str(event)}, "me")
    assert found.comments.endswith("/issues/12/comments")


@pytest.mark.parametrize("options", [("--post=gitea",), ("--name=a --> b",), ("--output=/dev/null/file",)])
def test_wrong_usage_is_one_line(run, storage, options):
    run()
    result = infer(storage, "comment", *options)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
