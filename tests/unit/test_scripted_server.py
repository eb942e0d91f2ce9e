"""The server that other tests measure: it says what its script says, when the script says it."""

import http.client
import json
import subprocess
import sys
import threading
from itertools import pairwise
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

import scripted_server
from scripted_server import Answer, Script


def ask(server, path="/v1/completions", **body):
    """Return the events of an answer, and the raw bytes."""
    request = Request(server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urlopen(request, timeout=120) as reply:  # noqa: S310
        raw = reply.read()
    lines = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: {")]
    return ([json.loads(line) for line in lines] or json.loads(raw)), raw


def streamed(server, path="/v1/completions", tokens=4, **body):
    asked = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": tokens, "prompt": "a b c"}
    return ask(server, path, **{**asked, **body})


def test_tokens_chunks_and_usage_are_as_scripted():
    script = Script(answers=(Answer(texts=(" é", "", " x"), per_chunk=2, usage={"completion_tokens": 9}, split=True),))
    with scripted_server.running(script) as server:
        events, raw = streamed(server, tokens=5)
    assert [e["choices"][0]["text"] for e in events[:-1]] == [" é", " x é", ""]
    assert events[-1]["usage"]["completion_tokens"] == 9
    assert events[-1]["usage"]["prompt_tokens"] == 3
    assert raw.endswith(b"data: [DONE]\n\n")


def test_delays_are_the_scripts():
    script = Script(answers=(Answer(first_s=0.03, gap_s=0.01), Answer(service_s=0.04)))
    with scripted_server.running(script) as server:
        streamed(server)
        streamed(server)
    spaced, even = server.served
    assert spaced.stamps_ns[0] - spaced.began_ns >= 30e6
    assert spaced.stamps_ns[3] - spaced.began_ns >= 60e6
    assert even.stamps_ns[0] - even.began_ns >= 10e6
    assert even.stamps_ns[3] - even.began_ns >= 40e6


def test_requests_wait_for_a_slot_in_order():
    with scripted_server.running(Script(slots=1, answers=(Answer(service_s=0.02),))) as server:
        threads = [threading.Thread(target=streamed, args=(server,)) for _ in range(3)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    served = server.served
    assert all(b.began_ns >= a.ended_ns for a, b in pairwise(served))


def test_exponential_services_differ_and_are_the_same_with_the_same_seed():
    took = []
    for _ in range(2):
        with scripted_server.running(Script(answers=(Answer(service_s=0.001, exponential=True),), seed=3)) as server:
            took.append([next(iter(server._due(1, 0, server.script.answers[0])))[1] for _ in range(4)])
    assert took[0] == took[1]
    assert len(set(took[0])) == 4


def test_a_dialogue_begins_with_a_role_that_is_no_token():
    with scripted_server.running() as server:
        events, _ = streamed(server, "/v1/chat/completions", tokens=2, messages=[{"role": "user", "content": "hi"}])
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [e["choices"][0]["delta"]["content"] for e in events[1:-1]] == [" one", " two"]


def test_ids_are_those_of_the_tokenizer():
    with scripted_server.running(Script(kind="llama")) as server:
        ids = ask(server, "/tokenize", content="one two three")[0]["tokens"]
        events, _ = ask(server, "/completion", prompt=ids, n_predict=2, stream=True)
        text = ask(server, "/detokenize", tokens=[one for e in events for one in e["tokens"]])[0]["content"]
    assert text == " one two"
    assert (events[-1]["tokens_evaluated"], events[-1]["stop_type"]) == (3, "limit")
    with scripted_server.running(Script(kind="vllm")) as server:
        events, _ = streamed(server, return_token_ids=True)
        assert all(len(e["choices"][0]["token_ids"]) == 1 for e in events[:-1])


def test_a_shared_prefix_is_cached():
    with scripted_server.running(Script(caches=True)) as server:
        cached = [
            streamed(server, prompt=prompt)[0][-1]["usage"]["prompt_tokens_details"]["cached_tokens"]
            for prompt in ("a b c d", "a b x y", "a b c d", "z a b c d")
        ]
    assert cached == [0, 2, 3, 0]


@pytest.mark.parametrize(("status", "words"), [(429, "slow down"), (500, "out of memory")])
def test_errors_have_their_words(status, words):
    with scripted_server.running(Script(answers=(Answer(status=status, words=words), Answer()))) as server:
        with pytest.raises(HTTPError) as failed:
            streamed(server)
        assert failed.value.code == status
        with failed.value as told:
            assert json.loads(told.read())["error"]["message"] == words
        assert len(streamed(server)[0]) == 5


def test_a_key_is_required():
    with scripted_server.running(Script(key="secret")) as server, pytest.raises(HTTPError) as failed:
        streamed(server)
    with failed.value as told:
        assert told.code == 401


@pytest.mark.parametrize("how", [{"cut_at": 2}, {"dies_at": 2}])
def test_a_stream_breaks_off(how):
    with (
        scripted_server.running(Script(answers=(Answer(**how),))) as server,
        pytest.raises((http.client.IncompleteRead, ConnectionError)),
    ):
        streamed(server)
    assert len(server.served[0].stamps_ns) == 2
    assert not server.served[0].whole


def test_a_stall_ends_with_the_server():
    with scripted_server.running(Script(answers=(Answer(stall_at=1),))) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=120)
        connection.request("POST", "/v1/completions", json.dumps({"prompt": "a", "stream": True}))
        reply = connection.getresponse()
        assert reply.readline().startswith(b"data: ")
        connection.sock.settimeout(0.1)  # only now: connecting and the first event may take longer
        with pytest.raises(TimeoutError):
            reply.read()
        reply.close()
        connection.close()


def test_a_process_dies_with_its_last_words(tmp_path):
    script = Script(answers=(Answer(), Answer(dies_at=1, words="out of memory")))
    path = tmp_path / "script.json"
    path.write_text(script.to_json(), encoding="utf-8")
    command = [sys.executable, scripted_server.__file__, "--script", str(path), "--model", "folder/mine.gguf"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split()[-1]
        server = type("Started", (), {"url": url})
        assert streamed(server)[0][0]["model"] == "mine.gguf"
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            streamed(server)
        assert process.wait(120) == 3
        assert process.stderr.read() == "out of memory\n"
