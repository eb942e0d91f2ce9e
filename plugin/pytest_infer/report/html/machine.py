"""What was measured with: model, machine, its probe, and how near the suite came to its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_infer.analysis import alike
from pytest_infer.metrics import by_key
from pytest_infer.report.html import charts as drawings
from pytest_infer.report.html.parts import (
    Cell,
    Chart,
    ColumnHead,
    Item,
    Section,
    Table,
    anchor,
    head,
    percent,
    points,
    short,
)
from pytest_infer.report.html.stored import StoredRun, Test
from pytest_infer.storage.schema import Machine, Model, Probe
from pytest_infer.units import NONE, Unit, bandwidth, flops, seconds, show, size
from pytest_infer.units import percent as shown_percent

_ROOFLINE = ("mbu", "mfu")


def section(stored: StoredRun) -> Section:
    """Return models, machine and roofline of a run; of its first test where machines or a sweep's models differ."""
    if not stored.measured:
        return Section(key="machine", title="Machine and roofline", absent=stored.nothing)
    test = stored.measured[0]
    machine, probe = test.block.machine, test.block.machine.probe
    models: dict[str, Model] = {}
    for tests, words in alike.tables(stored.measured):
        models.setdefault("".join(f" · {word}" for word in words), tests[0].model)
    tables = [_facts(f"Model and engine{name}", _model(model)) for name, model in models.items()]
    tables.append(_facts("Machine", _machine(machine)))
    if probe is not None:
        tables.append(_facts("What the machine was probed to do", _probe(probe)))
    cores = drawings.cores(stored.tests, stored.sidecar[0])
    items = [
        *([_roofline(stored.tests, probe)] if stored.tests else []),
        *([Item(charts=(cores,))] if cores is not None else []),
        Item(title="What was measured with", tables=tuple(tables), beside=True),
    ]
    return Section(key="machine", title="Machine and roofline", items=tuple(items))


def _facts(caption: str, facts: Mapping[str, Any]) -> Table:
    rows = tuple((Cell(text=name), Cell(text=str(value))) for name, value in facts.items() if value not in (None, ""))
    return Table(
        caption=caption, heads=(ColumnHead(text="", number=False), ColumnHead(text="", number=False)), rows=rows
    )


def _model(model: Model) -> dict[str, Any]:
    parameters, load_s = model.parameters, model.load_s
    return {
        "name": model.name,
        "source": model.source,
        "revision": model.revision,
        "architecture": model.architecture,
        "parameters": None if parameters is None else f"{parameters:,}",
        "size in memory": _size(model.parameter_bytes),
        "dtype": model.dtype,
        "quantisation": model.quantization,
        "device": model.device,
        "engine": model.engine,
        "engine's arguments": model.engine_args,
        "threads": model.threads,
        "attention": model.attention,
        "experts implementation": model.experts_implementation,
        "context length": _tokens(model.context_length),
        "vocabulary": _tokens(model.vocabulary),
        "loading time": None if load_s is None else seconds(load_s),
        "read from the device while loading": _size(model.load_read_bytes),
        "generation": ", ".join(f"{key} = {value}" for key, value in (model.generation or {}).items()),
        "weights' SHA-256": model.weights_sha256,
        **{f"{name} version": version for name, version in (model.versions or {}).items()},
    }


def _machine(machine: Machine) -> dict[str, Any]:
    cores = machine.usable_cores
    return {
        "CPU": machine.cpu,
        "usable cores": None if cores is None else f"{cores:g}",
        "logical / physical cores": " / ".join(
            NONE if number is None else str(number) for number in (machine.logical_cores, machine.physical_cores)
        ),
        "container's quota of cores": machine.quota_cores,
        "memory": _size(machine.memory_bytes),
        "memory that the process may use": _size(machine.memory_limit_bytes),
        "accelerators": None if machine.accelerators is None else ", ".join(machine.accelerators) or "none",
        "cards": ", ".join(f"{name} {value}" for name, value in (machine.card_settings or {}).items()),
        "system": " ".join(part or "" for part in (machine.system, machine.kernel, machine.architecture)),
        "Python": machine.python,
        "virtualisation": machine.virtualization,
        "governor": machine.governor,
        "huge pages": machine.huge_pages,
        "environment": ", ".join(f"{name}={value}" for name, value in (machine.environment or {}).items()),
        "not known in full": "; ".join(f"{name}: {reason}" for name, reason in (machine.unread or {}).items()),
        "granted": ", ".join(f"{name} {value}" for name, value in (machine.scheduling or {}).items()),
    }


def _probe(probe: Probe) -> dict[str, Any]:
    read = probe.read_bandwidth
    spread = "" if probe.read_bandwidth_spread is None else f" ± {shown_percent(100 * probe.read_bandwidth_spread)}"
    return {
        "threads": probe.threads,
        "read bandwidth": None if read is None else f"{bandwidth(read)}{spread}",
        **{f"GEMM rate, {dtype}": flops(rate) for dtype, rate in (probe.flops or {}).items()},
        "caches": ", ".join(f"{name} {size(held)}" for name, held in (probe.caches or {}).items()),
        "instructions": ", ".join(probe.instructions or ()),
        "device": probe.device,
    }


def _size(value: int | None) -> str | None:
    return None if value is None else size(value)


def _tokens(value: int | None) -> str | None:
    return None if value is None else f"{value:,} tokens"


def _roofline(tests: Sequence[Test], probe: Probe | None) -> Item:
    shown = [test for test in tests if any(test.value(key) is not None for key in _ROOFLINE)]
    if not shown:
        why = next((reason for test in tests if (reason := test.absent("mbu"))), None)
        return Item(
            title="Roofline", text=(f"No utilisation of the machine's limits: {why or 'this run did not measure it'}.",)
        )
    spread = None if probe is None else probe.read_bandwidth_spread
    doubt = f", whose bandwidth is known to ± {shown_percent(100 * spread)}" if spread else ""
    chart = Chart(
        key="roofline",
        title="Roofline: how much of the machine's limits is used, %",
        says=(
            f"Decode against the memory's bandwidth (MBU), prefill against the GEMM rate (MFU){doubt}. "
            "100 % is the limit."
        ),
        data={
            "kind": "dots",
            "unit": "%",
            "names": [test.title for test in shown],
            "least": 0,
            "series": [_series(shown, key) for key in _ROOFLINE],
        },
        table=_table(shown),
        define=tuple((by_key(key).label, anchor(key)) for key in _ROOFLINE),
    )
    return Item(charts=(chart,))


def _series(tests: Sequence[Test], key: str) -> dict[str, Any]:
    ends = [_ends(test, key) for test in tests]
    return {
        "name": {"mbu": "decode, MBU", "mfu": "prefill, MFU"}[key],
        "values": points([test.value(key) for test in tests], 0.01),
        "low": points([low for low, _ in ends], 0.01),
        "high": points([high for _, high in ends], 0.01),
    }


def _ends(test: Test, key: str) -> tuple[float | None, float | None]:
    """Return the least and the most of the rounds."""
    rounds = test.row.metrics[key].numbers if key in test.row.metrics else ()
    return min(rounds, default=None), max(rounds, default=None)


def _rounds(test: Test, key: str) -> str:
    low, high = _ends(test, key)
    return NONE if test.value(key) is None or low == high else f"{percent(low)}–{percent(high)}"


def _table(tests: Sequence[Test]) -> Table:
    ceilings = [test.value("decode_ceiling") for test in tests]
    rows = []
    for test, ceiling in zip(tests, ceilings, strict=True):
        figures = (
            Cell(text=percent(test.value("mbu")), note=test.absent("mbu")),
            Cell(text=_rounds(test, "mbu")),
            Cell(text=short(test.value("decode_throughput"))),
            Cell(text=short(ceiling)),
            Cell(text=show(test.value("step_bytes"), Unit.BYTES), sort=test.value("step_bytes")),
            Cell(text=percent(test.value("mfu")), note=test.absent("mfu")),
            Cell(text=_rounds(test, "mfu")),
        )
        rows.append((Cell(text=test.title, link=test.key), *figures))
    heads = (
        ColumnHead(text="prompt", number=False),
        ColumnHead(text="MBU", unit="%", define=anchor("mbu")),
        ColumnHead(text="of rounds", unit="%"),
        head(by_key("decode_throughput")),
        head(by_key("decode_ceiling")),
        ColumnHead(text=by_key("step_bytes").label, define=anchor("step_bytes")),
        ColumnHead(text="prefill MFU", unit="%", define=anchor("mfu")),
        ColumnHead(text="of rounds", unit="%"),
    )
    return Table(caption="Utilisation of the machine's limits", heads=heads, rows=tuple(rows))
