"""`pytest-infer placement`: which experts to keep on the GPU, from the usage that a run or a census holds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pytest_infer import units
from pytest_infer.analysis import reached
from pytest_infer.analysis.compare.verdicts import Exit
from pytest_infer.analysis.experts.source import UsageSource
from pytest_infer.cli import experts
from pytest_infer.cli.shared import Storage, offered, open_history, out, refuse, screen
from pytest_infer.errors import InferError, OptionError
from pytest_infer.report.formats import DENSE_ON_GPU, PLACEMENT, Format
from pytest_infer.report.views import PlannedRun

if TYPE_CHECKING:
    from pytest_infer.analysis.placement.planning import Memory, PlacementPlan
    from pytest_infer.analysis.placement.sizes import Sizes
    from pytest_infer.analysis.placement.speed import Bandwidths


class Side(StrEnum):
    """Where the weights outside the experts lie."""

    GPU = "gpu"
    CPU = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The options of a plan, as they were given."""

    gpu_memory: str | None
    dense_on_gpu: bool
    kv_cache: str | None
    reserve: str | None
    phase: str
    model: str | None
    dtype: str | None
    bandwidths: dict[str, str | None]
    like: str | None
    form: Format


def placement(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="The run that measured the usage, or a census file.")
    ] = "latest",
    *,
    gpu_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What the GPU has, as 8GiB; without it only the sweep of budgets."),
    ] = None,
    dense_on: Annotated[
        Side,
        typer.Option(
            help="Where attention, embeddings, shared experts and all else outside the routed experts lies; on the GPU "
            "it is taken from --gpu-memory."
        ),
    ] = Side.GPU,
    kv_cache: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Taken from --gpu-memory; default: the largest that the run measured, unless --dense-on cpu.",
        ),
    ] = None,
    reserve: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Taken from --gpu-memory: driver context, activations; default: nothing."),
    ] = None,
    phase: Annotated[experts.Whose, typer.Option(help="Whose selections count.")] = experts.Whose.DECODE,
    keyword: Annotated[str | None, typer.Option("-k", metavar="TEXT", help="Only tests whose name holds this.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Take the sizes from this model's headers, also of another precision: a folder, if need be with its "
            "config alone, a GGUF file, a bundled model or a hub id; default: as the run had it in memory.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="Of --model: float32, bfloat16, float16, int8, int4; default: its own."),
    ] = None,
    cpu_bandwidth: Annotated[
        str | None, typer.Option(metavar="RATE", help="Of main memory, as 40GB/s; default: as the run probed it.")
    ] = None,
    gpu_bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="Of the GPU's memory, as 900GB/s.")] = None,
    pcie_bandwidth: Annotated[
        str | None, typer.Option(metavar="RATE", help="Of the bus: predicts copying experts to the GPU instead.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Predict rates of an engine that comes as near to its limit as this run did."),
    ] = None,
    form: Annotated[
        Format,
        offered(
            PLACEMENT,
            "terminal; json; llama.cpp and device-map (whole layers); ktransformers and experts (a line `layer expert` "
            "for each).",
        ),
    ] = Format.TERMINAL,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the census: NAME.json, or NAME.pt as SGLang and ktransformers."),
    ] = None,
    storage: Storage = None,
) -> None:
    """Plan which experts of a Mixture-of-Experts model to keep on the GPU, scored on prompts held out."""
    asked = _Asked(
        gpu_memory=gpu_memory,
        dense_on_gpu=dense_on is Side.GPU,
        kv_cache=kv_cache,
        reserve=reserve,
        phase=phase.value,
        model=model,
        dtype=dtype,
        bandwidths={"cpu": cpu_bandwidth, "gpu": gpu_bandwidth, "pcie": pcie_bandwidth},
        like=like,
        form=form,
    )
    try:
        source = experts.usage_of(run, storage, keyword)
        if source is None:
            raise typer.Exit(Exit.NOTHING.value)
        plan = _plan(source, asked, storage)
        if export is not None:
            experts.write(export, source, list(plan.sizes.experts), asked.phase)
        out(PLACEMENT[form](PlannedRun(plan=plan, source=source, file=export), screen()))
    except InferError as error:
        refuse(error)


def _plan(source: UsageSource, asked: _Asked, storage: Path | None) -> PlacementPlan:
    # Imported late, here and below: other commands and --help do not need numpy.
    from pytest_infer.analysis.experts.census import Phase  # noqa: PLC0415
    from pytest_infer.analysis.placement import planning  # noqa: PLC0415

    sizes = _sizes(source, asked)
    return planning.plan(
        [one.census for one in source.prompts],
        sizes,
        phase=Phase(asked.phase),
        memory=_memory(source, sizes, asked),
        bandwidths=_bandwidths(source, asked),
        dense_on_gpu=asked.dense_on_gpu,
        traces=[
            planning.Traced(traces=one.trace, prefill_tokens=one.census.prefill_tokens)
            for one in source.prompts
            if one.trace is not None
        ],
        reached=None if asked.like is None else reached.of_run(open_history(storage).select(asked.like)),
    )


def _bandwidths(source: UsageSource, asked: _Asked) -> Bandwidths:
    """Return those that were given, and of the side where the model ran what the run's probe measured."""
    from pytest_infer.analysis.placement.speed import Bandwidths  # noqa: PLC0415

    given = {side: units.parse_bandwidth(text, f"--{side}-bandwidth") for side, text in asked.bandwidths.items()}
    probed = {side: rate for side, rate in source.probed.items() if given[side] is None}
    return Bandwidths(**(given | probed), probed=tuple(probed))


def _sizes(source: UsageSource, asked: _Asked) -> Sizes:
    from pytest_infer.analysis.placement import sizes  # noqa: PLC0415

    if asked.model is None:
        if asked.dtype is not None:
            raise OptionError("--dtype is of a model's files: name it with --model")
        return sizes.of_run(source.sites, source.parameter_bytes, source.read_bytes, source.sizes_apart)
    from pytest_infer.analysis.doctor import weights  # noqa: PLC0415
    from pytest_infer.engines.checkpoint import source as checkpoint  # noqa: PLC0415

    held = checkpoint.find(asked.model)
    tensors = weights.tensors_of(held, weights.AUTO if asked.dtype is None else asked.dtype)
    return sizes.of_tensors(tensors, source.sites, held.name, alone=not held.tensors)


def _memory(source: UsageSource, sizes: Sizes, asked: _Asked) -> Memory | None:
    from pytest_infer.analysis.placement.planning import Memory  # noqa: PLC0415

    held_back = 0 if asked.reserve is None else units.parse_size(asked.reserve, "--reserve")
    largest = (source.kv_cache_bytes or 0) if asked.dense_on_gpu else 0
    cache = largest if asked.kv_cache is None else units.parse_size(asked.kv_cache, "--kv-cache")
    if asked.gpu_memory is None:
        of_budget = {"--kv-cache": asked.kv_cache, "--reserve": asked.reserve, "--like": asked.like}
        if given := [option for option, value in of_budget.items() if value is not None]:
            raise OptionError(f"{', '.join(given)}: of one budget: give --gpu-memory")
        return None
    memory = units.parse_size(asked.gpu_memory, "--gpu-memory")
    if asked.dense_on_gpu and sizes.dense is None:
        raise OptionError("the run does not know the size of the model: name it with --model, or give --dense-on cpu")
    dense = (sizes.dense or 0) if asked.dense_on_gpu else 0
    found = Memory(total=memory, dense=dense, kv_cache=cache, reserve=held_back)
    # A map of whole layers moves other weights as well: what it has no room for it says itself.
    if asked.form is not Format.DEVICE_MAP and found.left < min(sizes.experts):
        _refuse_too_small(found, min(sizes.experts), asked.form)
    return found


def _refuse_too_small(memory: Memory, smallest: int, form: Format) -> NoReturn:
    taken = [(memory.dense, "dense weights"), (memory.kv_cache, "KV cache"), (memory.reserve, "reserve")]
    parts = " and ".join(f"{units.size(number)} of {name}" for number, name in taken if number)
    short = f"leaves {units.size(memory.left)}" if memory.left >= 0 else f"is {units.size(-memory.left)} short"
    less = [name for number, name in ((memory.kv_cache, "--kv-cache"), (memory.reserve, "--reserve")) if number]
    remedies = ["more memory", *(["less " + " or ".join(less)] if less else [])]
    remedies += ["--dense-on cpu"] if memory.dense and form not in DENSE_ON_GPU else []
    raise OptionError(
        f"--gpu-memory {units.size(memory.total)} {short} after {parts or 'nothing'}, and one expert takes "
        f"{units.size(smallest)}: give {', or '.join(remedies)}"
    )
