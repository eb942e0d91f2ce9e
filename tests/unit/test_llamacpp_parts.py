"""The llamacpp engine without llama.cpp: its arguments, what a header tells, errors, and ids that are not sent."""

import dataclasses
import enum
import hashlib
import math
import struct
import sys
from types import SimpleNamespace

import pytest

from pytest_infer.engines.base import EngineOptions, Sampling
from pytest_infer.engines.checkpoint import gguf_header, source
from pytest_infer.engines.checkpoint.tensors import Tensor
from pytest_infer.engines.llamacpp import arguments, description, native, vocabulary
from pytest_infer.engines.llamacpp.completion import Completion
from pytest_infer.engines.llamacpp.description import Header
from pytest_infer.engines.llamacpp.engine import LlamaCppEngine
from pytest_infer.errors import EngineError, ModelError, OptionError, UnknownValueError
from pytest_infer.measure.clock import TokenClock
from pytest_infer.records import Limits, Role, StopReason

# arguments


class Kinds(enum.Enum):
    """Whatever is asked for."""

    GGML_TYPE_Q8_0 = 8
    GGML_TYPE_F32 = 1
    LLAMA_FLASH_ATTN_TYPE_DISABLED = 2
    GGML_NUMA_STRATEGY_ISOLATE = 3
    LLAMA_LOAD_MODE_NONE = 4
    LLAMA_LOAD_MODE_MMAP_MLOCK = 5
    GGML_BACKEND_DEVICE_TYPE_CPU = 6
    GGML_BACKEND_DEVICE_TYPE_GPU = 7
    GGML_BACKEND_DEVICE_TYPE_IGPU = 10
    GGML_BACKEND_DEVICE_TYPE_ACCEL = 9


HOST = [
    {"name": "CPU", "type": Kinds.GGML_BACKEND_DEVICE_TYPE_CPU},
    {"name": "BLAS", "type": Kinds.GGML_BACKEND_DEVICE_TYPE_ACCEL},
]


BINDING = SimpleNamespace(
    ggml_type=Kinds,
    llama_flash_attn_type=Kinds,
    ggml_numa_strategy=Kinds,
    llama_load_mode=Kinds,
    ggml_backend_dev_type=Kinds,
    get_device_info=lambda: [*HOST, {"name": "CUDA0", "type": Kinds.GGML_BACKEND_DEVICE_TYPE_GPU}],
)


def applied(text):
    params = SimpleNamespace()
    arguments.apply(arguments.parse(text), params, BINDING)
    return vars(params)


def test_arguments_are_those_of_llama_server():
    assert applied(None) == {}
    assert applied("-c 512 -ngl 3 -nkvo --swa-full") == {
        "n_ctx": 512,
        "n_gpu_layers": 3,
        "no_kv_offload": True,
        "swa_full": True,
    }
    assert applied("-ctk q8_0 --cache-type-v f32 -fa off --numa isolate") == {
        "cache_type_k": Kinds.GGML_TYPE_Q8_0,
        "cache_type_v": Kinds.GGML_TYPE_F32,
        "flash_attn_type": Kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED,
        "numa": Kinds.GGML_NUMA_STRATEGY_ISOLATE,
    }
    assert applied("--no-mmap") == {"load_mode": Kinds.LLAMA_LOAD_MODE_NONE}
    assert applied("--mlock") == {"load_mode": Kinds.LLAMA_LOAD_MODE_MMAP_MLOCK}


def test_a_placement_is_one_list_of_overrides():
    placed = applied(r"-ot 'blk\.1\.=CUDA0,blk\.2\.=CPU' -ncmoe 2")["tensor_buft_overrides"].split(",")
    assert placed[:2] == [r"blk\.1\.=CUDA0", r"blk\.2\.=CPU"]
    assert [one[:8] for one in placed[2:]] == [r"blk\.0\.", r"blk\.1\."]
    assert all(one.endswith("exps=CPU") for one in placed[2:])
    assert applied("--cpu-moe")["tensor_buft_overrides"].endswith("exps=CPU")


def test_what_placement_exports_is_understood():
    pattern = r"blk\.(1|3)\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"
    placed = applied(f"--n-gpu-layers 999 --override-tensor '{pattern}'")
    assert placed == {"n_gpu_layers": 999, "tensor_buft_overrides": pattern}
    assert applied("--n-gpu-layers 999 --n-cpu-moe 3")["tensor_buft_overrides"].count("exps=CPU") == 3


def test_layers_for_a_gpu_that_is_not_there_are_refused():
    alone = SimpleNamespace(**{**vars(BINDING), "get_device_info": lambda: HOST})
    assert (arguments.devices(BINDING), arguments.devices(alone)) == (["CUDA0"], [])
    with pytest.raises(OptionError, match=r"-ngl 9: llama.cpp finds no GPU here"):
        arguments.apply(arguments.parse("-ngl 9"), SimpleNamespace(), alone)
    arguments.apply(arguments.parse("-ngl 0"), SimpleNamespace(), alone)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--bogus 3", "not known here: --bogus 3; known: -c, "),
        ("-c many", "argument -c/--ctx-size: invalid int value: 'many'"),
        ("-c -5", "argument -c/--ctx-size: from 0 to 2147483647, not -5"),
        ("-b 0", "argument -b/--batch-size: from 1 to"),
        ("-ub 9999999999", "argument -ub/--ubatch-size: from 0 to"),
        ("-tb 0", "argument -tb/--threads-batch: from 1 to"),
        ("-ncmoe -2", "argument -ncmoe/--n-cpu-moe: from 0 to"),
        ("-ctk q3", "invalid choice: 'q3'"),
        ("-ot 'exps=CPU", "No closing quotation"),
    ],
)
def test_what_is_not_understood_is_one_line(text, said):
    with pytest.raises(OptionError, match=r"^--infer-engine-args") as raised:
        arguments.parse(text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("placed", ["exps=CUDA1", "exps", "=CPU"])
def test_a_buffer_that_is_not_there_is_named_with_those_that_are(placed):
    with pytest.raises(OptionError, match="buffers of this machine: CPU, CUDA0"):
        applied(f"-ot {placed}")


def test_what_is_served_takes_the_same_arguments():
    given = arguments.served(["-m", "a.gguf", "--port", "9", "-np", "4", "-ctk", "q8_0", "--metrics"])
    assert (given.model, given.port, given.parallel, given.cache_type_k) == ("a.gguf", 9, 4, "q8_0")
    assert given.host == "127.0.0.1"


# what a header tells


def header(*, experts=0, tied=True, kind="F16", **more):
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.embedding_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        **({"llama.expert_count": experts, "llama.expert_used_count": 2} if experts else {}),
        **{f"llama.{key}": value for key, value in more.items()},
    }
    shapes = {
        "token_embd.weight": (100, 64),
        "output_norm.weight": (64,),
        "blk.0.attn_q.weight": (64, 64),
        "blk.0.attn_output.weight": (64, 64),
    }
    if not tied:
        shapes["output.weight"] = (100, 64)
    if experts:
        shapes |= {"blk.0.ffn_gate_inp.weight": (experts, 64), "blk.0.ffn_up_exps.weight": (experts, 32, 64)}
    _, weights, held = next(block for block in gguf_header.BLOCKS.values() if block[0] == kind)
    tensors = []
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1) * (shape[2] if len(shape) > 2 else 1)
        stored = kind if len(shape) > 1 else "F32"
        size = count // weights * held if len(shape) > 1 else 4 * count
        tensors.append(Tensor(name=name, dtype=stored, shape=shape, bytes=size))
    return Header(metadata=metadata, tensors=tensors)


def test_the_work_of_a_dense_model():
    work = description.work(header())
    assert work.read_bytes == 2 * (100 * 64 + 2 * 64 * 64) + 4 * 64
    assert (work.parameters, work.head_parameters) == (2 * 64 * 64, 100 * 64)
    assert work.pair_flops == 2 * 4 * (16 + 16)
    assert work.roles[Role.EMBEDDING].read_bytes == 0  # read as the head
    assert sum(part.read_bytes for part in work.roles.values()) == work.read_bytes


def test_a_table_that_is_not_the_head_is_read_one_row_of():
    work = description.work(header(tied=False))
    assert work.roles[Role.EMBEDDING].read_bytes == 2 * 64
    assert work.roles[Role.HEAD].read_bytes == 2 * 100 * 64


def test_of_experts_the_share_that_a_token_takes_is_counted():
    found = header(experts=8)
    work, dense = description.work(found), description.work(header())
    experts = work.roles[Role.EXPERTS]
    assert (experts.read_bytes, experts.parameters) == (2 * 2 * 32 * 64, 2 * 32 * 64)
    assert experts.parameter_bytes == 2 * 8 * 32 * 64
    assert work.read_bytes == dense.read_bytes + experts.read_bytes + 2 * 8 * 64
    assert work.expert_parameters == {}


def test_what_the_header_does_not_tell_is_not_counted():
    for key in ("ssm.state_size", "nextn_predict_layers"):
        assert description.work(header(**{key: 1})) is None
    for key in ("attention.sliding_window", "attention.kv_lora_rank"):
        assert description.work(header(**{key: 8})).pair_flops is None
    assert description.work(Header(metadata={"general.architecture": "x"}, tensors=())) is None


@pytest.mark.parametrize(
    ("given", "expected"), [("", 2 * 2 * 2 * 16), ("-ctk f32", 2 * 16 * (4 + 2)), ("-ctk q8_0 -ctv q8_0", 2 * 34)]
)
def test_the_bytes_of_a_position(given, expected):
    assert description.position_bytes(header(), arguments.parse(given)) == expected


def test_other_caches_have_no_known_bytes():
    for key in ("attention.sliding_window", "attention.kv_lora_rank", "ssm.state_size"):
        assert description.position_bytes(header(**{key: 4}), arguments.parse("")) is None


def test_types_by_their_share():
    assert (description.dtype(header()), description.quantization(header())) == ("float16", None)
    quantised = header(kind="Q8_0")
    assert (description.dtype(quantised), description.quantization(quantised)) == ("q8_0", "Q8_0 100%")


# the tokeniser alone


def test_a_vocabulary_has_the_tokeniser_and_nothing_else(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "qwen2")
    writer.add_context_length(9)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "é", "<end>"])
    writer.add_token_types([1, 1, 3])
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    vocabulary.write(tmp_path / "big.gguf", tmp_path / "small.gguf")
    metadata, tensors = gguf_header.of_file(tmp_path / "small.gguf")
    assert metadata["tokenizer.ggml.tokens"] == ["a", "é", "<end>"]
    assert metadata["tokenizer.chat_template"] == "{{ messages }}"
    assert (metadata["general.architecture"], "qwen2.context_length" in metadata) == ("llama", False)
    assert tensors[0].shape == (3, 32)
    assert (tmp_path / "small.gguf").stat().st_size < 64_000


# errors before a load


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(native, "check_installed", lambda: None)


def checked(model, **options):
    LlamaCppEngine(EngineOptions(model=model, **options)).check()


def test_without_the_binding_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(native, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"pip install 'pytest-infer\[llamacpp\]'"):
        checked("reference-moe")


@pytest.mark.usefixtures("installed")
def test_what_is_no_gguf_file_is_one_line(tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "a.gguf").write_bytes(b"")
    (tmp_path / "text.gguf").write_text("no")
    for model, said in (
        ("owner/name", "no such file"),
        (str(tmp_path / "hub"), "convert_hf_to_gguf.py"),
        (str(tmp_path / "held"), "name the file in it: a.gguf"),
    ):
        with pytest.raises(UnknownValueError, match=said):
            checked(model)
    with pytest.raises(ModelError, match="not a GGUF file"):
        checked(str(tmp_path / "text.gguf"))
    with pytest.raises(UnknownValueError, match="has its own types"):
        checked(str(tmp_path / "text.gguf"), dtype="float32")
    with pytest.raises(UnknownValueError, match="unknown dtype 'q4'"):
        checked("reference-moe", dtype="q4")
    with pytest.raises(OptionError, match="--infer-engine-args"):
        checked("reference-moe", engine_args="--what")
    with pytest.raises(OptionError, match=r"seed must be from 0 to 4294967294 for llama\.cpp, not 4294967295"):
        checked("reference-moe", sampling=Sampling(seed=2**32 - 1))


@pytest.mark.usefixtures("installed")
def test_a_file_without_a_model_is_refused(tmp_path):
    (tmp_path / "empty.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0))
    with pytest.raises(ModelError, match="holds no language model"):
        checked(str(tmp_path / "empty.gguf"))


@pytest.mark.skipif(sys.platform == "win32", reason="a link needs privileges there")
def test_a_file_of_the_hubs_cache_has_the_hash_of_its_copy_and_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(tmp_path / "cache"))
    data, told = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0), []
    blob, link, copy = (tmp_path / name for name in ("blobs/x", "snapshots/m.gguf", "plain/m.gguf"))
    for path in (blob, link, copy):
        path.parent.mkdir()
    blob = blob.with_name(hashlib.sha256(data).hexdigest())
    blob.write_bytes(data)
    copy.write_bytes(data)
    link.symlink_to(blob)

    def hashed(path):
        engine = LlamaCppEngine(EngineOptions(model=str(path), progress=told.append))
        engine._checkpoint = source.of_gguf(path)
        return engine.weights_sha256(), engine.files()

    assert hashed(link) == (hashed(copy)[0], (blob.resolve(),))
    assert told == ["hashing m.gguf, once …"], "the copy alone"


@pytest.mark.parametrize(
    ("arguments_", "most"), [(None, 2048), ("-c 4096", 2048), ("-c 64", 64)], ids=["file", "more", "less"]
)
def test_more_positions_than_there_are_are_refused_and_nothing_is_loaded_again(monkeypatch, arguments_, most):
    engine, loads = LlamaCppEngine(EngineOptions(model="m", engine_args=arguments_)), []
    engine._header = header(context_length=2048)
    assert engine.context_length() == engine.most_positions() == most

    def load(room):
        loads.append(room)
        engine._room, engine._native = room, Fake([])

    monkeypatch.setattr(engine, "_load", load)
    for _ in range(2):
        with pytest.raises(EngineError, match=f"llama.cpp has {most} positions"):
            engine.prepare([1] * 60, Limits(max_new_tokens=most - 59))
    assert not loads
    for _ in range(2):
        engine.prepare([1] * 60, Limits(max_new_tokens=most - 60))
    assert loads == [engine._wanted(2 * most)]


def test_what_llama_cpp_says_of_a_failed_load():
    log = "0.00.1 W srv init: careful\n0.00.2 E gguf: bad magic\n0.00.3 E llama_model_load: error loading model: no x\n"
    assert native._reason(log) == "no x"
    assert native._reason("0.00.1 W a\n0.00.2 E gguf: bad magic\n") == "gguf: bad magic"
    assert native._reason("") is None


# a completion


class Fake:
    """What llama-server sends: `events` of a stream, `whole` without one."""

    def __init__(self, events, whole=()):
        self.events, self.whole, self.asked = events, list(whole), []

    def connection(self):
        return SimpleNamespace(close=lambda: None)

    def stream(self, connection, body):
        yield from self.events

    def ask(self, path, body):
        self.asked.append((path, body))
        return {"tokens": self.whole}


def token(number, *ids, rows=()):
    return {"tokens": list(ids), "tokens_predicted": number, "stop": False, "completion_probabilities": rows}


def last(number, why):
    return {"tokens": [], "tokens_predicted": number, "stop": True, "stop_type": why}


def run(fake, scored=False):
    completion = Completion(fake, [1, 2, 3], Limits(max_new_tokens=9), None, scored=scored)
    completion.connect()
    clock = TokenClock()
    clock.start()
    why = completion.run(clock)
    fake.asked_within = len(fake.asked)
    completion.settle()
    return completion, clock.trace(prompt_tokens=3, requested_tokens=9, stopped_by=why)


def test_each_token_is_a_tick():
    completion, trace = run(Fake([token(1, 7), token(2, 8), last(2, "eos")]))
    assert (trace.token_ids, trace.tick_sizes, trace.stopped_by) == ((7, 8), (1, 1), StopReason.EOS)
    assert completion.filled == 3 + 1


def test_ids_within_a_character_are_asked_for_once_and_come_with_it():
    fake = Fake([token(1, 7), token(4, 8), token(5, 9), last(6, "limit")], whole=[7, 5, 6, 8, 9, 4])
    completion, trace = run(fake)
    assert (trace.token_ids, trace.tick_sizes) == ((7, 5, 6, 8, 9, 4), (1, 3, 1, 1))
    assert trace.stopped_by is StopReason.LENGTH
    assert fake.asked_within == 0, "what is asked after the last token is no part of the round"
    completion.connect()
    clock = TokenClock()
    completion.run(clock)
    completion.settle()
    assert [(path, body["stream"]) for path, body in fake.asked] == [("/completion", False)]


def again(completion, fake, events):
    """Return the ids of another round of the same completion, of which these are the events."""
    fake.events = events
    completion.connect()
    clock = TokenClock()
    clock.start()
    completion.run(clock)
    completion.settle()
    return clock.trace(prompt_tokens=3, requested_tokens=9, stopped_by=None).token_ids


def test_what_was_sent_is_never_replaced_by_what_another_round_generated():
    fake = Fake([token(1, 7), token(3, 8), last(3, "limit")], whole=[7, 5, 8])
    completion, first = run(fake)
    assert first.token_ids == (7, 5, 8)
    others = [token(1, 6), token(3, 4), last(3, "limit")]
    assert again(completion, fake, others) == (6, -1, 4), "nobody tells what was between"
    assert len(fake.asked) == 2, "asked once more"
    fake.whole = [6, 3, 4]
    assert again(completion, fake, others) == (6, 3, 4)
    fake.whole = [6, 3]
    assert again(completion, fake, [token(1, 6), token(4, 4), last(4, "limit")]) == (6, -1, -1, 4)


def test_an_id_that_nobody_told_has_no_text(monkeypatch):
    fake = Fake([])
    fake.ask = lambda _path, body: {"content": str(body["tokens"])}
    monkeypatch.setattr(LlamaCppEngine, "native", fake)
    assert LlamaCppEngine(EngineOptions(model="m")).decode([7, -1, 8]) == "[7, 8]"


def test_the_request_is_that_of_the_limits():
    limits = Limits(max_new_tokens=4, stop=("END",), ignore_eos=True)
    body = Completion(Fake([]), [1], limits, Sampling(temperature=0.5, top_p=0.9, seed=7), scored=True)._body
    assert (body["n_predict"], body["stop"], body["ignore_eos"], body["n_probs"]) == (4, ["END"], True, 64)
    assert (body["temperature"], body["top_p"], body["seed"], body["cache_prompt"]) == (0.5, 0.9, 7, False)


def test_followed_tokens_are_all_that_is_left():
    limits = Limits(max_new_tokens=1, stop=("END",), ignore_eos=True)
    fake = Fake([token(1, 4), last(1, "eos")])
    followed = Completion(fake, [1], limits, None, follow=(4, 50))
    body = followed._body
    assert (body["n_predict"], body["stop"], body["ignore_eos"]) == (2, [], False)
    assert body["grammar"] == "%llguidance {}\nstart: <[4]> <[50]>\n"
    with pytest.raises(EngineError, match="cannot follow what comes after one"):
        followed.run(TokenClock())


def test_tokens_behind_the_end_of_a_text_are_named_before_they_are_followed(monkeypatch):
    engine = LlamaCppEngine(EngineOptions(model="m"))
    monkeypatch.setattr(LlamaCppEngine, "native", SimpleNamespace(ends=frozenset({0, 5})))
    assert engine.cannot_follow((4, 5, 6)) == "token 5 within it ends a text, and llama.cpp ends there"
    assert engine.cannot_follow((4, 6, 5)) is None


def row(number, *top):
    return {"id": number, "logprob": dict(top)[number], "top_logprobs": [{"id": i, "logprob": p} for i, p in top]}


def test_scores_are_kept_where_every_token_has_its_own():
    rows = [row(7, (7, -0.5), (1, -2.0)), row(1, (7, -1.0), (1, -1.5))]
    completion, _ = run(Fake([token(1, 7, rows=rows[:1]), token(2, 1, rows=rows[1:]), last(2, "eos")]), scored=True)
    scores = completion.scores(2)
    assert (scores.positions, scores.width, scores.vocabulary) == (2, 2, 2)
    assert struct.unpack("<4i", scores.top_ids) == (7, 1, 7, 1)
    assert struct.unpack("<2f", scores.chosen) == (-0.5, -1.5)
    assert completion.scores(64) is None  # fewer than the vocabulary has
    gap, _ = run(Fake([token(2, 7, rows=rows[:1]), last(2, "eos")], whole=[6, 7]), scored=True)
    assert gap.scores(2) is None


@pytest.mark.parametrize(
    ("least", "rest"),
    [
        (-9.0, 2.0**-23),  # the sum is above 1: what is left is less than its rounding
        (-25.0, 36 * math.exp(-25.0)),  # no other token is more probable than the least of these
        (-900.0, 0.0),
    ],
)
def test_what_the_others_have_is_no_noise_of_the_sum(least, rest):
    first = math.log1p(-63 * math.exp(least)) + 1e-8
    rows = [row(0, (0, first), *((number, least) for number in range(1, 64)))]
    completion, _ = run(Fake([token(1, 0, rows=rows), last(1, "limit")]), scored=True)
    (found,) = struct.unpack("<f", completion.scores(100).rest)
    assert math.exp(found) == pytest.approx(rest, rel=1e-5)
    (none,) = struct.unpack("<f", completion.scores(64).rest)
    assert none == -math.inf


def test_an_option_that_has_no_effect_is_not_honoured():
    honoured = LlamaCppEngine(EngineOptions(model="m")).honours()
    assert honoured <= {field.name for field in dataclasses.fields(EngineOptions)}
    assert "use_cache" not in honoured
