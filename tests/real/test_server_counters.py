"""A real llama-server that is started for a run: its processes' counters beside the kernel's own account of each."""

import http.client
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from processes import runs
from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.lookup import create
from pytest_infer.engines.server import listening
from pytest_infer.engines.server.started import Started
from pytest_infer.measure.counters.elsewhere.loading import loaded
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.records import Observed, absent

llama_server = pytest.importorskip("llama_server", reason="no fixture of llama-server")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="llama.cpp is not installed"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTEST_INFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        (file,) = _files(create("llamacpp", EngineOptions(model="reference-moe")))
        command = f"{llama_server.COMMAND} --metrics -t 1"
        started = Started(command, model=lambda: str(file), environ=os.environ, limit_s=120)
        try:
            started.start()
            yield started
        finally:
            started.stop()


def _files(engine):
    engine.check()
    return engine.files()


def asked(server, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def told(pid, name):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def ran_ns(pid):
    """Return how long each thread ran, by the scheduler's own account."""
    return {p.name: int((p / "schedstat").read_text().split()[0]) for p in Path(f"/proc/{pid}/task").iterdir()}


def test_its_memory_and_cpu_time_are_its_own_within_2_percent(server):
    observed = Observed(pids=(server.pid,), started=True)
    load = loaded(observed, absent("not asked"))
    assert load.peak_rss_bytes.value == pytest.approx(told(server.pid, "VmHWM"), rel=0.02)
    assert 0 < server.load_s < 60
    system = SystemCounters(observed=observed, text=lambda: asked(server, "/metrics"))
    try:
        asked(server, "/completion", {"prompt": "Once", "n_predict": 8})
        before_ns, before = ran_ns(server.pid), system.begin()
        for number in range(4):
            asked(server, "/completion", {"prompt": f"{number} Once upon", "n_predict": 128, "ignore_eos": True})
        counters = system.end(before)
        spent = sum(ns - before_ns.get(thread, 0) for thread, ns in ran_ns(server.pid).items()) / 1e9
        assert counters.cpu_s.value == pytest.approx(spent, rel=0.02)
        assert counters.peak_rss_bytes.value == pytest.approx(told(server.pid, "VmHWM"), rel=0.02)
        assert counters.rss_bytes.value == pytest.approx(told(server.pid, "VmRSS"), rel=0.02)
        assert counters.server_prompt_tokens.value + counters.server_cached_tokens.value >= 4 * 3
        assert counters.server_cached_tokens.source == "llamacpp:prompt_tokens_cached_total"
        assert (counters.server_running.value, counters.server_waiting.value) == (0, 0)
    finally:
        system.close()


def test_who_listens_to_its_port_is_found(server):
    assert listening.observed(server.port).pids == (server.pid,)


def test_it_ends_with_all_its_children(server):
    own = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    server.stop()
    assert not any(map(runs, own))
