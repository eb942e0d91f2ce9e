"""How long the expert usage of a large model takes: 64 layers × 256 experts, top 8, over 50 prompts.

    python benchmarks/expert_scale.py --prompts 50 --repeat 5

It writes a run file of synthetic usage as `pytest-infer` writes it, with gate weights, and times in one process, best
and median of so many times: reading the run, taking and merging the censuses, and everything that
`pytest-infer experts` works out. The size is of the file, per prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pytest_infer.analysis.experts import census, suite
from pytest_infer.analysis.experts.census import Census, Phase
from pytest_infer.analysis.experts.suite import By, PromptUsage
from pytest_infer.storage import files, runs, schema

LAYERS, EXPERTS, K = 64, 256, 8


def usage(rng: np.random.Generator, shares: np.ndarray[Any, Any], prefill: int, decode: int) -> dict[str, Any]:
    """Return the block of a prompt whose tokens choose experts with about these shares (a Poisson count each)."""
    counts = {
        phase: rng.poisson(np.minimum(tokens * K * shares, tokens)).tolist()
        for phase, tokens in (("prefill", prefill), ("decode", decode))
    }
    sites = [
        {
            "name": f"model.layers.{n}.mlp.experts",
            "layer": n,
            "kind": "mlp",
            "experts": EXPERTS,
            "slots": EXPERTS,
            "k": K,
            "expert_bytes": 3 * 2048 * 768 * 2,
        }
        for n in range(LAYERS)
    ]
    weights = {phase: [[float(f"{n * 0.12345:.4g}") for n in row] for row in rows] for phase, rows in counts.items()}
    return {
        "check": "passed",
        "tokens": {"prefill": prefill, "decode": decode},
        "sites": sites,
        "counts": counts,
        "weights": weights,
    }


def run_file(folder: Path, prompts: int, prefill: int, decode: int) -> Path:
    """Write a run of so many prompts, as this project writes runs, and return its path."""
    rng = np.random.default_rng(0)
    base = rng.dirichlet(np.full(EXPERTS, 2.0), size=LAYERS)
    rows = []
    for n in range(prompts):
        shares = base * rng.gamma(10, 0.1, size=base.shape)
        shares /= shares.sum(axis=1, keepdims=True)
        made = {
            "schema": schema.SCHEMA,
            "phase": "total",
            "prompt": {"name": f"p{n}", "tags": ["even", "odd"][n % 2 : n % 2 + 1]},
            "experts": usage(rng, shares, prefill, decode),
        }
        name = f"test[p{n}]"
        rows.append({"fullname": name, "name": name, "stats": {"median": 1.0}, "extra_info": {schema.KEY: made}})
    path = folder / "0001_large.json"
    path.write_text(files.dumps({"datetime": "2026-01-01T00:00:00", "benchmarks": rows}), encoding="utf-8")
    return path


def timed(what: Callable[[], Any], repeat: int) -> tuple[Any, list[float]]:
    """Return the last result and the seconds of each time."""
    seconds = []
    result = None
    for _ in range(repeat):
        start = time.perf_counter()
        result = what()
        seconds.append(time.perf_counter() - start)
    return result, seconds


def merge(path: Path) -> tuple[list[Census], Census]:
    """Read a run and merge the usage of its prompts."""
    parts = [taken for row in runs.read(path).rows if (taken := census.of(row.experts)) is not None]
    return parts, census.merged(parts)


def main() -> None:
    """Write, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--prefill", type=int, default=2000)
    parser.add_argument("--decode", type=int, default=500)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = run_file(Path(folder), given.prompts, given.prefill, given.decode)
        size = path.stat().st_size / given.prompts
        (parts, _), merging = timed(lambda: merge(path), given.repeat)
    prompts = [PromptUsage(name=f"p{n}", census=part, tags=(("even", "odd")[n % 2],)) for n, part in enumerate(parts)]
    times = {
        "read and merge": merging,
        "all of `experts`": timed(lambda: suite.view(prompts, Phase.DECODE, By.PROMPT), given.repeat)[1],
        "all of `experts --by tag`": timed(lambda: suite.view(prompts, Phase.DECODE, By.TAG), given.repeat)[1],
    }
    print(f"{LAYERS} layers × {EXPERTS} experts, top {K}, {given.prompts} prompts: {size / 1000:.0f} kB a prompt")
    for what, seconds in times.items():
        print(f"{what:<28} best {min(seconds):6.3f} s   median {statistics.median(seconds):6.3f} s")
    if given.out is not None:
        given.out.write_text(json.dumps({"bytes_a_prompt": size, "seconds": times}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
