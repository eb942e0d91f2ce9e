"""What -v adds to the table: the model, the machine and its limits, and all experts that stand out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from pytest_infer.analysis.suite import averages
from pytest_infer.metrics import by_key, loading
from pytest_infer.metrics.result import Result
from pytest_infer.records import Average, CacheState, ModelInfo
from pytest_infer.report import surroundings
from pytest_infer.report.show import experts, roofline, table
from pytest_infer.report.text import printable
from pytest_infer.units import Unit, show, significant


def write(console: Console, results: Sequence[Result]) -> None:
    """Write what concerns all prompts of a model."""
    for line in _lines(results):
        console.print(Text(printable(line), style="dim"))
    for text in experts.lines(results, width=console.width, drawn=True):
        console.print(text)


def _lines(results: Sequence[Result]) -> Iterator[str]:
    suite = averages((result.figures for result in results), table.brief())
    if len(results) > 1:
        yield f"sd between prompts: {' · '.join(_deviations(suite))}"
    model = results[0].model
    if found := list(_model(model)):
        yield " · ".join(found)
    for line in (
        roofline.machine_line(results[0].machine, model.dtype),
        roofline.limit_line(results),
        roofline.memory_line(results),
    ):
        if line is not None:
            yield line


def _deviations(suite: Mapping[str, Average]) -> Iterator[str]:
    for key, average in suite.items():
        if average.stdev is not None:
            yield f"{by_key(key).label} {show(average.stdev, by_key(key).unit)}"


def _model(model: ModelInfo) -> Iterator[str]:
    if model.parameters is not None:
        yield f"{significant(model.parameters / 1e6)} M parameters"
    if model.experts_implementation is not None:
        yield model.experts_implementation
    if model.load_s is not None:
        yield f"loaded in {show(model.load_s, Unit.SECONDS)}{_cache(model)}"


def _cache(model: ModelInfo) -> str:
    """Return from where the model's files came, as far as it is known."""
    state = None if model.load is None else loading.state(model.load.cached)
    if state is None or model.load is None:
        return ""
    if state is not CacheState.MIXED:
        return f" ({state.value})"
    return f" ({show(loading.cached_percent(model.load).value, Unit.PERCENT)} cached)"


def write_machine(console: Console, results: Sequence[Result]) -> None:
    """Write what is unusual about the surroundings, and why something is not known."""
    lines = dict.fromkeys(surroundings.line(r.machine.environment, r.machine.scheduling) for r in results)
    lines |= dict.fromkeys(
        f"no probe of the machine: {r.machine.probe_absent}" for r in results if r.machine.probe_absent
    )
    lines |= dict.fromkeys(f"no expert usage: {r.experts_absent}" for r in results if r.experts_absent)
    for line in lines:
        if line is not None:
            console.print(Text(printable(line), style="dim"))
