"""Prometheus' view of a real daemon: what came, what was lost and why, and what the disk took."""

import contextlib
import socket
import threading
import urllib.request

import numpy as np
import pytest

from helpers.factories import make_engine, make_tables
from helpers.wire import DaemonProcess, batch, engine_id, hello, numbered_tokens, record
from tracekit.client import Client
from tracekit.errors import UsageError
from tracekitd.metrics import check_metrics
from tracekitd.scrape import MAX_OPEN, Server


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
        lossy.batch.losses.add(from_seq=2, to_seq=2, reason="\x1b[2J\nx", rows={"steps": 1})
        first = batch(identity, 1, numbered_tokens(0, 10))
        record(process.address, [hello(identity), first, first, lossy, b"nonsense"])
        lines = dict(line.rsplit(" ", 1) for line in scrape(process).splitlines() if not line.startswith("#"))
        assert float(lines['tracekitd_rows_total{table="tokens"}']) == 20
        assert float(lines['tracekitd_lost_rows_total{reason="the window is full",table="tokens"}']) == 4
        assert float(lines['tracekitd_lost_rows_total{reason="\\\\u001b[2J\\\\nx",table="steps"}']) == 1
        assert float(lines['tracekitd_refused_streams_total{status="INVALID_ARGUMENT"}']) == 1
        assert float(lines["tracekitd_batches_total"]) == 2 and float(lines["tracekitd_duplicates_total"]) == 1
        assert float(lines["tracekitd_syncs_total"]) >= 1 and float(lines["tracekitd_sync_seconds_total"]) > 0
        assert float(lines["tracekitd_queued_bytes"]) == float(lines["tracekitd_lag_batches"]) == 0
        assert float(lines["tracekitd_lag_seconds"]) == 0 and float(lines["tracekitd_commit_seconds_total"]) > 0
        assert float(lines['tracekitd_engines{state="away"}']) == 1
        assert "process_resident_memory_bytes" in lines
    finally:
        process.end()


def test_what_trainers_say_is_compared_while_it_comes(short_path):
    process = DaemonProcess(short_path)
    process.argv += ["--metrics", "127.0.0.1:0"]
    identity, tables = engine_id(), make_tables(tokens=20, engine=make_engine())
    tables["stalls"] = {"engine_step": [3], "begin_ns": [0], "end_ns": [2 * 10**9], "gave_up": [0]}
    try:
        process.start()
        record(process.address, [hello(identity), batch(identity, 1, tables)])
        with Client(process.address) as trainer:
            for number in range(3):
                own = np.asarray(tables["tokens"]["request"]) == number
                old = np.asarray(tables["tokens"]["rollout_logprob"])[own] + np.float32(0.5)
                trainer.annotate(f"request-{number}", train_step=4, old_logprob=old)
            trainer.annotate("nobody", old_logprob=[0.0])
        lines = dict(line.rsplit(" ", 1) for line in scrape(process).splitlines() if not line.startswith("#"))
        found = {name: float(value) for name, value in lines.items() if "mismatch" in name or "annotations" in name}
        assert found['tracekitd_annotations_total{outcome="compared"}'] == 3
        assert found["tracekitd_annotations_waiting"] == 1 and found["tracekitd_mismatch_train_step"] == 4
        assert found['tracekitd_mismatch_tokens_total{engine="0"}'] == 60
        assert found['tracekitd_mismatch_ratio_mean{engine="0"}'] == pytest.approx(np.exp(0.5), rel=1e-6)
        assert found['tracekitd_mismatch_kl_nats{engine="0"}'] == pytest.approx(np.exp(0.5) - 1.5, rel=1e-5)
        assert found["tracekitd_mismatch_not_finite_tokens_total"] == 0
        assert float(lines['tracekitd_stall_seconds_total{engine="0"}']) == 2
        assert float(lines['tracekitd_trainers{state="ended"}']) == float(lines['tracekitd_engines{state="away"}']) == 1
    finally:
        process.end()


def test_who_asks_slowly_costs_little_and_is_in_nobodys_way(capfd):
    def numbers(_environ, start):
        start("200 OK", [])
        return [b"numbers"]

    before = threading.active_count()
    server = Server("127.0.0.1", 0, lambda _environ, start: (start("200 OK", []) and []) or [b"numbers"])
    address = ("127.0.0.1", server.server_port)
    slow = [socket.create_connection(address) for _ in range(5 * MAX_OPEN)]
    try:
        for asked in slow:
            with contextlib.suppress(OSError):
                asked.send(b"GET / HT")
        assert urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/", timeout=10).read() == b"numbers"
        assert threading.active_count() - before <= MAX_OPEN + 3
    finally:
        for asked in slow:
            asked.close()
        server.shutdown()
        server.server_close()
    assert not capfd.readouterr().err


@pytest.mark.parametrize("address", ["9100", ":9100", "localhost:http", "localhost:70000", "localhost:²"])
def test_an_address_that_is_none(address):
    with pytest.raises(UsageError, match="HOST:PORT"):
        check_metrics(address)
