"""Runs against a scripted server on loopback: what is measured, marked, refused, and never shown."""

import json
import os
import shlex
import struct
import sys
import textwrap
from collections import namedtuple

import psutil
import pytest

import scripted_server
from pytest_infer.analysis.compare import disturbance as disturbed_comparison
from pytest_infer.storage import sidecar
from pytest_infer.storage.schema import WHOLE_BLOCK, of_block
from scripted_server import Answer, Script

QUICK = ("--infer-rounds=2", "--infer-no-profile", "--infer-no-probe", "--benchmark-autosave")
SUITE = """
[defaults]
max_new_tokens = 4

[[prompt]]
name = "text"
text = "one two three"

[[prompt]]
name = "chat"
messages = [{ role = "system", content = "be brief" }, { role = "user", content = "hello you" }]

[[prompt]]
name = "last"
text = "four five"
"""
Stored = namedtuple("Stored", "test block")
KINDS = pytest.mark.parametrize("kind", ["openai", "llama", "vllm"])


@pytest.fixture
def bench(pytester, monkeypatch):
    """Return a function that runs a suite against a server, or with the arguments given."""
    monkeypatch.delenv("PYTEST_INFER_SERVER_KEY", raising=False)
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(pytester.path / ".cache"))
    pytester.makepyfile(test_suite="def test_prompt(infer, prompt):\n    assert infer(prompt).output.equal\n")
    pytester.path.joinpath("prompts.toml").write_text(SUITE, encoding="utf-8")

    def run(server, *arguments, plugins=()):
        where = [f"--infer-server={server.url}"] if server is not None else []
        return pytester.runpytest(*where, *QUICK, *arguments, plugins=plugins)

    run.path = pytester.path
    return run


def stored(path):
    (found,) = path.glob(".benchmarks/*/*.json")
    rows = json.loads(found.read_bytes())["benchmarks"]
    blocks = ((row["fullname"], of_block(row["extra_info"]["pytest_infer"], WHOLE_BLOCK)) for row in rows)
    return {b.prompt.name: Stored(test, b) for test, b in blocks if b.phase == "total"}, sidecar.read(found)


def shown(done):
    return " ".join((done.stdout.str() + done.stderr.str()).split())


@KINDS
def test_a_suite_is_measured(bench, kind):
    with scripted_server.running(Script(kind=kind, caches=True)) as server:
        done = bench(server)
    done.assert_outcomes(passed=3)
    assert "the server counts" not in shown(done)
    assert "in the server's cache" not in shown(done), "each round has its nonce"
    rows, arrays = stored(bench.path)
    for row in rows.values():
        assert row.block.metrics["generated_tokens"].rounds == (4, 4)
        assert [one.generated for one in row.block.rounds.reported] == [4, 4]
        assert {one.prompt for one in row.block.rounds.reported} == {row.block.metrics["prompt_tokens"].value}
        assert len(arrays[f"{row.test}|0|token_ids"]) == (0 if kind == "openai" else 4)
    assert rows["text"].block.output.text == " one two three four"
    nonces = {json.dumps(one.body.get("prompt") or one.body["messages"]) for one in server.served}
    assert len(nonces) == len(server.served) == 9


@pytest.mark.parametrize("kind", ["openai", "llama"])
def test_the_stamps_are_the_scripts(bench, kind):
    """Differences are compared with what the server itself stamped, so that a slow machine fails nothing."""
    with scripted_server.running(Script(kind=kind, answers=(Answer(first_s=0.03, gap_s=0.01),))) as server:
        bench(server, "--infer-warmup=0").assert_outcomes(passed=3)
    rows, arrays = stored(bench.path)
    served = iter(server.served)
    for name in ("text", "chat", "last"):
        for number in range(2):
            one, stamps = next(served), arrays[f"{rows[name].test}|{number}|stamps_ns"]
            assert len(stamps) == 4
            # What is seen comes after it was written, and the round begins before its request arrives.
            assert all(s >= made - one.arrived_ns for s, made in zip(stamps, one.stamps_ns, strict=True))
    assert rows["text"].block.metrics["ttft_s"].value >= 0.03
    assert rows["text"].block.metrics["total_s"].value >= 0.06


@pytest.mark.parametrize(
    ("kind", "answer", "sizes"),
    [
        ("llama", Answer(per_chunk=3), [3, 1]),
        ("vllm", Answer(per_chunk=3), [3, 1]),
        ("openai", Answer(texts=(" a", "", " b", "")), [1, 1, 1, 1]),
        ("openai", Answer(texts=(" é", "日", "", " ß"), split=True), [1, 1, 1, 1]),
        ("llama", Answer(texts=(" é", "日", "", " ß"), split=True), [1, 1, 1, 1]),
        ("openai", Answer(tokens=2, tells_done=False), [1, 1]),
        ("vllm", Answer(tokens=2, finish="stop"), [1, 1]),
    ],
)
def test_chunks_are_ticks(bench, kind, answer, sizes):
    with scripted_server.running(Script(kind=kind, answers=(answer,))) as server:
        done = bench(server)
    done.assert_outcomes(passed=3)
    assert "the server counts" not in shown(done)
    rows, arrays = stored(bench.path)
    assert arrays[f"{rows['text'].test}|0|tick_sizes"].tolist() == sizes
    said = "".join(answer.texts[n % len(answer.texts)] for n in range(sum(sizes)))
    assert rows["text"].block.output.text == said


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(usage={"completion_tokens": 9}), "have 4 generated tokens here, and 9 as the server counts"),
        (Answer(per_chunk=2), "have 2 generated tokens here, and 4 as the server counts"),
        (Answer(usage={"cached_tokens": 70}), "70 tokens of the prompt in the server's cache"),
    ],
)
def test_what_the_server_counts_otherwise_is_marked(bench, answer, words):
    with scripted_server.running(Script(answers=(answer,))) as server:
        done = bench(server)
    done.assert_outcomes(passed=3)
    assert words in shown(done)


@pytest.mark.parametrize("kind", ["openai", "llama"])
def test_a_cache_is_used_where_it_may_be(bench, kind):
    with scripted_server.running(Script(kind=kind, caches=True)) as server:
        done = bench(server, "--infer-cache=warm")
    done.assert_outcomes(passed=3)
    rows, _ = stored(bench.path)
    assert rows["text"].block.metrics["cached_tokens"].rounds == (2, 2)
    assert rows["text"].block.metrics["output_sha256"].value
    assert "in the server's cache" not in shown(done)


@pytest.mark.parametrize("kind", ["llama", "vllm"])
def test_a_server_is_asked_to_leave_its_cache_alone(bench, kind):
    with scripted_server.running(Script(kind=kind, caches=True)) as server:
        done = bench(server, "--infer-cache=off")
        bodies = [one.body for one in server.served]
    done.assert_outcomes(passed=3)
    assert len({json.dumps(body["prompt"]) for body in bodies}) == 3, "there is no nonce"
    if kind == "llama":
        assert "in the server's cache" not in shown(done)
        assert not any(body["cache_prompt"] for body in bodies)
    else:  # this one does not do as it is asked
        assert len({body["cache_salt"] for body in bodies}) == 9
        assert "2 tokens of the prompt in the server's cache, where none may be" in shown(done)


def test_a_server_that_cannot_leave_its_cache_alone_is_refused(bench):
    with scripted_server.running() as server:
        done = bench(server, "--infer-cache=off")
        assert server.served == []
    assert "cannot be asked to leave its cache of prompts alone" in shown(done)


@pytest.mark.parametrize(
    ("kind", "answer", "words"),
    [
        ("openai", Answer(status=429, words="slow\ndown"), "answers 429: slow down"),
        ("llama", Answer(status=500, words="out of memory"), "answers 500: out of memory"),
        ("openai", Answer(stall_at=2), "stalls: nothing came for 5 s, after 2 tokens (--infer-server-timeout)"),
        ("llama", Answer(stall_at=0), "stalls: nothing came for 5 s, after 0 tokens"),
        ("openai", Answer(cut_at=2), "broke off after 2 tokens"),
        ("llama", Answer(cut_at=3), "broke off after 3 tokens"),
        ("openai", Answer(cut_at=1, words="CUDA error"), "the server failed after 1 token: CUDA error"),
        ("llama", Answer(tokens=0), "generated no token"),
        ("openai", Answer(streams=False), "does not stream: it answers with all at once"),
    ],
)
def test_what_goes_wrong_is_one_line_and_the_rest_is_kept(bench, kind, answer, words):
    with scripted_server.running(Script(kind=kind, answers=(*[Answer()] * 3, answer, Answer()))) as server:
        # Only who waits for a stall has little patience: a good answer may be held up.
        done = bench(server, *(["--infer-server-timeout=5s"] if answer.stall_at is not None else []))
    done.assert_outcomes(passed=2, failed=1)
    assert words in shown(done)
    assert "Traceback" not in shown(done)
    rows, _ = stored(bench.path)
    assert sorted(rows) == ["last", "text"]


def test_a_run_that_is_killed_goes_on(bench):
    test = """
    import os
    import pathlib


    def test_prompt(infer, prompt):
        if prompt.name == "last" and not pathlib.Path("again").exists():
            pathlib.Path("again").touch()
            os._exit(9)
        infer(prompt)
    """
    bench.path.joinpath("test_suite.py").write_text(textwrap.dedent(test), encoding="utf-8")
    with scripted_server.running() as server:
        bench(server)
        asked = len(server.served)
        bench(server, "--infer-resume").assert_outcomes(passed=3)
        assert (asked, len(server.served)) == (6, 9)
    assert sorted(stored(bench.path)[0]) == ["chat", "last", "text"]


def test_a_server_that_dies_in_the_third_prompt(bench):
    answers = (*[Answer()] * 6, Answer(dies_at=2))
    with scripted_server.running(Script(answers=answers)) as server:
        done = bench(server)
    done.assert_outcomes(passed=2, failed=1)
    assert "broke off after 2 tokens" in shown(done)
    rows, _ = stored(bench.path)
    assert sorted(rows) == ["chat", "text"]


def serve(path, script, *more):
    file = path / "script.json"
    file.write_text(script.to_json(), encoding="utf-8")
    command = [
        sys.executable,
        scripted_server.__file__,
        "--script",
        str(file),
        "--model",
        "{model}",
        "--port",
        "{port}",
    ]
    return shlex.join([*command, *more])


@pytest.fixture
def gguf(bench):
    """A GGUF file that holds nothing."""
    path = bench.path / "mine.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    return path


def test_a_command_gets_its_model_as_a_gguf_file(bench, gguf):
    command = serve(bench.path, Script(kind="llama")).replace("{model}", "{gguf}")
    done = bench(None, f"--infer-serve={command}", f"--infer-model={gguf}")
    done.assert_outcomes(passed=3)
    rows, _ = stored(bench.path)
    assert rows["text"].block.model.name == "mine.gguf"
    assert rows["text"].block.model.source == command


def test_a_bundled_model_is_written_as_a_gguf_file_for_a_command(bench):
    pytest.importorskip("gguf")
    command = serve(bench.path, Script(kind="llama"), "{flags}").replace("--model '{model}'", "")
    flags = "--infer-serve-flags=--model {gguf}"
    bench(None, f"--infer-serve={command}", flags, "--infer-model=reference-moe").assert_outcomes(passed=3)
    rows, _ = stored(bench.path)
    assert rows["text"].block.model.name == "reference-moe-float32.gguf"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("owner/name", "owner/name: no such file: llama.cpp runs a GGUF file that is here, or one of reference-moe"),
        (".", ".: a folder, and llama.cpp runs a GGUF file: name the file in it: mine.gguf"),
        ("script.json", "script.json: "),
    ],
)
def test_a_model_that_is_no_gguf_file_is_refused_before_anything(bench, gguf, model, words):
    command = serve(bench.path, Script(kind="llama")).replace("{model}", "{gguf}")
    done = bench(None, f"--infer-serve={command}", f"--infer-model={model}")
    done.assert_outcomes()
    (line,) = (one for one in done.stderr.lines + done.stdout.lines if "{gguf}" in one)
    assert f"{{gguf}} in the command of a server: {words}" in line


def test_a_server_is_started_and_ended(bench):
    command = serve(bench.path, Script(kind="llama", loads_s=0.1))
    done = bench(None, f"--infer-serve={command}", "--infer-model=some/mine.gguf")
    done.assert_outcomes(passed=3)
    rows, _ = stored(bench.path)
    assert rows["text"].block.model.name == "mine.gguf"
    assert rows["text"].block.model.source == command
    assert rows["text"].block.metrics["load_s"].value >= 0.1


def test_a_server_of_ours_that_dies_says_why(bench):
    script = Script(answers=(*[Answer()] * 6, Answer(dies_at=2, words="CUDA error: out of memory")))
    done = bench(None, f"--infer-serve={serve(bench.path, script)}", "--infer-model=m")
    done.assert_outcomes(passed=2, failed=1)
    assert "ended with code 3; its last lines" in shown(done)
    assert "CUDA error: out of memory" in shown(done)
    assert sorted(stored(bench.path)[0]) == ["chat", "text"]


def of_verdicts(path):
    (found,) = path.glob(".benchmarks/*/*.json")
    mark = json.loads(found.read_bytes())["pytest_infer"]["gate"]
    return mark, {(j["prompt"], j["metric"]): j["verdict"] for j in mark["judgements"]}


AB = ("--infer-min-pairs=10", "--infer-max-rounds=10", "--infer-repeat-disturbed=0", "-k=text")


@pytest.fixture
def calm(monkeypatch):
    """Judge whatever else this machine does meanwhile, in a run of this process."""
    monkeypatch.setattr(disturbed_comparison, "CLIENT", 1e9)
    monkeypatch.setattr(disturbed_comparison, "APART", 2.0)


def test_two_running_servers_are_measured_in_turns_and_judged(bench, calm):
    slow = Script(kind="llama", answers=(Answer(gap_s=0.1),))
    quick = Script(kind="llama", answers=(Answer(gap_s=0.02),))
    with scripted_server.running(quick) as fast, scripted_server.running(slow) as server:
        done = bench(server, f"--infer-against-server={fast.url}", "--infer-gate=tpot:50%", *AB, plugins=[object()])
    done.assert_outcomes(failed=1)
    mark, verdicts = of_verdicts(bench.path)
    assert verdicts["text", "tpot_s"] == "regressed"
    assert (mark["result"], mark["against"]) == ("regressed", fast.url)
    # A warm-up of either, and ten rounds each in turns.
    assert (len(fast.served), len(server.served)) == (11, 11)
    every = sorted([(one.began_ns, "A") for one in fast.served] + [(one.began_ns, "B") for one in server.served])
    assert "".join(who for _, who in every) == "AB" + "ABBA" * 5


def test_two_servers_are_started_and_both_end(bench):
    paced = Script(kind="llama", answers=(Answer(gap_s=0.02),))
    mine, other = (serve(bench.path, paced, *more) for more in ((), ("--model", "other")))
    done = bench(None, f"--infer-serve={mine}", f"--infer-against-serve={other}", "--infer-gate=off", *AB)
    done.assert_outcomes(passed=1)
    (row,) = stored(bench.path)[0].values()
    assert (row.block.model.source, row.block.against.rev) == (mine, other)
    assert len(row.block.against.metrics["tpot_s"].rounds) == 10
    script = str(bench.path / "script.json")
    assert not [one for one in psutil.process_iter(["cmdline"]) if script in (one.info["cmdline"] or ())]


def test_flags_of_a_server_are_swept(bench):
    command = serve(bench.path, Script(kind="llama")) + " {flags}"
    names = ("--infer-sweep=serve-flags=--model one,--model two", "--infer-ignore-eos", "-k=text")
    bench(None, f"--infer-serve={command}", *names).assert_outcomes(passed=2)
    (found,) = bench.path.glob(".benchmarks/*/*.json")
    rows = (row["extra_info"]["pytest_infer"] for row in json.loads(found.read_bytes())["benchmarks"])
    models = [row["model"] for row in rows if row["phase"] == "total"]
    assert sorted(one["source"].rpartition("--model ")[2] for one in models) == ["one", "two"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--infer-sweep=serve-flags=-a,-b"], "are of a server that is started: --infer-serve '… {flags}'"),
        (["--infer-serve-flags=-a"], "is for a command with {flags}"),
        (["--infer-serve=python {model} {port}", "--infer-serve-flags=-a"], "lacks {flags}: where it takes '-a'"),
        (["--infer-serve=python {model} {port} {flags}", "--infer-serve-flags='a"], "no closing quotation"),
        (["--infer-serve=python {model} {port} {flags}", "--infer-serve-flags=--api-key x"], "its environment"),
        (["--infer-serve=python {model} {port} {flags}", "--infer-sweep=serve-flags=-a,-hft x"], "its environment"),
    ],
)
def test_flags_without_their_place_are_refused(bench, arguments, words):
    done = bench(None, *arguments)
    assert done.ret != 0
    assert words in shown(done)


def test_the_other_server_takes_nothing_of_this_ones_from_an_ini_file(bench):
    with scripted_server.running(Script(kind="llama")) as mine, scripted_server.running(Script(kind="llama")) as other:
        ini = f"[pytest]\ninfer_server = {mine.url}\ninfer_server_pid = {os.getppid()}\n"
        bench.path.joinpath("pytest.ini").write_text(ini)
        done = bench(None, f"--infer-against-server={other.url}", "--infer-gate=off", *AB)
    done.assert_outcomes(passed=1)
    (found,) = bench.path.glob(".benchmarks/*/*.json")
    blocks = (row["extra_info"]["pytest_infer"] for row in json.loads(found.read_bytes())["benchmarks"])
    (ours,) = (block for block in blocks if block["phase"] == "total")
    # Both scripted servers run in this process, which listens to their ports; one was told to be another.
    for side, pid in ((ours, os.getppid()), (ours["against"], os.getpid())):
        assert f"/proc/{pid}/" in side["metrics"]["rss_bytes"]["source"]


@pytest.mark.parametrize(("rule", "verdict"), [("tpot:50%", "improved"), ("output:exact,tpot:50%", "incomparable")])
def test_servers_may_say_something_else_unless_a_rule_is_about_that(bench, calm, rule, verdict):
    # Of gaps that nothing but a halt of the whole client fills.
    before = Script(kind="llama", answers=(Answer(gap_s=0.1),))
    after = Script(kind="llama", answers=(Answer(texts=(" other",), gap_s=0.02),))
    with scripted_server.running(before) as other, scripted_server.running(after) as mine:
        options = ("--infer-cache=off", f"--infer-gate={rule}", f"--infer-against-server={other.url}")
        bench(mine, *options, *AB, plugins=[object()])
    assert of_verdicts(bench.path)[1]["text", "tpot_s"] == verdict


def test_the_other_server_needs_this_one(bench):
    done = bench(None, "--infer-against-server=http://127.0.0.1:1")
    assert "name this one with --infer-server or --infer-serve" in shown(done)


def test_a_command_that_does_not_run_is_refused_before_anything(bench):
    done = bench(None, "--infer-serve=no-such-server {model} {port}")
    assert "there is no program 'no-such-server'" in shown(done)


def test_nobody_answers(bench):
    with scripted_server.running() as server:
        pass
    done = bench(server)
    assert f"no server answers at {server.url}" in shown(done)


def test_a_model_that_is_not_there(bench):
    with scripted_server.running() as server:
        done = bench(server, "--infer-model=other")
    assert "the server has no model 'other'; it has scripted" in shown(done)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--infer-dtype=float32"], "--infer-dtype: the engine 'server' does not follow it"),
        (["--infer-batch=2"], "runs one sequence at a time"),
        (["--infer-against=self"], "compares two commits of what runs in this process: leave out --infer-server"),
        (["--infer-against-server=no url"], "--infer-against-server"),
        (["--infer-against-serve=x {port}", "--infer-against-server=http://h:1"], "both name the other server"),
        (["--infer-against-server=http://h:1", "--infer-resume"], "leave out --infer-resume"),
        (["--infer-against-server=http://h:1", "--infer-replay=latest"], "leave out --infer-replay"),
        (["--infer-against-server=http://h:1", "--infer-cold-load"], "leave out --infer-cold-load"),
        (["--infer-against-serve=x {model} {port}"], "name the model that it is to start with --infer-model"),
        (["--infer-serve=x {model} {port}"], "take either"),
        (["--infer-prompt-tokens=9"], "leave out --infer-prompt-tokens"),
        (["--infer-sweep=dtype=float32,bfloat16"], "--infer-sweep: dtype"),
        (["--infer-server-pid=2147483647"], "there is no process 2147483647"),
        (["--infer-server-pid=x"], "takes process ids, as 4711 or 4711,4712, not 'x'"),
        (["--infer-cache=cold"], "--infer-cache"),
        (["--infer-server-kind=triton"], "--infer-server-kind"),
    ],
)
def test_what_a_server_cannot_follow_is_refused(bench, arguments, words):
    with scripted_server.running() as server:
        done = bench(server, *arguments)
        assert server.served == []
    assert done.ret != 0
    assert words in shown(done)


@pytest.mark.parametrize("kind", ["llama", "vllm"])
def test_a_length_is_that_of_the_prompt_with_its_nonce(bench, kind):
    with scripted_server.running(Script(kind=kind)) as server:
        bench(server, "--infer-prompt-tokens=30").assert_outcomes(passed=3)
    assert {len(one.body["prompt"]) for one in server.served} == {30}
    assert len({tuple(one.body["prompt"]) for one in server.served}) == 9


def test_options_say_what_it_is(bench):
    with scripted_server.running(Script(kind="llama")) as server:
        bench(server, "--infer-server-kind=openai", "--infer-sample=temperature=0.7,seed=3").assert_outcomes(passed=3)
    assert {one.path for one in server.served} == {"/v1/completions", "/v1/chat/completions"}
    assert {(one.body["temperature"], one.body["seed"]) for one in server.served} == {(0.7, 3)}


def test_one_that_ends_though_it_should_go_on_is_refused(bench):
    with scripted_server.running(Script(answers=(Answer(tokens=2),))) as server:
        done = bench(server, "--infer-ignore-eos")
    assert "ended after 2 of 4 tokens, though asked to go on" in shown(done)


def test_one_that_may_have_met_a_stop_string_is_not(bench):
    bench.path.joinpath("prompts.toml").write_text(SUITE.replace("= 4\n", '= 4\nstop = ["END"]\n'), encoding="utf-8")
    with scripted_server.running(Script(answers=(Answer(tokens=2),))) as server:
        bench(server, "--infer-ignore-eos").assert_outcomes(passed=3)
    assert stored(bench.path)[0]["text"].block.output.stopped_by is None


SECRET = "sk-4f9a8b7c6d"


@pytest.mark.parametrize(
    "script",
    [
        Script(key="another"),
        Script(key=SECRET, answers=(Answer(), Answer(status=500, words=f"Bearer {SECRET} is broke"))),
        Script(key=SECRET, answers=(Answer(stall_at=1),)),
    ],
)
def test_a_key_is_nowhere(bench, monkeypatch, script):
    monkeypatch.setenv("PYTEST_INFER_SERVER_KEY", SECRET)
    # Only who waits for a stall has little patience: a good answer may be held up.
    stalls = any(answer.stall_at is not None for answer in script.answers)
    patience = ["--infer-server-timeout=3s"] if stalls else []
    with scripted_server.running(script) as server:
        done = bench(server, *patience, "--showlocals", "--full-trace", "-vv", "--infer-report=r.html")
        if script.key == SECRET:
            assert {one.headers["authorization"] for one in server.served} == {f"Bearer {SECRET}"}
    assert SECRET not in done.stdout.str() + done.stderr.str()
    files = [path for path in bench.path.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("key", ["two words", "line\nend", "schlüssel"])
def test_what_is_no_key_is_not_shown(bench, monkeypatch, key):
    monkeypatch.setenv("PYTEST_INFER_SERVER_KEY", key)
    with scripted_server.running() as server:
        done = bench(server, "--showlocals", "--full-trace")
    assert "PYTEST_INFER_SERVER_KEY holds what no key can" in shown(done)
    assert key not in done.stdout.str() + done.stderr.str()


@pytest.mark.parametrize(
    "url",
    ["http://me:s3cret@127.0.0.1:1", "http://127.0.0.1:1?key=s3cret", "ftp://x", "127.0.0.1:80", "http://x:s3cret"],
)
def test_an_address_holds_no_key(bench, url):
    done = bench(type("Address", (), {"url": url}))
    assert done.ret == 4
    lines = [line for line in done.stderr.str().splitlines() if "--infer-server" in line]
    assert lines
    assert "s3cret" not in "".join(lines) or url == "http://x:s3cret"


def test_a_command_holds_no_key(bench):
    done = bench(None, "--infer-serve=server {model} {port} --api-key s3cret")
    assert "give the server its key by its environment" in shown(done)


def test_a_missing_key_is_told(bench):
    with scripted_server.running(Script(key="k")) as server:
        done = bench(server)
    assert "answers 401" in shown(done)
    assert "PYTEST_INFER_SERVER_KEY in the environment" in shown(done)
