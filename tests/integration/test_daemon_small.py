"""Many small batches: merged within a group commit, whole after a kill, and every producer of them is served."""

from concurrent.futures import ThreadPoolExecutor

import grpc

from helpers.wire import DaemonProcess, batch, engine_id, hello, numbered_tokens, record, rows_of_trace
from tracekit.trace.reader import open_trace
from tracekit.trace.segments import scan, segment_paths
from tracekitd.service import MAX_STREAMS

ROWS = 4


def messages_of(identity, count: int):
    """A hello, and batches that a loss cuts in two runs."""
    sent = [hello(identity)]
    lost = 0
    for seq in range(1, count + 1):
        if seq == count // 2:
            lost = 7
            continue
        made = batch(identity, seq, numbered_tokens(seq * ROWS, ROWS), {"tokens": lost + ROWS * (seq - bool(lost))})
        made.batch.totals.lost["tokens"] = lost
        if seq == count // 2 + 1:
            made.batch.losses.add(from_seq=seq - 1, to_seq=seq - 1, reason="full", rows={"tokens": 7})
        sent.append(made)
    sent[-1].batch.last = True
    return sent


def test_64_producers_of_small_batches_are_all_served(daemon):
    identities = [engine_id() for _ in range(MAX_STREAMS)]
    with ThreadPoolExecutor(MAX_STREAMS) as pool:
        ended = list(pool.map(lambda identity: record(daemon.address, messages_of(identity, 60)), identities))
    assert {status for _, status, _ in ended} == {grpc.StatusCode.OK}
    assert {acks[-1] for acks, _, _ in ended} == {60}
    assert daemon.stop() == 3  # the losses
    trace = open_trace(daemon.out)
    assert trace.table("tokens").num_rows == MAX_STREAMS * 59 * ROWS
    assert [(loss["from_seq"], loss["to_seq"]) for loss in trace.losses()] == [(30, 30)] * MAX_STREAMS


def test_small_batches_are_merged_between_losses_and_come_back_whole(short_path):
    process = DaemonProcess(short_path, seal=False)
    identity = engine_id()
    try:
        process.start()
        acks, status, details = record(process.address, messages_of(identity, 400))
        assert (acks[-1], status) == (400, grpc.StatusCode.OK), details
        process.kill()
        metas = [found.meta for path in segment_paths(process.spool) for found in scan(path)]
        assert len(metas) < 40
        numbers = [seq for meta in metas for seq in range(meta.first_seq or meta.seq, meta.seq + 1)]
        assert numbers == [seq for seq in range(1, 401) if seq != 200]
        process.argv += ["--seal", str(process.out)]
        process.start()
        assert record(process.address, messages_of(identity, 400))[0] == [400]  # all of it is known
        assert process.stop() == 3
        expected = [token for seq in range(1, 401) if seq != 200 for token in range(seq * ROWS, seq * ROWS + ROWS)]
        assert [row[2] for row in rows_of_trace(process.out, "tokens")] == expected
        (loss,) = open_trace(process.out).losses()
        assert (loss["from_seq"], loss["to_seq"], loss["reason"]) == (200, 200, "full")
    finally:
        process.end()


def test_an_empty_batch_costs_bytes(short_path):
    """An idle engine that tells its losses, or answers commands, must not fill a disk."""
    process = DaemonProcess(short_path, seal=False)
    identity = engine_id()
    try:
        process.start()
        record(process.address, [hello(identity), batch(identity, 1, numbered_tokens(0, 4))])
        before = sum(path.stat().st_size for path in process.spool.iterdir())
        record(process.address, [hello(identity), *(batch(identity, seq, {}, {"tokens": 4}) for seq in range(2, 402))])
        grown = sum(path.stat().st_size for path in process.spool.iterdir()) - before
        assert grown < 400 * 100, grown
    finally:
        process.end()
