"""Whether a sweep keeps its promises: one load a model, one model's memory, and the order that a plain script measures.

    python benchmarks/sweep_quality.py --model smollm2-moe --third threads --tokens 16 --rounds 5

The sweep is 2 x 2 x 2: dtype, experts implementation, and threads or, where others use the cores too, the KV cache.
The plain script is transformers' own generate() in a process of its own for each configuration, timed by the wall with
a streamer, as anybody would. Resident memory of the processes is sampled every 10 ms from outside, loading included.
The script runs before the sweep and after it, since the machine drifts meanwhile: where the sweep calls two
configurations distinct and the script puts them in one order both times, the sweep must put them in that order too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from pytest_infer.analysis.recommend import DECODE, Recommendation, ratio_of, recommend
from pytest_infer.engines.models import resolve
from pytest_infer.storage import rows

BOTH = {"dtype": ("float32", "bfloat16"), "experts": ("eager", "grouped_mm")}
THIRD = {"threads": ("1", "2"), "cache": ("on", "off")}
TEXT = "The lighthouse keeper wrote in the log that"

PLAIN = """
import json, statistics, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

folder, config, text, tokens, rounds = sys.argv[1:]
config = json.loads(config)
torch.set_num_threads(int(config.get("threads", 1)))

class Stamps(BaseStreamer):
    def __init__(self): self.at = []
    def put(self, value): self.at.append(time.perf_counter())
    def end(self): pass

dtype, cached = getattr(torch, config["dtype"]), config.get("cache") != "off"
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation=config["experts"]).eval()
ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
rates = []
for _ in range(1 + int(rounds)):
    stamps = Stamps()
    limits = {"max_new_tokens": int(tokens), "min_new_tokens": int(tokens), "do_sample": False, "use_cache": cached}
    model.generate(**ids, **limits, streamer=stamps)
    rates.append((int(tokens) - 1) / (stamps.at[-1] - stamps.at[1]))
print(json.dumps(statistics.median(rates[1:])))
"""

CONFTEST = """
from pytest_infer.engines import loading
_read = loading.weights
def weights(source, options):
    with open("loads.txt", "a") as file:
        print(options.dtype, options.experts_implementation, file=file)
    return _read(source, options)
loading.weights = weights
"""


def watched(command: list[str], folder: Path) -> tuple[str, int]:
    """Run a command and return its output and the most memory that it had resident, bytes."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=os.environ)
    seen, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            peak = max(peak, seen.memory_info().rss)
        except psutil.Error:
            break
        time.sleep(0.01)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(output)
    return output, peak


def swept(
    folder: Path, axes: dict[str, tuple[str, ...]], model: str, tokens: int, rounds: int
) -> tuple[Recommendation, int, str]:
    """Run the sweep; return what it recommends, its peak memory and the terminal."""
    folder.joinpath("conftest.py").write_text(CONFTEST, encoding="utf-8")
    folder.joinpath("test_it.py").write_text("def test_prompt(infer, prompt):\n    infer(prompt)\n", encoding="utf-8")
    suite = f'[[prompt]]\nname = "keeper"\ntext = "{TEXT}"\nmax_new_tokens = {tokens}\n'
    folder.joinpath("prompts.toml").write_text(suite, encoding="utf-8")
    sweeps = [f"--infer-sweep={axis}={','.join(values)}" for axis, values in axes.items()]
    command = [sys.executable, "-m", "pytest", *sweeps, f"--infer-model={model}", f"--infer-rounds={rounds}"]
    command += ["--infer-ignore-eos", "--infer-no-profile", "--infer-no-probe", "--infer-repeat-disturbed=0"]
    command += ["--benchmark-json=run.json", *([] if "threads" in axes else ["--infer-threads=1"])]
    output, peak = watched(command, folder)
    found = recommend(rows.rows(folder / "run.json"))
    if found is None:
        raise SystemExit(output)
    return found, peak, output


def scripted(
    folder: Path, axes: dict[str, tuple[str, ...]], source: str, tokens: int, rounds: int
) -> tuple[dict[tuple[str, ...], float], int]:
    """Return the plain script's tokens per second for each configuration, and the most memory that one of them took."""
    rates: dict[tuple[str, ...], float] = {}
    single = 0
    for values in itertools.product(*axes.values()):
        config = json.dumps(dict(zip(axes, values, strict=True)))
        told, most = watched([sys.executable, "-c", PLAIN, source, config, TEXT, str(tokens), str(rounds)], folder)
        rates[values], single = json.loads(told.splitlines()[-1]), max(single, most)
    return rates, single


def main() -> None:
    """Measure both ways and say what holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-moe")
    parser.add_argument("--third", choices=THIRD, default="threads")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    source = resolve(given.model, print)
    axes: dict[str, tuple[str, ...]] = {given.third: THIRD[given.third], **BOTH}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before, single = scripted(folder, axes, source, given.tokens, given.rounds)
        found, peak, output = swept(folder, axes, given.model, given.tokens, given.rounds)
        print(output[output.index("= inference") :])
        loads = folder.joinpath("loads.txt").read_text(encoding="utf-8").split("\n")[:-1]
        one_load = sorted(loads) == sorted(" ".join(pair) for pair in itertools.product(*BOTH.values()))
        after, _ = scripted(folder, axes, source, given.tokens, given.rounds)
        measured = rows.rows(folder / "run.json")
    keeper: tuple[str, ...] = ("keeper",)
    samples = {tuple(row.config.values()): {keeper: row.metrics[DECODE].numbers} for row in measured}
    print(f"loads: {', '.join(loads)}: {'each once' if one_load else 'NOT each once'}")
    share = peak / single
    print(f"peak: {peak / 2**20:.0f} MiB, of the largest single model {single / 2**20:.0f} MiB: {share:.3f}")
    print(f"{'configuration':45} {'before':>8} {'sweep':>8} {'after':>8} tok/s")
    for configuration in sorted(found.configurations, key=lambda c: -c.figures[DECODE].value):
        values = tuple(configuration.config.values())
        rate = configuration.figures[DECODE].value
        print(f"{configuration.label:45} {before[values]:8.2f} {rate:8.2f} {after[values]:8.2f}")
    told_apart, certain, agreed = 0, 0, 0
    for a, b in itertools.combinations(samples, 2):
        ratio = ratio_of(samples[a], samples[b])
        if ratio is not None and ratio.distinct:
            told_apart += 1
            if (before[b] > before[a]) == (after[b] > after[a]):
                certain += 1
                agreed += (ratio.value > 1) == (after[b] > after[a])
    print(
        f"pairs that the sweep tells apart: {told_apart}; the plain script puts {certain} of them in one order twice, "
        f"and the sweep {agreed} of these in that order"
    )


if __name__ == "__main__":
    main()
