"""Experts as a map in a terminal: a row a layer, a cell an expert, shaded by how often it is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

_LEVELS = ((2.0, "█", "red"), (1.25, "▓", "yellow"), (0.75, "▒", ""), (0.0, "░", "blue"))
"""From which multiple of the fair share on a cell has which shade; colour only repeats what the shade says."""
_NEVER = ("·", "dim")
LEGEND = "█ 2 times the fair share or more  ▓ 1¼ or more  ▒ about fair  ░ under ¾  · never"
_CELL = 6
"""Columns of a cell that has room for its percentage: " ▓  33"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A row: selections of each slot, of which the first `experts` are shown."""

    title: str
    counts: Sequence[int]
    experts: int


def lines(layers: Sequence[Layer], width: int) -> list[Text]:
    """Return the map in at most `width` columns, the legend last.

    Where there is room each cell has its percentage of the layer's selections. Where experts are more than columns,
    each layer's are put in the order of their use, and a cell is the mean of several.
    """
    label = max((len(layer.title) for layer in layers), default=0) + 1
    widest = max((layer.experts for layer in layers), default=0)
    room = max(8, width - label)
    numbered = widest * _CELL <= room
    together = -(-widest // room)
    found = [_head(label, widest, together, numbered=numbered)]
    for layer in layers:
        line = Text(f"{layer.title:<{label}}")
        for text, style in _numbered(layer) if numbered else _shaded(layer, together):
            line.append(text, style=style)
        found.append(line)
    found += [Text(part, style="dim") for part in _folded(_legend(numbered, together), width)]
    return found


def _legend(numbered: bool, together: int) -> str:
    if numbered:
        return f"{LEGEND}  (figures: % of the layer's selections)"
    return LEGEND + (f"  (in the order of use, {together} experts a cell)" if together > 1 else "")


def _folded(text: str, width: int) -> list[str]:
    """Return the legend in lines; its entries, which two spaces part, stay whole where they can."""
    found = [""]
    for part in text.split("  "):
        joined = f"{found[-1]}  {part}" if found[-1] else part
        if len(joined) <= width or not found[-1]:
            found[-1] = joined
        else:
            found.append(part)
    return found


def _head(label: int, experts: int, together: int, *, numbered: bool) -> Text:
    """Return the line of expert numbers: each, or the first of every eight cells; ranks where they are in order."""
    if numbered:
        return Text(" " * label + "".join(f"{f'E{n}':>{_CELL}}" for n in range(experts)), style="bold")
    cells = -(-experts // together)
    name = "E" if together == 1 else "#"
    marks = "".join(f"{f'{name}{n * together + (together > 1)}':<8}" for n in range(0, cells, 8))
    return Text(" " * label + marks[: max(cells, 8)].rstrip(), style="bold")


def shade(ratio: float) -> tuple[str, str]:
    """Return the character and the style of so many times the fair share."""
    if ratio <= 0:
        return _NEVER
    return next((character, style) for least, character, style in _LEVELS if ratio >= least)


def _ratios(layer: Layer) -> list[float]:
    own = layer.counts[: layer.experts]
    total = sum(own)
    return [n * len(own) / total if total else 0.0 for n in own]


def _numbered(layer: Layer) -> list[tuple[str, str]]:
    total = max(1, sum(layer.counts))
    found = []
    for times, ratio in zip(layer.counts, _ratios(layer), strict=False):
        character, style = shade(ratio)
        found.append((f"{character:>2}{100 * times / total:4.0f}", style))
    return found


def _shaded(layer: Layer, together: int) -> list[tuple[str, str]]:
    ratios = _ratios(layer)
    if together > 1:
        ratios.sort(reverse=True)
    cells = (ratios[n : n + together] for n in range(0, len(ratios), together))
    return [shade(sum(cell) / len(cell)) for cell in cells]
