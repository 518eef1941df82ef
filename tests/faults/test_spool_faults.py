"""Faults of a spool's folder, disk and neighbours: what was confirmed stays, what is missing is said, none crashes."""

import errno
import os
import shutil

import pytest

from helpers.factories import ENGINE_ID, make_tables, write_trace
from helpers.spools import OTHER, TOKENS, overwrite, put, seqs
from tracekit.errors import OutputError
from tracekit.trace import durable as durable_module
from tracekit.trace import spool as spool_module
from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekit.trace.hold import LOCK_NAME
from tracekit.trace.index import read_index
from tracekit.trace.ledger import GAP, OPEN_END
from tracekit.trace.output import new_file
from tracekit.trace.reader import open_trace
from tracekit.trace.seal import seal
from tracekit.trace.segments import salvage, segment_name, segment_paths
from tracekit.trace.spool import SpoolWriter
from tracekitd import sealing as sealing_module
from tracekitd.catalog import Catalog
from tracekitd.sealing import finish, seal_spool


def killed(writer, folder):
    """The folder as a kill leaves it: nothing is ended, the lock is free."""
    shutil.copytree(writer.folder, folder)
    return folder


@pytest.fixture
def torn(tmp_path):
    """A spool whose writer was killed with batches 1 to 3 synced and 4 to 9 not, with the places of all."""
    with SpoolWriter(tmp_path / "live") as writer:
        for seq in range(1, 4):
            put(writer, seq)
        writer.sync()
        for seq in range(4, 10):
            put(writer, seq)
        folder = killed(writer, tmp_path / "spool")
    return folder, {stored.meta.seq: stored for stored, _ in open_trace(folder).stored}


@pytest.mark.parametrize("bad", [4, 5, 8, 9])
def test_after_a_power_loss_the_recorder_is_told_the_end_of_what_is_there_without_a_gap(torn, bad):
    folder, places = torn
    overwrite(places[bad].path, places[bad].offset, bytes(places[bad].length))
    with SpoolWriter(folder) as writer:
        assert writer.resume()[ENGINE_ID].seq == bad - 1
        assert writer.resume()[ENGINE_ID].produced["tokens"] == TOKENS * (bad - 1)
        for seq in range(bad, 11):  # it sends all again that it was not told of
            put(writer, seq, last=seq == 10)
    assert seqs(folder) == list(range(1, 11))
    assert open_trace(folder).complete


def test_batches_behind_a_gap_are_kept_if_their_recorder_never_comes_back(torn, tmp_path):
    folder, places = torn
    overwrite(places[5].path, places[5].offset, bytes(places[5].length))
    for _ in range(2):
        SpoolWriter(folder).close()
    assert seqs(folder) == [1, 2, 3, 4, 6, 7, 8, 9]
    gap, end = seal(folder, tmp_path / "t.arrow").losses
    assert (gap.from_seq, gap.to_seq, gap.rows["tokens"], gap.reason) == (5, 5, TOKENS, GAP)
    assert (end.from_seq, end.reason) == (10, OPEN_END)


def test_what_is_put_together_otherwise_the_second_time_is_there_once(tmp_path):
    def append(writer, first, last):
        tables = make_tables(num_requests=1 + last - first, tokens=1, first_request=first, engine=False)
        meta = BatchMeta(0, ENGINE_ID, last, {"tokens": last}, {}, last == 12, first_seq=first)
        writer.append(to_record_batch({"tokens": tables["tokens"]}, 0), meta)

    with SpoolWriter(tmp_path / "live") as writer:
        for first, last in [(1, 2), (3, 4), (5, 6), (7, 9)]:
            append(writer, first, last)
        folder = killed(writer, tmp_path / "spool")
    lost = open_trace(folder).stored[2][0]
    overwrite(lost.path, lost.offset, bytes(lost.length))
    with SpoolWriter(folder) as writer:
        assert writer.resume()[ENGINE_ID].seq == 4
        for first, last in [(5, 8), (9, 12)]:
            append(writer, first, last)
    assert seqs(folder) == [2, 4, 8, 12]
    trace = open_trace(folder)
    assert trace.complete and sorted(trace.table("tokens")["request"].to_pylist()) == list(range(1, 13))


@pytest.mark.parametrize("fault", ["zeros", "bit", "schema", "folder", "pipe", "link", "empty", "text", "unreadable"])
def test_a_fault_of_one_segment_is_damage_of_that_segment(tmp_path, fault):
    folder = tmp_path / "spool"
    with SpoolWriter(folder, segment_bytes=1) as writer:
        for seq in range(1, 6):
            put(writer, seq, last=seq == 5)
    path = segment_paths(folder)[1]
    data = path.read_bytes()
    head = 8 + int.from_bytes(data[4:8], "little")
    path.unlink()
    if fault == "folder":
        path.mkdir()
    elif fault == "pipe":
        os.mkfifo(path)
    elif fault == "link":
        path.symlink_to("/dev/zero")
    elif fault == "unreadable":
        path.symlink_to(path)
    else:
        flipped = bytes([data[0] ^ 1, *data[1:]])
        changed = data.replace(b"token_id", b"token_ie", 1)
        bytes_of = {"zeros": bytes(head) + data[head:], "bit": flipped, "schema": changed, "empty": b"", "text": b"hi"}
        path.write_bytes(bytes_of[fault])
    survives = fault in ("zeros", "bit", "schema")
    for reopened in range(3):
        trace = open_trace(folder)
        assert [stored.meta.seq for stored, _ in trace.stored] == [1, *([2] if survives else []), 3, 4, 5]
        if not survives:
            assert (2, 2, GAP) in [(loss.from_seq, loss.to_seq, loss.reason) for loss in trace.all_losses()]
        if not reopened:
            assert not trace.complete
        with SpoolWriter(folder) as writer:
            # the index knew better, but what is there counts; where it is there no more it may come again
            assert writer.resume()[ENGINE_ID].seq in ((5,) if survives else (1, 5))


def test_nothing_is_confirmed_after_a_restart_that_was_not_synced_in_this_life(torn, monkeypatch):
    folder, _ = torn
    synced, named = [], []
    sync, sync_folder = os.fdatasync, spool_module.sync_folder
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")) or sync(fd))
    monkeypatch.setattr(spool_module, "sync_folder", lambda path: named.append(path) or sync_folder(path))
    with SpoolWriter(folder) as writer:
        assert writer.resume()[ENGINE_ID].seq == 9
        assert [os.path.basename(path) for path in synced] == [segment_name(1)] and named == [folder]
        copied = [found.meta.seq for found in salvage(folder / segment_name(1))]
        assert copied == [4, 5, 6, 7, 8, 9]  # 1 to 3 were on the disk when the index was written
    assert seqs(folder) == list(range(1, 10))


def test_a_disk_that_cannot_sync_at_the_start_leaves_the_spool_as_it_was(torn, monkeypatch):
    folder, _ = torn
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def refuse(_fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", refuse)
    for _ in range(3):
        with pytest.raises(OutputError, match="cannot write the spool folder"):
            SpoolWriter(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_parents_of_a_new_spool_are_private_and_durable(tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr(durable_module, "sync_folder", named.append)
    old = os.umask(0)
    try:
        SpoolWriter(tmp_path / "a/b/spool").close()
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/spool")} == {
        0o700
    }
    assert named[:3] == [tmp_path, tmp_path / "a", tmp_path / "a/b"]


def test_who_seals_holds_the_spool_and_removes_only_what_was_sealed(tmp_path, monkeypatch):
    refused = []

    def slow_seal(folder, *args, **kwargs):
        report = seal(folder, *args, **kwargs)
        for lock in (True, False):
            if not lock:
                (folder / LOCK_NAME).unlink()
            with pytest.raises(OutputError, match="another tracekitd"):
                SpoolWriter(folder)
            refused.append(lock)
        # a writer on another machine, whose lock this one does not see
        shutil.copy(segment_paths(folder)[0], folder / segment_name(77))
        return report

    monkeypatch.setattr(sealing_module, "seal", slow_seal)
    spool = SpoolWriter(tmp_path / "spool")
    put(spool, 1, last=True)
    spool.end()
    assert seal_spool(spool, tmp_path / "t.arrow", tmp_path, Catalog({})) == 0
    assert refused == [True, False]
    assert [path.name for path in segment_paths(tmp_path / "spool")] == [segment_name(77)]
    spool.close()


def test_a_daemon_killed_after_the_trace_was_named_is_followed_by_one_that_finishes(tmp_path, monkeypatch):
    out = tmp_path / "t.arrow"

    def kill(*_):
        raise KeyboardInterrupt

    with SpoolWriter(tmp_path / "spool") as spool, monkeypatch.context() as patch:
        put(spool, 1, last=True)
        spool.end()
        patch.setattr(SpoolWriter, "forget", kill)
        with pytest.raises(KeyboardInterrupt):
            seal_spool(spool, out, tmp_path, Catalog({}))
    with SpoolWriter(tmp_path / "spool") as spool:
        assert finish(spool) == out
        spool.remove()
    assert not (tmp_path / "spool").exists() and open_trace(out).rows("tokens") == TOKENS


def test_a_trace_that_somebody_else_made_finishes_nothing(tmp_path):
    write_trace(tmp_path / "t.arrow")
    with SpoolWriter(tmp_path / "spool") as spool:
        put(spool, 1, last=True)
        spool.end()
        spool.announce(tmp_path / "t.arrow", "another")
        assert finish(spool) is None
    assert seqs(tmp_path / "spool") == [1]


def test_drafts_that_killed_writers_left_go_and_those_of_living_ones_stay(tmp_path):
    left, foreign = tmp_path / ".t.arrow.0123abcd.tmp", tmp_path / ".u.arrow.0123abcd.tmp"
    left.touch()
    foreign.touch()
    with new_file(tmp_path / "t.arrow") as file:
        assert not left.exists()
        file.write(b"1")
        with pytest.raises(RuntimeError), new_file(tmp_path / "t.arrow"):
            raise RuntimeError
    assert foreign.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"t.arrow", foreign.name}


def two_engines(folder):
    with SpoolWriter(folder, segment_bytes=1) as writer:
        put(writer, 1)
        put(writer, 2, last=True)
        put(writer, 1, engine=1, engine_id=OTHER)
        put(writer, 2, engine=1, engine_id=OTHER, last=True)
    return folder


@pytest.mark.parametrize("what", ["last", "both", "restart"])
def test_no_engine_vanishes_with_its_segments(tmp_path, what):
    folder = two_engines(tmp_path / "spool")
    for path in segment_paths(folder)[3 if what == "last" else 2 :]:
        path.unlink()
    if what == "restart":
        SpoolWriter(folder).close()
    report = seal(folder, tmp_path / "t.arrow")
    trace = open_trace(tmp_path / "t.arrow")
    assert trace.all_losses() == report.losses and len(report.losses) == 1
    (loss,) = report.losses
    assert [row["engine_id"] for row in trace.engines()] == [ENGINE_ID, OTHER]
    if what == "restart":  # how far it had got is forgotten, so that its recorder may send it again
        assert (loss.engine, loss.from_seq, loss.reason) == (1, 1, OPEN_END)
    else:
        first = 2 if what == "last" else 1
        assert (loss.engine, loss.from_seq, loss.to_seq) == (1, first, 2) and loss.rows["tokens"] == (
            3 - first
        ) * TOKENS


def test_an_engine_is_in_the_index_before_anything_of_it_is_confirmed(tmp_path):
    with SpoolWriter(tmp_path / "spool") as writer:
        for number in range(3):
            put(writer, 1, engine=number, engine_id=str(number) * 32)
            writer.sync()
            assert len(read_index(writer.folder).engines) == number + 1


def test_a_disk_that_cannot_sync_is_not_filled_and_says_so_once(tmp_path, monkeypatch):
    folder, lines = tmp_path / "spool", []
    writer = SpoolWriter(folder, say=lines.append)
    put(writer, 1)
    writer.sync()
    put(writer, 2)
    sync = os.fdatasync

    def refuse(_fd):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        for _ in range(20):
            with pytest.raises(OutputError):
                writer.sync()
    assert len(segment_paths(folder)) <= 2 and writer.failed_syncs == 40
    assert len(lines) == 1 and "cannot sync" in lines[0]
    put(writer, 3, last=True)
    # the first refusal of a series is said too, though the copy goes through
    failures = [1]
    monkeypatch.setattr(os, "fdatasync", lambda fd: refuse(fd) if failures and failures.pop() else sync(fd))
    writer.sync()
    assert len(lines) == 2 or writer.failed_syncs == 41
    writer.close()
    assert seqs(folder) == [1, 2, 3] and open_trace(folder).complete
    report = seal(folder, tmp_path / "t.arrow")
    assert report.complete and any("refused to sync" in text for text in open_trace(tmp_path / "t.arrow").notes())
