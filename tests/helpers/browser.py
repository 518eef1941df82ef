"""A headless Chromium without a network. Debian's, because a test tool's own browser is a download from elsewhere."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tracekit.cli.pages import shown
from tracekit.replay.output import Replay
from tracekit.report.page.render import to_html
from tracekit.report.text import to_text

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@contextmanager
def launched() -> Iterator[Any]:
    """The browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@contextmanager
def visits(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages from files; what they complain of, and what they ask of a network, fails at the end."""
    complaints: list[str] = []
    contexts = []

    def open_page(path: Path, *, fragment: str = "", **options: Any) -> Any:
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith("file:") or complaints.append(asked.url))
        page.goto(f"file://{path}{fragment}")
        if options.get("java_script_enabled", True):
            page.wait_for_selector("body[data-ready]", timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def assert_opens(replay: Replay, path: Path) -> None:
    """Open the page of a replay and compare its head and its rollouts; without a browser it is only made."""
    path.write_text(to_html(shown(replay)), encoding="utf-8")
    if CHROMIUM is None:
        return
    with launched() as browser, visits(browser) as visit:
        page = visit(path)
        assert page.inner_text("h1") == to_text(replay.result).splitlines()[0]
        assert page.locator(".list tbody tr").count() == min(len(replay.result.verdict.rollouts), 200)
        assert page.locator("#timeline canvas").count() > 0 and page.locator(".strip span").count() > 0
