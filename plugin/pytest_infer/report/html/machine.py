"""What was measured with: model, machine, its probe, and how near the suite came to its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_infer.metrics import by_key
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
from pytest_infer.units import NONE, Unit, bandwidth, flops, seconds, show, size
from pytest_infer.units import percent as shown_percent

_ROOFLINE = ("mbu", "mfu")


def section(stored: StoredRun) -> Section:
    """Return model, machine and roofline of a run, of its first test where they differ."""
    if not stored.tests:
        return Section(key="machine", title="Machine and roofline", absent=stored.nothing)
    test = stored.tests[0]
    machine, model = test.part("machine") or {}, test.part("model") or {}
    probe = machine.get("probe")
    tables = [_facts("Model and engine", _model(model)), _facts("Machine", _machine(machine))]
    if isinstance(probe, Mapping):
        tables.append(_facts("What the machine was probed to do", _probe(probe)))
    items = [_roofline(stored.tests, probe), Item(title="What was measured with", tables=tuple(tables), beside=True)]
    return Section(key="machine", title="Machine and roofline", items=tuple(items))


def _facts(caption: str, facts: Mapping[str, Any]) -> Table:
    rows = tuple((Cell(text=name), Cell(text=str(value))) for name, value in facts.items() if value not in (None, ""))
    return Table(
        caption=caption, heads=(ColumnHead(text="", number=False), ColumnHead(text="", number=False)), rows=rows
    )


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    versions = model.get("versions") or {}
    parameters, load_s = model.get("parameters"), model.get("load_s")
    return {
        "name": model.get("name"),
        "source": model.get("source"),
        "revision": model.get("revision"),
        "architecture": model.get("architecture"),
        "parameters": None if parameters is None else f"{parameters:,}",
        "size in memory": _size(model.get("parameter_bytes")),
        "dtype": model.get("dtype"),
        "device": model.get("device"),
        "engine": model.get("engine"),
        "threads": model.get("threads"),
        "attention": model.get("attention"),
        "experts implementation": model.get("experts_implementation"),
        "context length": _tokens(model.get("context_length")),
        "vocabulary": _tokens(model.get("vocabulary")),
        "load time": None if load_s is None else seconds(load_s),
        "read from the device to load": _size(model.get("load_read_bytes")),
        "generation": ", ".join(f"{key} = {value}" for key, value in (model.get("generation") or {}).items()),
        "weights' SHA-256": model.get("weights_sha256"),
        **{f"{name} version": version for name, version in versions.items()},
    }


def _machine(machine: Mapping[str, Any]) -> dict[str, Any]:
    cores = machine.get("usable_cores")
    return {
        "CPU": machine.get("cpu"),
        "usable cores": None if cores is None else f"{cores:g}",
        "logical / physical cores": " / ".join(
            str(machine.get(key, NONE)) for key in ("logical_cores", "physical_cores")
        ),
        "container's quota of cores": machine.get("quota_cores"),
        "memory": _size(machine.get("memory_bytes")),
        "memory that the process may use": _size(machine.get("memory_limit_bytes")),
        "accelerators": ", ".join(map(str, machine.get("accelerators") or ())) or "none",
        "system": " ".join(str(machine.get(key, "")) for key in ("system", "kernel", "architecture")),
        "Python": machine.get("python"),
        "virtualisation": machine.get("virtualization"),
        "governor": machine.get("governor"),
    }


def _probe(probe: Mapping[str, Any]) -> dict[str, Any]:
    spread, read = probe.get("read_bandwidth_spread"), probe.get("read_bandwidth")
    caches = probe.get("caches") or {}
    return {
        "threads": probe.get("threads"),
        "read bandwidth": None if read is None else f"{bandwidth(read)} ± {shown_percent(100 * (spread or 0))}",
        **{f"GEMM rate, {dtype}": flops(rate) for dtype, rate in (probe.get("flops") or {}).items()},
        "caches": ", ".join(f"{name} {size(held)}" for name, held in caches.items()),
        "instructions": ", ".join(map(str, probe.get("instructions") or ())),
        "device": probe.get("device"),
    }


def _size(value: Any) -> str | None:
    return size(value) if isinstance(value, int | float) else None


def _tokens(value: Any) -> str | None:
    return f"{value:,} tokens" if isinstance(value, int) else None


def _roofline(tests: Sequence[Test], probe: Any) -> Item:
    shown = [test for test in tests if any(test.value(key) is not None for key in _ROOFLINE)]
    if not shown:
        why = next((str(reason) for test in tests if (reason := test.part("absent", "mbu"))), None)
        return Item(
            title="Roofline", text=(f"No utilisation of the machine's limits: {why or 'this run did not measure it'}.",)
        )
    spread = probe.get("read_bandwidth_spread") if isinstance(probe, Mapping) else None
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
    rounds = [test.row.metrics[key].numbers if key in test.row.metrics else () for test in tests]
    return {
        "name": {"mbu": "decode, MBU", "mfu": "prefill, MFU"}[key],
        "values": points([test.value(key) for test in tests], 0.01),
        "low": points([min(r, default=None) for r in rounds], 0.01),
        "high": points([max(r, default=None) for r in rounds], 0.01),
    }


def _table(tests: Sequence[Test]) -> Table:
    ceilings = [test.value("decode_ceiling") for test in tests]
    rows = []
    for test, ceiling in zip(tests, ceilings, strict=True):
        figures = (
            Cell(text=percent(test.value("mbu")), note=test.part("absent", "mbu")),
            Cell(text=short(test.value("decode_throughput"))),
            Cell(text=short(ceiling)),
            Cell(text=show(test.value("step_bytes"), Unit.BYTES)),
            Cell(text=percent(test.value("mfu")), note=test.part("absent", "mfu")),
        )
        rows.append((Cell(text=test.title, link=test.key), *figures))
    heads = (
        ColumnHead(text="prompt", number=False),
        ColumnHead(text="MBU", unit="%", define=anchor("mbu")),
        head(by_key("decode_throughput")),
        head(by_key("decode_ceiling")),
        ColumnHead(text=by_key("step_bytes").label, define=anchor("step_bytes")),
        ColumnHead(text="prefill MFU", unit="%", define=anchor("mfu")),
    )
    return Table(caption="Utilisation of the machine's limits", heads=heads, rows=tuple(rows))
