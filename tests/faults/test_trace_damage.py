"""Damage at any byte: never a wrong value, never a crash, never an error of another kind."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from helpers.factories import ENGINE_ID, make_tables, write_spool, write_trace
from tracekit.errors import (
    DamagedFooterError,
    NotATraceError,
    SchemaTooNewError,
    TraceCorruptError,
    TraceTruncatedError,
)
from tracekit.tables import TABLES
from tracekit.trace import hot as hot_module
from tracekit.trace.hold import LOCK_NAME
from tracekit.trace.index import INDEX_NAME
from tracekit.trace.ledger import GAP
from tracekit.trace.reader import open_trace
from tracekit.trace.seal import seal
from tracekit.trace.segments import Damage, HotBatch, scan, segment_paths
from tracekit.trace.spool import SpoolWriter
from tracekit.trace.summary import summarize

BATCHES = [
    make_tables(num_requests=2, tokens=3, first_request=2 * n, first_step=3 * n, seed=n, engine=n == 0)
    for n in range(3)
]


def rows_by_table(path):
    trace = open_trace(path)
    return {name: trace.table(name).to_pylist() for name in TABLES if name != "losses"}


def only_true_rows(found, truth):
    return all(row in truth[name] for name, rows in found.items() for row in rows)


@pytest.fixture
def sealed(tmp_path):
    write_trace(tmp_path / "t.arrow", BATCHES, batch_rows=7)
    return tmp_path / "t.arrow"


@pytest.fixture(params=["plain", "zstd"])
def segment(request, tmp_path, monkeypatch):
    monkeypatch.setattr(hot_module, "SMALL_BYTES", (1 << 20) if request.param == "plain" else 0)
    return segment_paths(write_spool(tmp_path / "spool", BATCHES))[0]


def test_a_sealed_trace_cut_at_any_byte_says_so(sealed):
    for size in reversed(range(sealed.stat().st_size)):
        os.truncate(sealed, size)
        with pytest.raises((TraceTruncatedError, NotATraceError)) as caught:
            open_trace(sealed)
        assert "\n" not in str(caught.value) and str(sealed) in str(caught.value)
        assert size == 0 or isinstance(caught.value, TraceTruncatedError)


def test_a_hot_segment_cut_at_any_byte_gives_its_whole_batches(tmp_path):
    (path,) = segment_paths(write_spool(tmp_path / "spool", BATCHES[:2]))
    truth = open_trace(path.parent).stored
    ends = [stored.offset + stored.length for stored, _ in truth]
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        found = list(scan(path)) if size else []
        whole = [batch.meta for batch in found if isinstance(batch, HotBatch)]  # scan compares rows and checksums
        assert whole == [stored.meta for (stored, _), end in zip(truth, ends, strict=True) if end <= size]
        torn = [damage.offset + damage.length for damage in found if isinstance(damage, Damage)]
        clean = size in (0, *ends) or size == truth[0][0].offset
        assert torn == ([] if clean else [size])


@pytest.mark.parametrize("cut", [1, 8, 9, 500, 4000, 8000])
def test_a_cut_spool_is_read_up_to_the_tear_and_not_complete(segment, cut):
    truth = rows_by_table(segment.parent)
    os.truncate(segment, segment.stat().st_size - cut)
    assert only_true_rows(rows_by_table(segment.parent), truth)
    # 8 bytes of end mark follow the goodbye, which alone proves that nothing else came
    kept = open_trace(segment.parent).rows("tokens")
    assert kept == 18 if cut <= 8 else kept in (6, 12)
    assert open_trace(segment.parent).complete == (cut == 8)


def test_a_torn_hot_segment_tells_its_losses(segment):
    segment.write_bytes(segment.read_bytes()[:-100])
    reasons = [loss["reason"] for loss in open_trace(segment.parent).losses()]
    assert any("torn tail" in reason for reason in reasons) and any(reason.startswith("gap") for reason in reasons)


def flips(size, count, seed):
    """Bit positions: all over, and every bit of the first and last bytes, where lengths and footers are."""
    rng = random.Random(seed)
    edge = [*range(0, 64 * 8, 5), *range((size - 64) * 8, size * 8, 5)]
    return edge + [rng.randrange(size * 8) for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_in_a_sealed_trace_is_never_a_wrong_value(sealed, seed):
    data = sealed.read_bytes()
    truth = rows_by_table(sealed)
    outcomes = set()
    for bit in flips(len(data), 250, seed):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        sealed.write_bytes(damaged)
        try:
            found = rows_by_table(sealed)
        except (TraceCorruptError, NotATraceError, SchemaTooNewError, TraceTruncatedError) as error:
            assert "\n" not in str(error)
            outcomes.add(type(error))
        else:
            assert found == truth, f"bit {bit} came back as a wrong value"
    assert TraceCorruptError in outcomes


def test_damage_in_a_sealed_batch_names_the_batch(sealed):
    data = bytearray(sealed.read_bytes())
    second = data.find(b"tracekit.batch", data.find(b"tracekit.batch") + 1)
    data[second + 40] ^= 1
    sealed.write_bytes(data)
    with pytest.raises(TraceCorruptError, match="batch 2 of"):
        open_trace(sealed)


@pytest.mark.parametrize("seed", range(2))
def test_a_flipped_bit_in_a_hot_segment_costs_one_batch_at_most(segment, seed):
    data = segment.read_bytes()
    truth = rows_by_table(segment.parent)
    for bit in flips(len(data), 60, seed):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        segment.write_bytes(damaged)
        try:
            trace = open_trace(segment.parent)
        except (NotATraceError, SchemaTooNewError):
            assert bit // 8 < open_schema_bytes(data), "a damaged batch hid the whole segment"
            continue
        assert len(trace.stored) >= len(BATCHES) - 1
        found = rows_by_table(segment.parent)
        assert only_true_rows(found, truth)
        assert found == truth or not trace.complete


def open_schema_bytes(data):
    return 8 + int.from_bytes(data[4:8], "little")


def test_a_damaged_batch_in_the_middle_is_a_gap_counted_to_the_row(segment, tmp_path):
    middle = open_trace(segment.parent).stored[1][0]
    data = bytearray(segment.read_bytes())
    for offset in range(middle.length - 400, middle.length - 100):
        data[middle.offset + offset] ^= 0xFF
    segment.write_bytes(data)
    losses = open_trace(segment.parent).losses()
    assert (losses[0]["from_seq"], losses[0]["to_seq"], losses[0]["rows"]["tokens"]) == (2, 2, 6)
    assert "damaged" in losses[1]["reason"]
    report = seal(segment.parent, tmp_path / "t.arrow")
    assert [loss.rows["tokens"] for loss in report.losses] == [6]
    assert open_trace(tmp_path / "t.arrow").table("tokens").num_rows == 12


def test_a_removed_batch_is_a_gap(segment):
    middle = open_trace(segment.parent).stored[1][0]
    data = segment.read_bytes()
    segment.write_bytes(data[: middle.offset] + data[middle.offset + middle.length :])
    (loss,) = open_trace(segment.parent).losses()
    assert (loss["from_seq"], loss["to_seq"], loss["rows"]["tokens"]) == (2, 2, 6)


def test_a_zeroed_page_is_never_a_wrong_value(segment):
    data, truth = segment.read_bytes(), rows_by_table(segment.parent)
    for start in range(open_schema_bytes(data), len(data) - 4096, 2048):
        segment.write_bytes(data[:start] + bytes(4096) + data[start + 4096 :])
        assert only_true_rows(rows_by_table(segment.parent), truth)
        assert not open_trace(segment.parent).complete


def test_swapped_batches_of_a_sealed_file_are_refused(sealed):
    data = sealed.read_bytes()
    first = data.replace(b'"seq":1,', b'"seq":2,', 1)
    sealed.write_bytes(first)
    with pytest.raises(TraceCorruptError):
        open_trace(sealed)


@pytest.fixture
def three(tmp_path):
    write_trace(tmp_path / "t.arrow", BATCHES, batch_rows=4)
    return tmp_path / "t.arrow"


def footer_blocks(data):
    """Where the footer of an Arrow file counts its batches; their blocks, of 24 bytes each, follow that count."""
    start = len(data) - 10 - int.from_bytes(data[-10:-6], "little")
    table = start + int.from_bytes(data[start : start + 4], "little")
    vtable = table - int.from_bytes(data[table : table + 4], "little", signed=True)
    field = table + int.from_bytes(data[vtable + 10 : vtable + 12], "little")  # the fourth field: recordBatches
    count = field + int.from_bytes(data[field : field + 4], "little")
    assert int.from_bytes(data[count : count + 4], "little") == 3
    return count


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 2), (0, 2)])
def test_a_footer_that_tells_batches_in_another_order_is_refused(three, first, second):
    data = bytearray(three.read_bytes())
    blocks = footer_blocks(data) + 4
    one, other = (slice(blocks + 24 * n, blocks + 24 * (n + 1)) for n in (first, second))
    data[one], data[other] = data[other], data[one]
    three.write_bytes(data)
    with pytest.raises(TraceCorruptError, match=f"batch {first + 1} of .* says that it is batch {second + 1}"):
        open_trace(three)


@pytest.mark.parametrize("told", [1, 2])
def test_a_footer_that_hides_the_last_batches_is_refused(three, told):
    data = bytearray(three.read_bytes())
    data[footer_blocks(data)] = told
    three.write_bytes(data)
    with pytest.raises(TraceCorruptError, match=f"the footer tells of {told} batch"):
        open_trace(three)


def test_a_footer_that_hides_every_batch_is_refused(three):
    data = bytearray(three.read_bytes())
    data[footer_blocks(data)] = 0
    three.write_bytes(data)
    with pytest.raises(DamagedFooterError):
        open_trace(three)


@pytest.mark.parametrize("index", ["there", "gone", "damaged"])
def test_what_damage_took_of_an_engine_is_told_beside_the_losses_of_others(tmp_path, index):
    folder = write_spool(tmp_path / "spool", BATCHES)
    write_spool(folder, BATCHES[:1], engine=1, engine_id="1" * 32)
    lost = segment_paths(folder)[-1]
    schema = open_schema_bytes(lost.read_bytes())
    lost.write_bytes(lost.read_bytes()[:schema] + b"\xff" * 1000)
    if index != "there":
        (folder / INDEX_NAME).unlink() if index == "gone" else (folder / INDEX_NAME).write_bytes(b"{")
    note = {"engine_id": ENGINE_ID, "from_seq": 4, "to_seq": 4, "reason": "no daemon", "rows": {"tokens": 5}}
    report = seal(folder, tmp_path / "t.arrow", [note])
    exact = f"engine 1, batch 1: engines 1, finishes 2, requests 2, scheduled 6, steps 3, tokens 6 ({GAP})"
    unknown = "unknown engine: rows unknown (corrupt: damaged bytes in the spool)"
    known = index == "there"
    assert [str(loss) for loss in report.losses] == [
        "engine 0, batch 4: tokens 5 (no daemon)",
        exact if known else unknown,
    ]
    assert report.engines == 1 + known
    trace = open_trace(tmp_path / "t.arrow")
    assert trace.all_losses() == report.losses
    assert [engine["engine"] for engine in trace.engines()] == [0, 1][: report.engines]
    assert known or trace.only(0).all_losses() == report.losses
    assert summarize(trace)["rows"]["losses"] == 2
    assert seal(tmp_path / "t.arrow", tmp_path / "again.arrow").losses == report.losses


def test_garbage_alone_in_a_spool_is_a_loss_of_an_unknown_engine(tmp_path):
    folder = write_spool(tmp_path / "spool", BATCHES)
    (path,) = segment_paths(folder)
    schema = open_schema_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes()[:schema] + b"\xff" * 1000)
    assert not open_trace(folder).complete
    report = seal(folder, tmp_path / "t.arrow")
    assert not report.complete and not open_trace(tmp_path / "t.arrow").complete


WRITER = """
import sys
sys.path[:0] = ["tests"]
from helpers.factories import ENGINE_ID, make_tables
from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekit.trace.spool import SpoolWriter
writer = SpoolWriter(sys.argv[1], segment_bytes=60_000)
start = writer.resume()[ENGINE_ID].seq if ENGINE_ID in writer.resume() else 0
for seq in range(start + 1, 100_000):
    tables = make_tables(num_requests=1, tokens=3, first_request=seq, engine=False)
    writer.append(to_record_batch(tables, 0), BatchMeta(0, ENGINE_ID, seq, {"tokens": 3 * seq}))
    if seq % 5 == 0:
        writer.sync()
        print(seq, flush=True)
"""


def test_what_was_synced_survives_kill_9_again_and_again(tmp_path):
    folder, rng, acked = tmp_path / "spool", random.Random(0), 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(folder)], stdout=subprocess.PIPE, text=True
        )
        first = int(process.stdout.readline())
        assert first >= acked
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        acked = max([first, *map(int, process.stdout.read().split())])
        process.wait()
        trace = open_trace(folder)
        assert trace.rows("tokens") >= 3 * acked
        assert [stored.meta.seq for stored, _ in trace.stored] == list(range(1, len(trace.stored) + 1))
        assert not trace.live


def test_a_reader_beside_a_writer_does_not_lock_it_out(tmp_path):
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / LOCK_NAME).touch()
    for _ in range(20):
        open_trace(tmp_path / "spool")
        SpoolWriter(tmp_path / "spool").close()
