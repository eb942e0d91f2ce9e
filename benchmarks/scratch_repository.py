"""What scripts here compare in: a git repository with a suite of some prompts, and loops that burn a core beside it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from datetime import date
from pathlib import Path

TEST = "def test_prompt(infer, prompt):\n    infer(prompt)\n"
TEXTS = {
    "capital": "The capital of the country is",
    "code": "def add(a, b):\n    return",
    "story": "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do.",
    "list": "apples, pears, plums, cherries,",
    "question": "How does a steam engine work? It",
    "dialogue": "'Who are you?' said the Caterpillar. 'I hardly know, sir,' she said,",
}
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    pass
"""
"""A loop that ends with whoever started it, however that ends."""
COMES_AND_GOES = """
import os, random, time
parent = os.getppid()
while os.getppid() == parent:
    until = time.monotonic() + random.uniform(1, 8)
    while time.monotonic() < until:
        pass
    time.sleep(random.uniform(1, 8))
"""


def git(repository: Path, *command: str) -> None:
    """Run git quietly."""
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *command], cwd=repository, check=True, capture_output=True)


def make(folder: Path, texts: Mapping[str, str], tokens: int, ini: str = "") -> Path:
    """Return a new repository whose bench/ has these prompts, each of so many tokens, and no commit yet."""
    bench = folder / "bench"
    bench.mkdir(parents=True)
    (bench / "test_prompts.py").write_text(TEST)
    tables = [f"[[prompt]]\nname = {json.dumps(name)}\ntext = {json.dumps(text)}\n" for name, text in texts.items()]
    (bench / "prompts.toml").write_text("\n".join([f"[defaults]\nmax_new_tokens = {tokens}\n", *tables]))
    (folder / "pytest.ini").write_text(f"[pytest]\n{ini}")
    (folder / ".gitignore").write_text("__pycache__/\n.benchmarks/\n")
    git(folder, "init", "-q")
    return folder


def commit(repository: Path, tag: str) -> None:
    """Commit all there is, and tag it, wherever the tag was before."""
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "--allow-empty", "-m", tag)
    git(repository, "tag", "-f", tag)


def when() -> dict[str, str]:
    """Return the day, and the commit of this repository that is measured with: what a file of trials says of each."""
    here = Path(__file__).parent
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, check=True, capture_output=True, text=True
    )
    return {"date": f"{date.today()}", "commit": asked.stdout.strip()}
