"""Daemons for the tests of this folder."""

import pytest

from helpers.wire import DaemonProcess


@pytest.fixture
def daemon(short_path):
    """A daemon that seals, started."""
    process = DaemonProcess(short_path)
    try:
        yield process.start()
    finally:
        process.end()
