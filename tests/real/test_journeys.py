"""The journeys of docs/journeys, followed in an empty folder: each file and each command as it stands there."""

import re
import sys
from pathlib import Path

import pytest
from shell import SMALL, Shell, commands_of

from pytest_infer.storage import runs

FOLDER = Path(__file__).parents[2] / "docs" / "journeys"
JUDGED = ("gate", "--infer-against")
"""Commands whose exit code says what they found."""
STEP = re.compile(r"^(?:<!-- file: (.+) -->\n)?```(console|sh|python|json)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)

pytestmark = [pytest.mark.real, pytest.mark.skipif(not FOLDER.exists(), reason="the wheel is tested without docs/")]


def steps(page):
    """Yield what a reader does, in order: a file's name and text, or None and a command."""
    text = re.sub(r"^<!-- not run: .+? -->\n```.*?^```\n", "", page, flags=re.MULTILINE | re.DOTALL)
    for given, kind, inside in STEP.findall(text):
        if kind in ("console", "sh"):
            yield from ((None, command) for command in commands_of(f"```{kind}\n{inside}```\n"))
        else:
            yield given or inside.partition("\n")[0].removeprefix("# "), inside


@pytest.fixture
def follow(tmp_path, warm_torch, tmp_path_factory):
    """Return a function that follows a page in an empty folder and returns what each command printed."""

    def all_of(name, options=SMALL, skip=()):
        shell = Shell(warm_torch, tmp_path_factory.mktemp("scratch"), options=options)
        said = {}
        for file, what in steps((FOLDER / name).read_text(encoding="utf-8")):
            if file is not None:
                (tmp_path / file).parent.mkdir(exist_ok=True)
                (tmp_path / file).write_text(what, encoding="utf-8")
            elif not any(word in what for word in skip):
                done = shell.run(re.sub(r"^python ", f"{sys.executable} ", what), tmp_path)
                assert "Traceback" not in done.stderr, f"{what}\n{done.stderr}"
                fine = (0, 1, 10) if any(word in what for word in JUDGED) else (0,)
                assert done.returncode in fine, f"{what}\n{done.stdout}\n{done.stderr}"
                said[what] = done.stdout + done.stderr
        return said

    return all_of


QUICK = f"{SMALL} -o infer_launches=1 -o infer_time=1s -o infer_no_probe=true"


def test_the_kernel_engineers(follow, tmp_path):
    """All but the comparisons, which two processes take."""
    said = follow("kernel.md", QUICK, skip=("--infer-against",))
    first = runs.rows(min(tmp_path.glob("results/*/*.json")))[0]
    assert (first.model.name, first.model.dtype) == ("by hand", "float32")
    assert first.model.work.read_bytes == 7102464
    assert "experts" in said["pytest-infer show -v"]


@pytest.mark.slow
def test_the_kernel_engineers_with_its_comparisons(follow):
    said = follow("kernel.md", QUICK)
    compared = [out for command, out in said.items() if "--infer-against" in command]
    assert len(compared) == 3
    assert "more than arithmetic" not in "".join(compared)
    assert "by prompt length" in compared[2]


def test_the_laptops(follow, tmp_path):
    said = follow("placement.md", QUICK)
    page = (FOLDER / "placement.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^<!-- shown -->\n```text\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    first = next(iter(said))
    assert first.startswith("pytest-infer doctor")
    assert said[first].split() == shown.split()
    assert "8 prompts, 64 + 192 tokens, 48 layers of 128 experts" in "".join(said.values())
    assert (tmp_path / "from-the-server.json").is_file()
    llama, kt, mapped = list(said.values())[-3:]
    assert "--init-expert-location counts.pt" in kt
    assert (tmp_path / "counts.pt").is_file()
    assert '"model.layers.47": "cpu"' in mapped
    # What the page names is what the commands say: whole layers serve the same whatever the routing.
    for words in ("--n-gpu-layers 999 --n-cpu-moe 30", "37.5 % of expert reads, at most 58.7 tok/s"):
        assert words in page
        assert words in llama


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.md")), ids=lambda path: path.stem)
def test_what_is_not_run_says_why(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- not run: ") == len(re.findall(r"<!-- not run: .+? -->\n```(?:sh|console)\n", text))
