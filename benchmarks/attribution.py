"""Whether a comparison of two commits names the part of a step that became slower: real models, planted slow-downs.

    python benchmarks/attribution.py --runs 1 --out attribution.jsonl
    python benchmarks/attribution.py --models reference-moe smollm2-moe --threads 1 2 --runs 20
    python benchmarks/attribution.py --read benchmarks/trials/attribution.jsonl

A temporary repository holds a suite of several prompts and an engine that spins for a share of a step in one place, 5 %
together in each step: in all experts, in those of one layer, in the routers, in the head, in the logits processors, or
nowhere; each prompt has its own place, another one in every run. In every other run the tokeniser of all prompts takes
as much longer too, which the headline tells. Reported per place: how often the parts named were those and no others,
how often none was named, and how often a wrong one. A file of trials is added to by every sitting (`--first` tells them
apart): benchmarks/trials/attribution.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import scratch_repository
from gate_quality import ALL, interval
from scratch_repository import TEXTS

TOKENS = 32
PLACES = {
    "experts": ("experts", ""),
    "one layer": ("experts", "layer 1"),
    "router": ("router", ""),
    "head": ("head", ""),
    "processors": ("logits processors", ""),
    "nowhere": None,
}
"""Which role, in which layers, must be named for each place; None: no role."""
TOKENISER, NOT_TOKENISER = "tokeniser", "not in the tokeniser"
OUTSIDE = "outside the steps: tokeniser"
"""What a headline says of a tokeniser that changed."""
CONFTEST = '''
import time

import pytest
import torch
from transformers.generation.logits_process import LogitsProcessorList

from pytest_infer.engines import roles
from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.transformers.engine import TransformersEngine

PLACES = {places}
TOKENISER = {tokeniser}
SHARE = {share}
NOW = {{"prompt": None, "place": "nowhere", "ns": 0}}


def wait(ns):
    until = time.perf_counter_ns() + ns
    while time.perf_counter_ns() < until:
        pass


def spin(place, part=1.0):
    if NOW["place"] == place:
        wait(part * NOW["ns"])


def slowed(module, place, part):
    forward = module.forward

    def run(*args, **kwargs):
        spin(place, part)
        return forward(*args, **kwargs)

    module.forward = run


def plant(model):
    found = list(roles.places(model))
    experts = [p for p in found if p.role == "experts" and p.begins]
    routers = [p for p in found if p.role == "router" and not p.routed] or [p for p in found if p.role == "router"]
    for one in experts:
        slowed(one.module, "experts", 1 / len(experts))
        if one.layer == 1:
            slowed(one.module, "one layer", 1.0)
    for one in routers:
        slowed(one.module, "router", 1 / len(routers))
    for one in found:
        if one.role == "head":
            slowed(one.module, "head", 1.0)
    own = LogitsProcessorList.__call__

    def processed(self, *args, **kwargs):
        spin("processors")
        return own(self, *args, **kwargs)

    LogitsProcessorList.__call__ = processed


class Clock:
    """Tells how long steps take, from the first generation, in which nothing spins."""

    def __init__(self, clock, seen):
        self.clock, self.seen = clock, seen

    def tick(self, token_ids):
        self.seen.append(time.perf_counter_ns())
        self.clock.tick(token_ids)

    def prefilled(self):
        self.clock.prefilled()

    def span(self, *args, **kwargs):
        return self.clock.span(*args, **kwargs)


class Slowed(TransformersEngine):
    steps = {{}}

    def load(self):
        info = super().load()
        plant(self.running.model)
        return info

    def encode(self, prompt):
        ids = super().encode(prompt)
        NOW["prompt"] = prompt.name
        if TOKENISER:
            wait(self.steps.get(prompt.name, 0))
        return ids

    def generate(self, prompt_ids, limits, clock):
        prompt = NOW["prompt"]
        NOW["place"] = PLACES[prompt] if prompt in self.steps else "nowhere"
        NOW["ns"] = self.steps.get(prompt, 0)
        if prompt in self.steps:
            return super().generate(prompt_ids, limits, clock)
        seen = []
        found = super().generate(prompt_ids, limits, Clock(clock, seen))
        gaps = sorted(b - a for a, b in zip(seen, seen[1:]))
        if gaps:
            self.steps[prompt] = SHARE * gaps[len(gaps) // 2]
        return found


@pytest.fixture(scope="session")
def engine(request):
    made = Slowed(EngineOptions(model="{model}", threads={threads}))
    yield made
    made.close()
'''
COMMON = ("-q", "-p", "no:cacheprovider", "--infer-no-profile", "--infer-no-probe", "--infer-ignore-eos")


def trial(
    repository: Path, model: str, threads: int, places: dict[str, str], options: list[str], *, tokeniser: bool
) -> dict[str, Any]:
    """Compare both commits once; return what is said of each prompt, by place, and of the tokeniser."""
    path = repository.parent / "run.json"
    for tag, planted in (("base", dict.fromkeys(places, "nowhere")), ("head", places)):
        slow = tokeniser and planted is places
        text = CONFTEST.format(places=planted, tokeniser=slow, share=0.05, model=model, threads=threads)
        (repository / "bench" / "conftest.py").write_text(f"{text}# {tag} {time.time()}\n")
        scratch_repository.commit(repository, tag)
    command = [
        sys.executable, "-m", "pytest", "bench", *COMMON, "--infer-against=base", "--infer-gate=tpot:1%",
        f"--benchmark-json={path}", *options,
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
    begun = time.monotonic()
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    if "gate against" not in done.stdout:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}")
    stored = json.loads(path.read_text())["pytest_infer"]["gate"]
    found = {
        places[j["prompt"].partition("[")[2].rstrip("]") or j["prompt"]]: j
        for j in stored["judgements"]
        if j["metric"] == "tpot_s"
    }
    return {
        "model": model, "threads": threads, "seconds": round(time.monotonic() - begun, 1), **scratch_repository.when(),
        "trials": {place: kept(judgement) for place, judgement in found.items()},
        "tokeniser": {"planted": tokeniser, "named": OUTSIDE in (stored["headline"] or "")},
    }  # fmt: skip


def kept(judgement: dict[str, Any]) -> dict[str, Any]:
    """Return what a file of trials keeps: the verdict, and which parts were named."""
    carried = judgement["carried"] or {"roles": (), "everywhere": False}
    return {
        **{key: judgement[key] for key in ("verdict", "change", "change_low", "change_high")},
        "named": [[one["role"], one["layers"]] for one in carried["roles"] if one["named"]],
        "everywhere": carried["everywhere"],
    }


def outcome(place: str, found: dict[str, Any]) -> str:
    """Return what a trial came to: right, nothing named, or wrong."""
    named, wanted = [tuple(one) for one in found["named"]], PLACES[place]
    nothing = not named and not found["everywhere"]
    if wanted is None:
        return "right" if nothing else "wrong"
    if named == [wanted]:
        return "right"
    return "nothing named" if nothing else "wrong"


def report(trials: list[dict[str, Any]]) -> None:
    """Print a table: a row a model, its threads and a place, and a row a place of all of them."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for one in trials:
        cell = f"{one['model']}, {one['threads']} thread{'s' * (one['threads'] > 1)}"
        for place, found in one["trials"].items():
            for of in (cell, ALL):
                counts[of, place][outcome(place, found)] += 1
        if "tokeniser" in one:
            planted, named = one["tokeniser"]["planted"], one["tokeniser"]["named"]
            told = "right" if named is planted else "nothing named" if planted else "wrong"
            for of in (cell, ALL):
                counts[of, TOKENISER if planted else NOT_TOKENISER][told] += 1
    outcomes = ("right", "nothing named", "wrong")
    print(f"| | planted in | trials | {' | '.join(outcomes)} |")
    print("|---|---|---|---|---|---|")
    for (cell, place), found in sorted(counts.items()):
        rates = " | ".join(interval(found[one], found.total()) for one in outcomes)
        print(f"| {cell} | {place} | {found.total()} | {rates} |")


def main() -> None:
    """Run trials, or read those that were run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["reference-moe"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--first", type=int, default=0, help="the number of the first run: it says which prompt is where"
    )
    parser.add_argument("--out", type=Path, help="append every run here, a line of JSON each")
    parser.add_argument("--read", type=Path, nargs="+", help="report what is in these files; measure nothing")
    parser.add_argument("options", nargs="*", help="for pytest, after --")
    asked = parser.parse_args()
    if asked.read is not None:
        report([json.loads(line) for path in asked.read for line in path.read_text().splitlines()])
        return
    trials = []
    for number in range(asked.first, asked.first + asked.runs):
        for model in asked.models:
            for threads in asked.threads:
                with tempfile.TemporaryDirectory() as folder:
                    repository = scratch_repository.make(Path(folder) / "suite", TEXTS, TOKENS)
                    names = list(TEXTS)
                    turned = [*names[number % len(names) :], *names[: number % len(names)]]
                    places, slow = dict(zip(turned, PLACES, strict=True)), number % 2 == 1
                    trials.append(trial(repository, model, threads, places, asked.options, tokeniser=slow))
                print(f"{model}, {threads}: {trials[-1]['seconds']:.0f} s", file=sys.stderr)
                if asked.out is not None:
                    with asked.out.open("a") as file:
                        file.write(f"{json.dumps(trials[-1])}\n")
    report(trials)


if __name__ == "__main__":
    main()
