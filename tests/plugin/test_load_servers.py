"""Load tests of servers that run: their counters in each repetition, and what is told of one that ends under load."""

import json
import shlex
import sys

import pytest

import scripted_server
from pytest_infer.storage.schema import WHOLE_BLOCK, of_block
from scripted_server import Answer, Script

LOAD = """
def test_load(infer_under_load, load_level):
    infer_under_load(load_level)
"""
SENDS = """
import sys
from dataclasses import replace
from pathlib import Path

import httpx

sys.path.insert(0, {tests!r})

import queueing
from pytest_infer.measure.load import environment, generator
from pytest_infer.measure.load.environment import Installed
from pytest_infer.records import RequestStatus


def answered(sending):
    told = generator.scenario(sending, 1, Path())["spec"]["backend"]["extras"]["body"]
    body = {{"prompt": "a b", "max_tokens": 2, "stream": True, **told}}
    try:
        return "[DONE]" in httpx.post(f"{{sending.served.url}}/v1/completions", json=body, timeout=120).text
    except httpx.HTTPError:
        return False


def sent(installed, sending, seed, system):
    open("sent", "a").write(f"{{sending.level.name}} {{seed}}\\n")
    before = system.begin()
    whole = [answered(sending), answered(sending)]
    found = replace(queueing.simulated(9.0, 0.05, sending.requests, seed), counters=system.end(before))
    if all(whole):
        return found
    failed = [replace(r, status=RequestStatus.FAILED, error="cut off") for r in found.requests[3:]]
    return replace(found, requests=(*found.requests[:3], *failed))


generator.repetition = sent
environment.installed = lambda: Installed(folder=environment.folder(), version="0.8.1")
"""
QUICK = ("--infer-rounds=2", "--infer-no-probe", "--benchmark-autosave")


@pytest.fixture
def bench(pytester, monkeypatch, request):
    """Return a suite; the generator is another test's: two requests are sent, and the rest of them is simulated."""
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(pytester.path / ".cache"))
    pytester.makeconftest(SENDS.format(tests=str(request.config.rootpath / "tests")))
    pytester.makepyfile(test_suite=LOAD)
    pytester.path.joinpath("prompts.toml").write_text('[[prompt]]\nname = "a"\ntext = "one"\nmax_new_tokens = 4\n')
    return pytester


def blocks(pytester):
    (found,) = pytester.path.glob(".benchmarks/*/*.json")
    rows = json.loads(found.read_bytes())["benchmarks"]
    return [of_block(row["extra_info"]["pytest_infer"], WHOLE_BLOCK) for row in rows]


def sent(pytester):
    return pytester.path.joinpath("sent").read_text().splitlines()


def serve(pytester, script):
    """Return the arguments that start a server of such a script, as a process."""
    path = pytester.path / "script.json"
    path.write_text(script.to_json(), encoding="utf-8")
    program = [sys.executable, scripted_server.__file__, "--script", str(path)]
    return f"--infer-serve={shlex.join([*program, '--model', '{model}', '--port', '{port}'])}", "--infer-model=m"


TOLD = "vllm:prefix_cache_hits_total {requests}\nvllm:num_requests_waiting 3\nvllm:kv_cache_usage_perc 0.25\n"


def test_each_repetition_has_the_servers_counters_under_their_names(bench):
    arguments = serve(bench, Script(kind="vllm", metrics=TOLD))
    bench.runpytest(*arguments, *QUICK, "--infer-load=concurrency=1,2").assert_outcomes(passed=2)
    for block in blocks(bench):
        cached, waiting, cache = (
            block.metrics[key] for key in ("server_cached_tokens", "server_waiting", "server_kv_usage")
        )
        assert (cached.rounds, cached.source) == ((2, 2), "vllm:prefix_cache_hits_total")
        assert (waiting.rounds, waiting.quality) == ((3, 3), "sampled")
        assert cache.rounds == (25, 25)
        assert len(block.metrics["cpu_s"].rounds) == len(block.metrics["peak_rss_bytes"].rounds) == 2
        assert "/proc/" in block.metrics["peak_rss_bytes"].source
        assert block.absent["server_running"] == "the server does not tell it"


def test_of_a_server_elsewhere_they_are_absent_and_what_it_tells_is_there(bench):
    conftest = bench.path / "conftest.py"
    elsewhere = "from pytest_infer.engines.server import address\naddress.is_here = lambda url: False\n"
    conftest.write_text(f"{conftest.read_text()}\n{elsewhere}")
    with scripted_server.running(Script(kind="vllm", metrics=TOLD)) as server:
        done = bench.runpytest(f"--infer-server={server.url}", *QUICK, "--infer-load=concurrency=1,2")
    done.assert_outcomes(passed=2)
    for block in blocks(bench):
        assert block.absent["cpu_s"] == block.absent["peak_rss_bytes"] == "the server is on another machine"
        assert block.metrics["server_cached_tokens"].rounds == (2, 2)
    shown = " ".join(done.stdout.str().split())
    assert "the server, a repetition: cached tokens 2, KV cache 25.0 %, requests queued before 3 " in shown


def test_a_server_that_dies_ends_its_level_with_its_last_words_and_finished_levels_are_kept(bench):
    answers = (*[Answer()] * 4, Answer(dies_at=1, words="out of pages"))
    arguments = serve(bench, Script(answers=answers))
    done = bench.runpytest(*arguments, *QUICK, "--infer-load=concurrency=1,2,4")
    done.assert_outcomes(passed=1, failed=2)
    assert sent(bench) == ["concurrency=1 1", "concurrency=1 2", "concurrency=2 1"]
    told = done.stdout.str()
    assert "concurrency=2, repetition 1: the server (python" in told
    assert "out of pages" in told
    assert "Traceback" not in told
    assert [block.under_load.level.name for block in blocks(bench)] == ["concurrency=1"]


def test_a_running_server_that_goes_is_told_after_one_repetition(bench):
    with scripted_server.running(Script(answers=(Answer(), Answer(dies_at=1)))) as server:
        done = bench.runpytest(f"--infer-server={server.url}", *QUICK, "--infer-load=concurrency=1,2")
    done.assert_outcomes(failed=2)
    assert sent(bench) == ["concurrency=1 1"]
    told = " ".join(done.stdout.str().split())
    assert f"concurrency=1, repetition 1: no server answers at {server.url} any more: " in told


def test_a_server_of_ours_has_synthetic_prompts_by_the_bundled_models_tokenizer(bench):
    command = serve(bench, Script(answers=(Answer(),)))[0]
    data = "--infer-load-data=prompt_tokens=8,output_tokens=4"
    done = bench.runpytest(command, *QUICK, "--infer-load=concurrency=1", data)
    done.assert_outcomes(passed=1)
    (bench.path / "tokenizer.json").write_text("{}")
    elsewhere = bench.runpytest("--infer-server=http://127.0.0.1:9", *QUICK, "--infer-load=concurrency=1", data)
    assert "add tokenizer=FOLDER" in elsewhere.stderr.str(), "nobody knows which model that server has"


def test_a_server_that_refuses_some_and_lives_is_measured(bench):
    with scripted_server.running(Script(answers=(Answer(), Answer(status=429, words="slow down"), Answer()))) as server:
        done = bench.runpytest(f"--infer-server={server.url}", *QUICK, "--infer-load=concurrency=1")
    assert sent(bench) == ["concurrency=1 1"], "no answer ended in the steady part: told at once"
    assert "no answer ended between the first and the last requests" in " ".join(done.stdout.str().split())


@pytest.mark.parametrize(
    ("given", "temperature", "seed"),
    [([], 0, None), (["--infer-sample=temperature=0.7,seed=3"], 0.7, 3)],
    ids=["greedy", "sampled"],
)
def test_requests_are_decoded_as_asked_for(bench, given, temperature, seed):
    with scripted_server.running(Script()) as server:
        done = bench.runpytest(f"--infer-server={server.url}", *QUICK, "--infer-load=concurrency=1", *given)
    done.assert_outcomes(passed=1)
    assert {(one.body["temperature"], one.body.get("seed")) for one in server.served} == {(temperature, seed)}
