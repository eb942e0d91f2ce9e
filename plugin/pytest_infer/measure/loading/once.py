"""One load of a model in a process of its own: a request as JSON on stdin, the round or an error on stdout."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import msgspec

from pytest_infer.engines import lookup
from pytest_infer.engines.base import Engine
from pytest_infer.errors import InferError
from pytest_infer.measure import rounds
from pytest_infer.measure.asking import Asking
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.loading import page_cache, process, timed
from pytest_infer.measure.loading.process import LoadingAnswer
from pytest_infer.prompts import Prompt
from pytest_infer.records import CacheState, Limits, LoadingRound

_PROMPT = Prompt(name="load", text="Once upon a time")
_ONE_TOKEN = Limits(max_new_tokens=1, ignore_eos=True)


def main() -> None:
    """Answer one request."""
    # Stdout is for the answer, whatever the libraries print.
    answer_to = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request = process.decode(sys.stdin.buffer.read())
    try:
        engine = lookup.create(request.engine, replace(request.options, progress=_tell))
        answer = LoadingAnswer(round=run(engine, request.cache))
    except InferError as error:
        answer = LoadingAnswer(error=str(error))
    with os.fdopen(answer_to, "wb") as stream:
        stream.write(msgspec.json.encode(answer))


def run(engine: Engine, cache: CacheState) -> LoadingRound:
    """Bring the page cache into the requested state, load the model, and generate one token twice."""
    engine.check()
    engine.fetch()
    files = engine.files()
    problem = (page_cache.drop if cache is CacheState.COLD else page_cache.fill)(files)
    system = SystemCounters()
    try:
        whole = system.begin()
        model = timed.measured(engine, system, cold=False, note=_silent)
        asking = Asking(prompt=_PROMPT, ids=engine.encode(_PROMPT))
        first = rounds.timed_round(engine, asking, _ONE_TOKEN, system)
        counters = system.end(whole)
        again = rounds.timed_round(engine, asking, _ONE_TOKEN, system)
    finally:
        system.close()
    if model.load is None or model.load_s is None:
        raise InferError(f"{model.name} was loaded, but not timed")
    return LoadingRound(
        asked=cache,
        model=model.name,
        load_s=model.load_s,
        load=model.load,
        first=first,
        again=again,
        whole=counters,
        file_bytes=sum(path.stat().st_size for path in files) if files else None,
        problem=problem,
    )


def _tell(line: str) -> None:
    """Let the command say what takes long: a download."""
    print(f"{process.TELLS}{line}", file=sys.stderr, flush=True)  # noqa: T201


def _silent(_line: str) -> None:
    """Say nothing: the page cache's state is in the answer."""


if __name__ == "__main__":
    main()
