"""Expert usage that moved between two runs, as text and as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from pytest_infer.report import text
from pytest_infer.report.text import printable

if TYPE_CHECKING:
    from pytest_infer.analysis.experts.drift import LayerDrift

_MOST_LAYERS = 3


def render(runs: Sequence[tuple[str, Mapping[str, Sequence[LayerDrift]]]], *, width: int, color: bool) -> str:
    """Return what moved in each run, given with its label, in at most `width` columns; labels only for several."""
    console = text.console(width, color=color)
    for label, moved in runs:
        for number, line in enumerate(lines(moved, label if len(runs) > 1 else None)):
            console.print(Text(line, style="" if number else "bold"))
    return text.collected(console)


def lines(moved: Mapping[str, Sequence[LayerDrift]], run: str | None = None) -> list[str]:
    """Return a heading and a line per prompt whose experts moved, the most moved layers first; nothing if none did."""
    found = []
    for name, layers in moved.items():
        worst = [layer for layer in layers if layer.distance > 0]
        if worst:
            more = f", and {len(worst) - _MOST_LAYERS} more layers" if len(worst) > _MOST_LAYERS else ""
            found.append(f"  {printable(name)}: {', '.join(map(_layer, worst[:_MOST_LAYERS]))}{more}")
    where = f" in {printable(run)}" if run is not None else ""
    return [f"expert usage moved{where} (share of selections that went elsewhere)", *found] if found else []


def _layer(layer: LayerDrift) -> str:
    experts = ", ".join(f"E{m.expert} {100 * m.before:.0f} → {100 * m.after:.0f} %" for m in layer.moved)
    return f"layer {layer.layer} {100 * layer.distance:.1f} % ({experts})"


def flat(moved: Mapping[str, Sequence[LayerDrift]]) -> dict[str, list[dict[str, Any]]]:
    """Return the distance of each layer of each prompt as data, the most moved first."""
    return {
        name: [
            {
                "layer": layer.layer,
                "site": layer.site,
                "distance": layer.distance,
                "experts": [{"expert": m.expert, "before": m.before, "after": m.after} for m in layer.moved],
            }
            for layer in layers
        ]
        for name, layers in moved.items()
    }
