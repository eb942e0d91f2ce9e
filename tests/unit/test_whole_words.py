"""Lines are wrapped between words: whoever copies a path or a test's id gets all of it."""

import pytest
from rich.table import Table

from pytest_infer.report.text import collected, console, print_table, print_whole

PATH = f"/home/somebody/{'results/' * 6}x.html"


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("line", [PATH, f"report: {PATH}", f"! {PATH} cannot be read, as it is a folder of somebody's"])
def test_a_word_wider_than_the_terminal_is_not_cut(line, color):
    of = console(40, color=color)
    print_whole(of, line)
    assert PATH in collected(of)


def test_other_lines_are_wrapped():
    of = console(40, color=False)
    print_whole(of, "a line of words " * 8)
    lines = collected(of).splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 40


FIGURES = {"held out": ("12.0", "100.0"), "CPU MiB a token": ("1.98", "0.412"), "tok/s": ("17,384 tok/s", "—")}


@pytest.mark.parametrize("width", [20, 29, 32, 36, 40, 50, 60, 80])
def test_figures_of_a_table_are_whole_and_columns_give_way(width):
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("where it is placed", no_wrap=True, overflow="ellipsis")
    for head in FIGURES:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, overflow="ellipsis")
    for number, mark in enumerate(("hot", "by chance")):
        table.add_row("over all of the layers", *(cells[number] for cells in FIGURES.values()), mark)
    of = console(width, color=False)
    print_table(of, table, spare=["CPU MiB a token"])
    said = collected(of)
    assert max(map(len, said.splitlines())) <= width
    there = [head for head, cells in FIGURES.items() if all(cell in said for cell in cells)]
    gone = [cell for head in FIGURES.keys() - there for cell in FIGURES[head] if cell in said]
    assert gone in ([], ["—"])
    wanted = {20: [], 29: [], 32: ["held out"], 36: ["held out"], 40: ["held out"], 50: ["held out", "tok/s"]}
    assert there == wanted.get(width, [*FIGURES])
