"""`pytest-infer placement`: which experts to keep on the GPU, from the usage that a run measured."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pytest_infer import units, untrusted
from pytest_infer.analysis.experts import recorded
from pytest_infer.cli import experts
from pytest_infer.cli.shared import Storage, offered, open_history, out, refuse, screen
from pytest_infer.engines import models
from pytest_infer.errors import InferError, OptionError, StorageError
from pytest_infer.report.formats import PLACEMENT, Format
from pytest_infer.report.placement import exports
from pytest_infer.report.views import PlannedRun
from pytest_infer.storage.runs import Row

if TYPE_CHECKING:
    from pytest_infer.analysis.experts.census import Census
    from pytest_infer.analysis.placement.planning import Memory
    from pytest_infer.analysis.placement.sizes import Sizes

_KV_CACHE = "kv_cache_bytes"


class Side(StrEnum):
    """Where the weights outside the experts lie."""

    GPU = "gpu"
    CPU = "cpu"


def placement(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run that measured the usage.")] = "latest",
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
        str, typer.Option(metavar="SIZE", help="Taken from --gpu-memory: driver context, activations.")
    ] = "0B",
    phase: Annotated[experts.Whose, typer.Option(help="Whose selections count.")] = experts.Whose.DECODE,
    keyword: Annotated[str | None, typer.Option("-k", metavar="TEXT", help="Only tests whose name holds this.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Take the sizes from this model's safetensors headers, also of another precision; default: as the run "
            "had it in memory.",
        ),
    ] = None,
    cpu_bandwidth: Annotated[
        str | None, typer.Option(metavar="RATE", help="Of main memory, as 40GB/s; default: as the run probed it.")
    ] = None,
    gpu_bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="Of the GPU's memory, as 900GB/s.")] = None,
    pcie_bandwidth: Annotated[
        str | None, typer.Option(metavar="RATE", help="Of the bus: predicts copying experts to the GPU instead.")
    ] = None,
    form: Annotated[
        Format,
        offered(
            PLACEMENT,
            "terminal; json; llama.cpp and device-map (whole layers); experts (a line `layer expert` for each).",
        ),
    ] = Format.TERMINAL,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the census as JSON: counts an expert.")
    ] = None,
    storage: Storage = None,
) -> None:
    """Plan which experts of a Mixture-of-Experts model to keep on the GPU, scored on prompts held out."""
    # Imported late, here and below: other commands and --help do not need numpy.
    from pytest_infer.analysis.experts.census import Phase  # noqa: PLC0415
    from pytest_infer.analysis.placement import planning  # noqa: PLC0415
    from pytest_infer.analysis.placement.speed import Bandwidths  # noqa: PLC0415

    try:
        chosen = open_history(storage).select(run)
        rows = experts.rows_of(chosen, keyword)
        if not rows:
            raise StorageError(recorded.why_nothing(chosen, keyword))
        prompts = recorded.prompts_of(chosen, rows)
        sizes = _sizes(prompts[0].census, rows[0], model)
        given = {
            "cpu": units.parse_bandwidth(cpu_bandwidth, "--cpu-bandwidth"),
            "gpu": units.parse_bandwidth(gpu_bandwidth, "--gpu-bandwidth"),
            "pcie": units.parse_bandwidth(pcie_bandwidth, "--pcie-bandwidth"),
        }
        probed = {side: rate for side, rate in _probed(rows).items() if given[side] is None}
        bandwidths = Bandwidths(**(given | probed), probed=tuple(probed))
        found = planning.plan(
            recorded.distinct(rows, prompts),
            sizes,
            phase=Phase(phase.value),
            memory=_memory(gpu_memory, rows, sizes, kv_cache, reserve, dense_on_gpu=dense_on is Side.GPU),
            bandwidths=bandwidths,
            dense_on_gpu=dense_on is Side.GPU,
            traces=[
                planning.Traced(traces=one.trace, prefill_tokens=one.census.prefill_tokens)
                for one in prompts
                if one.trace is not None
            ],
        )
        name = rows[0].model.name
        if export is not None:
            _write(export, exports.census(found.census, sizes.experts, run=chosen.label, model=name))
        out(PLACEMENT[form](PlannedRun(plan=found, run=chosen, model=name), screen()))
    except InferError as error:
        refuse(error)


def _probed(rows: Sequence[Row]) -> dict[str, float]:
    """Return the memory bandwidth that the run's probe measured on the side where the model ran, bytes/s."""
    for row in rows:
        probe = row.machine.probe
        if probe is not None and probe.read_bandwidth is not None:
            return {"cpu" if (probe.device or "cpu").startswith("cpu") else "gpu": probe.read_bandwidth}
    return {}


def _sizes(of: Census, row: Row, model: str | None) -> Sizes:
    from pytest_infer.analysis.placement import sizes  # noqa: PLC0415

    if model is None:
        work = row.model.work
        return sizes.of_run(of.sites, row.model.parameter_bytes, None if work is None else work.read_bytes)
    from pytest_infer.engines.checkpoint import tensors  # noqa: PLC0415

    folder: Path | None = Path(model)
    if not untrusted.is_dir(Path(model)):
        source = models.resolve(model, lambda line: typer.echo(line, err=True))
        folder = models.local_folder(source, None)
    if folder is None:
        raise OptionError(f"--model {model}: not in the hub's cache; fetch it, or name a folder")
    return sizes.of_tensors(tensors.of_folder(folder), of.sites, folder.name or str(folder))


def _memory(
    total: str | None, rows: Sequence[Row], sizes: Sizes, kv_cache: str | None, reserve: str, *, dense_on_gpu: bool
) -> Memory | None:
    from pytest_infer.analysis.placement.planning import Memory  # noqa: PLC0415

    held_back = units.parse_size(reserve, "--reserve")
    measured = [row.metrics[_KV_CACHE].value for row in rows if _KV_CACHE in row.metrics]
    largest = max((int(value) for value in measured if not isinstance(value, str)), default=0)
    cache = (largest if dense_on_gpu else 0) if kv_cache is None else units.parse_size(kv_cache, "--kv-cache")
    if total is None:
        return None
    memory = units.parse_size(total, "--gpu-memory")
    if dense_on_gpu and sizes.dense is None:
        raise OptionError("the run does not know the size of the model: name it with --model, or give --dense-on cpu")
    return Memory(total=memory, dense=(sizes.dense or 0) if dense_on_gpu else 0, kv_cache=cache, reserve=held_back)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptionError(f"--export {path}: {error.strerror}") from error
