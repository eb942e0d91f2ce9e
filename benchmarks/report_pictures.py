"""Draw the pictures of docs/report.md again: of thirty runs made of a real one, and of a sweep that is measured.

    python benchmarks/report_pictures.py --template results/…/0001_….json      # or without: one is measured first
    python benchmarks/report_pictures.py --only sweep

The runs are those of report_scale.py: noise of 1 % from run to run, two changes. The sweep is of smollm2-moe, in three
minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from report_scale import report_of, template_of

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
SWEEP = "sweep"
_SHOTS: dict[str, tuple[str, int, Literal["light", "dark"], str]] = {
    # what is seen: the anchor that the view begins with, its height, the theme, and what is chosen before
    "comparison": ("", 760, "light", ""),
    "prompt": ("prompt-long-prompt", 800, "light", ""),
    "experts": ("experts", 760, "dark", "difference"),
    "history": ("history", 860, "light", ""),
    SWEEP: ("sweep", 860, "light", ""),
}
_AXES = ("threads=1,2", "dtype=float32,bfloat16", "experts=eager,grouped_mm")


def sweep_of(folder: Path) -> Path:
    """Measure a sweep, and return its report."""
    page = folder / "sweep.html"
    saved = ["--benchmark-autosave", f"--benchmark-storage={folder / 'sweep'}", f"--infer-report={page}"]
    options = ["-q", "-k", "guide", "-p", "no:cacheprovider", "--infer-model=smollm2-moe", *saved]
    axes = [f"--infer-sweep={axis}" for axis in _AXES]
    command = [sys.executable, "-m", "pytest", "bench", *options, *axes]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path)
    parser.add_argument("--only", choices=_SHOTS, action="append")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only this needs a browser

    wanted = options.only or list(_SHOTS)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        folder = Path(name)
        pages = {}
        if SWEEP in wanted:
            pages[SWEEP] = sweep_of(folder)
        if rest := [picture for picture in wanted if picture != SWEEP]:
            page = report_of(template_of(options.template, folder), folder, runs=30, moved_experts=True)
            pages |= dict.fromkeys(rest, page)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for picture, page in pages.items():
            anchor, height, theme, chosen = _SHOTS[picture]
            with browser.new_context(viewport={"width": 1120, "height": height}, color_scheme=theme) as context:
                tab = context.new_page()
                tab.goto(f"{page.as_uri()}#{anchor}")
                if chosen:
                    tab.get_by_role("combobox", name="map").select_option(chosen)
                # Charts are drawn as they come into view.
                tab.wait_for_timeout(1000)
                tab.screenshot(path=PICTURES / f"report-{picture}.png")
        browser.close()


if __name__ == "__main__":
    main()
