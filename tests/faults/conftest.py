"""Daemons and spools for the tests of this folder."""

import pytest

from helpers.parts import BATCHES, Source
from helpers.wire import DaemonProcess
from tracekit.trace.spool import SpoolWriter


@pytest.fixture
def daemon(short_path):
    """A daemon that seals, not started."""
    process = DaemonProcess(short_path)
    yield process
    process.end()


@pytest.fixture
def spool(tmp_path):
    """A spool whose batches are a segment each, of which parts of four were made; the last batch is not sealed."""
    with SpoolWriter(tmp_path / "spool", segment_bytes=1) as writer:
        source = Source()
        for _ in range(BATCHES // 4):
            source.put(writer, 4)
            writer.make_part(writer.whole())
        yield writer, source
