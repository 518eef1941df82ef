"""Fixtures of all tests, and how they are shared out to processes."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_model import write_tiny_model

# without byte code in its environment each start of an engine compiles 10,000 files, for longer than all else it does
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # a second one spins for a core that another process of tests has

# programs that tests start as processes of their own find the helpers, as tests do by pytest's `pythonpath`
_FOLDERS = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _FOLDERS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of pytest-xdist, where it shares the tests out to several processes."""
    from helpers.sharing import SharedRecordings

    return SharedRecordings(config, log)


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
