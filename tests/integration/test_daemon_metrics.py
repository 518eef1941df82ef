"""Prometheus' view of a real daemon: what came, what was lost and why, and what the disk took."""

import urllib.request

import pytest

from helpers.wire import DaemonProcess, batch, engine_id, hello, numbered_tokens, record
from tracekit.errors import UsageError
from tracekitd.metrics import check_metrics


def scrape(process: DaemonProcess):
    url = next(word for word in process.stderr().split() if word.startswith("http://"))
    return urllib.request.urlopen(url, timeout=10).read().decode()


def test_numbers_add_up(short_path):
    process = DaemonProcess(short_path)
    process.argv += ["--metrics", "127.0.0.1:0"]
    identity = engine_id()
    try:
        process.start()
        lossy = batch(identity, 3, numbered_tokens(10, 10), {"tokens": 24})
        lossy.batch.losses.add(from_seq=2, to_seq=2, reason="the window is full", rows={"tokens": 4})
        first = batch(identity, 1, numbered_tokens(0, 10))
        record(process.address, [hello(identity), first, first, lossy, b"nonsense"])
        lines = dict(line.rsplit(" ", 1) for line in scrape(process).splitlines() if not line.startswith("#"))
        assert float(lines['tracekitd_rows_total{table="tokens"}']) == 20
        assert float(lines['tracekitd_lost_rows_total{reason="the window is full",table="tokens"}']) == 4
        assert float(lines['tracekitd_refused_streams_total{status="INVALID_ARGUMENT"}']) == 1
        assert float(lines["tracekitd_batches_total"]) == 2 and float(lines["tracekitd_duplicates_total"]) == 1
        assert float(lines["tracekitd_syncs_total"]) >= 1 and float(lines["tracekitd_sync_seconds_total"]) > 0
        assert float(lines["tracekitd_queued_bytes"]) == float(lines["tracekitd_lag_batches"]) == 0
        assert float(lines["tracekitd_lag_seconds"]) == 0 and float(lines["tracekitd_commit_seconds_total"]) > 0
        assert float(lines['tracekitd_engines{state="away"}']) == 1
        assert "process_resident_memory_bytes" in lines
    finally:
        process.end()


@pytest.mark.parametrize("address", ["9100", ":9100", "localhost:http", "localhost:70000"])
def test_an_address_that_is_none(address):
    with pytest.raises(UsageError, match="HOST:PORT"):
        check_metrics(address)
