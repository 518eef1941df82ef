"""Daemons, and recordings to be replayed, for the tests of this folder."""

import pytest

from helpers.replayed import Recorded, record
from helpers.wire import DaemonProcess
from tracekit.cli.main import main


@pytest.fixture
def daemon(short_path):
    """A daemon that seals, started."""
    process = DaemonProcess(short_path)
    try:
        yield process.start()
    finally:
        process.end()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Recorded:
    return record(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def tracekit(capsys):
    """Runs the command line in this process; returns exit code, stdout, stderr."""

    def run(*args):
        with pytest.raises(SystemExit) as done:
            main(["replay", *map(str, args)])
        out, err = capsys.readouterr()
        return done.value.code, out, err

    return run
