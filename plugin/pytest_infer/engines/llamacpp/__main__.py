"""`python -m pytest_infer.engines.llamacpp -m FILE.gguf --port N`: llama-server, where only its wheel is installed."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from pytest_infer.engines import models
from pytest_infer.engines.llamacpp import arguments, native
from pytest_infer.errors import InferError


def _file(model: str) -> str:
    """Return the file to serve: of a bundled model, by its name or its folder, its GGUF file."""
    name = Path(model).name
    if name not in models.BUNDLED or (model != name and Path(model) != Path(models.resolve(name, _tell))):
        return model
    return str(models.gguf(name, "auto", _tell))


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    """Serve until SIGINT or SIGTERM."""
    given = arguments.served(sys.argv[1:])
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        params = native.parameters(_file(given.model), given, threads=given.threads)
        params.hostnames, params.port = [given.host], given.port
        params.n_parallel = given.parallel
        params.endpoint_metrics = given.metrics
        params.warmup = not given.no_warmup
        params.verbosity = native.WARNINGS
        if given.alias is not None:
            params.model_alias = {given.alias}
        server = native.started(params)
    except InferError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stderr.write(f"listening on {server.listening_address}\n")
    stop.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
