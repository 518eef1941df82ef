"""Days, not minutes: segments become parts while others are written."""

import os
import shutil

from helpers.factories import ENGINE_ID
from helpers.parts import BATCHES, Source, assert_whole
from tracekit.trace import parts as parts_module
from tracekit.trace.index import INDEX_NAME
from tracekit.trace.reader import open_trace
from tracekit.trace.seal import seal
from tracekit.trace.segments import segment_paths
from tracekit.trace.sources import part_paths
from tracekit.trace.spool import SpoolWriter


def test_a_growing_run_is_its_parts_and_its_segments(spool, tmp_path):
    writer, source = spool
    assert len(part_paths(writer.folder)) == 3 and len(segment_paths(writer.folder)) == 1
    assert open_trace(writer.folder).live
    assert_whole(writer.folder, source)
    writer.close()
    assert_whole(writer.folder, source)
    with SpoolWriter(writer.folder) as again:
        assert again.resume()[ENGINE_ID].seq == BATCHES and again.resume()[ENGINE_ID].last
    report = seal(writer.folder, tmp_path / "t.arrow")
    assert report.complete
    assert_whole(tmp_path / "t.arrow", source)
    # each part is a trace of its own, and all but the last segment are in them
    (loss,) = open_trace(str(writer.folder / "part-*.arrow")).losses()
    assert loss["from_seq"] == BATCHES


def test_a_kill_at_any_moment_of_making_a_part_loses_and_doubles_nothing(tmp_path, monkeypatch):
    source = Source()
    with SpoolWriter(tmp_path / "live", segment_bytes=1) as writer:
        source.put(writer, BATCHES)
        copies = []

        def copy(when):
            copies.append(tmp_path / when)
            shutil.copytree(writer.folder, copies[-1])

        sealing, rewrite = parts_module.seal_part, SpoolWriter._rewrite
        drop = parts_module.Index.drop

        def seal_part(trace, out):
            sealing(trace, out)
            copy("named")

        def spy(index, folder):
            copy("told")
            drop(index, folder)

        monkeypatch.setattr(parts_module, "seal_part", seal_part)
        monkeypatch.setattr(parts_module.Index, "drop", spy)
        monkeypatch.setattr(SpoolWriter, "_rewrite", lambda self: (copy("before"), rewrite(self))[1])
        writer.make_part(sorted(writer.whole())[:5])
        monkeypatch.undo()
    assert [path.name for path in copies] == ["named", "before", "told"]
    for folder in copies:
        assert_whole(folder, source)
        with SpoolWriter(folder) as again:
            assert again.resume()[ENGINE_ID].seq == BATCHES
            assert_whole(folder, source)
            again.make_part(again.whole())
        assert_whole(folder, source)
        with SpoolWriter(folder):
            pass
        assert_whole(folder, source)


def test_batches_behind_a_gap_wait_for_those_before_them(tmp_path):
    source = Source()
    with SpoolWriter(tmp_path / "live") as writer:
        source.put(writer, 2)
        for _ in range(4):
            source.put(writer)
        folder = tmp_path / "spool"
        shutil.copytree(writer.folder, folder)
    (folder / INDEX_NAME).unlink()
    lost = open_trace(folder).stored[3][0]
    with open(lost.path, "r+b") as file:
        file.seek(lost.offset)
        file.write(bytes(lost.length))
    SpoolWriter(folder, segment_bytes=1).close()
    with SpoolWriter(folder, segment_bytes=1) as writer:
        assert writer.resume()[ENGINE_ID].seq == 3
        assert writer.make_part(writer.whole()) is None
        again = Source()
        for _ in range(BATCHES):
            again.put(writer)
        assert writer.make_part(writer.whole()) is not None
    trace = open_trace(folder)
    assert [loss.engine for loss in trace.all_losses()] == [None]  # the index was gone when there was damage
    assert trace.rows("tokens") == again.produced["tokens"]


def test_a_damaged_part_is_damage_of_that_part(spool, tmp_path):
    writer, _ = spool
    writer.close()
    os.truncate(part_paths(writer.folder)[1], 1000)
    trace = open_trace(writer.folder)
    gap, damage = trace.all_losses()
    assert (gap.engine, gap.from_seq, gap.to_seq, gap.rows["tokens"]) == (0, 4, 7, 4 * 6)
    assert damage.engine is None and "part-000003-000006.arrow cannot be read" in damage.reason
    assert seal(writer.folder, tmp_path / "t.arrow").losses == [gap]


def test_where_the_index_is_lost_the_parts_tell_where_an_engine_stands(spool):
    writer, source = spool
    writer.close()
    (writer.folder / INDEX_NAME).write_text("{}")
    with SpoolWriter(writer.folder) as again:
        assert again.resume()[ENGINE_ID].seq == BATCHES and len(again.parts()) == 3
    trace = open_trace(writer.folder)
    assert trace.complete and trace.rows("tokens") == source.produced["tokens"]
    assert any("index of the spool is damaged" in note for note in trace.notes())


def test_a_segment_of_an_idle_engine_is_ended_when_its_time_is_over(tmp_path):
    with SpoolWriter(tmp_path / "spool", segment_secs=1000.0) as writer:
        Source().put(writer)
        writer.roll()
        assert not writer.whole()
        writer._segment_secs = 0.0
        writer.roll()
        assert list(writer.whole()) == ["hot-000000.arrows"]
        writer.roll()
        assert len(segment_paths(writer.folder)) == 1


def test_a_segment_that_was_cut_costs_no_part_its_standing(spool):
    """The parts say how far an engine had got, where a segment is less than the index says."""
    writer, source = spool
    writer.close()
    (last,) = segment_paths(writer.folder)
    os.truncate(last, 100)
    with SpoolWriter(writer.folder) as again:
        assert again.resume()[ENGINE_ID].seq == BATCHES - 1
        assert again.resume()[ENGINE_ID].produced["tokens"] == source.produced["tokens"] - 6
