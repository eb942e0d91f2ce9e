"""Engines that know texts and no ids, as in docs/engines.md: measured, compared, stored, and what they cannot do."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pytest_infer.storage import runs, sidecar
from pytest_infer.storage.schema import KEY

PAGE = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
(TEXT_SERVER,) = re.findall(r"^```python\n((?:(?!^```).)*?TEXT_SERVER.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
TEXT = """
from pytest_infer.engines.base import Engine
from pytest_infer.records import ModelInfo, StopReason


class Text(Engine):
    said = ["one two", "", " three"]
    asked = []
    why = None

    def load(self):
        return ModelInfo(name="text", engine="text")

    def encode(self, prompt):
        return []

    def decode(self, token_ids):
        raise AssertionError("no ids")

    def varied(self):
        return self.why

    def respond(self, request, limits, clock):
        self.asked.append(request)
        said = self.said
        for piece in said:
            clock.tick_text(piece)
        clock.reported(prompt=5, generated=len(said), cached=0, allowed=0)
        return StopReason.EOS


@pytest.fixture(scope="session")
def engine():
    return Text()
"""


class Texts(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        lines = [{"text": f" {n}"} for n in range(asked["tokens"])]
        lines.append({"prompt": len(asked["text"].split()), "generated": asked["tokens"]})
        self.send_response(200)
        self.end_headers()
        for line in lines:
            self.wfile.write(json.dumps(line).encode() + b"\n")

    def log_message(self, *_):
        pass


@pytest.fixture
def text_server(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Texts) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("TEXT_SERVER", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()
        thread.join()


def stored(pytester):
    (path,) = pytester.path.glob(".benchmarks/*/*.json")
    return runs.rows(path), sidecar.read(path)


def test_the_engine_of_the_page_runs(suite, text_server):
    tests = suite()
    tests.makeconftest(TEXT_SERVER)
    done = tests.runpytest("--benchmark-autosave", "--infer-rounds=2", "--infer-no-probe")
    done.assert_outcomes(passed=2)
    rows, arrays = stored(tests)
    assert [row.metrics["prompt_tokens"].value for row in rows] == [3, 2]
    assert [row.metrics["generated_tokens"].value for row in rows] == [3, 3]
    assert bytes(arrays[f"{rows[0].test}|0|texts"]) == b" 0 1 2"


def test_texts_are_compared(suite):
    tests = suite(engine=TEXT, test="def test_prompt(infer, prompt):\n    assert infer(prompt).output.by == 'text'\n")
    done = tests.runpytest("--benchmark-autosave", "--infer-rounds=2", "--infer-no-probe")
    done.assert_outcomes(passed=2)
    done.stdout.no_fnmatch_line("*differ*")
    rows, arrays = stored(tests)
    assert rows[0].metrics["output_sha256"].value == rows[1].metrics["output_sha256"].value
    assert arrays[f"{rows[0].test}|0|text_sizes"].tolist() == [7, 0, 6]


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("Text.said = ['x']", None),
        (
            "import itertools; Text.said = property(lambda self, n=itertools.count(): ['a', str(next(n))])",
            "differs from round 1 at generated character 2",
        ),
        (
            "import itertools; Text.said = property(lambda self, n=itertools.count(): ['a', str(next(n))])\n"
            "Text.why = 'each is new'",
            None,
        ),
        (
            "Text.why = 'each is new'\nimport itertools\n"
            "Text.said = property(lambda self, n=itertools.count(): ['a'] * (1 + next(n) % 2))",
            "the rounds generated 1 to 2 tokens, as each is new",
        ),
    ],
)
def test_rounds_are_held_against_each_other(suite, engine, said):
    done = suite(engine=f"{TEXT}\n{engine}").runpytest("--infer-rounds=2", "--infer-no-probe", "--infer-no-profile")
    done.assert_outcomes(passed=2)
    shown = " ".join(done.stdout.str().split())  # whatever the width
    if said is None:
        assert "each is new" not in shown
        assert "differs from" not in shown
    else:
        assert said in shown


UNCHECKED = """
from pytest_infer.measure import answers

answers.varied = lambda engine: engine.varied()
"""


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("", "Engine.varied gives a bool, neither a text nor None"),
        # As a field is that no check before the rounds knows of.
        (UNCHECKED, "the engine told what cannot be stored: Expected `str`, got `bool` - at *"),
    ],
    ids=["checked", "unchecked"],
)
def test_what_cannot_be_stored_fails_its_own_test(suite, more, line):
    """A value of a wrong type ended the whole run, and no prompt of it was stored."""
    asked = "type(engine).why = prompt.name == 'second' or None"
    test = f"def test_prompt(infer, prompt, engine):\n    {asked}\n    infer(prompt)\n"
    tests = suite(engine=TEXT + more, test=test)
    done = tests.runpytest("--benchmark-autosave", "--infer-rounds=2", "--infer-no-probe")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(line)
    rows, _ = stored(tests)
    assert [row.prompt.name for row in rows] == ["first"]


def test_half_a_character_loses_no_round(suite):
    engine = TEXT.replace("clock.tick_text(piece)", "clock.tick([1])").replace(
        'raise AssertionError("no ids")', 'return "a\\ud800"'
    )
    tests = suite(engine=engine)
    done = tests.runpytest("--benchmark-autosave", "--infer-rounds=2", "--infer-no-probe")
    done.assert_outcomes(passed=2)
    (path,) = tests.path.glob(".benchmarks/*/*.json")
    blocks = [row["extra_info"][KEY] for row in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]]
    assert [block["output"]["text"] for block in blocks if "output" in block] == ["a?", "a?"]


def test_ids_that_nobody_knows_are_not_resized(suite):
    done = suite(engine=TEXT).runpytest("--infer-prompt-tokens=9", "--infer-no-probe")
    assert done.ret != 0
    done.stdout.fnmatch_lines("*nobody tells this engine the ids of a prompt: leave out --infer-prompt-tokens*")


def test_an_engine_of_ids_still_needs_them(suite):
    done = suite(engine="Scripted.encode = lambda self, prompt: []").runpytest("--infer-no-probe")
    done.stdout.fnmatch_lines("*has no tokens for this model*")


def test_each_round_has_a_nonce(suite):
    test = """
    def test_prompt(infer, prompt, engine):
        infer(prompt)
        nonces = [one.nonce for one in engine.asked]
        assert len(set(nonces)) == len(nonces) >= 4
        assert {one.prompt.name for one in engine.asked[-4:]} == {prompt.name}
    """
    suite(engine=TEXT, test=test).runpytest("--infer-rounds=2", "--infer-no-probe").assert_outcomes(passed=2)
