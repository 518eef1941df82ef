"""Daemons for the tests of this folder."""

import pytest

from helpers.wire import DaemonProcess


@pytest.fixture
def daemon(short_path):
    """A daemon that seals, not started."""
    process = DaemonProcess(short_path)
    yield process
    process.end()
