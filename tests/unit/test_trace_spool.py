"""The spool: whole batches only, one writer only, and a failed sync is never tried again on the same file."""

import errno
import os
import shutil
import stat

import pyarrow as pa
import pytest

from helpers.factories import ENGINE_ID, make_tables, write_spool
from tracekit.errors import OutputError
from tracekit.trace import spool as spool_module
from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekit.trace.reader import open_trace
from tracekit.trace.segments import segment_paths
from tracekit.trace.spool import SpoolWriter


def append(writer, seq, tokens=4, engine=0, engine_id=ENGINE_ID, last=False):
    tables = make_tables(num_requests=1, tokens=tokens, first_request=seq, engine=False)
    meta = BatchMeta(engine, engine_id, seq, {"tokens": tokens * seq}, {}, last)
    return writer.append(to_record_batch(tables, engine), meta)


def stored_seqs(folder):
    return [stored.meta.seq for stored, _ in open_trace(folder).stored]


def test_only_the_owner_can_read_the_spool(tmp_path):
    folder = write_spool(tmp_path / "spool", [make_tables()])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_two_writers_cannot_share_a_spool(tmp_path):
    with SpoolWriter(tmp_path / "spool"), pytest.raises(OutputError, match="another tracekitd"):
        SpoolWriter(tmp_path / "spool")
    SpoolWriter(tmp_path / "spool").close()


def test_a_spool_where_a_file_is_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write the spool folder"):
        SpoolWriter(tmp_path / "file")


def test_each_batch_is_one_write(tmp_path, monkeypatch):
    writes = []
    write = os.write
    monkeypatch.setattr(spool_module.os, "write", lambda fd, data: writes.append(len(data)) or write(fd, data))
    with SpoolWriter(tmp_path / "spool") as writer:
        append(writer, 1)
        before = len(writes)
        size = append(writer, 2)
        assert writes[before:] == [size]


def test_a_closed_segment_is_a_complete_arrow_stream(tmp_path):
    folder = write_spool(tmp_path / "spool", [make_tables(), make_tables()])
    table = pa.ipc.open_stream(segment_paths(folder)[0]).read_all()
    assert table.num_rows == 2
    assert len(table["tokens"].combine_chunks().flatten()) == 48


def test_segments_roll_over(tmp_path):
    with SpoolWriter(tmp_path / "spool", segment_bytes=1) as writer:
        for seq in (1, 2, 3):
            append(writer, seq)
    assert [path.name for path in segment_paths(tmp_path / "spool")] == [f"hot-{n:06d}.arrows" for n in range(3)]
    assert stored_seqs(tmp_path / "spool") == [1, 2, 3]


def test_reopening_knows_where_each_engine_stands(tmp_path):
    with SpoolWriter(tmp_path / "spool") as writer:
        append(writer, 1)
        append(writer, 1, engine=1, engine_id="other")
        append(writer, 2, last=True)
    with SpoolWriter(tmp_path / "spool") as writer:
        points = writer.resume()
        assert {name: (point.engine, point.seq, point.last) for name, point in points.items()} == {
            ENGINE_ID: (0, 2, True),
            "other": (1, 1, False),
        }
        assert points[ENGINE_ID].produced == {"tokens": 8}


@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_reopening_cuts_a_torn_tail_and_goes_on_in_a_new_segment(tmp_path, cut):
    folder = tmp_path / "spool"
    with SpoolWriter(folder) as writer:
        for seq in (1, 2, 3):
            append(writer, seq)
        whole = segment_paths(folder)[0].stat().st_size
    os.truncate(segment_paths(folder)[0], whole - cut)
    with SpoolWriter(folder) as writer:
        assert writer.resume()[ENGINE_ID].seq == 2
        append(writer, 3, last=True)
    assert [path.name for path in segment_paths(folder)] == ["hot-000001.arrows"]  # what was whole was copied
    assert stored_seqs(folder) == [1, 2, 3]
    assert open_trace(folder).complete


def test_a_failed_sync_abandons_the_segment_and_writes_again_elsewhere(tmp_path, monkeypatch):
    folder, failed = tmp_path / "spool", []
    sync = os.fdatasync

    def fail_first(fd):
        if not failed:
            failed.append(os.readlink(f"/proc/self/fd/{fd}"))
            raise OSError(errno.EIO, "Input/output error")
        assert os.readlink(f"/proc/self/fd/{fd}") not in failed, "a failed sync was tried again"
        sync(fd)

    monkeypatch.setattr(spool_module.os, "fdatasync", fail_first)
    with SpoolWriter(folder) as writer:
        append(writer, 1)
        append(writer, 2)
        writer.sync()
        assert [path.name for path in segment_paths(folder)] == ["hot-000001.arrows"]  # the first was a copy
        append(writer, 3, last=True)
    assert stored_seqs(folder) == [1, 2, 3]


def test_copies_of_a_batch_are_read_once(tmp_path, monkeypatch):
    folder, calls = tmp_path / "spool", []
    sync = os.fdatasync

    def fail_second(fd):
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        sync(fd)

    monkeypatch.setattr(spool_module.os, "fdatasync", fail_second)
    with SpoolWriter(folder) as writer:
        append(writer, 1)
        writer.sync()
        append(writer, 2)
        writer.sync()
        append(writer, 3, last=True)
    assert stored_seqs(folder) == [1, 2, 3]
    assert open_trace(folder).rows("tokens") == 12 == open_trace(folder).table("tokens").num_rows


def test_a_disk_that_refuses_every_sync_is_an_error_and_forgets_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "spool"
    sync = os.fdatasync

    def refuse(fd):
        raise OSError(errno.EIO, "Input/output error")

    writer = SpoolWriter(folder)
    append(writer, 1)
    monkeypatch.setattr(spool_module.os, "fdatasync", refuse)
    with pytest.raises(OutputError, match="cannot sync the spool"):
        writer.sync()
    monkeypatch.setattr(spool_module.os, "fdatasync", sync)
    for path in segment_paths(folder):
        path.unlink()
    append(writer, 2, last=True)
    writer.close()
    assert stored_seqs(folder) == [1, 2]


def test_a_full_disk_leaves_no_half_batch_and_the_batch_may_come_again(tmp_path, monkeypatch):
    folder = tmp_path / "spool"
    write = os.write
    with SpoolWriter(folder) as writer:
        append(writer, 1)
        size = segment_paths(folder)[0].stat().st_size
        room = [1000]

        def short(fd, data):
            if not room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            done = write(fd, data[: room[0]])
            room[0] -= done
            return done

        monkeypatch.setattr(spool_module.os, "write", short)
        with pytest.raises(OutputError, match="No space left"):
            append(writer, 2)
        assert segment_paths(folder)[0].stat().st_size == size
        monkeypatch.setattr(spool_module.os, "write", write)
        append(writer, 2, last=True)
    assert stored_seqs(folder) == [1, 2]
    assert open_trace(folder).complete


def test_what_is_written_into_a_deleted_folder_is_not_confirmed(tmp_path):
    """A sync of a file without a name is well received by the system, and nobody ever reads it."""
    writer = SpoolWriter(tmp_path / "spool")
    append(writer, 1)
    writer.sync()
    shutil.rmtree(tmp_path / "spool")
    append(writer, 2)
    with pytest.raises(OutputError, match="No such file or directory"):
        writer.sync()
    (tmp_path / "spool").mkdir(mode=0o700)  # somebody mends it
    writer.sync()
    assert stored_seqs(tmp_path / "spool") == [2]
    writer.close()


def test_close_may_be_called_twice(tmp_path):
    writer = SpoolWriter(tmp_path / "spool")
    append(writer, 1, last=True)
    writer.close()
    writer.close()
    assert stored_seqs(tmp_path / "spool") == [1]
