"""Lines are wrapped between words: whoever copies a path or a test's id gets all of it."""

import pytest

from pytest_infer.report.text import collected, console, print_whole

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
