"""Daemons for the tests of this folder."""

import shutil
import tempfile
from pathlib import Path

import pytest
from wire import DaemonProcess


@pytest.fixture
def short_path():
    """A folder with a short name: a unix socket's path may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="tk-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def daemon(short_path):
    """A daemon that seals, not started."""
    process = DaemonProcess(short_path)
    yield process
    process.end()
