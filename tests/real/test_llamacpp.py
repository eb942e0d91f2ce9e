"""The llamacpp engine with llama.cpp itself, on the bundled model: against transformers, and what it refuses."""

import http.client
import json
import signal
import struct
import sys
from pathlib import Path

import pytest
from lazily import Late
from shell import SMALL, Shell, commands_of

from llama_server import MISSING, WHY, llama_server
from pytest_infer.engines.base import EngineOptions, Sampling
from pytest_infer.engines.llamacpp import completion, engine
from pytest_infer.engines.lookup import create
from pytest_infer.errors import EngineError, ModelError
from pytest_infer.measure.clock import TokenClock
from pytest_infer.prompts import Message, Prompt
from pytest_infer.records import Limits, Role, StopReason
from pytest_infer.storage import runs

pytestmark = [pytest.mark.real, pytest.mark.skipif(MISSING, reason=WHY)]

TransformersEngine = Late("pytest_infer.engines.transformers.engine:TransformersEngine")
PAGE = Path(__file__).parents[2] / "docs" / "llamacpp.md"
MODEL = "reference-moe"
STORY = Prompt(name="story", text="Once upon a time there was")
TALK = Prompt(name="talk", messages=(Message(role="user", content="Hello, who are you?"),))
EXACT = "-fa off -ctk f32 -ctv f32"
"""Without flash attention, which rounds to float16, the arithmetic is float32."""


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTEST_INFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def loaded():
    """Return a function that loads an engine; all are closed at the end."""
    made = []

    def load(name="llamacpp", **options):
        one = create(name, EngineOptions(**{"model": MODEL, "threads": 1, **options}))
        made.append(one)
        return one, one.load()

    yield load
    for one in made:
        one.close()


def generated(engine, prompt, limits):
    ids = prompt if isinstance(prompt, list) else engine.encode(prompt)
    engine.reset()
    engine.prepare(ids, limits)
    clock = TokenClock()
    clock.start()
    why = engine.generate(ids, limits, clock)
    engine.settle()
    return clock.trace(prompt_tokens=len(ids), requested_tokens=limits.max_new_tokens, stopped_by=why)


def test_tokens_weights_and_work_are_those_of_transformers(loaded):
    (ours, info), (theirs, reference) = loaded(engine_args=EXACT), loaded("transformers")
    limits = Limits(max_new_tokens=24)
    for prompt in (STORY, TALK):
        assert ours.encode(prompt) == theirs.encode(prompt)
        assert generated(ours, prompt, limits).token_ids == generated(theirs, prompt, limits).token_ids
        assert ours.cache_bytes() == theirs.cache_bytes()
    assert ours.weights_sha256() == theirs.weights_sha256()
    assert (info.dtype, info.parameters, info.vocabulary) == (reference.dtype, reference.parameters, 4096)
    assert info.context_length == reference.context_length
    assert ours.decode([0, 336, 756]) == theirs.decode([0, 336, 756])
    unread = reference.work.roles[Role.EXPERTS].read_bytes * 6 // 8
    assert info.work.read_bytes == reference.work.read_bytes - unread
    assert (info.work.pair_flops, info.work.head_parameters) == (
        reference.work.pair_flops,
        reference.work.head_parameters,
    )
    roles = {role: part.read_bytes for role, part in reference.work.roles.items() if part.read_bytes}
    assert {role: part.read_bytes for role, part in info.work.roles.items() if part.read_bytes} == {
        **roles,
        Role.EXPERTS: roles[Role.EXPERTS] - unread,
    }


def test_scores_are_those_of_transformers_within_the_arithmetic(loaded):
    found = []
    for one, _ in (loaded(engine_args=EXACT), loaded("transformers")):
        one.keep_scores(keep=True)
        generated(one, STORY, Limits(max_new_tokens=8))
        found.append(one.scores())
    ours, theirs = found
    assert (ours.tokens, ours.width, ours.vocabulary) == (theirs.tokens, theirs.width, theirs.vocabulary)
    for name in ("chosen", "top", "rest"):
        a, b = (struct.unpack(f"<{len(data) // 4}f", data) for data in (getattr(ours, name), getattr(theirs, name)))
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) < 1e-4, name


def test_what_ends_a_generation(loaded):
    one, _ = loaded()
    assert generated(one, STORY, Limits(max_new_tokens=3)).stopped_by is StopReason.LENGTH
    text = one.decode(generated(one, STORY, Limits(max_new_tokens=16)).token_ids)
    word = text.split()[4]
    stopped = generated(one, STORY, Limits(max_new_tokens=16, stop=(word,)))
    assert stopped.stopped_by is StopReason.STOP_STRING
    assert word in one.decode(stopped.token_ids)
    ended = generated(one, TALK, Limits(max_new_tokens=200))
    assert (ended.stopped_by, ended.token_ids[-1]) == (StopReason.EOS, 5)  # <|end|>, which is a token as well


def test_ids_of_an_incomplete_character_arrive_with_what_completes_it(loaded, monkeypatch):
    one, _ = loaded()
    plain = completion._decoding
    first_byte = one.encode(Prompt(name="p", text="\U0001f600"))[0]
    monkeypatch.setattr(completion, "_decoding", lambda s: plain(s) | {"logit_bias": [[first_byte, 100.0]]})
    trace = generated(one, STORY, Limits(max_new_tokens=5))
    assert (trace.token_ids, trace.tick_sizes) == ((first_byte,) * 5, (5,))


def test_given_tokens_are_followed_and_scored_as_transformers_does(loaded):
    found = []
    for one, _ in (loaded(engine_args=EXACT), loaded("transformers")):
        one.keep_scores(keep=True)
        one.follow((17, 999, 303, 291, 5))
        trace = generated(one, STORY, Limits(max_new_tokens=5))
        assert trace.token_ids == (17, 999, 303, 291, 5)
        found.append(struct.unpack("<5f", one.scores().chosen))
        one.follow(None)
        assert len(generated(one, STORY, Limits(max_new_tokens=2)).token_ids) == 2
    assert max(abs(a - b) for a, b in zip(*found, strict=True)) < 1e-3


def test_what_ends_a_text_is_told_by_llama_cpp(loaded):
    one, _ = loaded()
    assert one.native.ends == {0, 5}
    one.follow((17, 5, 303))
    assert one.cannot_follow((17, 5, 303)).startswith("token 5 ")
    with pytest.raises(EngineError, match="cannot follow what comes after one"):
        generated(one, STORY, Limits(max_new_tokens=3))


def test_a_sample_is_the_same_from_the_same_seed(loaded):
    one, info = loaded(sampling=Sampling(temperature=0.9, top_p=0.9, seed=3))
    limits = Limits(max_new_tokens=12)
    assert generated(one, STORY, limits).token_ids == generated(one, STORY, limits).token_ids
    assert (info.generation["do_sample"], info.generation["seed"]) == (True, 3)


def test_room_is_made_for_a_prompt_that_is_longer(loaded, monkeypatch):
    monkeypatch.setattr(engine, "LEAST_CONTEXT", 32)
    one, _ = loaded()
    ids = one.encode(STORY)
    assert len(generated(one, ids * 20, Limits(max_new_tokens=4)).token_ids) == 4
    fixed, info = loaded(engine_args="-c 64")
    assert info.context_length == fixed.context_length() == 64


def test_threads_change_with_a_new_load(loaded):
    one, info = loaded()
    before = generated(one, STORY, Limits(max_new_tokens=6)).token_ids
    after = one.adapt(EngineOptions(model=MODEL, threads=2))
    assert (info.threads, after.threads) == (1, 2)
    one.adapt(EngineOptions(model=MODEL, threads=1))  # two that wait for each other on shared cores take seconds
    assert generated(one, STORY, Limits(max_new_tokens=6)).token_ids == before


def test_a_file_that_llama_cpp_cannot_load_is_one_line(tmp_path, loaded):
    one, _ = loaded()
    data = one.files()[0].read_bytes().replace(b"llama", b"lxama")
    (tmp_path / "new.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=r"new.gguf: llama.cpp cannot load it: unknown model architecture: 'lxama'"):
        loaded(model=str(tmp_path / "new.gguf"))


def test_a_gguf_of_ones_own_is_named_after_its_file(tmp_path, loaded):
    one, _ = loaded()
    (tmp_path / "mine.gguf").symlink_to(one.files()[0])
    own, info = loaded(model=str(tmp_path / "mine.gguf"))
    assert (info.name, info.source) == ("mine.gguf", "local file")
    assert own.weights_sha256() != one.weights_sha256()


def test_llama_server_from_the_wheel(loaded):
    one, _ = loaded()
    with llama_server(one.files()[0], "-t", "1", "--metrics") as (port, process):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        body = {"prompt": one.encode(STORY), "n_predict": 4, "temperature": 0, "return_tokens": True}
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        tokens = json.load(connection.getresponse())["tokens"]
        connection.request("GET", "/metrics")
        assert b"llamacpp:prompt_tokens_total" in connection.getresponse().read()
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    assert tuple(tokens) == generated(one, STORY, Limits(max_new_tokens=4)).token_ids


@pytest.mark.slow
@pytest.mark.skipif(not PAGE.exists(), reason="the wheel is tested without docs/")
def test_the_page_in_an_empty_folder(tmp_path, warm_torch, tmp_path_factory):
    shell = Shell(warm_torch, tmp_path_factory.mktemp("scratch"), options=f"{SMALL} -o infer_no_probe=true")
    said = {}
    for command in commands_of(PAGE.read_text(encoding="utf-8")):
        done = shell.run(command.replace('"python -m', f'"{sys.executable} -m'), tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said[command] = done.stdout
    (compared,) = (text for command, text in said.items() if command.startswith("pytest-infer compare"))
    assert "incomparable" not in compared
    assert "the same tokens" in compared
    assert (tmp_path / "engines.html").stat().st_size > 10_000
    stored = [runs.rows(path)[0].model.engine for path in sorted(tmp_path.glob("results/*/*.json"))]
    assert stored == ["llamacpp", "transformers", "llamacpp", "llamacpp"]


@pytest.mark.slow
def test_a_step_is_held_against_the_machine_without_torch_in_the_process(pytester, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pytester.makepyfile(
        """
        import sys

        def test_it(infer, prompt):
            record = infer(prompt)
            assert "torch" not in sys.modules
            assert record.machine.probe or "disagree" in record.machine.probe_absent  # on a machine that is busy
        """
    )
    pytester.path.joinpath("prompts.toml").write_text('[[prompt]]\nname = "p"\ntext = "hello"\nmax_new_tokens = 8\n')
    found = pytester.runpytest_subprocess("--infer-engine=llamacpp", "--infer-rounds=1", "--infer-repeat-disturbed=0")
    found.assert_outcomes(passed=1)
