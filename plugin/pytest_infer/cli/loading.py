"""`pytest-infer loading`: cold and warm loading of a model, in turns, each in a fresh process."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer

from pytest_infer.cli.shared import offered, out, refuse, screen
from pytest_infer.engines import models
from pytest_infer.engines.base import EngineOptions
from pytest_infer.errors import InferError
from pytest_infer.measure.loading import process
from pytest_infer.measure.loading.process import LoadingRequest
from pytest_infer.records import CacheState, LoadingRound
from pytest_infer.report.formats import LOADING, Format
from pytest_infer.report.text import printable


def loading(
    *,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A folder, a bundled model, or a hub id, which is fetched first.")
    ] = models.DEFAULT,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Cold rounds, and as many warm ones.")] = 3,
    revision: Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a hub model.")] = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="As --infer-dtype.")] = "auto",
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="As --infer-device.")] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="As --infer-threads.")] = None,
    quantization: Annotated[str | None, typer.Option(metavar="NAME", help="As --infer-quantization.")] = None,
    experts_implementation: Annotated[
        str | None, typer.Option(metavar="NAME", help="As --infer-experts-implementation.")
    ] = None,
    attention: Annotated[str | None, typer.Option(metavar="NAME", help="As --infer-attention.")] = None,
    engine: Annotated[str, typer.Option(metavar="NAME", help="As --infer-engine.")] = "transformers",
    engine_args: Annotated[str | None, typer.Option(metavar="ARGS", help="As --infer-engine-args.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a hub model.")
    ] = False,
    form: Annotated[Format, offered(LOADING)] = Format.TERMINAL,
) -> None:
    """Measure how long a model takes to load, from a cold and from a warm page cache, and the memory it takes.

    Drops the page cache of the model's files only, which takes no root. Linux.
    """
    if not sys.platform.startswith("linux"):
        refuse("cold loading takes Linux: nothing else lets a program drop a file from the page cache and see it gone")
    options = EngineOptions(
        model=model,
        revision=revision,
        dtype=dtype,
        device=device,
        threads=threads,
        quantization=quantization,
        experts_implementation=experts_implementation,
        attention=attention,
        trust_remote_code=trust_remote_code,
        engine_args=engine_args,
    )
    try:
        found = _measure(LoadingRequest(cache=CacheState.WARM, engine=engine, options=options), rounds)
    except InferError as error:
        refuse(error)
    out(LOADING[form](found, screen()))


def _measure(request: LoadingRequest, number: int) -> list[LoadingRound]:
    # One that does not count: it finds what is wrong, and the libraries' pages get into no round's figures.
    _tell(f"loading {request.options.model} once, untimed …")
    process.ask(request, _tell)
    found = []
    for place in range(number):
        for cache in (CacheState.COLD, CacheState.WARM):
            _tell(f"{cache.value} round {place + 1} of {number} …")
            found.append(process.ask(msgspec.structs.replace(request, cache=cache), _tell))
    return found


def _tell(line: str) -> None:
    typer.echo(printable(line), err=True)
