"""Fixtures of all tests."""

import shutil
import tempfile
from pathlib import Path

import pytest

from helpers.tiny_model import write_tiny_model


@pytest.fixture
def short_path():
    """A folder with a short name: a unix socket's path may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="tk-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model of most engine tests, with the demo model's tokenizer."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))
