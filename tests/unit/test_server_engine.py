"""The server engine on its own, request by request: what it sends, and that it leaks nothing, whatever happens."""

import gc
import json
import os
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

import scripted_server
from pytest_infer.engines.base import EngineOptions, Sampling, ServerOptions
from pytest_infer.engines.server import address
from pytest_infer.engines.server.engine import ServerEngine
from pytest_infer.errors import EngineError, OptionError
from pytest_infer.measure.asking import Asking
from pytest_infer.measure.clock import TokenClock
from pytest_infer.prompts import Message, Prompt
from pytest_infer.records import Limits
from scripted_server import Answer, Script

httpx = pytest.importorskip("httpx")
PROMPT = Prompt(name="p", text="one two three")
BAD = (Answer(status=500, words="no"), Answer(cut_at=1), Answer(cut_at=1, words="no"), Answer(tokens=0))


@pytest.fixture
def connected(monkeypatch):
    """Return a function that makes an engine for a server."""
    monkeypatch.delenv("PYTEST_INFER_SERVER_KEY", raising=False)
    made = []

    def connect(server, sampling=None, **how):
        options = ServerOptions(url=server.url, timeout_s=PATIENCE_S, **how)
        engine = ServerEngine(EngineOptions(model="", server=options, sampling=sampling))
        made.append(engine)
        engine.check()
        return engine

    yield connect
    for engine in made:
        engine.close()


@pytest.mark.parametrize(
    ("kind", "cache", "seed", "says"),
    [
        ("openai", "off", 0, r"--infer-cache=off: this server \(OpenAI-compatible server\) cannot be asked"),
        ("llama", "warm", 2**32 - 1, "seed must be from 0 to 4294967294 for llama-server, not 4294967295"),
    ],
)
def test_what_a_kind_cannot_be_asked_for_is_refused_before_it_is_started(kind, cache, seed, says):
    server = ServerOptions(command="no-such-program {model} {port}", kind=kind, cache=cache)
    engine = ServerEngine(EngineOptions(model="m", server=server, sampling=Sampling(seed=seed)))
    with pytest.raises(OptionError, match=says):
        engine.check()


def test_a_seed_that_llama_server_would_replace_is_refused_of_a_running_one(connected):
    with scripted_server.running(Script(kind="llama")) as server:
        with pytest.raises(OptionError, match="seed must be from 0 to 4294967294"):
            connected(server, sampling=Sampling(seed=2**32 - 1))
        connected(server, sampling=Sampling(seed=2**32 - 2))


def run(engine, asking, limits):
    """Run a round, and return its trace; None where the server fails."""
    clock, request = TokenClock(), asking.next()
    engine.ready(request, limits)
    clock.start()
    try:
        stopped = engine.respond(request, limits, clock)
        engine.settle()
    except EngineError:
        return None
    return clock.trace(prompt_tokens=len(request.ids), requested_tokens=limits.max_new_tokens, stopped_by=stopped)


PATIENCE_S = 120.0
"""How long one waits for what comes soon, unless the machine is busy."""


def handles():
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208


def become(expected):
    """Return what is held once it is this, or after a while."""
    until = time.monotonic() + PATIENCE_S
    while (now := handles()) != expected and time.monotonic() < until:
        time.sleep(0.01)  # the server's own ends of the connections, in this process
    return now


def settled(server):
    """Return what is held once the server has closed its ends of all connections."""
    until = time.monotonic() + PATIENCE_S
    while server.writers:
        assert time.monotonic() < until, "a connection stays"
        time.sleep(0.01)
    return handles()


def leaks(connect, requests):
    """Run so many requests, a fifth of which fail, and return what is held more after half of them."""
    answers = (*[Answer(texts=(" a", " b")), *BAD] * (requests // 5), Answer())
    with scripted_server.running(Script(kind="llama", answers=answers)) as server:
        engine = connect(server)
        asking, limits = Asking(prompt=PROMPT, ids=engine.encode(PROMPT)), Limits(max_new_tokens=2)
        whole = [run(engine, asking, limits) for _ in range(20)]
        before, memory = settled(server), psutil.Process().memory_info().rss
        whole += [run(engine, asking, limits) for _ in range(requests - 20)]
        settled(server)
        after, grown = become(before), psutil.Process().memory_info().rss - memory
        assert len(server.served) == requests
        assert server.most_connections <= 2
        server.served.clear()
    assert len([trace for trace in whole if trace is not None]) == requests // 5
    return before, after, grown


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what /proc shows")
def test_some_hundred_requests_leak_nothing(connected):
    before, after, _ = leaks(connected, 200)
    assert after == before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what /proc shows")
def test_ten_thousand_requests_leak_nothing(connected):
    before, after, grown = leaks(connected, 10_000)
    assert after == before
    assert grown < 100 * 2**20, "the scripted server keeps each request, some KiB, until the end"


def test_each_round_has_a_connection_that_is_open_before(connected):
    with scripted_server.running(Script(kind="llama")) as server:
        engine = connected(server)
        asking = Asking(prompt=PROMPT, ids=engine.encode(PROMPT))
        for number in range(5):
            request = asking.next()
            engine.ready(request, Limits(max_new_tokens=2))
            opened = server.connections
            engine.respond(request, Limits(max_new_tokens=2), TokenClock())
            assert (server.connections, len(server.served)) == (opened, number + 1)
        assert server.most_connections <= 2, "one that is closed here may still be open there"


def test_a_request_is_one_piece_of_bytes(connected, monkeypatch):
    """Head and body in two would be two packets, of which a server sees the second later."""
    sent, send = [], socket.socket.sendall
    monkeypatch.setattr(socket.socket, "sendall", lambda self, data: (sent.append(bytes(data)), send(self, data))[1])
    with scripted_server.running(Script(kind="llama")) as server:
        engine = connected(server)
        asking = Asking(prompt=PROMPT, ids=engine.encode(PROMPT))
        engine.ready(asking.next(), Limits(max_new_tokens=2))
        sent.clear()
        engine.respond(asking.next(), Limits(max_new_tokens=2), TokenClock())
    (request,) = sent
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /completion HTTP/1.1\r\n")
    assert json.loads(body)["n_predict"] == 2


class Read(TokenClock):
    """A token clock that keeps when it was read."""

    __slots__ = ("read",)

    def __init__(self):
        self.read = []
        super().__init__()

    def now(self):
        self.read.append(super().now())
        return self.read[-1]


@pytest.mark.parametrize(("gap_s", "split"), [(0.0, False), (0.005, False), (0.0, True), (0.12, False)])
def test_tokens_are_stamped_when_they_come_however_long_they_take_to_read(connected, monkeypatch, gap_s, split):
    """A gap is shorter, or longer, than the time after which what has come is looked at."""
    answer = Answer(tokens=3, gap_s=gap_s, first_s=0.01, split=split)
    with scripted_server.running(Script(kind="llama", answers=(answer,))) as server:
        engine, heard = connected(server), []
        hear = engine._kind.hear

        def slowly(event, so_far):
            heard.append(time.perf_counter_ns())
            time.sleep(0.01)
            hear(event, so_far)

        monkeypatch.setattr(engine._kind, "hear", slowly)
        asking, clock = Asking(prompt=PROMPT, ids=engine.encode(PROMPT)), Read()
        engine.ready(asking.next(), Limits(max_new_tokens=3))
        clock.start()
        engine.respond(asking.next(), Limits(max_new_tokens=3), clock)
        engine.settle()
        stamps = clock.trace(prompt_tokens=3, requested_tokens=3, stopped_by=None).stamps_ns
        (served,) = server.served
    assert set(stamps) <= set(clock.read), "each is the moment of a read"
    assert all(
        written <= stamp <= begun for written, stamp, begun in zip(served.stamps_ns, stamps, heard, strict=False)
    )
    assert len(stamps) == 3


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("ends", ["with the connection", "within a chunk", "with a length"])
def test_an_answer_ends_as_http_says(connected, ends, closes):
    """One that says in no way that it ends is whole with its connection, one that was cut is not.

    A server that `closes` ends each connection after one answer.
    """
    event = b'data: {"tokens": [7], "tokens_predicted": 1, "stop": true, "stop_type": "limit"}\n\n'
    how, body = {
        "with the connection": (b"", event),
        "within a chunk": (b"Transfer-Encoding: chunked\r\n", b"%x\r\n" % (len(event) + 9) + event),
        "with a length": (b"Content-Length: %d\r\n" % len(event), event),
    }[ends]
    with scripted_server.running(Script(kind="llama")) as scripted, socket.create_server(("127.0.0.1", 0)) as listening:
        engine = connected(scripted)
        engine._line._url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        left = threading.Event()

        def answer():
            line, _ = listening.accept()
            line.recv(65536)
            line.sendall(b"HTTP/1.%d 200 OK\r\nContent-Length: 2\r\n\r\n{}" % (not closes))
            if closes:
                line.close()
                line, _ = listening.accept()
            line.recv(65536)
            line.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + how + b"\r\n" + body)
            if ends == "with a length":  # the server keeps the connection
                left.wait(PATIENCE_S)
            line.close()

        thread = threading.Thread(target=answer)
        thread.start()
        trace = run(engine, Asking(prompt=PROMPT, ids=engine.encode(PROMPT)), Limits(max_new_tokens=1))
        left.set()
        thread.join()
    assert (trace is None) == (ends == "within a chunk")


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        ("openai", {"choices": 1}),
        ("openai", {"choices": [None]}),
        ("openai", {"choices": [{"delta": "a"}]}),
        ("llama", {"tokens": 7}),
        ("llama", {"tokens": [7], "stop": True, "timings": [1]}),
    ],
)
def test_an_event_of_another_form_is_one_line(connected, monkeypatch, kind, event):
    with scripted_server.running(Script(kind=kind)) as server:
        engine = connected(server)
        ids = engine.encode(PROMPT)
        request, clock, limits = Asking(prompt=PROMPT, ids=ids).next(), TokenClock(), Limits(max_new_tokens=2)
        engine.ready(request, limits)
        monkeypatch.setattr(engine._line, "stream", lambda *_: iter([event]))
        with pytest.raises(EngineError) as raised:
            engine.respond(request, limits, clock)
    shown = json.dumps(event, separators=(",", ":"))
    assert str(raised.value).endswith(f"sent an event of no known form: {shown}")


def test_an_answer_that_is_no_object_is_one_line(connected, monkeypatch):
    with scripted_server.running(Script(kind="llama")) as server:
        engine = connected(server)
        reply = httpx.Response(200, content=b"[1]")
        monkeypatch.setattr(engine._line, "_answer", lambda *_: reply)
        with pytest.raises(EngineError, match=r"answers POST /detokenize with no JSON object: \[1\]"):
            engine.decode([1])


def test_closing_gives_everything_back(connected):
    with scripted_server.running() as server:
        before = handles()
        engine = connected(server)
        run(engine, Asking(prompt=PROMPT, ids=()), Limits(max_new_tokens=2))
        engine.close()
        engine.close()
        assert become(before) == before
    with pytest.raises(EngineError, match="has not started"):
        engine.decode([1])


def test_what_may_be_cached_is_known_by_the_ids(connected):
    """A template puts tokens ahead of the nonce, which every prompt has."""
    dialogue = Prompt(name="c", messages=(Message(role="user", content="hello"),))
    with scripted_server.running(Script(kind="llama", caches=True)) as server:
        engine = connected(server)
        asking = Asking(prompt=dialogue, ids=engine.encode(dialogue))
        traces = [run(engine, asking, Limits(max_new_tokens=2)) for _ in range(3)]
    assert [trace.reported.cached for trace in traces] == [0, 1, 1]
    assert {trace.reported.allowed for trace in traces} == {1}
    assert {trace.reported.prompt for trace in traces} == {trace.prompt_tokens for trace in traces}


def test_a_tokeniser_of_uneven_nonces_is_named(connected, monkeypatch):
    with scripted_server.running(Script(kind="llama")) as server:
        engine = connected(server)
        monkeypatch.setattr(engine._kind, "ids", lambda prompt: list(range(len(prompt.text.replace("1 ", "")))))
        with pytest.raises(EngineError, match="does not make equally many tokens of each nonce"):
            engine.encode(PROMPT)


def test_a_round_of_another_length_has_its_own_nonce(connected):
    with scripted_server.running(Script(kind="llama")) as server:
        engine = connected(server)
        ids = engine.encode(PROMPT)
        for length in (4, len(ids) + 7):
            resized = [*ids, *ids][:length]
            asking = Asking(prompt=PROMPT, ids=resized)
            for _ in range(2):
                run(engine, asking, Limits(max_new_tokens=2))
    sent = [one.body["prompt"] for one in server.served]
    assert [len(one) for one in sent] == [4, 4, len(ids) + 7, len(ids) + 7]
    assert sent[0] != sent[1]
    assert sent[2] != sent[3]
    assert sent[2][8:] == [*ids, *ids][8 : len(ids) + 7]


def test_load_tests_learn_where_it_is_and_its_key(monkeypatch):
    monkeypatch.setenv("PYTEST_INFER_SERVER_KEY", "secret-of-mine")
    with scripted_server.running(Script(model="mine", key="secret-of-mine")) as server:
        engine = ServerEngine(EngineOptions(model="", server=ServerOptions(url=server.url, timeout_s=PATIENCE_S)))
        engine.check()
        found = engine.served()
        engine.close()
    assert (found.url, found.model, found.key) == (server.url, "mine", "secret-of-mine")
    assert "secret" not in repr(found)


def test_where_a_server_is_is_looked_up_until_it_is_known(monkeypatch):
    answers = [None, False]
    monkeypatch.setattr(address, "is_here", lambda url: answers.pop(0))
    engine = ServerEngine(EngineOptions(model="", server=ServerOptions(url="http://far.example.org")))
    assert engine.observed().absent == "the server's name cannot be looked up"
    assert engine.observed().absent == engine.observed().absent == "the server is on another machine"
    assert answers == []
