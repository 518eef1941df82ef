"""A full disk with several engines on it, over TLS, while the archive is away."""

import subprocess
import time

import numpy as np
import pytest

from helpers.engine import wait_for
from helpers.stores import ENVIRON, StoreServer
from helpers.tls import Files, TcpDaemon
from helpers.wire import engine_id, numbered_tokens, rows_of_trace
from tracekit.recorder.stream import Stream
from tracekit.rpc.client import ControlClient
from tracekit.trace.reader import open_trace

ENGINES = 3
ROWS = 2000


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_acks_wait_for_space_which_the_archive_makes_when_it_is_back(short_path, small_disk, tmp_path, monkeypatch):
    for name, value in {**ENVIRON, "TRACEKIT_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    (short_path / "pki").mkdir()
    files = Files(short_path / "pki")
    daemon = TcpDaemon(short_path, files)
    daemon.spool = small_disk / "spool"
    daemon.argv[daemon.argv.index("--spool") + 1] = str(daemon.spool)
    at = daemon.argv.index("--seal")
    del daemon.argv[at : at + 2]
    num_put = 0

    def put():
        nonlocal num_put
        rows = numbered_tokens(num_put, ROWS)
        rows["tokens"]["rollout_logprob"] = np.random.default_rng(num_put).random(ROWS, dtype="f4")
        num_put += ROWS
        for stream in streams:
            stream.put(rows)

    with StoreServer("rclone", tmp_path / "store") as store:
        store.end()
        daemon.argv += ["--archive", store.url("run"), "--keep-bytes", "1", "--roll-bytes", "100000"]
        try:
            daemon.start()
            streams = [Stream(daemon.tcp, engine_id(), access=daemon.access()) for _ in range(ENGINES)]
            client = ControlClient(daemon.address)

            def durable():
                return sum(engine.durable_seq for engine in client.list_engines())

            while len(list(daemon.spool.glob("part-*"))) < 2:
                put()
                time.sleep(0.2)
            with open(small_disk / "ballast", "wb", buffering=0) as ballast:
                while "nothing is confirmed until it works" not in daemon.stderr():
                    put()
                    try:
                        while True:
                            ballast.write(bytes(4096))
                    except OSError:
                        time.sleep(0.1)
            confirmed = durable()
            for _ in range(3):
                put()
            time.sleep(1)
            assert durable() == confirmed < ENGINES * num_put // ROWS
            store.start()
            wait_for(lambda: durable() == ENGINES * num_put // ROWS, "space", 60)  # though the ballast is there
            for stream in streams:
                totals = stream.close(60)
                assert not totals.undelivered and not totals.lost
            client.close()
            assert daemon.stop() == 0 and "the spool takes data again" in daemon.stderr()
            assert open_trace(daemon.spool).complete
            for engine in range(ENGINES):
                assert [row[2] for row in rows_of_trace(daemon.spool, "tokens", engine)] == [*range(num_put)]
        finally:
            daemon.end()
