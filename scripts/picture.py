"""Make docs/verdict.png, the README's picture: the head of the page of a replay, as a browser shows it.

    python scripts/picture.py replay.arrow

`make picture` hands it the demo's first run. It needs playwright and the Chromium of the machine.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tracekit.cli.pages import shown
from tracekit.replay.output import read_replay
from tracekit.report.page.render import to_html

PICTURE = Path(__file__).parents[1] / "docs" / "verdict.png"
SIZE = {"width": 1120, "height": 920}
HIDDEN = ".notes, .top, #timeline { display: none !important }"  # the verdict, its cause and what it does to ratios


def main(replay: str) -> None:
    """Write the picture of one replay."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        sys.exit("no Chromium here: apt install chromium, or name it in CHROMIUM")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "page.html"
        page.write_text(to_html(shown(read_replay(replay))), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(offline=True, viewport=SIZE, color_scheme="light", bypass_csp=True)
        opened = context.new_page()
        opened.goto(f"file://{page}")
        opened.wait_for_selector("body[data-ready]")
        opened.add_style_tag(content=HIDDEN)
        opened.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
