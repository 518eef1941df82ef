"""`Control.MarkWeights` with a real daemon: confirmed on the disk, or every engine that did not is named."""

import json
import re
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.wire import LabelledEngine, numbered_tokens
from tracekit.errors import DaemonError, NotMarkedError
from tracekit.rpc.client import ControlClient
from tracekit.trace.reader import open_trace

CLOSE_SECS = 60.0
PAGE = Path(__file__).parents[2] / "docs" / "attaching.md"


def connected(daemon, number: int) -> LabelledEngine:
    """An engine that has become the next number of the daemon, with a batch on its disk."""
    engine = LabelledEngine(daemon.address, uuid.uuid4().hex)
    with ControlClient(daemon.address) as client:
        while len(client.list_engines()) <= number or not client.list_engines()[number].durable_seq:
            client.flush()
    return engine


def labels(path) -> list[tuple]:
    rows = open_trace(path).table("weights").to_pylist()
    return [
        (r["engine"], r["weight_version"], r["engine_step"], r["method"], r["label"], r["checkpoint"]) for r in rows
    ]


def mark_cli(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tracekit", "mark", *argv], capture_output=True, text=True, timeout=60)


def test_two_engines_are_labelled_on_the_disk(daemon, tmp_path, monkeypatch):
    engines = [connected(daemon, number) for number in range(2)]
    (tmp_path / "ckpt").mkdir()
    monkeypatch.chdir(tmp_path)
    with ControlClient(daemon.address) as client:
        marks = client.mark_weights("step-1", "ckpt")
        assert [(m.engine, m.engine_id, m.weight_version, m.engine_step, m.error) for m in marks] == [
            (number, engine.stream.engine_id, 3, 7, None) for number, engine in enumerate(engines)
        ]
        # what is confirmed is there for whoever reads the spool now
        first = [(number, 3, 7, "mark", "step-1", str(tmp_path / "ckpt")) for number in range(2)]
        assert labels(daemon.spool) == first
        (mark,) = client.mark_weights("step-2", "s3://bucket/step-2", engines=[1, 1])
        assert mark.engine == 1
    done = mark_cli(daemon.address, "--label", "step-3", "--only", "0", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)[0]["weight_version"] == 3, done.stderr
    done = mark_cli(daemon.address, "--label", "step-4")
    assert done.stdout.count("weight version 3 from engine step 7") == 2
    for engine in engines:
        engine.session.close(CLOSE_SECS)
    assert daemon.stop() == 0  # nothing was lost, nothing came twice
    more = [(1, "step-2", "s3://bucket/step-2"), (0, "step-3", None), *((n, "step-4", None) for n in range(2))]
    expected = first + [(number, 3, 7, "mark", label, checkpoint) for number, label, checkpoint in more]
    assert sorted(labels(daemon.out), key=str) == sorted(expected, key=str)
    assert open_trace(daemon.out).complete


def test_the_lines_of_the_docs_label(daemon):
    engine = connected(daemon, 0)
    (lines,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(lines.replace("unix:/run/user/1000/tracekit/d.sock", daemon.address))
    engine.session.close(CLOSE_SECS)
    assert daemon.stop() == 0
    assert labels(daemon.out) == [(0, 3, 7, "mark", "step-120", "checkpoints/step-120")]


def test_who_cannot_be_labelled_is_named(daemon):
    with ControlClient(daemon.address) as client:
        with pytest.raises(DaemonError, match="no engine has connected yet"):
            client.mark_weights("step-1")
        good = connected(daemon, 0)
        with pytest.raises(DaemonError, match="there is no engine 7, the engines are: 0"):
            client.mark_weights("step-1", engines=[0, 7])
        with pytest.raises(DaemonError, match="a label must not be empty"):
            client.mark_weights("")
        with pytest.raises(NotMarkedError, match=r"engine 0: no such thing; confirmed: none"):
            client.mark_weights("bad")
        assert good.labels == []
        # the second disappears without a goodbye
        argv = [sys.executable, "-c", GONE.format(path=sys.path, address=daemon.address)]
        subprocess.run(argv, check=True, timeout=60)
        with pytest.raises(NotMarkedError, match=r"engine 1: it is not connected; confirmed: 0") as failed:
            client.mark_weights("step-2")
        assert [(m.engine, m.error is None) for m in failed.value.marks] == [(0, True), (1, False)]
        done = mark_cli(daemon.address, "--label", "step-3")
        assert done.returncode == 1 and "engine 0  weight version 3" in done.stdout
        assert "engine 1  it is not connected" in done.stdout and "not every engine confirmed" in done.stderr
        good.session.close(CLOSE_SECS)
        with pytest.raises(NotMarkedError, match="engine 0: the engine has ended"):
            client.mark_weights("step-4", engines=[0])
    assert [label for *_, label, _ in labels(daemon.spool)] == ["step-2", "step-3"]


def test_an_engine_that_does_not_answer_is_named_before_the_deadline(daemon):
    engine = connected(daemon, 0)
    engine.stream.on_command = lambda command: None
    with ControlClient(daemon.address, 2) as client:
        with pytest.raises(NotMarkedError, match="engine 0: it did not confirm in time, the label may arrive yet"):
            client.mark_weights("step-1")
        # data goes on meanwhile and after
        engine.stream.put(numbered_tokens(10, 10))
        while client.list_engines()[0].totals.produced["tokens"] < 20:
            client.flush()
    engine.session.close(CLOSE_SECS)
    assert daemon.stop() == 0


def test_a_daemon_that_dies_in_between_is_an_error_and_the_label_is_there_once(daemon):
    engine = connected(daemon, 0)
    taken, go_on = threading.Event(), threading.Event()

    def slow(command):
        taken.set()
        go_on.wait(CLOSE_SECS)
        take(command)

    take, engine.stream.on_command = engine.stream.on_command, slow
    with ThreadPoolExecutor(1) as pool, ControlClient(daemon.address, CLOSE_SECS) as client:
        call = pool.submit(client.mark_weights, "step-1")
        assert taken.wait(CLOSE_SECS)
        daemon.kill()
        with pytest.raises(DaemonError, match="does not answer"):
            call.result()
    go_on.set()
    daemon.start()
    with ControlClient(daemon.address) as client:
        # the engine may not have come back yet: the command waits for it
        (mark,) = client.mark_weights("step-2")
        assert mark.error is None
    engine.session.close(CLOSE_SECS)
    assert daemon.stop() == 0
    assert [label for *_, label, _ in labels(daemon.out)] == ["step-1", "step-2"]
    assert open_trace(daemon.out).complete


GONE = """
import os, sys, time
sys.path[:0] = {path!r}
from helpers.wire import numbered_tokens
from tracekit.recorder.stream import Stream
from tracekit.rpc.client import ControlClient
stream = Stream({address!r}, "ab" * 16)
stream.put(numbered_tokens(0, 10))
with ControlClient({address!r}) as client:
    while len(client.list_engines()) < 2 or not client.list_engines()[1].durable_seq:
        client.flush()
os._exit(0)
"""
