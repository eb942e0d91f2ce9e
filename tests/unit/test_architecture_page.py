"""docs/architecture.md agrees with the code: its drawing with the imports and their rules, its names with the files."""

import re
from pathlib import Path

import pytest
from test_import_graph import PACKAGE, ROOMS, imports, room_of

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md")
pytestmark = pytest.mark.skipif(not PAGES[0].exists(), reason="the wheel is tested without docs/")

TOP = {path.stem for path in PACKAGE.iterdir() if path.name != "__init__.py" and (path / "__init__.py").exists()} | {
    path.stem for path in PACKAGE.glob("*.py") if path.name != "__init__.py"
}


def text_of(page):
    return page.read_text(encoding="utf-8")


def drawing(text):
    """Return the box of each room and the arrows between boxes; a room outside a subgraph is its own box."""
    (block,) = re.findall(r"^```mermaid\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    boxes, arrows, inside = {}, set(), None
    for line in map(str.strip, block.splitlines()[1:]):
        if line.startswith("subgraph "):
            inside = line.split()[1]
        elif line == "end":
            inside = None
        elif inside is not None:
            boxes[line] = inside
        else:
            tail, arrow, head = line.split()
            assert arrow == "-->", line
            arrows.add((tail, head))
    alone = {name for pair in arrows for name in pair} - set(boxes.values())
    return boxes | {name: name for name in alone}, arrows


def reached(arrows, box):
    found, left = set(), [box]
    while left:
        now = left.pop()
        new = {head for tail, head in arrows if tail == now} - found
        found |= new
        left += new
    return found


def top(module):
    return module.partition(".")[0]


def real_arrows(boxes):
    targets = [
        (i.module, i.target.removeprefix("pytest_infer.")) for i in imports() if i.target.startswith("pytest_infer.")
    ]
    pairs = {
        (boxes[top(module)], boxes[top(target)]) for module, target in targets if top(module) and top(target) in boxes
    }
    return {(tail, head) for tail, head in pairs if tail != head}


def test_the_drawing_shows_every_room():
    boxes, _ = drawing(text_of(PAGES[0]))
    assert set(boxes) == TOP


def test_the_drawn_arrows_are_those_of_the_imports():
    boxes, arrows = drawing(text_of(PAGES[0]))
    real = real_arrows(boxes)
    assert arrows <= real, "drawn, but nothing imports this way"
    missing = {(tail, head) for tail, head in real if head not in reached(arrows, tail)}
    assert not missing, "imported, but not drawn"
    assert not {box for box in boxes.values() if box in reached(arrows, box)}, "a circle"


@pytest.mark.parametrize("room", sorted(TOP))
def test_the_rules_allow_what_is_drawn_and_no_more(room):
    boxes, arrows = drawing(text_of(PAGES[0]))
    allowed = {
        boxes[top(target)] for name, targets in ROOMS.items() if top(name) == room for target in targets if target
    }
    own = boxes[room]
    assert allowed - {own} == reached(arrows, own)


def test_the_reader_of_drawings_sees_boxes_and_arrows():
    text = "```mermaid\ngraph TD\n    subgraph low\n        a\n        b\n    end\n    c --> low\n    d --> c\n```\n"
    boxes, arrows = drawing(text)
    assert boxes == {"a": "low", "b": "low", "c": "c", "d": "d"}
    assert arrows == {("c", "low"), ("d", "c")}
    assert reached(arrows, "d") == {"c", "low"}


@pytest.mark.parametrize("room", sorted(TOP))
def test_the_table_has_a_line_for_each_room_and_names_its_inner_rooms(room):
    (line,) = re.findall(rf"^\| `{room}` \| (.+) \|$", text_of(PAGES[0]), flags=re.MULTILINE)
    inner = {path.parent.name for path in (PACKAGE / room).glob("*/__init__.py")}
    assert set(re.findall(r"`(\w+)/`", line)) == inner


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_are_there(page):
    named = set(re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|md|toml|txt|json))\b", text_of(page)))
    assert named
    missing = [name for name in named if not ((PACKAGE / name).exists() or (ROOT / name).exists())]
    assert not missing


def test_every_room_of_the_rules_lies_in_a_drawn_one():
    assert {top(room_of(i.module)) for i in imports()} - {""} <= TOP
