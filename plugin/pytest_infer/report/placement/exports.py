"""A plan of experts in the forms that programs read: JSON, llama.cpp's options, a device_map, a plain list."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_infer.errors import OptionError
from pytest_infer.units import rate, size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pytest_infer.analysis.experts.source import UsageSource
    from pytest_infer.analysis.placement.heldout import HeldOut
    from pytest_infer.analysis.placement.planning import BudgetRow, Memory, PlacementPlan
    from pytest_infer.analysis.placement.speed import Speed

    Remark = Callable[[str], None]

SCHEMA = 1
_TENSORS = r"ffn_(up|down|gate|gate_up)_(ch|)exps"
"""The experts' tensors by llama.cpp's own pattern, LLM_FFN_EXPS_REGEX of its common/common.h."""


def census(source: UsageSource, expert_bytes: Sequence[int | None]) -> str:
    """Return a census that `experts` and `placement` take for a run, as JSON: counts by prompt, site and slot.

    `experts` has an object an expert over all prompts, by layer and number, for other tools: `share` is of its layer's
    selections in prefill and decode together; slots without weights have 0 `bytes`.
    """
    from pytest_infer.analysis.experts import census as taking  # noqa: PLC0415
    from pytest_infer.analysis.experts import source as usage  # noqa: PLC0415

    of = taking.merged([one.census for one in source.prompts])
    rows = []
    for site, held, prefill, decode in zip(of.sites, expert_bytes, of.prefill, of.decode, strict=True):
        total = int(prefill.sum() + decode.sum())
        rows += [
            {
                "layer": site.layer,
                "site": site.name,
                "expert": number,
                "prefill": int(a),
                "decode": int(b),
                "share": round(int(a + b) / total, 6) if total else 0.0,
                "bytes": held or 0 if number < site.experts else 0,
            }
            for number, (a, b) in enumerate(zip(prefill, decode, strict=True))
        ]
    file = usage.CensusFile(
        schema=usage.SCHEMA,
        sites=source.sites,
        prompts=tuple(map(usage.carried, source.prompts)),
        run=source.label,
        model=source.model,
        parameter_bytes=source.parameter_bytes,
        read_bytes=source.read_bytes,
        kv_cache_bytes=source.kv_cache_bytes,
    )
    tokens = {"prefill": of.prefill_tokens, "decode": of.decode_tokens}
    # On a line each, as JSON with an indent has one for each number.
    parts = {**msgspec.to_builtins(file), "tokens": tokens, "experts": rows}
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {_lines(value)}" for key, value in parts.items()) + "\n}\n"


def _lines(value: object) -> str:
    if not isinstance(value, list):
        return json.dumps(value)
    return "[\n" + ",\n".join(f"  {json.dumps(one)}" for one in value) + "\n ]"


def as_json(plan: PlacementPlan, *, run: str, model: str | None) -> str:
    """Return everything that the terminal shows, and which experts lie on the GPU, as JSON."""
    return _json({
        "schema": SCHEMA,
        "run": run,
        "model": model,
        "phase": plan.phase.value,
        "prompts": plan.prompts,
        "traced_prompts": plan.traced,
        "sizes": {
            "source": plan.sizes.source,
            "expert_bytes": list(plan.sizes.experts),
            "experts_bytes": plan.experts.total,
            "dense_bytes": plan.sizes.dense,
            "dense_read_bytes": plan.sizes.read,
        },
        "gpu_memory": None if plan.memory is None else {
            "total": plan.memory.total,
            "dense": plan.memory.dense,
            "kv_cache": plan.memory.kv_cache,
            "reserve": plan.memory.reserve,
            "left": plan.memory.left,
        },
        "bandwidths": {
            "cpu": plan.bandwidths.cpu,
            "gpu": plan.bandwidths.gpu,
            "pcie": plan.bandwidths.pcie,
            "probed": plan.bandwidths.probed,
        },
        "chosen": None if plan.chosen is None else _row(plan.chosen),
        "decode_likely": plan.likely(),
        "gpu": [{"layer": layer, "expert": expert} for layer, expert in plan.on_gpu()],
        "sweep": [_row(row) for row in plan.sweep],
    })  # fmt: skip


def _row(row: BudgetRow) -> dict[str, Any]:
    served, speed = row.expected, row.speed
    return {
        "budget_bytes": row.budget,
        "experts": row.held,
        "in_sample": dict(row.in_sample),
        "held_out": _held_out(row.held_out),
        "bound": row.bound,
        "cpu_bytes_per_token": None if served is None else served.cpu_bytes,
        "gpu_bytes_per_token": None if served is None else served.gpu_bytes,
        "decode_throughput": None if speed is None else {
            "in_turns": speed.in_turns,
            "at_once": speed.at_once,
            "streamed": speed.streamed,
            "in_turns_range": _range(row),
        },
        "cache_slots_per_layer": row.slots,
        "lru": row.lru,
        "lfu": row.lfu,
    }  # fmt: skip


def _range(row: BudgetRow) -> list[float] | None:
    found = [speed.in_turns for speed in (row.slowest, row.fastest) if speed is not None and speed.in_turns is not None]
    return found or None


def _held_out(scores: Mapping[str, HeldOut | None]) -> dict[str, dict[str, float] | None]:
    return {
        name: None if one is None else {"mean": one.mean, "low": one.low, "high": one.high}
        for name, one in scores.items()
    }


def expert_list(plan: PlacementPlan, remark: Remark) -> str:
    """Return a line `layer expert` for each expert on the GPU, the most selected first.

    Raises:
        OptionError: a layer has several places with experts, which such a line cannot tell apart; no budget is chosen.
    """
    _, row = _chosen(plan, "experts")
    layers = [site.layer for site in plan.census.sites]
    if len(set(layers)) < len(layers):
        raise OptionError(
            "this model has several sets of experts in a layer, which a plain list cannot name: take json"
        )
    remark(f"{row.held} of {len(plan.experts.bytes)} experts, {_percent(row.likely('frequency'))} of expert reads")
    return "".join(f"{layer} {expert}\n" for layer, expert in plan.on_gpu())


def llama_cpp(plan: PlacementPlan, remark: Remark) -> str:
    r"""Return llama.cpp's options for the split by whole layers, quoted for a shell, on one line.

    `--n-cpu-moe N` where the experts of the first layers stay on the CPU, as they do where layers are equal. Else
    `--override-tensor` takes a regular expression that is searched in the tensors' names, and the buffer that those it
    is found in go to; `blk\.3\.` cannot be found in `blk.13.`. All else goes to the GPU by `-ngl`.
    Raises OptionError where no budget is chosen, or the plan puts other weights on the CPU.
    """
    _, row = _chosen(plan, "llama.cpp")
    _check_dense(plan, "llama.cpp")
    layers, every = plan.layers_on_cpu(), sorted({site.layer for site in plan.census.sites})
    remark(
        f"experts of {len(every) - len(layers)} of {len(every)} layers on the GPU, "
        f"{_percent(row.in_sample['whole layers'])} of expert reads{_rate(plan.whole_speed)}; split by expert, which "
        f"llama.cpp cannot, it would be {_percent(row.likely('frequency'))}{_rate(row.speed)}"
    )
    everything = "--n-gpu-layers 999"
    if not layers:
        return everything + "\n"
    if layers == every:
        return f"{everything} --cpu-moe\n"
    if layers == every[: len(layers)]:
        return f"{everything} --n-cpu-moe {layers[-1] + 1}\n"
    return f"{everything} --override-tensor '{pattern(layers)}=CPU'\n"


def pattern(layers: list[int]) -> str:
    """Return the expression that is found in the names of the experts' tensors of these layers in a GGUF file."""
    return rf"blk\.({'|'.join(map(str, layers))})\.{_TENSORS}"


def ktransformers(plan: PlacementPlan, file: Path | None, remark: Remark) -> str:
    """Return the options of ktransformers' SGLang for the split by expert; `file` is where the counts it reads are.

    `--kt-gpu-experts-ratio` is of all experts of the model; the most selected ones of all layers are taken
    (doc/en/kt-kernel/experts-sched-Tutorial.md of ktransformers).
    Raises OptionError where no budget is chosen, the plan puts other weights on the CPU, or there is no such file.
    """
    _, row = _chosen(plan, "ktransformers")
    _check_dense(plan, "ktransformers")
    if file is None or file.suffix != ".pt":
        raise OptionError("--format ktransformers needs the counts in a file of their own: give --export NAME.pt")
    total = len(plan.experts.bytes)
    remark(
        f"{row.held} of {total} experts on the GPU, {_percent(row.likely('frequency'))} of expert reads"
        f"{_rate(row.speed)}; "
        f"{file} has the counts that `frequency` places them by"
    )
    return (
        f"--kt-expert-placement-strategy frequency --init-expert-location {shlex.quote(str(file))} "
        f"--kt-gpu-experts-ratio {plan.held_ratio:.6g}\n"
    )


def device_map(plan: PlacementPlan, remark: Remark) -> str:
    """Return the mapping for `from_pretrained(device_map=…)` as JSON.

    Raises OptionError where no budget is chosen, the plan puts other weights on the CPU, or no such map can be made.
    """
    # Imported late: other commands and --help need no numpy.
    from pytest_infer.analysis.placement.device_map import split  # noqa: PLC0415

    memory = _chosen(plan, "device-map")[0]
    _check_dense(plan, "device-map")
    found = split(plan.census.sites, plan.sizes, memory.total - memory.kv_cache - memory.reserve)
    remark(
        f"{found.gpu_layers} of {found.layers} whole layers on the GPU ({size(found.gpu_bytes)}); each forward copies "
        f"the others to it, all experts included: {size(found.copied_bytes)}"
    )
    return _json(found.devices)


def _rate(speed: Speed | None) -> str:
    """Return the rate that is predicted at most, for an engine that works in turns; nothing where none is known."""
    return "" if speed is None or speed.in_turns is None else f", at most {rate(speed.in_turns)}"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"


def _chosen(plan: PlacementPlan, form: str) -> tuple[Memory, BudgetRow]:
    if plan.memory is None or plan.chosen is None:
        raise OptionError(f"--format {form} is for one budget: give --gpu-memory")
    return plan.memory, plan.chosen


def _check_dense(plan: PlacementPlan, form: str) -> None:
    if not plan.dense_on_gpu:
        raise OptionError(f"--format {form} puts all other weights on the GPU: leave out --dense-on cpu")


def _json(content: object) -> str:
    return json.dumps(content, indent=1) + "\n"
