"""Fixtures of all tests."""

import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def short_path():
    """A folder with a short name: a unix socket's path may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="tk-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
