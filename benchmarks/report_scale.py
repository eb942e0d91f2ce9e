"""How large the report of many runs is, and how long a browser takes to open it.

    python benchmarks/report_scale.py --template results/…/0001_….json      # or without: one is measured first

It writes RUNS runs made from a real one, whose decode becomes a third slower at two thirds of them as its experts do,
and its prefill 8 % faster somewhat earlier; then the report of the last, compared with the first, which it opens in
headless Chromium: from the command to go there until every script has run and the first screen is painted. The best of
some is told beside all, for the machine may be busy. It ends with 1 above 1.5 s or 6 MB.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from history_scale import measured_template

MOST_SECONDS, MOST_BYTES = 1.5, 6e6
_DECODE = ("decode_s", "tpot_s", "itl_p50_s", "itl_p90_s", "itl_p99_s", "itl_mean_s")
_COMMAND = "from pytest_infer.cli.main import app; app()"
_PAINTED = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))"


def scatter(values: dict[str, Any], factor: float, noise: random.Random) -> None:
    """Give a figure so many times its value, in eight rounds that scatter by half a percent."""
    values["value"] *= factor
    values["rounds"] = [values["value"] * noise.lognormvariate(0, 0.005) for _ in range(8)]


def slowed(block: dict[str, Any], decode: float, prefill: float, noise: random.Random) -> None:
    """Let the steps of a block take so many times as long, decode through its experts."""
    metrics = block["metrics"]
    # Of disturbed rounds the history would say that a change may be theirs.
    block |= {"rounds": {**(block.get("rounds") or {}), "timed": 8, "disturbed": {}}, "cautions": []}
    factors = dict.fromkeys(_DECODE, decode) | {"decode_throughput": 1 / decode}
    factors |= {"ttft_s": prefill, "prefill_s": prefill, "peak_rss_bytes": 1.0}
    whole = metrics["ttft_s"]["value"] * prefill + metrics.get("decode_s", {"value": 0})["value"] * decode
    factors["total_s"] = whole / metrics["total_s"]["value"]
    for key in factors.keys() & metrics.keys():
        scatter(metrics[key], factors[key], noise)
    for phase, factor in (("decode", decode), ("prefill", prefill)):
        step = (block.get("breakdown") or {}).get(phase)
        if step:
            longer = step["step_s"] * (factor - 1)
            step["step_s"] *= factor
            name = "experts" if phase == "decode" else "head"
            part = next((one for one in step["parts"] if one["role"] == name), step["parts"][0])
            part["seconds"] = max(0.0, part["seconds"] + 1.15 * longer)
            step["parts"][-1]["seconds"] = max(0.0, step["parts"][-1]["seconds"] - 0.15 * longer)


def moved(block: dict[str, Any], noise: random.Random) -> None:
    """Let some selections of each layer go to its next expert, as after other weights."""
    for phase in ((block.get("experts") or {}).get("counts") or {}).values():
        for layer in phase:
            taken = [round(count * noise.uniform(0, 0.3)) for count in layer]
            layer[:] = [count - taken[n] + taken[n - 1] for n, count in enumerate(layer)]


def write_runs(template: Path, storage: Path, runs: int, *, moved_experts: bool = False) -> None:
    """Write the runs, with what lies beside the template beside each; experts may be used otherwise by the slower."""
    run = json.loads(template.read_text())
    noise = random.Random(0)  # noqa: S311 - not for secrets
    storage.mkdir(parents=True)
    beside = template.with_suffix(".npz")
    arrays = dict(np.load(beside)) if beside.exists() else {}
    arrays_of_run = dict(arrays)
    for number in range(runs):
        made = copy.deepcopy(run)
        made["datetime"] = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=7 * number)).isoformat()
        made["commit_info"] |= {"id": f"{number + 1:040x}", "dirty": False, "branch": "main"}
        made["benchmarks"] = [row for row in made["benchmarks"] if "pytest_infer" in row["extra_info"]]
        ways = (1.33 if number >= 2 * runs // 3 else 1.0, 0.92 if number >= runs // 2 else 1.0)
        machine = noise.lognormvariate(0, 0.006)
        for row in made["benchmarks"]:
            own = machine * noise.lognormvariate(0, 0.008)
            if "metrics" in row["extra_info"]["pytest_infer"]:  # else one of pytest-benchmark's rows of a phase
                slowed(row["extra_info"]["pytest_infer"], ways[0] * own, ways[1] * own, noise)
                if moved_experts and ways[0] > 1:
                    moved(row["extra_info"]["pytest_infer"], random.Random(number))  # noqa: S311 - as above
        path = storage / f"{number + 1:04}_run.json"
        path.write_text(json.dumps(made))
        for key in (key for key in arrays if key.endswith("|stamps_ns")):
            arrays_of_run[key] = (arrays[key] * ways[0]).astype(arrays[key].dtype)
        np.savez_compressed(path.with_suffix(".npz"), **arrays_of_run)


def opened(page: Path, times: int) -> list[float]:
    """Return how long the page takes to open, seconds, each time in a context of its own."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - told above where it is missing

    found = []
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for _ in range(times):
            with chromium.new_context(viewport={"width": 1280, "height": 900}, offline=True) as context:
                tab = context.new_page()
                started = time.perf_counter()
                tab.goto(page.as_uri(), wait_until="load")
                tab.evaluate(_PAINTED)
                found.append(time.perf_counter() - started)
        chromium.close()
    return found


def template_of(given: Path | None, folder: Path) -> Path:
    """Return the run that others are made from: the one given, or one that is measured now."""
    if given is not None:
        return given
    made = folder / "template.json"
    made.write_text(json.dumps(measured_template(folder)))
    return made


def report_of(template: Path, folder: Path, runs: int, *, moved_experts: bool = False) -> Path:
    """Write so many runs, and the report of the last compared with the first; return its file."""
    write_runs(template, folder / "storage", runs, moved_experts=moved_experts)
    page = folder / "report.html"
    command = [sys.executable, "-c", _COMMAND, "report", "1", "latest", "-o", str(page)]
    environment = {**os.environ, "PYTEST_INFER_CACHE": str(folder / "cache")}
    subprocess.run([*command, "--storage", str(folder / "storage")], check=True, env=environment)
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--template", type=Path)
    parser.add_argument("--keep", type=Path, help="a new folder for the runs and the report; default: none is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        page = report_of(template_of(options.template, Path(name)), folder, options.runs)
        seconds, size = opened(page, options.times), page.stat().st_size
    print(f"{size / 1e6:.2f} MB; opened in {', '.join(f'{one:.2f}' for one in seconds)} s, best {min(seconds):.2f} s")
    return int(min(seconds) > MOST_SECONDS or size > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
