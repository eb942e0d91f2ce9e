"""Draw the pictures of docs/report.md again, from a report of thirty runs made of a real one.

    python benchmarks/report_pictures.py --template results/…/0001_….json      # or without: one is measured first

The runs are those of report_scale.py: noise of 1 % from run to run, two changes. report-sweep.png is of a sweep that
was measured, and is left as it is.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from report_scale import report_of, template_of

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
_SHOTS: dict[str, tuple[str, int, Literal["light", "dark"], str]] = {
    # what is seen: the anchor that the view begins with, its height, the theme, and what is chosen before
    "comparison": ("", 760, "light", ""),
    "prompt": ("prompt-long-prompt", 800, "light", ""),
    "experts": ("experts", 760, "dark", "difference"),
    "history": ("history", 860, "light", ""),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only this needs a browser

    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        folder = Path(name)
        page = report_of(template_of(options.template, folder), folder, runs=30, moved_experts=True)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for picture, (anchor, height, theme, chosen) in _SHOTS.items():
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
