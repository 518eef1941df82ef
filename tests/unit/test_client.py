"""A trainer's client: it never waits and never raises, and what it cannot deliver is counted."""

import threading
import time

import numpy as np
import pytest
import torch

from helpers.wire import rows_of_tables
from tracekit.client import Client, client, marks
from tracekit.client.annotations import Annotations, annotation
from tracekit.client.marks import Marks
from tracekit.rpc.columns import count_rows, pack
from tracekit.rpc.credentials import Access

EMPTY = dict.fromkeys(
    ("run", "engine_id", "train_step", "group", "reward", "advantage", "old_logprob", "token_ids"), None
)


def rows(*said):
    """What the wire would carry of annotations."""
    encoder = Annotations()
    for one in said:
        encoder.add(annotation("r", **{**EMPTY, "index": 0, **one}))
    tables = encoder.take()
    pack(tables)
    return tables["annotations"]


@pytest.mark.parametrize(
    "values",
    [
        [-0.5, None, -2.0],
        (-0.5, float("nan"), -2.0),
        np.array([-0.5, np.nan, -2.0]),
        torch.tensor([-0.5, torch.nan, -2.0], dtype=torch.bfloat16, requires_grad=True),
    ],
)
def test_values_of_every_kind_are_the_same_row(values):
    (found,) = rows({"old_logprob": values})["old_logprobs"]
    assert found.dtype == np.float32 and np.array_equal(found, [-0.5, np.nan, -2.0], equal_nan=True)


def test_values_are_copied_at_once():
    values = np.zeros(3, np.float32)
    said = annotation("r", **{**EMPTY, "index": 0, "old_logprob": values, "advantage": values})
    values += 1
    assert not said.old_logprobs.any() and not said.advantages.any()


def test_one_advantage_is_that_of_the_rollout_and_nothing_is_nothing():
    found = rows({"advantage": 0.5}, {"advantage": torch.tensor(0.5)}, {"advantage": [0.5, 1]}, {})
    assert [list(values) for values in found["advantages"]] == [[0.5], [0.5], [0.5, 1.0], []]
    assert [list(values) for values in found["old_logprobs"]] == [[]] * 4
    assert found["reward"].mask.all() and found["train_step"].mask.all()


WRONG = [
    {"old_logprob": "abc"},
    {"old_logprob": [[1.0]]},
    {"old_logprob": 1.0},
    {"token_ids": [1.5]},
    {"token_ids": [-1]},
    {"train_step": -1},
    {"train_step": 2**32},
    {"index": "x"},
    {"reward": object()},
    {"group": "x" * 5000},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: next(iter(wrong)))
def test_what_is_none_is_dropped_and_counted_and_the_next_goes_on(wrong, monkeypatch, tmp_path):
    monkeypatch.delenv("TRACEKIT_STRICT", raising=False)
    with Client(f"unix:{tmp_path}/nobody.sock") as trainer:
        trainer.annotate("r", **wrong)
        deadline = time.monotonic() + 20
        while trainer.num_dropped != 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert trainer.num_dropped == 1
        trainer.annotate("r", reward=1)
        assert trainer.num_dropped == 1


def test_without_an_address_and_in_a_child_it_does_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRACEKIT_DAEMON", raising=False)
    with Client() as trainer:
        trainer.annotate("r", reward=1)
        trainer.mark_weights("step-1")
        assert trainer.num_dropped == 2
    assert "no daemon is named" in capsys.readouterr().err
    with Client(f"unix:{tmp_path}/nobody.sock") as trainer:
        monkeypatch.setattr(client.os, "getpid", lambda: 1)
        trainer.annotate("r", reward=object())
        trainer.mark_weights("step-1")
        monkeypatch.undo()
        assert trainer.num_dropped == 0


def test_a_key_that_others_can_read_sends_nothing(monkeypatch, tmp_path, capsys):
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    key.chmod(0o644)
    monkeypatch.setenv("TRACEKIT_REDACT_KEY_FILE", str(key))
    trainer = Client("unix:/nowhere/d.sock")
    trainer.annotate("r", token_ids=[1, 2])
    trainer.close()
    assert trainer.engine_id == "" and "cannot be redacted: others can read" in capsys.readouterr().err


def test_no_call_waits_whatever_the_daemon_does(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(client, "MAX_BYTES", 200_000)
    trainer = Client(f"unix:{tmp_path}/nobody.sock")
    old = np.zeros(1000, np.float32)
    begin = time.thread_time()
    for i in range(2000):
        trainer.annotate(f"r{i}", old_logprob=old)
    assert time.thread_time() - begin < 2  # a millisecond each, on a machine that does other things too
    trainer.close(1)
    # all that was said is either kept for a daemon that may come, or counted
    assert 1900 < trainer.num_dropped < 2000
    said = capsys.readouterr().err
    assert "annotations are dropped" in said and "were dropped" in said
    num_before = trainer.num_dropped
    trainer.annotate("after the end", reward=1.0)
    assert trainer.num_dropped == num_before + 1


def test_labels_that_find_no_place_or_no_engine_are_said(monkeypatch, capsys):
    monkeypatch.setattr(marks, "MAX_LABELS", 1)
    held, asked = threading.Event(), []

    class Daemon:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def mark_weights(self, *label):
            asked.append(label)
            held.wait(20)
            if label[0] == "bad":
                raise OSError("nobody there")

    own = Marks("unix:/nowhere", Access(), lambda *_: Daemon())
    assert own.put("bad", None, ())
    while not asked:
        time.sleep(0.01)
    assert own.put("good", "here", (1,)) and not own.put("too many", None, ())
    held.set()
    own.close(20)
    while len(asked) < 2:
        time.sleep(0.01)
    assert asked == [("bad", None, ()), ("good", "here", (1,))] and own.num_failed == 1
    said = capsys.readouterr().err
    assert "'too many' of the weights is dropped" in said and "'bad' of the weights may not be in the trace" in said


def test_the_encoder_counts_what_it_hands_over():
    encoder = Annotations()
    for i in range(3):
        encoder.add(annotation(f"r{i}", **{**EMPTY, "index": i, "old_logprob": [0.0] * i, "token_ids": [1, 2]}))
    assert encoder.num_tokens() == 9 and encoder.pending() == encoder.count(None) | {"annotations": 3}
    tables = encoder.take()
    assert count_rows(tables) == {"annotations": 3} and len(rows_of_tables(tables, "annotations")) == 3
    assert encoder.num_tokens() == 0 and encoder.take() == {}
