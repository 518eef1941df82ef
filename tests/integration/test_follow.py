"""Following engines: what the daemon says of each is shown, as a table on a terminal and as lines elsewhere."""

import os
import pty
import subprocess
import sys
import threading

import numpy as np
import pytest

from helpers.factories import make_engine, make_tables
from helpers.wire import DaemonProcess, batch, engine_id, hello, record
from tracekit.cli.following import Looks
from tracekit.client import Client
from tracekit.report.follow import Seen, line, table
from tracekit.rpc.client import ControlClient


@pytest.fixture
def daemon(short_path):
    process = DaemonProcess(short_path).start()
    yield process
    process.end()


def send(address, tables, **fields):
    identity = engine_id()
    sent = batch(identity, 1, tables)
    for name, value in fields.items():
        setattr(sent.batch, name, value)
    record(address, [hello(identity), sent])


def busy():
    tables = make_tables(tokens=20, engine=make_engine())
    tables["steps"]["num_waiting"][-1], tables["steps"]["weight_version"][-1] = 7, 3
    return tables


def test_an_engine_is_seen_as_its_newest_step_left_it(daemon):
    with ControlClient(daemon.address) as client:
        looks = Looks(client)
        assert looks.look() == []  # from here on trainers' values are compared
        tables = busy()
        send(daemon.address, tables)
        with Client(daemon.address) as trainer:
            own = np.asarray(tables["tokens"]["request"]) == 1
            old = np.asarray(tables["tokens"]["rollout_logprob"])[own] + np.float32(0.5)
            trainer.annotate("request-1", train_step=4, old_logprob=old)
        (seen,) = looks.look()
        assert (seen.engine, seen.state, seen.num_tokens, seen.num_lost) == (0, "away", 60, 0)
        assert (seen.engine_step, seen.weight_version, seen.num_waiting, seen.num_running) == (19, 3, 7, 3)
        assert seen.ratio_mean == pytest.approx(np.exp(0.5)) and seen.mismatch_kl == pytest.approx(np.exp(0.5) - 1.5)
        assert seen.tokens_per_sec is None and looks.look()[0].tokens_per_sec == 0
        assert not client.list_engines()[0].HasField("live")  # who does not ask pays nothing


def test_a_line_leaves_out_what_nobody_knows():
    seen = Seen(2, "recording", 1234, 56.7, 3, 9, 1, 4, 0, 0.25)
    told = "tokens 1,234, tokens/s 57, step 9, weights 1, running 4, waiting 0, KV 25%, lost 3"
    assert line(seen) == f"tracekit: engine 2 recording: {told}"
    assert line(Seen(0, "away", 0, None, 0)) == "tracekit: engine 0 away: tokens 0, lost 0"


def test_a_table_has_no_column_that_nobody_fills():
    headers = [column.header for column in table([Seen(0, "away", 5, None, 0)], "t").columns]
    assert headers == ["engine", "state", "tokens", "lost"]
    full = table([Seen(0, "away", 5, None, 0), Seen(1, "recording", 5, 1.0, 0, 1, 1, 1, 1, 0.5, 0.1, 1.1)], "t")
    assert len(full.columns) == 12 and full.row_count == 2
    assert table([], "[bold]t").row_count == 1


def test_record_prints_lines_where_there_is_no_terminal(daemon):
    send(daemon.address, busy())
    argv = [sys.executable, "-m", "tracekit", "record", "--daemon", daemon.address, "--follow", "--", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == ""
    assert "tracekit: engine 0 away: tokens 60, " in done.stderr and "weights 3" in done.stderr
    assert "\x1b" not in done.stderr


def test_record_draws_a_table_on_a_terminal_with_what_the_job_says_above(daemon):
    send(daemon.address, busy())
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "tracekit", "record", "--daemon", daemon.address, "--follow", "--"]
    argv += ["sh", "-c", "printf 'one\\033]0;title\\007\\033[2J\\n'; sleep 2; echo two >&2; exit 5"]
    environ = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    got = b""
    ended = threading.Timer(60, process.kill)
    ended.start()
    try:
        while data := os.read(ours, 4096):
            got += data
    except OSError:
        pass  # the other end is closed
    ended.cancel()
    os.close(ours)
    assert process.wait() == 5  # the job's own
    shown = got.decode()
    assert "\x1b]" not in shown and "\x1b[2J" not in shown  # a job's colours are its own, the screen is not
    assert "tracekit follows" in shown and "weights" in shown
    assert shown.index("one") < shown.index("two")


def test_attach_follows_a_daemon_until_it_ends(daemon):
    send(daemon.address, busy())
    argv = [sys.executable, "-m", "tracekit", "attach", "--follow"]
    refused = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and "needs the daemon's address" in refused.stderr
    following = subprocess.Popen([*argv, daemon.address], stderr=subprocess.PIPE, text=True)
    assert "engine 0 away: tokens 60" in following.stderr.readline()
    daemon.stop()
    assert following.wait(30) == 0
    following.stderr.close()
