"""Sends one repetition of a level through the load generator, a process of its own, and returns its requests."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from pytest_infer.engines.base import Sampling, Served
from pytest_infer.engines.server import address, guard
from pytest_infer.errors import EngineError
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.load import told, trace, workload
from pytest_infer.measure.load.environment import Installed
from pytest_infer.measure.load.workload import Workload
from pytest_infer.records import Arrivals, Level, LevelKind, Repetition

_START_S = 180.0
"""The generator may take so long to start and to write its file, beside the limit of what it sends."""
_TRIES = 3
"""So often a repetition is sent whose requests the generator sends at another time than asked."""
_GRACE_S = "1"
"""How long it may take to end when it is asked to."""
_SAID = 300
_OWN = "GUIDELLM__"
"""What the variables begin with that the generator listens to."""
_NOT_ITS = (_OWN, "PYTEST_INFER_", "PYTHONPATH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """How a level is sent: to which server, what, how many requests, for how long at most, and sampled how, if so."""

    served: Served
    level: Level
    work: Workload
    requests: int
    limit_s: float
    salt: str
    sampling: Sampling | None = None


def repetition(installed: Installed, sending: Sending, seed: int, system: SystemCounters | None = None) -> Repetition:
    """Send one repetition and return it; raise EngineError with the generator's own words where it fails.

    One whose requests did not come when they were to is sent again, with other numbers ahead of its prompts. `system`
    counts while the generator runs.
    """
    for _ in range(_TRIES - 1):
        with suppress(told.NotAsAskedError):
            return _sent(installed, sending, seed, system)
        sending = replace(sending, salt=f"{sending.salt}+")
    return _sent(installed, sending, seed, system)


def _sent(installed: Installed, sending: Sending, seed: int, system: SystemCounters | None) -> Repetition:
    with tempfile.TemporaryDirectory(prefix="pytest-infer-load-") as temporary:
        folder = Path(temporary)
        (folder / "data.jsonl").write_text(
            "".join(f"{json.dumps(row)}\n" for row in _rows(sending, seed)), encoding="utf-8"
        )
        (folder / "scenario.json").write_text(json.dumps(scenario(sending, seed, folder)), encoding="utf-8")
        before = None if system is None else system.begin()
        _run(installed, folder, sending)
        counters = None if system is None or before is None else system.end(before)
        requests = told.read(folder / "answers.json")
        return Repetition(requests=requests, seed=seed, asked=sending.requests, counters=counters)


def _rows(sending: Sending, seed: int) -> list[dict[str, Any]]:
    if sending.work.trace is not None:
        return list(sending.work.trace.rows())
    return [] if sending.work.made_up else list(workload.rows(sending.work, sending.requests, seed, sending.salt))


def scenario(sending: Sending, seed: int, folder: Path) -> dict[str, Any]:
    """Return what the generator is to do, as its configuration; it holds no key."""
    data: dict[str, Any] = {"kind": "json_file", "path": str(folder / "data.jsonl")}
    if sending.work.synthetic:
        data = {"kind": "synthetic_text", **sending.work.synthetic}
    if sending.work.trace is not None:
        mooncake = {"kind": "mooncake", "hash_id_block_size": trace.BLOCK}
        data = {**(mooncake if sending.work.trace.mooncake else {"kind": "trace_synthetic"}), "source": data}
    spec = {
        "backend": {
            "kind": "openai_http",
            "target": sending.served.url,
            "model": sending.served.model or "",
            "request_format": sending.work.path,
            "timeout": sending.limit_s,
            "verify": True,
            "validate_backend": False,
            "extras": {"body": {"temperature": 0} if sending.sampling is None else asdict(sending.sampling)},
        },
        "profile": _profile(sending.level, sending.requests),
        "constraints": [
            {"kind": "max_requests", "count": sending.requests},
            {"kind": "max_duration", "seconds": sending.limit_s},
        ],
        "tokenizer": {"kind": "huggingface_auto", "model": sending.work.tokenizer or sending.served.model or "none"},
        "data": [data],
        "seed": {"kind": "static", "value": _seed(sending, seed)},
        "outputs": [{"kind": "json", "path": str(folder / "answers.json")}],
        "metrics": {"kind": "generative", "sample_size": 0, "confidence": None},
    }
    return {"spec": spec}


def _seed(sending: Sending, seed: int) -> int:
    """Return the generator's seed; synthetic prompts follow from it, and no server may know them from another level."""
    if not sending.work.made_up:
        return seed
    return int.from_bytes(hashlib.sha256(f"{sending.salt}/{seed}".encode()).digest()[:4], "big") >> 1


def _profile(level: Level, requests: int) -> dict[str, Any]:
    match level.kind:
        case LevelKind.CONCURRENCY:
            return {"kind": "concurrent", "streams": int(level.value or 1)}
        case LevelKind.RATE:
            return {"kind": "poisson" if level.arrivals is Arrivals.POISSON else "constant", "rate": level.value}
        case LevelKind.REPLAY:
            return {"kind": "replay", "time_scale": level.value, "schedule_turn": "timestamp"}
        case LevelKind.THROUGHPUT:
            return {"kind": "throughput", "max_concurrency": requests}


def environ(given: Mapping[str, str], key: str | None, folder: Path) -> dict[str, str]:
    """Return the generator's variables: ours without what changes what it does (no proxy is measured), and the key.

    One process sends: several would draw a Poisson process's gaps from one seed each, and repeat each other's.
    """
    own = {name: value for name, value in given.items() if not name.startswith(_NOT_ITS)}
    own = {name: value for name, value in own.items() if not name.lower().endswith("_proxy")}
    own |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "huggingface"),
        "OMP_NUM_THREADS": "1",
        f"{_OWN}MAX_WORKER_PROCESSES": "1",
        f"{_OWN}LOGGING__CONSOLE_LOG_LEVEL": "ERROR",
    }
    return own if key is None else {**own, f"{_OWN}SPEC__BACKEND__API_KEY": key}


def _run(installed: Installed, folder: Path, sending: Sending) -> None:
    """Run the generator under the guard of our servers, which ends it with all its workers when this process ends."""
    command = [str(installed.program), "run", "--config", str(folder / "scenario.json"), "--disable-console"]
    log = folder / "log.txt"
    log.touch()
    guarded = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), _GRACE_S, str(log), *command]
    limit_s = sending.limit_s + _START_S
    # In the folder, as it reads a .env where it starts.
    with subprocess.Popen(
        guarded,
        cwd=folder,
        env=environ(os.environ, sending.served.key, folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise EngineError(f"the load generator did not end within {limit_s:.0f} s: {_said(log)}") from None
        finally:
            # With this end of the pipe closed the guard ends whatever is left.
            _close(process.stdin)
        said = b"" if process.stdout is None else process.stdout.read()
    end = said.decode(errors="replace").splitlines()[-1:] or ["its guard ended"]
    if end[0].startswith("failed "):
        raise EngineError(f"the load generator cannot be started: {end[0].removeprefix('failed ')}")
    if end[0] != "ended 0" or not (folder / "answers.json").exists():
        raise EngineError(f"the load generator {end[0].replace('ended', 'ended with', 1)}: {_said(log)}")


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with suppress(OSError):
            pipe.close()


def _said(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return address.without_key(lines[-1])[:_SAID] if lines else "it said nothing"
