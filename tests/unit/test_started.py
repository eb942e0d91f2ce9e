"""A server that is started for a run is awaited, timed and watched, and it always ends, with all its children."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import psutil
import pytest

from processes import PATIENCE_S, runs
from pytest_infer.engines.server import command, guard, health, listening
from pytest_infer.engines.server.started import Started
from pytest_infer.errors import EngineError, OptionError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc who is left")

LIMIT_S = 60.0
"""How long a server may take to be ready, and to answer: milliseconds, unless the machine is busy."""

# Answers every request with one status; `how` is what else it does.
SERVER = """
import os, signal, socket, subprocess, sys, time
port, status, how = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
print("serving", *how, flush=True)
if "dies" in how:
    print("loading 1 %\\rloading \\x1b[31m2 %\\x1b[0m\\nno \\xff such model")
    sys.exit(3)
if "crashes" in how:
    os.kill(os.getpid(), signal.SIGSEGV)
if "deaf" in how:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "children" in how:
    nap = [sys.executable, "-ISc", "import time; time.sleep(600)"]
    subprocess.Popen(nap, start_new_session=True)
    subprocess.run([sys.executable, "-ISc", f"import subprocess; subprocess.Popen({nap}, start_new_session=True)"])
if "mute" in how:
    time.sleep(600)
time.sleep(float(how[how.index("after") + 1]) if "after" in how else 0)
listening = socket.create_server(("127.0.0.1", port))
while True:
    connection, _ = listening.accept()
    request = connection.recv(4096)
    if b"/die" in request:
        print("told to die", flush=True)
        os._exit(4)
    connection.sendall(f"HTTP/1.1 {status} x\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
    connection.close()
"""


@pytest.fixture
def started(tmp_path):
    """Return a function that makes a server of the script above."""
    (tmp_path / "a server.py").write_text(SERVER)
    made = []

    def make(*how, status=200, limit_s=LIMIT_S, grace_s=5.0):
        template = (
            f"{sys.executable} -IS '{tmp_path}/a server.py' {{port}} {status} {{model}} {' '.join(map(str, how))}"
        )
        made.append(Started(template, model=lambda: "my model", environ=os.environ, limit_s=limit_s, grace_s=grace_s))
        return made[-1]

    yield make
    for server in made:
        server.stop()
        if server._log is not None:
            server._log.unlink()


def tree_of(server):
    """Return the server's processes, and those that it left to the guard."""
    return psutil.Process(server.pid).parent().children(recursive=True)


def gone(processes):
    """Return whether all of these have ended soon."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if not any(map(runs, processes)):
            return True
        time.sleep(0.01)
    return False


def test_it_is_ready_timed_and_ended(started):
    server = started("after", 0.15)
    server.start()
    server.check()
    assert 0.15 <= server.load_s < LIMIT_S
    assert server.url == f"http://127.0.0.1:{server.port}"
    own, log = tree_of(server), server._log
    assert [p.pid for p in own] == [server.pid]
    assert own[0].cmdline()[-3:] == ["my model", "after", "0.15"]
    assert log.read_text() == "serving my model after 0.15\n"
    server.stop()
    assert gone(own)
    assert not log.exists()
    server.stop()


def test_children_in_sessions_of_their_own_end_too_and_the_deaf(started):
    server = started("children", "deaf", grace_s=0.05)
    server.start()
    own = tree_of(server)
    assert len(own) == 3
    server.stop()
    assert gone(own)


def test_one_that_dies_shows_its_last_lines(started):
    server = started("dies")
    with pytest.raises(EngineError) as error:
        server.start()
    assert str(error.value) == (
        "the server (python) ended with code 3 before it was ready; its last lines (all are in "
        f"{server._log}):\n  serving my model dies\n  loading 2 %\n  no \xff such model"
    ).replace("(python)", f"({Path(sys.executable).name})")
    with pytest.raises(EngineError, match="ended with code 3"):
        server.check()


def test_one_that_crashes_names_the_signal(started):
    with pytest.raises(EngineError, match="was ended by SIGSEGV before it was ready"):
        started("crashes").start()


def test_one_that_dies_later_is_found_dead(started):
    server = started("children")
    server.start()
    own = tree_of(server)
    with pytest.raises((OSError, http.client.HTTPException)):
        health._status(server.port, "/die", LIMIT_S)
    assert gone(own)
    with pytest.raises(EngineError, match=r"ended with code 4; its last lines (?s:.*)told to die"):
        server.check()


def test_an_interrupt_while_it_loads_ends_it(started, monkeypatch):
    server = started("mute")

    def interrupt(port, timeout_s):
        raise KeyboardInterrupt

    monkeypatch.setattr(health, "problem", interrupt)
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert gone([psutil.Process(server.pid)] if psutil.pid_exists(server.pid) else [])


class Answers(BaseHTTPRequestHandler):
    """Answers by path; a path that is not named is not found."""

    statuses: Mapping[str, int] = MappingProxyType({})

    def do_GET(self):
        self.send_response(self.statuses.get(self.path, 404))
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Return a function that has a thread of this process answer, and returns the port."""
    servers = []

    def run(statuses):
        servers.append(HTTPServer(("127.0.0.1", 0), type("Own", (Answers,), {"statuses": statuses})))
        threading.Thread(target=servers[-1].serve_forever, args=[0.01], daemon=True).start()
        return servers[-1].server_port

    yield run
    for server in servers:
        server.shutdown()
        server.server_close()


def test_another_process_on_its_port_is_an_error(started, serve, monkeypatch):
    port = serve({"/health": 200})
    monkeypatch.setattr(command, "free_port", lambda: port)
    server = started("mute")
    with pytest.raises(EngineError, match=f"does not listen to port {port}: another process does, {os.getpid()} "):
        server.start()


@pytest.mark.parametrize(("status", "says"), [(None, ".*refused"), (503, "GET /health: HTTP status 503")])
def test_one_that_is_never_ready_is_not_waited_for_ever(started, monkeypatch, status, says):
    if status is not None:
        # A real answer may come later than the limit.
        monkeypatch.setattr(health, "_status", lambda *_: status)
    server = started("mute", limit_s=0.2)
    with pytest.raises(EngineError, match=f"was not ready within 0.2 s: {says}; it"):
        server.start()
    assert not psutil.pid_exists(server.pid)


@pytest.mark.parametrize(
    ("statuses", "problem"),
    [
        ({"/health": 200}, None),
        ({"/health": 503}, "GET /health: HTTP status 503"),
        ({"/health": 500, "/v1/models": 200}, "GET /health: HTTP status 500"),
        ({"/v1/models": 200}, None),
        ({"/health": 405, "/v1/models": 401}, None),
        ({"/v1/models": 500}, "GET /v1/models: HTTP status 500"),
        ({}, None),
    ],
)
def test_what_counts_as_healthy(serve, statuses, problem):
    assert health.problem(serve(statuses), LIMIT_S) == problem


def test_a_port_that_answers_otherwise_is_not_healthy(monkeypatch):
    def status(port, path, timeout_s):
        raise TimeoutError

    assert "refused" in health.problem(command.free_port(), LIMIT_S)
    monkeypatch.setattr(health, "_status", status)
    assert health.problem(1, LIMIT_S) == "GET /health: TimeoutError"


def test_whoever_may_not_be_asked_is_not_held_to_be_foreign(monkeypatch):
    def denied(self, kind):
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "net_connections", denied)
    assert listening.any_listens([psutil.Process()], 1) is None
    assert listening.tree(2**22 + 1) == []


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("'serve {model} {port}", "no closing quotation"),
        ("serve --port {port}", "lacks {model}"),
        ("serve {model}", "lacks {port}"),
        ("serve {gguf}", "lacks {port}"),
        ("serve {model} --port {Port}", "unknown placeholder '{Port}'; did you mean {port}"),
        ("serve {model} {port} {axis}", "unknown placeholder '{axis}'"),
        ("no-such-program {model} {port}", "no program 'no-such-program'"),
        ("/no/such/program {gguf} {port}", "no program '/no/such/program'"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_before_anything(template, says):
    with pytest.raises(OptionError) as error:
        Started(template, model=pytest.fail, gguf=pytest.fail, environ=os.environ, limit_s=1)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_where_no_server_can_be_started_no_model_is_built_for_it(monkeypatch):
    monkeypatch.setattr("pytest_infer.engines.server.started.os", SimpleNamespace(name="nt"))
    with pytest.raises(EngineError, match="started on Linux and macOS only"):
        Started(f"{sys.executable} {{gguf}} {{port}}", model=pytest.fail, gguf=pytest.fail, environ={}, limit_s=1)


def test_no_shell_reads_the_template():
    template = """serve -m {model} --port={port} --json '{"a": {"b": [1]}, "{port}": {}}' '$HOME;' "a b" """
    values = {"model": lambda: "/x y/{port}.gguf", "port": lambda: "123"}
    assert command.filled(command.parts(template, values), values) == [
        "serve",
        "-m",
        "/x y/{port}.gguf",
        "--port=123",
        "--json",
        '{"a": {"b": [1]}, "123": {}}',
        "$HOME;",
        "a b",
    ]


def test_what_the_system_cannot_start_is_said(tmp_path):
    program = tmp_path / "server"
    program.write_bytes(b"\x7fELF no program")
    program.chmod(0o755)
    server = Started(f"{program} {{model}} {{port}}", model=lambda: "m", environ=os.environ, limit_s=5)
    with pytest.raises(EngineError, match=r"the server \(server\) does not start: .*[Ee]xec format error"):
        server.start()
    assert server._log is None
    with pytest.raises(EngineError, match="has not started"):
        _ = server.pid
    with pytest.raises(EngineError, match="never ready"):
        _ = server.load_s


# The fork holds the pipe open, as a pool of workers would.
PARENT = f"""
import os, sys, time
from pytest_infer.engines.server.started import Started
server = Started(sys.argv[1], model=lambda: "m", environ=os.environ, limit_s={LIMIT_S})
server.start()
fork = os.fork() if sys.argv[2] == "forks" else None
if fork == 0:
    time.sleep(600)
print(server.pid, fork, server._log, flush=True)
# Not in one sleep: a signal that comes just before it would be told of after it.
for _ in range(6000):
    time.sleep(0.1)
"""


@pytest.mark.parametrize(("number", "how"), [(signal.SIGKILL, "forks"), (signal.SIGINT, "")])
def test_it_ends_with_the_process_that_started_it(tmp_path, number, how):
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    template = f"{sys.executable} -IS {script} {{port}} 200 {{model}} children"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, template, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(guard.__file__).parents[3])},
    ) as parent:
        pid, fork, log = parent.stdout.readline().split()
        keeper = psutil.Process(int(pid)).parent()
        own = [keeper, *keeper.children(recursive=True)]
        assert len(own) == 4
        parent.send_signal(number)
        assert gone(own)
        if fork != "None":
            os.kill(int(fork), signal.SIGKILL)
    Path(log).unlink()


def test_a_server_whose_guard_was_killed_ends_too(started):
    server = started()
    server.start()
    own = tree_of(server)
    server._guard.kill()
    assert gone(own)
    with pytest.raises(EngineError, match="lost its guard"):
        server.check()


def test_who_listens_to_the_port_of_a_running_server(serve):
    port = serve({})
    assert listening.observed(port).pids == (os.getpid(),)
    assert listening.observed(port).source == f"listens to port {port}"
    assert listening.observed(port, (7, 8)).pids == (7, 8)


def test_who_cannot_be_found_is_to_be_named(serve, monkeypatch):
    port = command.free_port()
    for told in (listening.observed(port), _denied(monkeypatch, port)):
        assert told.pids == ()
        assert f"who listens to port {port}" in told.absent
        assert "--infer-server-pid" in told.absent
    monkeypatch.undo()
    with pytest.raises(OptionError, match="no process 4194305"):
        listening.check((os.getpid(), 2**22 + 1))
    listening.check(())


def _denied(monkeypatch, port):
    def refused(kind):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", refused)
    return listening.observed(port)


@pytest.mark.parametrize("name", ["docker-proxy", "ssh", "kubectl"])
def test_what_only_forwards_is_not_the_server(serve, monkeypatch, name):
    monkeypatch.setattr(psutil.Process, "name", lambda self: name)
    told = listening.observed(serve({}))
    assert told.pids == ()
    assert told.absent.startswith(f"{name} listens to port")


def test_who_listens_and_ends_meanwhile_is_told_of_nobody(monkeypatch):
    here = SimpleNamespace(pid=os.getpid(), status=psutil.CONN_LISTEN, laddr=SimpleNamespace(port=9))
    ended = SimpleNamespace(pid=2**22 + 1, status=psutil.CONN_LISTEN, laddr=SimpleNamespace(port=9))
    monkeypatch.setattr(psutil, "net_connections", lambda kind: [here, ended])
    assert listening.listeners(9) == [(os.getpid(), psutil.Process().name())]
