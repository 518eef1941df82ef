"""Annotations through a real daemon: in the trace to the row, told apart from engines, compared while they come."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.factories import make_engine, make_tables
from helpers.wire import DaemonProcess, assert_conserved, batch, engine_id, hello, numbered_tokens, record
from tracekit.client import Client
from tracekit.report.info import to_lines
from tracekit.rpc.client import ControlClient
from tracekit.tables import TABLES
from tracekit.trace.reader import open_trace
from tracekit.trace.seal import seal
from tracekit.trace.summary import summarize
from tracekit.trace.tally import FIRST_TRAINER

PAGE = Path(__file__).parents[2] / "docs" / "annotate.md"


def wire_tables(**options):
    """Tables of an engine as its recorder sends them."""
    return make_tables(engine=make_engine(), **options)


def listed(daemon, enough) -> None:
    """Wait until the daemon lists what is enough."""
    with ControlClient(daemon.address, 60) as control:
        while not enough(control.list_engines()):
            control.flush()
            time.sleep(0.01)


def annotate_all(trainer: Client, count: int) -> None:
    for i in range(count):
        trainer.annotate(
            f"request-{i}", train_step=7, group=f"p{i // 2}", reward=i, advantage=-i, old_logprob=[-0.5] * 8
        )


def test_annotations_are_rows_of_a_trainer_and_engines_keep_their_numbers(daemon, monkeypatch):
    monkeypatch.setenv("TRACEKIT_RUN", "job-7")
    trainer = Client(daemon.address)
    annotate_all(trainer, 3)
    listed(daemon, lambda found: any(e.trainer and e.durable_seq for e in found))
    identity = engine_id()
    tables = make_tables(engine=make_engine(run="job-7"))
    record(daemon.address, [hello(identity), batch(identity, 1, tables, last=True)])
    trainer.annotate("request-0", token_ids=[1, 2, 3])
    trainer.close(60)
    assert trainer.num_dropped == 0
    assert daemon.stop() == 0
    trace = open_trace(daemon.out)
    assert trace.complete and trace.numbers == [0] and sorted(trace.tallies) == [0, FIRST_TRAINER]
    assert [row["kind"] for row in trace.engines()] == ["v1"]
    said = [line.split() for line in to_lines(summarize(trace), [])]
    assert ["engine", "run", "kind"] in [line[:3] for line in said] and ["0", "job-7", "v1"] in [x[:3] for x in said]
    found = trace.table("annotations").to_pylist()
    assert [row["request_id"] for row in found] == ["request-0", "request-1", "request-2", "request-0"]
    assert {row["run"] for row in found} == {"job-7"} and {row["engine"] for row in found} == {FIRST_TRAINER}
    assert found[1] | {"wall_ns": 0} == {
        "engine": FIRST_TRAINER, "wall_ns": 0, "run": "job-7", "engine_id": None, "request_id": "request-1",
        "index": 0, "train_step": 7, "group": "p0", "reward": 1.0, "advantages": [-1.0], "old_logprobs": [-0.5] * 8,
        "token_ids": [],
    }  # fmt: skip
    assert found[3]["token_ids"] == [1, 2, 3] and found[3]["old_logprobs"] == [] and found[3]["train_step"] is None
    one = trace.only(0)
    assert one.table("annotations").num_rows == 4 and one.numbers == [0]


def test_two_traces_with_trainers_are_merged_without_mixing_numbers(tmp_path):
    paths = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        process = DaemonProcess(folder)
        try:
            process.start()
            with Client(process.address) as trainer:
                annotate_all(trainer, 2)
            identity = engine_id()
            record(process.address, [hello(identity), batch(identity, 1, wire_tables(), last=True)])
            assert process.stop() == 0
        finally:
            process.end()
        paths.append(folder / "out.arrow")
    done = subprocess.run(
        [sys.executable, "-m", "tracekit", "merge", *map(str, paths), "-o", str(tmp_path / "m.arrow")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trace = open_trace(tmp_path / "m.arrow")
    assert trace.numbers == [0, 1] and sorted(trace.tallies) == [0, 1, FIRST_TRAINER, FIRST_TRAINER + 1]
    assert trace.complete and trace.table("annotations").num_rows == 4


def test_a_trainer_cannot_be_labelled_nor_play_an_engine(daemon):
    with Client(daemon.address) as trainer, ControlClient(daemon.address) as control:
        annotate_all(trainer, 1)
        while not any(e.trainer for e in control.list_engines()):
            time.sleep(0.01)
        with pytest.raises(Exception, match="no engine has connected yet"):
            control.mark_weights("step-1")
    identity = engine_id()
    said = hello(identity)
    said.batch.hello.trainer = True
    _, code, details = record(daemon.address, [said, batch(identity, 1, numbered_tokens(0, 3))])
    assert code.name == "INVALID_ARGUMENT" and "a trainer sends no rows of the table tokens" in details
    other = engine_id()
    values = {name: [None] if kind.endswith("?") else [0] for name, kind in TABLES["annotations"].items()}
    values |= {"request_id": ["r"], "advantages": [[]], "old_logprobs": [[]], "token_ids": [[]]}
    del values["engine"]
    _, code, details = record(daemon.address, [hello(other), batch(other, 1, {"annotations": values})])
    assert code.name == "INVALID_ARGUMENT" and "an engine sends no rows of the table annotations" in details


def test_what_outlives_daemons_adds_up_and_keeps_its_number(daemon, monkeypatch):
    monkeypatch.delenv("TRACEKIT_STRICT", raising=False)  # tests of engines leave it set
    trainer = Client(daemon.address)
    annotate_all(trainer, 5)
    listed(daemon, lambda found: any(e.durable_seq for e in found))
    daemon.kill()
    annotate_all(trainer, 5)
    trainer.annotate("r", reward=object())  # is counted, in the trace too
    daemon.start()
    listed(daemon, lambda found: [e.trainer for e in found] == [True])
    trainer.close(60)
    assert daemon.stop() == 3
    assert assert_conserved(daemon.out, {"annotations": 11}) == {"annotations": 1}
    (loss,) = open_trace(daemon.out).losses()
    assert loss["reason"] == "not an annotation: TypeError" and loss["engine"] == FIRST_TRAINER
    assert str(open_trace(daemon.out).all_losses()[0]).startswith(f"trainer {FIRST_TRAINER}, batch")


def test_the_example_of_the_docs_annotates(daemon):
    (lines,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(lines.replace("unix:/run/user/1000/tracekit/d.sock", daemon.address))
    assert daemon.stop() == 0
    (row,) = open_trace(daemon.out).table("annotations").to_pylist()
    assert (row["request_id"], row["train_step"], row["group"], row["reward"]) == ("chatcmpl-1", 120, "prompt-7", 1.0)
    assert np.allclose(row["old_logprobs"], [-0.11, -2.5]) and np.allclose(row["advantages"], [0.4])


KILLED = """
import os, signal, sys, time
from tracekit.client import Client
trainer = Client(sys.argv[1])
trainer.annotate("r", reward=1)
print("said", flush=True)
time.sleep(600)
"""


def test_a_trainer_that_is_killed_after_it_has_told_all_lost_nothing(daemon):
    process = subprocess.Popen([sys.executable, "-c", KILLED, daemon.address], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline()
        listed(daemon, lambda found: any(e.durable_seq for e in found))
        time.sleep(0.3)  # the mark is written behind the batch
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert daemon.stop() == 0
    trace = open_trace(daemon.out)
    assert trace.complete and "while idle" in trace.notes()[0]
    assert np.array_equal(trace.table("annotations").column("reward").to_numpy(), [1.0])
    seal(daemon.out, daemon.out.with_name("again.arrow"))  # what was sealed can be sealed again
