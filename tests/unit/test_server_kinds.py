"""What servers stream, event by event, and what becomes of it: ticks, counts, reasons."""

import socket
from types import SimpleNamespace

import psutil
import pytest

from pytest_infer.engines.base import Sampling
from pytest_infer.engines.server import address, events, kinds
from pytest_infer.engines.server.client import words
from pytest_infer.engines.server.kind import Ask, Heard, Kind, failed
from pytest_infer.engines.server.kinds import Llama, Vllm
from pytest_infer.errors import EngineError, ModelError, OptionError
from pytest_infer.prompts import Message, Prompt
from pytest_infer.records import Limits, StopReason

TEXT = Prompt(name="t", text="a b")
CHAT = Prompt(name="c", messages=(Message(role="system", content="s"), Message(role="user", content="u")))


class Answers:
    """A client that answers from a table, and keeps what it was asked."""

    def __init__(self, **paths):
        self.paths = {f"/{name.replace('_', '/')}": value for name, value in paths.items()}
        self.asked = []

    def get(self, path):
        return self.paths.get(path)

    def post(self, path, body):
        self.asked.append((path, body))
        found = self.paths[path]
        return found(body) if callable(found) else found


class Clock:
    def __init__(self):
        self.ticks, self.said = [], {}

    def tick(self, ids):
        self.ticks.append(ids)

    def tick_text(self, text, tokens=1):
        self.ticks.append((text, tokens))

    def reported(self, **said):
        self.said |= {name: value for name, value in said.items() if value is not None}


def hear(kind, *stream, stop=()):
    heard = Heard(clock=Clock(), limits=Limits(max_new_tokens=9, stop=stop))
    for event in stream:
        kind.hear(event, heard)
    kind.finish(heard)
    return heard


def piece(text, why=None, **more):
    return {"choices": [{"text": text, "finish_reason": why, **more}]}


def delta(why=None, **content):
    return {"choices": [{"delta": content, "finish_reason": why}]}


def usage(completion, prompt=5, **more):
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **more}}


@pytest.mark.parametrize(
    ("stream", "ticks"),
    [
        # Empty pieces are tokens; the role that begins a dialogue is none.
        ([piece(" a"), piece(""), piece(" b", "length"), usage(3)], [" a", "", " b"]),
        ([delta(role="assistant", content=""), delta(content="a"), delta("stop"), usage(1)], ["a"]),
        ([delta(role="assistant", content=None), delta(content="a"), delta("stop", content=""), usage(1)], ["a"]),
        ([delta(role="assistant", content="a"), delta(content="b")], ["a", "b"]),
        # An empty end is a token only where the server counts one more.
        ([piece(" a"), piece("", "length"), usage(1)], [" a"]),
        ([piece(" a"), piece("", "stop"), usage(2)], [" a", ""]),
        ([piece(" a"), piece("", "stop")], [" a"]),
        ([delta(content="a"), delta("stop"), usage(2)], ["a", ""]),
        ([delta(role="assistant"), delta(role="assistant", content="a"), delta("length"), usage(1)], ["a"]),
        # What a model thinks is generated too.
        ([delta(reasoning_content="hm"), delta(content="a")], ["hm", "a"]),
        ([delta(reasoning="hm"), delta(tool_calls=[]), delta(content="a")], ["hm", "a"]),
        ([delta(reasoning="hm", reasoning_content="hm"), delta(content="a")], ["hm", "a"]),
        ([delta(reasoning_content=""), delta(content="a")], ["", "a"]),
        ([{"choices": []}, {"object": "ping"}, piece(" a")], [" a"]),
    ],
)
def test_texts_are_ticks(stream, ticks):
    heard = hear(Kind(Answers(), "m"), *stream)
    assert [text for text, _ in heard.clock.ticks] == ticks
    assert heard.tokens == len(ticks)


def test_a_running_count_tells_how_many_tokens_a_piece_is():
    def counted(text, count, why=None):
        return {**piece(text, why), "usage": {"prompt_tokens": 5, "completion_tokens": count}}

    heard = hear(Kind(Answers(), "m"), counted(" a b", 2), counted("", 2), counted(" c", 3, "length"), usage(3))
    assert heard.clock.ticks == [(" a b", 2), (" c", 1)]
    assert heard.clock.said == {"prompt": 5, "generated": 3}


def test_ids_come_before_texts():
    heard = hear(Vllm(Answers(), "m"), piece(" a", token_ids=[7]), piece(" b c", "stop", token_ids=[8, 9]), usage(3))
    assert heard.clock.ticks == [[7], [8, 9]]
    assert heard.stopped_by is StopReason.EOS


@pytest.mark.parametrize(
    ("details", "cached"),
    [({}, None), ({"prompt_tokens_details": None}, None), ({"prompt_tokens_details": {"cached_tokens": 0}}, 0)]
    + [({"prompt_tokens_details": {"cached_tokens": wrong}}, None) for wrong in ("3", -1, True, None)],
)
def test_what_is_cached_is_a_number_or_unknown(details, cached):
    assert hear(Kind(Answers(), "m"), piece(" a"), usage(1, **details)).clock.said.get("cached") == cached


@pytest.mark.parametrize(
    ("why", "at", "expected"),
    [
        ("length", None, StopReason.LENGTH),
        ("stop", None, StopReason.EOS),
        ("stop", "END", StopReason.STOP_STRING),
        ("stop", 2, StopReason.EOS),
        ("content_filter", None, StopReason.EOS),
    ],
)
def test_why_it_ended(why, at, expected):
    heard = hear(Kind(Answers(), "m"), piece(" a", why, stop_reason=at), stop=("END",))
    assert heard.stopped_by is expected


@pytest.mark.parametrize(("stop", "expected"), [(("END",), None), ((), StopReason.EOS)])
def test_a_server_that_names_no_stop_string_may_have_stopped_at_one(stop, expected):
    assert hear(Kind(Answers(), "m"), piece(" a", "stop"), stop=stop).stopped_by is expected


def llama(**paths):
    return Llama(Answers(**paths), "m")


def native(ids, count, content="", **more):
    return {"tokens": ids, "tokens_predicted": count, "content": content, "stop": False, **more}


def test_llama_server_tells_ids_and_counts():
    end = {"stop": True, "stop_type": "word", "tokens": [], "tokens_predicted": 2, "tokens_evaluated": 5}
    heard = hear(llama(), native([7], 1), native([8], 2), {**end, "timings": {"cache_n": 3}})
    assert heard.clock.ticks == [[7], [8]]
    assert heard.clock.said == {"prompt": 5, "generated": 2, "cached": 3}
    assert (heard.whole, heard.stopped_by) == (True, StopReason.STOP_STRING)


@pytest.mark.parametrize(
    ("told", "ticks"),
    [
        ([168, 251, 104], [[17], [168, 251, 104], [168, 251, 104]]),
        ([168, 104], [[17], [104], [104]]),  # another way to write it: not what was generated
        ([168, 251, 9], [[17], [104], [104]]),
    ],
)
def test_the_ids_of_a_character_of_several_tokens_are_made_up_for(told, ticks):
    kind = llama(tokenize={"tokens": told})
    heard = hear(kind, native([17], 1, ","), native([104], 4, "日"), native([104], 7, "日"))
    assert heard.clock.ticks == ticks
    assert heard.tokens == 7
    assert kind.client.asked == [("/tokenize", {"content": "日", "add_special": False})], "once is enough"


def ask(**given):
    how = {"prompt": TEXT, "ahead": "1\n", "ids": [1, 2], "limits": Limits(max_new_tokens=9), "cache": "bust"}
    return Ask(**{**how, "salt": "s", "sampling": None, **given})


@pytest.mark.parametrize("kind", [Kind, Vllm, Llama])
def test_what_is_sent(kind):
    made = kind(Answers(), "m")
    _, greedy = made.body(ask())
    assert (greedy["temperature"], greedy["stream"], "ignore_eos" in greedy, "stop" in greedy) == (
        0,
        True,
        False,
        False,
    )
    _, more = made.body(
        ask(
            sampling=Sampling(temperature=0.7, top_p=0.9, seed=3),
            limits=Limits(max_new_tokens=9, stop=("END",), ignore_eos=True),
        )
    )
    assert (more["temperature"], more["top_p"], more["seed"]) == (0.7, 0.9, 3)
    assert (more["ignore_eos"], more["stop"]) == (True, ["END"])


@pytest.mark.parametrize(("owner", "counts"), [("sglang", True), ("vllm", True), ("library", False), (None, False)])
def test_only_who_knows_it_is_asked_to_count_in_every_piece(owner, counts):
    models = {"data": [{"id": "m", "owned_by": owner}]}
    asked = Kind(Answers(v1_models=models), "m").body(ask())[1]["stream_options"]
    assert asked == {"include_usage": True, **({"continuous_usage_stats": True} if counts else {})}


def test_a_nonce_stands_ahead_of_a_text_or_of_the_first_message():
    assert Kind(Answers(), "m").body(ask())[1]["prompt"] == "1\na b"
    path, body = Kind(Answers(), "m").body(ask(prompt=CHAT))
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "system", "content": "1\ns"}, {"role": "user", "content": "u"}]


def test_a_dialogue_becomes_ids_by_the_servers_template():
    kind = llama(**{"apply-template": {"prompt": "<s>u"}, "tokenize": {"tokens": [3]}})
    assert kind.ids(CHAT) == [3]
    assert kind.client.asked[1] == ("/tokenize", {"content": "<s>u", "add_special": True, "parse_special": True})
    vllm = Vllm(Answers(tokenize={"tokens": [4], "count": 1}), "m")
    assert vllm.ids(CHAT) == [4]
    assert vllm.client.asked[0][1]["add_generation_prompt"]


@pytest.mark.parametrize("answer", [{}, [], {"tokens": None}, {"tokens": ["a"]}, "x"])
def test_a_tokeniser_that_tells_no_ids_is_named(answer):
    with pytest.raises(EngineError, match="answers with no ids: --infer-server-kind=openai"):
        llama(tokenize=answer).ids(TEXT)


MODELS = {"data": [{"id": "folder/m.gguf", "meta": {"n_params": 5, "size": 10, "n_vocab": 7}}, {"id": "n"}]}


@pytest.mark.parametrize(
    ("paths", "kind"),
    [
        ({"props": {"default_generation_settings": {"n_ctx": 64}}, "v1_models": MODELS}, Llama),
        ({"version": {"version": "0.9"}, "v1_models": {"data": [{"id": "m", "max_model_len": 64}]}}, Vllm),
        ({"version": {"version": "0.9"}, "v1_models": MODELS}, Kind),
        ({"v1_models": MODELS}, Kind),
        ({"props": {"a": 1}}, Kind),
        ({"props": {"default_generation_settings": "a"}, "v1_models": {"data": 1}}, Kind),
        ({}, Kind),
    ],
)
def test_the_kind_is_found_by_asking(paths, kind):
    assert type(kinds.of(Answers(**paths), "m", None)) is kind


@pytest.mark.parametrize("name", list(kinds.KINDS))
def test_the_kind_may_be_given(name):
    assert kinds.of(Answers(), "m", name).name == name


def test_what_a_server_tells_of_itself():
    kind = Llama(
        Answers(props={"build_info": "b7", "default_generation_settings": {"n_ctx": 64}}, v1_models=MODELS), None
    )
    told = kind.told()
    assert (told.name, told.versions, told.context) == ("m.gguf", {"llama.cpp": "b7"}, 64)
    assert (told.parameters, told.parameter_bytes, told.vocabulary) == (5, 10, 7)
    assert kind.model == "folder/m.gguf"
    assert Vllm(Answers(version={"version": "0.9"}), "m").told().versions == {"vllm": "0.9"}


@pytest.mark.parametrize("kind", kinds.KINDS.values())
@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("unsloth/Qwen3-0.6B-GGUF:Q4_K_M", "unsloth/Qwen3-0.6B-GGUF:Q4_K_M"),
        ("models/m.gguf", "m.gguf"),
        ("/models/mine", "mine"),
    ],
)
def test_a_model_of_the_hub_keeps_its_owner(kind, model, shown):
    assert kind(Answers(), model).told().name == shown


@pytest.mark.parametrize("listed", [None, {}, {"data": None}, {"data": []}, {"data": [3]}, {"data": [{"id": 3}]}])
def test_a_server_that_names_no_model_is_asked_by_the_users_name(listed):
    with pytest.raises(ModelError, match="name it with --infer-model"):
        _ = Kind(Answers(v1_models=listed), None).model
    assert Kind(Answers(v1_models=listed), "mine").model == "mine"


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([], "/models/mine"), (["mine"], "mine"), (["a", "b"], "/models/mine"), (["a", "/models/mine"], "/models/mine")],
)
def test_a_server_of_ours_has_the_model_it_was_started_with(ids, expected):
    kind = kinds.of(Answers(v1_models={"data": [{"id": one} for one in ids]}), None, None, "/models/mine")
    kind.check()
    assert kind.model == expected
    assert kind.told().name == "mine"


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b'data: {"a": 1}\n\ndata: [DONE]\n\n'], [{"a": 1}, None]),
        ([b'data: {"a"', b': "\xc3', b'\xa9"}', b"\n", b"\n"], [{"a": "é"}]),
        ([b": ping\n\nevent: x\nid: 3\ndata:{}\r\n\r\n"], [{}]),
        ([b'error: {"message": "no"}\n'], [{"message": "no"}]),
        ([b'data: {"a": 1}'], []),  # cut off
        ([b"", b"\n\n"], []),
    ],
)
def test_events_are_read_at_any_cut(pieces, expected):
    assert list(events.read(pieces)) == expected
    assert list(events.read(bytes([byte]) for byte in b"".join(pieces))) == expected


@pytest.mark.parametrize("line", [b"data: {a}\n", b"data: [1]\n", b'data: "\xff"\n', b"data: <html>\n"])
def test_an_event_that_is_none_is_refused(line):
    with pytest.raises(EngineError, match="no JSON"):
        list(events.read([line]))


def test_an_event_without_end_is_refused():
    with pytest.raises(EngineError, match="more than 16 MiB"):
        list(events.read([b"data: ", *[b"x" * 2**20] * 17]))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"error": {"message": "slow\\ndown", "code": 429}}', "slow down"),
        (b'{"error": "no such model"}', "no such model"),
        (b'{"detail": [{"loc": ["body"], "msg": "bad"}]}', '[{"loc":["body"],"msg":"bad"}]'),
        (b'{"message": "x"}', "x"),
        (b'{"error": null, "message": "x"}', "x"),
        (b"<html>\x1b[31m502</html>", "<html> [31m502</html>"),
        (b"\xff\xfe", "��"),
        (b"{}", ""),
        (b"x" * 1000, "x" * 300),
    ],
)
def test_the_words_of_an_error(content, expected):
    assert words(content) == expected


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"error": {"message": "no"}}, "no"),
        ({"error": {}}, "without a word"),
        ({"error": None, "choices": []}, None),
        ({"a": 1}, None),
    ],
)
def test_an_event_that_says_that_it_failed(event, expected):
    assert failed(event) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080"),
        ("https://host/llm/v1", "https://host/llm"),
        (" http://[::1]:80/ ", "http://[::1]:80"),
    ],
)
def test_an_address_is_brought_to_one_form(url, expected):
    assert address.checked(url, "--infer-server") == expected


@pytest.mark.parametrize(
    "url", ["x", "http://", "http://h:99999", "http://h:p", "ftp://h", "http://u:secret@h", "http://h?k=secret"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(OptionError) as refused:
        address.checked(url, "--infer-server")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("command", "refused"),
    [
        ("llama-server -m {model} --port {port}", False),
        ("llama-server -m {model} --port {port} --api-key s", True),
        ("vllm serve {model} --port {port} --api_key=s", True),
        ("env HF_TOKEN=s vllm serve {model} --port {port}", True),
        ("llama-server -m {model} --port {port} --tokens 3 --no-tokenizer", False),
        ("serve {model} {port} --max-num-batched-tokens 8192 --tokenizer x", False),
        ("serve {model} {port} --token s", True),
        ("serve {model} {port} --hf-token s", True),
        ("serve {model} {port} --hf-token=s", True),
        ("serve {model} {port} -hft s", True),
        ("serve {model} {port} --api-key-file f", False),
        ("serve {model} {port} --stop-token-ids 3", False),
    ],
)
def test_a_command_holds_no_key(command, refused):
    if refused:
        with pytest.raises(OptionError, match="by its environment"):
            address.check_command(command, "--infer-serve")
    else:
        address.check_command(command, "--infer-serve")


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:1", True),
        ("http://localhost", True),
        ("http://[::1]:1", True),
        ("http://[::ffff:127.0.0.1]:1", True),
        ("http://0.0.0.0:8000", True),
        ("http://[::]:8000", True),
        ("http://10.0.0.1", True),
        ("http://[fe80::1]", True),
        ("http://mine.example.org", True),
        ("http://192.0.2.1", False),
        ("http://127.0.0.1.example.org", None),
        (f"http://{'a' * 70}", None),
    ],
)
def test_which_addresses_are_this_machines(monkeypatch, url, here):
    held = [(socket.AF_INET, "10.0.0.1"), (socket.AF_INET6, "fe80::1%eth0"), (socket.AF_UNIX, "00:11:22:33:44:55")]
    addresses = [SimpleNamespace(family=family, address=one) for family, one in held]
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth0": addresses})
    names, resolve = {"localhost": "127.0.0.1", "mine.example.org": "10.0.0.1"}, socket.getaddrinfo
    by_number = {"flags": socket.AI_NUMERICHOST}  # no name is looked up
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port: resolve(names.get(host, host), port, **by_number))
    assert address.is_here(url) is here
