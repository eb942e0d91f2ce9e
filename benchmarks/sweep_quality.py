"""Whether a sweep keeps its promises: one load a model, one model's memory, and the order that a plain script measures.

    python benchmarks/sweep_quality.py --model smollm2-moe --third threads --tokens 16 --rounds 5 --passes 8

The sweep is 2 x 2 x 2, in interleaved order: dtype, experts implementation, and threads or, where others use the cores
too, the KV cache. The plain script is transformers' own generate() in a process of its own for each configuration,
timed by the wall with a streamer, as anybody would. Resident memory of the processes is sampled every 10 ms from
outside, loading included. The machine drifts by more than configurations differ, so the script passes over all
configurations many times, half of the passes before the sweep and half after it, each beginning with another one; a
pair's ratio is compared within each pass. The script tells a pair apart where Student's interval over the passes (95 %)
excludes "the same". A pair that the sweep and the script both tell apart must stand in the same order in both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev

import psutil
from scipy import special

from pytest_infer.analysis.sweep import axes
from pytest_infer.analysis.sweep.ratios import ratio_of
from pytest_infer.analysis.sweep.recommend import DECODE, Recommendation, recommend
from pytest_infer.engines.models import resolve
from pytest_infer.storage import runs

BOTH = {"dtype": ("float32", "bfloat16"), "experts": ("eager", "grouped_mm")}
THIRD = {"threads": ("1", "2"), "cache": ("on", "off")}
TEXTS = (
    "The lighthouse keeper wrote in the log that",
    "Once upon a time there was a little girl who lived in a house beside the sea, and every morning she",
    "def fibonacci(n):",
    "Q: What is the capital of France, and why was it founded there? A:",
    "In 1869 the chemist Dmitri Mendeleev arranged the elements by their weight and found that",
)

PLAIN = """
import json, math, statistics, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

folder, config, texts, tokens = sys.argv[1:]
config = json.loads(config)
torch.set_num_threads(int(config.get("threads", 1)))

class Stamps(BaseStreamer):
    def __init__(self): self.at = []
    def put(self, value): self.at.append(time.perf_counter())
    def end(self): pass

dtype, cached = getattr(torch, config["dtype"]), config.get("cache") != "off"
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation=config["experts"]).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)

def rate(text):
    stamps = Stamps()
    limits = {"max_new_tokens": int(tokens), "min_new_tokens": int(tokens), "do_sample": False, "use_cache": cached}
    model.generate(**tokenizer(text, return_tensors="pt"), **limits, streamer=stamps)
    return (int(tokens) - 1) / (stamps.at[-1] - stamps.at[1])

texts = json.loads(texts)
rate(texts[0])
print(json.dumps(math.exp(statistics.fmean(math.log(rate(text)) for text in texts))))
"""

Samples = dict[tuple[str, ...], tuple[float, ...]]

CONFTEST = """
from pytest_infer.engines.transformers import loading
_read = loading.weights
def weights(source, config, options, **given):
    with open("loads.txt", "a") as file:
        print(options.dtype, options.experts_implementation, file=file)
    return _read(source, config, options, **given)
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
    folder: Path, swept_axes: dict[str, tuple[str, ...]], model: str, tokens: int, rounds: int
) -> tuple[Recommendation, int, str]:
    """Run the sweep; return what it recommends, its peak memory and the terminal."""
    folder.joinpath("conftest.py").write_text(CONFTEST, encoding="utf-8")
    folder.joinpath("test_it.py").write_text("def test_prompt(infer, prompt):\n    infer(prompt)\n", encoding="utf-8")
    prompts = (
        f'[[prompt]]\nname = "p{number}"\ntext = {json.dumps(text)}\nmax_new_tokens = {tokens}\n'
        for number, text in enumerate(TEXTS)
    )
    suite = "\n".join(prompts)
    folder.joinpath("prompts.toml").write_text(suite, encoding="utf-8")
    sweeps = [f"--infer-sweep={axis}={','.join(values)}" for axis, values in swept_axes.items()]
    command = [sys.executable, "-m", "pytest", *sweeps, f"--infer-model={model}", f"--infer-rounds={rounds}"]
    command += ["--infer-ignore-eos", "--infer-no-profile", "--infer-no-probe"]
    command += ["--benchmark-json=run.json", *([] if "threads" in swept_axes else ["--infer-threads=1"])]
    output, peak = watched(command, folder)
    found = recommend(runs.rows(folder / "run.json"))
    if found is None:
        raise SystemExit(output)
    return found, peak, output


def scripted(configurations: Sequence[dict[str, str]], source: str, tokens: int, first: int) -> tuple[list[float], int]:
    """Return the plain script's tokens per second for each configuration, and the most memory that one of them took.

    One pass over all of them, which begins with number `first`.
    """
    rates, single = [0.0] * len(configurations), 0
    for turn in range(len(configurations)):
        number = (first + turn) % len(configurations)
        command = [sys.executable, "-c", PLAIN, source, json.dumps(configurations[number]), json.dumps(TEXTS)]
        told, most = watched([*command, str(tokens)], Path.cwd())
        rates[number], single = json.loads(told.splitlines()[-1]), max(single, most)
    return rates, single


def interval(ratios: Iterable[float]) -> tuple[float, float]:
    """Return Student's 95 % interval of the mean of logarithms."""
    logs = [math.log(ratio) for ratio in ratios]
    half = float(special.stdtrit(len(logs) - 1, 0.975)) * stdev(logs) / math.sqrt(len(logs))
    return fmean(logs) - half, fmean(logs) + half


def judge(
    configurations: Sequence[dict[str, str]],
    samples: Sequence[Samples],
    drift: Sequence[float],
    passes: Sequence[Sequence[float]],
) -> None:
    """Print how many pairs each of the two tells apart, and those that they put in different orders."""
    counts = dict.fromkeys(("sweep", "script", "both", "alike"), 0)
    for a, b in itertools.combinations(range(len(samples)), 2):
        apart = axes.loaded(configurations[a]) != axes.loaded(configurations[b])
        ratio = ratio_of(samples[a], samples[b], drift if apart else ())
        low, high = interval(rates[b] / rates[a] for rates in passes)
        by_sweep, by_script = ratio is not None and ratio.distinct, low > 0 or high < 0
        counts["sweep"] += by_sweep
        counts["script"] += by_script
        if ratio is not None and by_sweep and by_script:
            counts["both"] += 1
            counts["alike"] += (ratio.value > 1) == (low > 0)
            if (ratio.value > 1) != (low > 0):
                script = f"{math.exp(low):.3f} to {math.exp(high):.3f}"
                names = " / ".join(axes.label(configurations[number]) for number in (b, a))
                print(f"IN DIFFERENT ORDERS: {names}: sweep {ratio}, script {script}")
    print(
        f"of {len(samples) * (len(samples) - 1) // 2} pairs the sweep tells {counts['sweep']} apart, the plain script "
        f"{counts['script']}, both {counts['both']}: {counts['alike']} of these in the same order"
    )


def main() -> None:
    """Measure both ways and say what holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-moe")
    parser.add_argument("--third", choices=THIRD, default="threads")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=8, help="of the plain script, half before the sweep, half after")
    given = parser.parse_args()
    source = resolve(given.model, print)
    swept_axes: dict[str, tuple[str, ...]] = {given.third: THIRD[given.third], **BOTH}
    configurations = [dict(zip(swept_axes, values, strict=True)) for values in itertools.product(*swept_axes.values())]
    before = [scripted(configurations, source, given.tokens, n) for n in range(given.passes // 2)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found, peak, output = swept(folder, swept_axes, given.model, given.tokens, given.rounds)
        print(output[output.index("= inference") :])
        loads = folder.joinpath("loads.txt").read_text(encoding="utf-8").split("\n")[:-1]
        measured = runs.rows(folder / "run.json")
    after = [scripted(configurations, source, given.tokens, n) for n in range(given.passes // 2, given.passes)]
    one_load = sorted(loads) == sorted(" ".join(pair) for pair in itertools.product(*BOTH.values()))
    print(f"loads: {', '.join(loads)}: {'each once' if one_load else 'NOT each once'}")
    single = max(most for _, most in (*before, *after))
    print(f"peak: {peak / 2**20:.0f} MiB, of the largest single model {single / 2**20:.0f} MiB: {peak / single:.3f}")
    passes = [rates for rates, _ in (*before, *after)]
    labels = [axes.label(one) for one in configurations]
    by_label = {one.label: one.figures[DECODE].value for one in found.configurations}
    print(f"{'configuration':45} {'sweep':>8} {'script':>8} tok/s, and the script's passes")
    for number in sorted(range(len(labels)), key=lambda n: -by_label[labels[n]]):
        rates = [one[number] for one in passes]
        mean = math.exp(fmean(map(math.log, rates)))
        print(f"{labels[number]:45} {by_label[labels[number]]:8.2f} {mean:8.2f}  {' '.join(f'{r:.1f}' for r in rates)}")
    samples: list[Samples] = [
        {(row.name,): row.metrics[DECODE].numbers for row in measured if row.config == one} for one in configurations
    ]
    judge(configurations, samples, found.drift.get(DECODE, ()), passes)


if __name__ == "__main__":
    main()
