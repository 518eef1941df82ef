"""Tests of pages in a browser; they are skipped where there is none."""

import pytest

from helpers.browser import CHROMIUM, launched, visits


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/browser" in str(item.path):
            item.add_marker(pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt install chromium"))


@pytest.fixture(scope="session")
def browser():
    with launched() as chromium:
        yield chromium


@pytest.fixture
def visit(browser):
    with visits(browser) as open_page:
        yield open_page
