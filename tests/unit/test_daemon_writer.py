"""Group commit over a disk that misbehaves: nothing is confirmed before it is durable, and nothing is forgotten."""

import queue

import pyarrow as pa
import pytest

from tracekit.errors import OutputError
from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekitd import writer as writer_module
from tracekitd.writer import Writer

BATCH: pa.RecordBatch = to_record_batch({}, 0)


class Disk:
    """A spool that keeps numbers, and fails as often as it is told."""

    def __init__(self, append_failures: int = 0, sync_failures: int = 0, error: type[Exception] = OutputError) -> None:
        self.failures = {"append": append_failures, "sync": sync_failures}
        self.error = error
        self.appended: list[int] = []
        self.durable: list[int] = []
        self.ended = False

    def _fail(self, what: str) -> None:
        if self.failures[what]:
            self.failures[what] -= 1
            raise self.error("the disk is full")

    def append(self, _batch, meta):
        self._fail("append")
        self.appended.append(meta.seq)
        return 100

    def sync(self):
        self._fail("sync")
        self.durable = list(self.appended)

    def end(self):
        self.ended = True


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(writer_module, "RETRY_SECS", 0.001)
    made = []

    def make(disk):
        failed: queue.SimpleQueue = queue.SimpleQueue()
        made.append(Writer(disk, failed.put))
        return made[-1], failed

    return make


def send(writer, disk, numbers):
    confirmed: queue.SimpleQueue = queue.SimpleQueue()
    for seq in numbers:
        meta = BatchMeta(engine=0, engine_id="ab" * 16, seq=seq)
        writer.commit([(BATCH, meta)], lambda seq=seq: confirmed.put((seq, seq in disk.durable)))
    return confirmed


def test_batches_are_confirmed_in_order_and_after_the_sync(make):
    disk = Disk()
    writer, _ = make(disk)
    confirmed = send(writer, disk, range(1, 50))
    assert [confirmed.get(timeout=30) for _ in range(49)] == [(seq, True) for seq in range(1, 50)]
    writer.stop(10)
    assert disk.ended


def test_a_disk_that_recovers_gets_everything_once(make, capfd):
    disk = Disk(append_failures=5, sync_failures=5)
    writer, _ = make(disk)
    confirmed = send(writer, disk, range(1, 20))
    assert [confirmed.get(timeout=30) for _ in range(19)] == [(seq, True) for seq in range(1, 20)]
    writer.stop(10)
    assert disk.appended == list(range(1, 20))
    told = capfd.readouterr().err
    assert told.count("nothing is confirmed until it works") == told.count("takes data again") >= 1


def test_a_disk_that_refuses_for_ever_does_not_hold_up_the_end_and_is_named(make, capfd):
    disk = Disk(sync_failures=10**9)
    writer, failed = make(disk)
    confirmed = send(writer, disk, [1, 2])
    writer.stop(0.05)
    assert confirmed.empty() and failed.empty() and writer.given_up == 2
    assert "2 batches were given up" in capfd.readouterr().err


def test_an_empty_commit_waits_for_what_came_before_it(make):
    disk = Disk()
    writer, _ = make(disk)
    send(writer, disk, [1, 2, 3])
    flushed: queue.SimpleQueue = queue.SimpleQueue()
    writer.commit([], lambda: flushed.put(list(disk.durable)))
    assert flushed.get(timeout=30) == [1, 2, 3]
    writer.stop(10)


def test_an_error_of_ours_is_reported_and_confirms_nothing(make):
    disk = Disk(append_failures=1, error=ZeroDivisionError)
    writer, failed = make(disk)
    confirmed = send(writer, disk, [1])
    assert isinstance(failed.get(timeout=30), ZeroDivisionError)
    writer.stop(10)
    assert confirmed.empty()
