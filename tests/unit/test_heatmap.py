"""The map of experts: every shade at its threshold, every size in its columns."""

import pytest
from rich.cells import cell_len

from pytest_infer.report.experts import heatmap
from pytest_infer.report.experts.heatmap import Layer


def shown(layers, width=80):
    return [line.plain for line in heatmap.lines(layers, width)]


def layer(*counts, title="L0", experts=None):
    return Layer(title=title, counts=counts, experts=experts or len(counts))


@pytest.mark.parametrize(
    ("ratio", "character"),
    [(0, "·"), (0.01, "░"), (0.74, "░"), (0.75, "▒"), (1.24, "▒"), (1.25, "▓"), (1.99, "▓"), (2.0, "█"), (60, "█")],
)
def test_shades(ratio, character):
    assert heatmap.shade(ratio)[0] == character


def test_few_experts_have_their_percentages():
    assert shown([layer(20, 10, 5, 5), layer(0, 20, 10, 10, title="L11")])[:3] == [
        "        E0    E1    E2    E3",
        "L0   █  50 ▒  25 ░  12 ░  12",
        "L11  ·   0 █  50 ▒  25 ▒  25",
    ]


def test_more_experts_have_a_column_each():
    lines = shown([layer(*[10] * 39, 0)])
    assert lines[0] == "   E0      E8      E16     E24     E32"
    assert lines[1] == "L0 " + "▒" * 39 + "·"


def test_most_experts_stand_in_the_order_of_their_use():
    counts = [0] * 256
    counts[7::4] = [16] * 63  # 63 of them, wherever they are
    counts[3] = 8
    lines = shown([layer(*counts)])
    assert lines[0].split() == ["#1", "#33", "#65", "#97", "#129", "#161", "#193", "#225"]
    # Four a cell: 15 cells of busy ones, one of three and the half as busy, the rest never.
    assert lines[1] == "L0 " + "█" * 16 + "·" * 48
    assert "in the order of use, 4 experts a cell" in lines[-1]


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
@pytest.mark.parametrize("experts", [1, 2, 8, 12, 60, 64, 128, 256, 16384])
def test_no_line_is_wider_than_the_terminal(experts, width):
    lines = shown([layer(*range(experts), title=f"L{n}") for n in (3, 11)], width)
    legend = max(len(part) for part in heatmap.LEGEND.split("  "))
    assert max(map(cell_len, lines[:3])) <= width
    assert max(map(cell_len, lines)) <= max(width, legend, 48)


def test_weightless_slots_take_no_column_but_their_share():
    assert shown([layer(10, 10, 20, experts=2)])[1] == "L0  ▒  25 ▒  25"


def test_a_layer_that_was_never_asked():
    assert shown([layer(0, 0)])[1] == "L0  ·   0 ·   0"


def test_colour_only_repeats_the_shade():
    styles = {character: style for _, character, style in heatmap._LEVELS}
    assert len(set(styles)) == 4
    assert all(character in heatmap.LEGEND for character in (*styles, "·"))
