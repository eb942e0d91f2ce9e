"""Runs against a server whose processes are named, found by its port, or started: whose figures they are."""

import json
import os
import re
import shlex
import sys

import psutil
import pytest

import scripted_server
from pytest_infer.storage.schema import WHOLE_BLOCK, of_block
from scripted_server import Script
from worker import Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
QUICK = ("--infer-rounds=2", "--infer-warmup=1", "--infer-no-probe", "--benchmark-autosave")


@pytest.fixture
def bench(pytester, monkeypatch):
    """Return a function that runs a suite of one prompt, and returns the run and its block, if there is one."""
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(pytester.path / ".cache"))
    pytester.makepyfile(test_suite="def test_prompt(infer, prompt):\n    infer(prompt)\n")
    pytester.path.joinpath("prompts.toml").write_text('[[prompt]]\nname = "p"\ntext = "a"\nmax_new_tokens = 4\n')

    def run(*arguments):
        done = pytester.runpytest(*QUICK, *arguments)
        for found in pytester.path.glob(".benchmarks/*/*.json"):
            rows = [row["extra_info"]["pytest_infer"] for row in json.loads(found.read_bytes())["benchmarks"]]
            return done, next(of_block(row, WHOLE_BLOCK) for row in rows if row["phase"] == "total")
        return done, None

    run.path = pytester.path
    return run


def shown(done):
    return " ".join((done.stdout.str() + done.stderr.str()).split())


def test_a_named_process_is_the_server(bench):
    worker = Worker()
    worker.do("keep 50")
    os.sched_setaffinity(worker.pid, {min(os.sched_getaffinity(0))})
    with scripted_server.running() as server:
        done, block = bench(f"--infer-server={server.url}", f"--infer-server-pid={worker.pid}")
    done.assert_outcomes(passed=1)
    peak = block.metrics["peak_rss_bytes"]
    assert peak.value == pytest.approx(worker.account["rss"], rel=0.02)
    assert peak.source == f"/proc/{worker.pid}/status VmHWM, reset before"
    assert block.metrics["pss_bytes"].value > 50 * 2**20
    assert block.metrics["cpu_s"].value < block.metrics["total_s"].value
    assert "client_cores" in block.metrics
    assert block.machine.affinity_cores == 1
    # It ran before.
    assert "load_s" not in block.metrics
    assert "did not load" in block.absent["load_read_bytes"]
    worker.end()


def test_who_listens_to_the_port_is_found(bench):
    with scripted_server.running(Script(kind="llama")) as server:
        _, block = bench(f"--infer-server={server.url}")
    assert block.metrics["rss_bytes"].source.startswith(f"/proc/{os.getpid()}/status VmRSS")


def test_a_server_that_is_started_counts_from_its_start_and_is_gone_at_the_end(bench):
    script = bench.path / "script.json"
    script.write_text(Script(kind="llama").to_json(), encoding="utf-8")
    program = [sys.executable, scripted_server.__file__, "--script", str(script)]
    command = shlex.join([*program, "--model", "{model}", "--port", "{port}"])
    done, block = bench(f"--infer-serve={command}", "--infer-model=m")
    done.assert_outcomes(passed=1)
    source = block.metrics["rss_bytes"].source
    (pid,) = re.findall(r"/proc/(\d+)/", source)
    assert int(pid) != os.getpid()
    assert not psutil.pid_exists(int(pid))
    for key in ("load_rss_anon_bytes", "load_peak_rss_bytes", "load_read_bytes", "cpu_s", "pss_bytes", "minor_faults"):
        assert pid in block.metrics[key].source, key
    assert block.metrics["load_s"].value > 0
    assert block.timeline.absent is None


def test_what_the_server_tells_at_metrics_is_stored_under_its_names(bench):
    told = "vllm:prefix_cache_hits_total {requests}\nvllm:num_requests_running 2\nother_total {tokens}\n"
    with scripted_server.running(Script(kind="vllm", metrics=told)) as server:
        _, block = bench(f"--infer-server={server.url}")
    cached, running = block.metrics["server_cached_tokens"], block.metrics["server_running"]
    assert (cached.rounds, cached.source) == ((1, 1), "vllm:prefix_cache_hits_total")
    assert (running.value, running.quality, running.source) == (2, "sampled", "vllm:num_requests_running")
    assert block.absent["server_kv_usage"] == "the server does not tell it"


def test_a_server_without_metrics_is_measured_without_them(bench):
    with scripted_server.running() as server:
        done, block = bench(f"--infer-server={server.url}")
    done.assert_outcomes(passed=1)
    assert block.absent["server_running"] == "the server tells no metrics"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--infer-server-pid=4194305"], "--infer-server-pid: there is no process 4194305"),
        (["--infer-server-pid=one"], "--infer-server-pid takes process ids, as 4711 or 4711,4712, not 'one'"),
        (["--infer-server-pid=0"], "takes process ids"),
        (["--infer-server-pid=7,"], "takes process ids"),
    ],
)
def test_processes_that_cannot_be_are_refused_before_anything(bench, arguments, words):
    with scripted_server.running() as server:
        done, block = bench(f"--infer-server={server.url}", *arguments)
        assert server.served == []
    assert block is None
    assert words in shown(done)


def test_a_server_of_ours_names_its_own(bench):
    done, _ = bench("--infer-serve=python {model} {port}", "--infer-model=x", "--infer-server-pid=7")
    assert "--infer-server-pid names the processes of a server that runs, and --infer-serve starts one" in shown(done)
