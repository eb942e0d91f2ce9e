"""A real llama-server measured as a server: its tokens, its counts and its cache, and times beside a plain client's."""

import http.client
import json
import statistics
from importlib.util import find_spec
from time import perf_counter_ns

import pytest

from pytest_infer.engines.base import EngineOptions, ServerOptions
from pytest_infer.engines.lookup import create
from pytest_infer.measure.asking import Asking
from pytest_infer.measure.clock import TokenClock
from pytest_infer.prompts import Message, Prompt
from pytest_infer.records import Limits, StopReason

llama_server = pytest.importorskip("llama_server", reason="no fixture of llama-server")
pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="llama.cpp is not installed"),
]
TEXT = Prompt(name="t", text="Once upon a time there was a small village near the sea.")
CHAT = Prompt(name="c", messages=(Message(role="user", content="How do I sort a list in Python?"),))
LIMITS = Limits(max_new_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTEST_INFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.delenv("PYTEST_INFER_SERVER_KEY", raising=False)
        found = create("llamacpp", EngineOptions(model="reference-moe"))
        found.check()
        (file,) = found.files()
        with llama_server.llama_server(file, "-t", "1") as (number, _process):
            yield number


@pytest.fixture
def engine(port):
    made = []

    def make(**how):
        served = ServerOptions(url=f"http://127.0.0.1:{port}", **how)
        made.append(create("server", EngineOptions(model="", server=served)))
        made[-1].check()
        return made[-1]

    yield make
    for one in made:
        one.close()


def run(engine, asking, limits=LIMITS):
    request, clock = asking.next(), TokenClock()
    engine.ready(request, limits)
    clock.start()
    stopped = engine.respond(request, limits, clock)
    engine.settle()
    return clock.trace(prompt_tokens=len(request.ids), requested_tokens=limits.max_new_tokens, stopped_by=stopped)


def asked(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


@pytest.mark.parametrize("prompt", [TEXT, CHAT], ids=["text", "dialogue"])
@pytest.mark.parametrize("kind", ["llama", "openai"])
def test_tokens_are_those_that_the_server_counts(engine, kind, prompt):
    one = engine(kind=kind)
    asking = Asking(prompt=prompt, ids=one.encode(prompt))
    for _ in range(3):
        trace = run(one, asking)
        assert sum(trace.tick_sizes) == trace.reported.generated == 24
        assert trace.prompt_tokens == trace.reported.prompt
        assert trace.reported.cached <= trace.reported.allowed
        assert (len(trace.stamps_ns), trace.stopped_by) == (24, StopReason.LENGTH)


def test_an_end_of_sequence_is_a_token(engine):
    for kind in ("llama", "openai"):
        one = engine(kind=kind, cache="warm")
        trace = run(one, Asking(prompt=CHAT, ids=one.encode(CHAT)), Limits(max_new_tokens=500))
        assert sum(trace.tick_sizes) == trace.reported.generated < 500
        assert trace.stopped_by is StopReason.EOS


def test_what_is_generated_is_what_the_server_says_to_anybody(engine, port):
    one = engine(cache="off")
    ids = one.encode(TEXT)
    trace = run(one, Asking(prompt=TEXT, ids=ids))
    plain = asked(port, "/completion", {"prompt": ids, "n_predict": 24, "temperature": 0, "return_tokens": True,
                                        "ignore_eos": True, "cache_prompt": False})  # fmt: skip
    assert list(trace.token_ids) == plain["tokens"]
    assert one.decode(trace.token_ids) == plain["content"]
    assert trace.reported.cached == 0


def test_a_warm_cache_is_told(engine):
    one = engine(cache="warm")
    asking = Asking(prompt=TEXT, ids=one.encode(TEXT))
    run(one, asking)
    assert run(one, asking).reported.cached == len(asking.ids) - 1


def test_characters_of_several_tokens_have_all_their_ids(engine, port, monkeypatch):
    """The grammar forces characters that this tokeniser writes as two and three bytes."""
    one = engine(cache="warm")
    body = one._kind.body
    forced = {"grammar": 'root ::= "日é日日"'}
    monkeypatch.setattr(one._kind, "body", lambda ask: (body(ask)[0], {**body(ask)[1], **forced}))
    asking = Asking(prompt=TEXT, ids=one.encode(TEXT))
    trace = run(one, asking, Limits(max_new_tokens=11))
    found = asked(port, "/tokenize", {"content": "日é日日"})["tokens"]
    assert list(trace.token_ids) == found
    assert trace.tick_sizes == (3, 2, 3, 3)
    assert trace.reported.generated == len(found) == 11


def test_times_are_those_of_a_plain_client(engine, port):
    """In turns, so that whatever else the machine does meets both; the least times are compared, generously."""
    one = engine(cache="off")
    asking = Asking(prompt=TEXT, ids=one.encode(TEXT))
    ours, plain = [], []
    for _ in range(15):
        trace = run(one, asking)
        ours.append((trace.stamps_ns[0] - trace.start_ns, trace.stamps_ns[-1] - trace.stamps_ns[0]))
        plain.append(plainly(port, asking.ids))
    for which in (0, 1):
        apart = [a[which] - b[which] for a, b in zip(ours, plain, strict=True)]
        usual = statistics.median(b[which] for b in plain)
        assert abs(statistics.median(apart)) < max(0.5 * usual, 20e6)


def plainly(port, ids):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.connect()
    body = json.dumps({"prompt": list(ids), "n_predict": 24, "temperature": 0, "stream": True, "return_tokens": True,
                       "samplers": ["temperature"], "ignore_eos": True, "cache_prompt": False})  # fmt: skip
    start, stamps = perf_counter_ns(), []
    connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
    for line in connection.getresponse():
        if line.startswith(b"data: ") and json.loads(line[6:])["tokens"]:
            stamps.append(perf_counter_ns())  # noqa: PERF401 - each when it comes
    connection.close()
    return stamps[0] - start, stamps[-1] - stamps[0]
