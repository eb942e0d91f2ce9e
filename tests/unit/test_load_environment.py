"""The load generator's environment: whole or absent, whatever pip does; and the commands that make and remove it."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from typer.testing import CliRunner

from processes import runs, wait_until
from pytest_infer.cli.main import app
from pytest_infer.engines.base import Served
from pytest_infer.errors import EngineError
from pytest_infer.measure.load import environment, generator
from pytest_infer.measure.load.environment import Installed
from pytest_infer.measure.load.generator import Sending
from pytest_infer.measure.load.workload import Workload
from pytest_infer.prompts import Prompt
from pytest_infer.pytest_face import levels

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """A pip that installs nothing: what it was asked, and the words with which it fails where they are set."""
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(tmp_path / "cache"))
    told = SimpleNamespace(asked=[], fails={}, environ=[], elsewhere=False)

    def create(folder, **_):
        Path(folder, "bin").mkdir(parents=True)
        Path(folder, "bin", "python").touch()

    def run(command, env, **_):
        told.environ.append(env)
        arguments = command[command.index("--no-input") + 1 :]
        told.asked.append(arguments)
        words = next((words for begin, words in told.fails.items() if " ".join(arguments).startswith(begin)), None)
        if words is None and arguments[0].startswith("guidellm") and not told.elsewhere:
            Path(command[0]).with_name("guidellm").write_text("")
        return SimpleNamespace(returncode=0 if words is None else 1, stderr=words or "")

    monkeypatch.setattr(venv, "create", create)
    monkeypatch.setattr(subprocess, "run", run)
    return told


def command(name):
    return CliRunner().invoke(app, ["load-generator", name])


def test_it_is_installed_once_looked_at_and_removed(pip):
    assert command("status").exit_code == 1
    assert "not installed: pytest-infer load-generator install" in command("status").stdout
    result = command("install")
    assert result.exit_code == 0, result.output
    assert "to download" in result.stderr
    asked = list(pip.asked)
    assert [arguments[0].partition("==")[0] for arguments in asked] == ["torch", "guidellm"]
    assert command("install").exit_code == 0
    assert pip.asked == asked, "it is there"
    assert environment.required() == Installed(folder=environment.folder(), version=environment.VERSION)
    assert command("status").stdout.startswith(f"guidellm {environment.VERSION} in ")
    assert command("remove").stdout.startswith("removed ")
    assert not environment.folder().exists()
    assert command("remove").stdout == "nothing to remove\n"


def test_torch_is_never_plain_and_comes_from_pytorch_where_the_own_index_lacks_the_cpu_build(pip):
    pip.fails[f"torch=={environment.TORCH}"] = "ERROR: No matching distribution"
    with pytest.raises(EngineError, match=r"pip cannot install torch==.*: ERROR: No matching distribution"):
        environment.install(str)
    build = "+cpu" if sys.platform.startswith("linux") else ""
    torch = f"torch=={environment.TORCH}{build}"
    assert pip.asked == [[torch], [torch, "--index-url", environment.CPU_INDEX]]
    assert not environment.folder().exists()


def test_what_pip_cannot_install_leaves_nothing_and_is_a_line(pip):
    pip.fails["guidellm"] = "WARNING: a\nERROR: no space\nand more"
    result = command("install")
    assert result.exit_code != 0
    assert "pip cannot install guidellm==0.8.1: ERROR: no space" in result.output
    assert not environment.folder().exists()


def test_where_pip_installs_is_not_for_the_users_variables_to_say(pip, monkeypatch):
    for name, value in (("PIP_TARGET", "/x"), ("PIP_PREFIX", "/x"), ("PIP_INDEX_URL", "http://mirror")):
        monkeypatch.setenv(name, value)
    environment.install(str)
    for environ in pip.environ:
        assert environ["PIP_INDEX_URL"] == "http://mirror"
        assert not {"PIP_TARGET", "PIP_PREFIX"} & environ.keys()


def test_what_pip_installs_elsewhere_is_a_line_of_its_own(pip):
    pip.elsewhere = True
    with pytest.raises(EngineError, match=r"pip installed guidellm==0\.8\.1 elsewhere than in .*pip config list"):
        environment.install(str)
    assert not environment.folder().exists()


def test_a_python_without_ensurepip_leaves_nothing_and_is_a_line(pip, monkeypatch):
    def create(folder, **_):
        Path(folder, "bin").mkdir(parents=True)
        raise subprocess.CalledProcessError(1, ["python", "-m", "ensurepip"])

    monkeypatch.setattr(venv, "create", create)
    result = command("install")
    assert isinstance(result.exception, SystemExit)
    assert "on Debian and Ubuntu install python3-venv" in " ".join(result.output.split())
    assert not environment.folder().exists()


def test_one_whose_interpreter_is_gone_is_absent_and_made_anew(pip):
    environment.install(str)
    python = environment.folder() / "bin" / "python"
    python.unlink()
    python.symlink_to("/gone/python")
    assert environment.installed() is None
    assert environment.install(str).python.is_file()


def test_on_windows_it_is_refused_before_anything_is_fetched(pip, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    for ask in (environment.required, lambda: environment.install(str)):
        with pytest.raises(EngineError, match="load tests need Linux or macOS"):
            ask()
    assert not pip.asked


def test_an_index_that_cannot_be_reached_is_told_as_that(pip):
    refused = "NewConnectionError('<pip.HTTPConnection object at 0x7f6a>: Failed to connect: Connection refused')"
    retried = f"WARNING: Retrying (Retry(total=0)) after connection broken by '{refused}': /simple/torch/\n"
    pip.fails["torch"] = f"{retried}ERROR: No matching distribution found for torch"
    result = command("install")
    assert result.exit_code != 0
    (told,) = (line for line in result.output.splitlines() if "cannot be reached" in line)
    assert told.endswith(": NewConnectionError('Failed to connect: Connection refused')")
    # .ci/run knows it by these words, and skips the tests of load for it alone.
    known = Path(__file__).parents[2] / ".ci" / "run"
    if known.exists():
        assert 'grep -q "package index cannot be reached"' in known.read_text(encoding="utf-8")


def test_one_that_was_cut_short_is_absent_and_made_anew(pip):
    environment.install(str)
    environment.folder().joinpath("pytest-infer.json").unlink()
    assert environment.installed() is None
    with pytest.raises(EngineError, match="not installed: pytest-infer load-generator install"):
        environment.required()
    environment.install(str)
    assert environment.installed() is not None


@pytest.mark.parametrize("manifest", ["", "{}", "[]", "null", "[" * 100_000])
def test_a_damaged_manifest_is_none(pip, manifest):
    environment.install(str)
    environment.folder().joinpath("pytest-infer.json").write_text(manifest)
    assert environment.installed() is None


def sending(level, **more):
    given = {
        "served": Served(url="http://127.0.0.1:9", model="m", key="secret"),
        "level": levels.parse([level], "x")[0],
        "work": Workload(prompts=((Prompt(name="a", text="one"), 4),)),
        "requests": 8,
        "limit_s": 20.0,
        "salt": "s",
    }
    return Sending(**given | more)


@pytest.mark.parametrize(
    ("level", "profile"),
    [
        ("concurrency=4", {"kind": "concurrent", "streams": 4}),
        ("rate=2", {"kind": "poisson", "rate": 2.0}),
        ("rate=0.5:constant", {"kind": "constant", "rate": 0.5}),
        ("replay=0.5", {"kind": "replay", "time_scale": 0.5, "schedule_turn": "timestamp"}),
        ("throughput", {"kind": "throughput", "max_concurrency": 8}),
    ],
)
def test_what_the_generator_is_told_of_a_level(tmp_path, level, profile):
    spec = generator.scenario(sending(level), 3, tmp_path)["spec"]
    assert spec["profile"] == profile
    assert spec["seed"] == {"kind": "static", "value": 3}
    assert spec["backend"]["verify"] is True
    assert {"kind": "max_requests", "count": 8} in spec["constraints"]
    assert "secret" not in json.dumps(spec)


def test_synthetic_prompts_are_made_by_the_generator(tmp_path):
    work = Workload(synthetic={"prompt_tokens": 8, "output_tokens": 4, "prefix_tokens": 2}, tokenizer="/models/m")
    spec = generator.scenario(sending("rate=1", work=work), 1, tmp_path)["spec"]
    assert spec["data"] == [{"kind": "synthetic_text", "prompt_tokens": 8, "output_tokens": 4, "prefix_tokens": 2}]
    assert spec["tokenizer"]["model"] == "/models/m"
    seeds = [
        generator.scenario(sending("rate=1", work=work, salt=salt), seed, tmp_path)["spec"]["seed"]["value"]
        for salt, seed in (("s", 1), ("s", 2), ("t", 1), ("s", 1))
    ]
    assert len(set(seeds)) == 3, "a server must not know the prompts of another level or run"
    assert seeds[0] == seeds[3]


def test_a_key_is_told_by_a_variable_and_others_of_the_generator_are_not_passed_on(tmp_path):
    given = {
        "GUIDELLM__MAX_CONCURRENCY": "1",
        "PYTHONPATH": "x",
        "PATH": "y",
        "HTTPS_PROXY": "z",
        "PYTEST_INFER_SERVER_KEY": "secret",
    }
    found = generator.environ(given, "secret", tmp_path)
    assert found["GUIDELLM__SPEC__BACKEND__API_KEY"] == "secret"
    assert found["GUIDELLM__MAX_WORKER_PROCESSES"] == "1"
    assert found["HF_HUB_OFFLINE"] == "1"
    assert not (set(given) - {"PATH"}) & set(found)
    assert not [name for name in generator.environ(given, None, tmp_path) if "KEY" in name]


PROGRAMS = {
    "import sys; print('first'); sys.exit('ValueError: no such server')": "ended with 1: ValueError: no such server",
    "pass": "ended with 0: it said nothing",
    "import time; time.sleep(600)": "did not end within 1 s: it said nothing",
}


def program(folder, text):
    """Put a program in the generator's place."""
    script = folder / "bin" / "guidellm"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\n{text}\n")
    script.chmod(0o755)


@pytest.mark.parametrize(("bursts", "told_of"), [(0, 12), (2, 12), (3, None)])
def test_a_repetition_that_came_all_at_once_is_sent_again_with_other_prompts(tmp_path, bursts, told_of):
    log = tmp_path / "prompts"
    log.touch()
    program(
        tmp_path,
        f"""
import json
first = open("data.jsonl").readline()
with open({str(log)!r}, "a+") as log:
    log.write(first)
    log.seek(0)
    times = len(log.readlines())
told = json.load(open({str(DATA / "guidellm-rate.json")!r}))
if times <= {bursts}:
    for one in told["benchmarks"][0]["requests"]["successful"]:
        one["info"]["timings"]["targeted_start"] = 0.5
json.dump(told, open("answers.json", "w"))
""",
    )
    installed = Installed(folder=tmp_path, version="0")
    if told_of is None:
        with pytest.raises(EngineError, match="sent 12 of 12 requests at once"):
            generator.repetition(installed, sending("rate=1"), 1)
    else:
        assert len(generator.repetition(installed, sending("rate=1"), 1).requests) == told_of
    sent = log.read_text().splitlines()
    assert len(set(sent)) == len(sent) == min(bursts + 1, 3)


@pytest.mark.parametrize("text", PROGRAMS)
def test_a_generator_that_fails_is_a_line_and_leaves_no_process(tmp_path, monkeypatch, text):
    # Only one that does not end by itself is given little time: the others may take long to start.
    limit_s = 0.5 if "sleep" in text else 60.0
    monkeypatch.setattr(generator, "_START_S", limit_s)
    program(tmp_path, text)
    with pytest.raises(EngineError, match=r"^the load generator ") as raised:
        generator.repetition(Installed(folder=tmp_path, version="0"), sending("rate=1", limit_s=limit_s), 1)
    assert str(raised.value).endswith(PROGRAMS[text])


def test_a_generator_that_cannot_be_started_is_a_line(tmp_path):
    with pytest.raises(EngineError, match="the load generator cannot be started: No such file"):
        generator.repetition(Installed(folder=tmp_path, version="0"), sending("rate=1"), 1)


KILLED = """
import sys
from pathlib import Path

from pytest_infer.engines.base import Served
from pytest_infer.measure.load import generator
from pytest_infer.measure.load.environment import Installed
from pytest_infer.measure.load.workload import Workload
from pytest_infer.prompts import Prompt
from pytest_infer.records import Level, LevelKind

generator.repetition(
    Installed(folder=Path(sys.argv[1]), version="0"),
    generator.Sending(
        served=Served(url="http://127.0.0.1:9"), level=Level(kind=LevelKind.CONCURRENCY, value=1.0), requests=4,
        work=Workload(prompts=((Prompt(name="a", text="one"), 4),)), limit_s=60.0, salt="s",
    ),
    1,
)
"""


def test_a_generator_ends_with_a_run_that_is_killed(tmp_path):
    pid = tmp_path / "pid"
    program(tmp_path, f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        wait_until(lambda: pid.exists() and pid.read_text())
        sender = psutil.Process(int(pid.read_text()))
    finally:
        run.kill()
        run.wait()
    wait_until(lambda: not runs(sender))
