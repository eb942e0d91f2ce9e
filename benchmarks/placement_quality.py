"""How well experts placed by measured usage serve other prompts: held-out shares of reads for the bundled models.

    python benchmarks/placement_quality.py                           # prints the tables of docs/placement.md
    python benchmarks/placement_quality.py --models reference-moe    # one model
    python benchmarks/placement_quality.py --scale                   # only how long a plan of a large model takes

For each model a real `pytest` measures a suite of 24 prompts (code, dialogue, lists, verse, tables, languages, …) in
one timed and one profile round. Then, at budgets of 10 to 90 % of the bytes, placements are planned on one half
of the prompts and scored on the other: ten random halvings, both directions. "beats" counts in how many of these the
placement by frequency serves more of the decode's expert reads than first layers, and than the mean of random ones.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pytest_infer.analysis.experts import census
from pytest_infer.analysis.experts.census import Census, Phase
from pytest_infer.analysis.placement import heldout, planning, sizes, strategies
from pytest_infer.analysis.placement.heldout import HeldOut
from pytest_infer.analysis.placement.strategies import Strategy
from pytest_infer.records import ExpertSite
from pytest_infer.storage import runs

BUDGETS = range(10, 100, 10)
MODELS = ("smollm2-moe", "reference-moe")
TEST = "def test_prompt(infer, prompt):\n    infer(prompt)\n"
PROMPTS = {
    "python": "import csv\n\ndef read_rows(path):\n    with open(path) as file:\n        for row in csv.reader(",
    "c": "#include <stdio.h>\n\nint main(void) {\n    for (int i = 0; i < 10; i++) {\n",
    "sql": "SELECT customers.name, SUM(orders.total) FROM customers JOIN orders ON",
    "html": "<html>\n<head><title>Recipes</title></head>\n<body>\n<h1>Bread</h1>\n<ul>\n<li>",
    "json": '{"name": "Ada", "born": 1815, "languages": ["English", "French"], "works": [{"title":',
    "shell": "# Find all files larger than ten megabytes and sort them by size\nfind . -type f -size",
    "chat-capital": [("user", "What is the capital of Italy?")],
    "chat-story": [("user", "Tell me a short story about a fox and a bear.")],
    "chat-advice": [
        ("user", "I cannot sleep."),
        ("assistant", "What keeps you awake?"),
        ("user", "Work. What should I do?"),
    ],
    "chat-list": [("user", "List five fruits that are red.")],
    "drama": "'Who are you?' said the Caterpillar. 'I hardly know, sir, just at present,' Alice replied. 'What do you",
    "groceries": "Shopping list:\n- apples\n- bread\n- butter\n- cheese\n-",
    "steps": "How to change a tyre:\n1. Park on level ground.\n2. Loosen the nuts.\n3.",
    "numbers": "2 + 2 = 4\n3 + 5 = 8\n7 + 6 = 13\n9 + 8 =",
    "proof": "Theorem. There are infinitely many primes. Proof. Suppose that there were only finitely many, p1 to pn.",
    "verse": "The sun was shining on the sea,\nShining with all his might:\nHe did his very best to make\n",
    "news": "LONDON - The government announced on Tuesday that it would spend two billion pounds on",
    "letter": "Dear Sir or Madam,\n\nI am writing to apply for the position of librarian that was advertised in",
    "science": "Photosynthesis is the process by which plants turn light into chemical energy. In the leaves,",
    "law": "The tenant shall pay the rent on the first day of each month. If the tenant fails to do so, the landlord",
    "table": "| country | capital | population |\n|---|---|---|\n| France | Paris | 68 million |\n| Spain |",
    "german": "Die Hauptstadt von Österreich heißt Wien. Sie liegt an der Donau und hat",
    "french": "Il était une fois une petite fille qui vivait avec sa grand-mère dans une maison",
    "repetition": "one two three four one two three four one two three four one two three four one two",
}


def suite() -> str:
    """Return the prompts as a suite file."""
    parts = []
    for name, prompt in PROMPTS.items():
        if isinstance(prompt, str):
            text = f"text = {_quoted(prompt)}"
        else:
            messages = ", ".join(f'{{ role = "{role}", content = {_quoted(said)} }}' for role, said in prompt)
            text = f"messages = [{messages}]"
        parts.append(f'[[prompt]]\nname = "{name}"\n{text}\n')
    return "\n".join(parts)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def measured(model: str, folder: Path, new: int, threads: int) -> list[Census]:
    """Measure the suite once and return the census of each prompt."""
    (folder / "prompts.toml").write_text(suite(), encoding="utf-8")
    (folder / "test_prompts.py").write_text(TEST, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    path = folder / f"{model}.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--infer-rounds=1",
        "--infer-max-rounds=1",
    ]
    command += ["--infer-warmup=0", "--infer-repeat-disturbed=0", "--infer-ignore-eos", f"--infer-threads={threads}"]
    command += [f"--infer-model={model}", f"--infer-max-new-tokens={new}", f"--benchmark-json={path}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{model}: pytest failed\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
    found = [census.of(row.experts) for row in runs.rows(path)]
    return [one for one in found if one is not None]


def report(model: str, prompts: Sequence[Census]) -> None:
    """Print the table of one model."""
    merged = census.merged(prompts)
    of = strategies.experts(merged.sites, [site.expert_bytes or 1 for site in merged.sites])
    read = strategies.reads(merged, Phase.DECODE)
    pairs = heldout.halves(prompts, Phase.DECODE)
    print(
        f"\n{model}: {len(prompts)} prompts, {merged.decode_tokens} decode tokens, {len(of.bytes)} experts in "
        f"{len(merged.sites)} layers, {len(pairs)} held-out scores\n"
    )
    print("| budget | in-sample | held out | same in each layer | whole layers | first layers | random | beats |")
    print("|---|---|---|---|---|---|---|---|")
    for percent in BUDGETS:
        budget = of.total * percent // 100
        placed = strategies.place(Strategy.FREQUENCY, of, read, budget)
        served = strategies.serve(of, placed, read, merged.decode_tokens)
        scores = {s: heldout.score(s, of, pairs, budget) for s in Strategy}
        cells = [
            "—" if served is None else f"{100 * served.share:.1f}",
            *(_cell(scores[s]) for s in (Strategy.FREQUENCY, Strategy.PER_LAYER)),
            *(_cell(scores[s]) for s in (Strategy.WHOLE_LAYERS, Strategy.FIRST_LAYERS)),
            _cell(heldout.random_score(of, pairs, budget)),
            _beats(of, pairs, budget),
        ]
        print(f"| {percent} % | {' | '.join(cells)} |")


def _cell(score: HeldOut | None) -> str:
    return "—" if score is None else f"{100 * score.mean:.1f} ({100 * score.low:.1f}–{100 * score.high:.1f})"


def _beats(of: strategies.Experts, pairs: Sequence[tuple[heldout.Half, heldout.Half]], budget: int) -> str:
    """Return in how many held-out scores frequency serves more than first layers, and than random on average."""
    first = drawn = 0
    for pair in pairs:
        ours = heldout.score(Strategy.FREQUENCY, of, [pair], budget)
        plain = heldout.score(Strategy.FIRST_LAYERS, of, [pair], budget)
        chance = heldout.random_score(of, [pair], budget)
        if ours is not None and plain is not None and chance is not None:
            first += ours.mean > plain.mean
            drawn += ours.mean > chance.mean
    return f"{first}, {drawn} of {len(pairs)}"


def scale() -> None:
    """Print how long a full plan, with its sweep, takes for 50 prompts of 64 layers of 256 experts, top 8."""
    draws = np.random.default_rng(0)
    sites = tuple(
        ExpertSite(name=f"layers.{n}", layer=n, kind="mlp", experts=256, slots=256, k=8, expert_bytes=1 << 20)
        for n in range(64)
    )
    prompts = []
    for _ in range(50):
        rows_of = [tuple(draws.multinomial(8 * 100, np.full(256, 1 / 256)) for _ in sites) for _ in range(2)]
        prompts.append(
            Census(sites=sites, prefill=rows_of[0], decode=rows_of[1], prefill_tokens=100, decode_tokens=100)
        )
    begun = time.perf_counter()
    merged = census.merged(prompts)
    of = strategies.experts(sites, [1 << 20] * 64)
    strategies.place(Strategy.FREQUENCY, of, strategies.reads(merged, Phase.DECODE), 4 << 30)
    placed = time.perf_counter()
    planning.plan(prompts, sizes.of_run(sites, None), memory=None)
    done = time.perf_counter()
    print(f"merged and placed in {placed - begun:.3f} s; a full plan, held out: {done - placed:.2f} s more")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--new", type=int, default=48, help="tokens that each prompt generates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scale", action="store_true", help="time a plan of a large synthetic model instead")
    arguments = parser.parse_args()
    if arguments.scale:
        scale()
        return
    for model in arguments.models:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            prompts = measured(model, Path(folder), arguments.new, arguments.threads)
        report(model, prompts)
        print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
