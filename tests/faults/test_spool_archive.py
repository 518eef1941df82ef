"""Parts of a spool go to an archive, and only then go here; who reads meanwhile gets all of it, or a sentence."""

import errno
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.engine import wait_for
from helpers.factories import ENGINE_ID
from helpers.parts import BATCHES, Source, assert_whole
from helpers.stores import BUCKET, ENVIRON, StoreServer
from tracekit.errors import OutputError, TraceError
from tracekit.tables import TABLES
from tracekit.trace import parts as parts_module
from tracekit.trace import reader as reader_module
from tracekit.trace import sources as sources_module
from tracekit.trace.index import Index, Part, read_index
from tracekit.trace.reader import open_trace
from tracekit.trace.reserve import RESERVE_BYTES, RESERVE_NAME
from tracekit.trace.seal import seal
from tracekit.trace.segments import segment_paths
from tracekit.trace.sources import part_paths
from tracekit.trace.spool import SpoolWriter
from tracekitd import roller as roller_module
from tracekitd.config import Config
from tracekitd.roller import Roller


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(roller_module, "LOOK_SECS", 0.02)
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_parts_are_stored_and_go_only_then(tmp_path, fast, monkeypatch, kind, capfd):
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "cache"))
    source = Source()
    with StoreServer(kind, tmp_path / "store") as store, SpoolWriter(tmp_path / "spool", segment_bytes=1) as writer:
        store.end()
        config = Config(("unix:/x",), writer.folder, archive=store.url("jobs/7"), keep_bytes=1.0)
        roller = Roller(writer, config)
        try:
            source.put(writer, 6)
            told = []
            wait_for(lambda: told.append(capfd.readouterr().err) or "does not answer" in "".join(told), "a word", 60)
            time.sleep(1)  # some tries and many looks between them: the same is said once
            lines = "".join([*told, capfd.readouterr().err]).splitlines()
            assert len(lines) == len(set(lines))
            assert part_paths(writer.folder) and all(part.here for part in writer.parts().values())
            store.start()
            source.put(writer, 6)
            wait_for(
                lambda: len(segment_paths(writer.folder)) == 1 and not part_paths(writer.folder), "the archive", 60
            )
        finally:
            roller.stop()
        assert not any(part.here for part in writer.parts().values())
        assert read_index(writer.folder).parts.keys() == writer.parts().keys()
        assert_whole(writer.folder, source)  # what is in the archive alone is fetched
        writer.close()
        report = seal(writer.folder, tmp_path / "t.arrow")
        assert report.complete
        assert_whole(tmp_path / "t.arrow", source)


def test_a_store_that_keeps_something_else_is_found_out(tmp_path, fast, monkeypatch, capfd):
    with StoreServer("rclone", tmp_path / "store") as store, SpoolWriter(tmp_path / "spool", segment_bytes=1) as writer:
        Source().put(writer, 4)
        config = Config(("unix:/x",), writer.folder, archive=store.url("jobs/7"), keep_secs=0.01)
        upload = roller_module.Store._asked

        def corrupt(self):
            for path in (tmp_path / "store" / BUCKET).rglob("*part-*"):
                path.write_bytes(path.read_bytes()[:-1] + b"\0")
            return upload(self)

        monkeypatch.setattr(roller_module.Store, "_asked", corrupt)
        roller = Roller(writer, config)
        wait_for(lambda: "came back as something else" in capfd.readouterr().err, "a word", 60)
        roller.stop()
        assert part_paths(writer.folder) and all(part.here and not part.archived for part in writer.parts().values())


def test_nothing_is_removed_that_is_nowhere_else(spool):
    writer, _ = spool
    name = next(iter(writer.parts()))
    with pytest.raises((AssertionError, OutputError)):
        writer.change_part(name, here=False)
    assert (writer.folder / name).exists()


def test_a_clock_that_jumps_removes_nothing_early_and_keeps_nothing_for_ever(spool, monkeypatch):
    writer, _ = spool
    for name in writer.parts():
        writer.change_part(name, archived="s3://b/" + name)
    now = SimpleNamespace(monotonic=1e5, wall=time.time())
    clock = SimpleNamespace(monotonic=lambda: now.monotonic, time_ns=lambda: int(now.wall * 1e9))
    monkeypatch.setattr(roller_module, "time", clock)
    roller = Roller(writer, Config(("unix:/x",), writer.folder))
    roller.stop()

    def here(wall, monotonic=0.0, keep_secs=600.0):
        now.wall, now.monotonic = now.wall + wall, now.monotonic + monotonic
        roller.keep(Config(("unix:/x",), writer.folder, archive="s3://b", keep_secs=keep_secs))
        roller._remove_old()
        return sum(part.here for part in writer.parts().values())

    assert here(0) == 3
    assert here(86400) == 3  # a day ahead
    assert here(-2 * 86400, monotonic=500) == 3  # a day back
    # a part that was made by another daemon while the clock was ahead
    writer._index.parts["part-000900-000901.arrow"] = Part(1, int((now.wall + 86400) * 1e9), "s3://b/x")
    assert here(0) == 4
    assert here(0, monotonic=101) == 1
    assert here(0, monotonic=498) == 1
    assert here(0, monotonic=2) == 0


def retain(writer, store):
    """What the daemon's roller does, with a folder for an archive."""
    for name, part in writer.parts().items():
        if part.here:
            shutil.copy(writer.folder / name, store / name)
            writer.change_part(name, archived=str(store / name))
            writer.change_part(name, here=False)


def roll_and_retain(writer, store):
    writer.end()
    writer.make_part(writer.whole())
    retain(writer, store)


def seal_all(writer, store):
    """What the daemon does at its end."""
    writer.end()
    writer.announce(store / "t.arrow", "x")
    report = seal(writer.folder, store / "t.arrow", name="x")
    writer.forget(path.name for path in report.files if path.parent == writer.folder)


def seal_and_remove(writer, store):
    seal_all(writer, store)
    writer.remove()


@pytest.mark.parametrize("does", [retain, roll_and_retain, seal_all, seal_and_remove])
@pytest.mark.parametrize("when", ["index", "segments read", "parts listed", "opened"])
def test_who_reads_a_run_whose_old_parts_go_meanwhile_gets_all_of_it_or_a_sentence(
    spool, tmp_path, monkeypatch, does, when
):
    writer, source = spool
    store, done = tmp_path / "store", []
    store.mkdir()
    monkeypatch.setattr(reader_module, "local_file", lambda url, say: Path(url))

    def now():
        if not done:
            done.append(True)
            does(writer, store)

    def after(place, name, moment):
        real = getattr(place, name)

        def call(*arguments):
            result = real(*arguments)
            if when == moment:
                now()
            return result

        monkeypatch.setattr(place, name, call)

    after(sources_module, "read_index", "index")
    after(sources_module.Source, "spool", "segments read")
    after(sources_module, "part_paths", "parts listed")

    try:
        trace = open_trace(writer.folder)
    except TraceError as error:
        assert does in (seal_all, seal_and_remove) and "meanwhile" in str(error)
        trace = open_trace(store / "t.arrow")
    if when == "opened":
        now()
    assert done
    monkeypatch.undo()
    assert trace.complete, trace.losses()
    for name in set(TABLES) - {"losses"}:
        assert trace.table(name).num_rows == trace.rows(name) == source.produced[name], name


def test_a_kill_in_the_midst_of_retention_leaves_each_part_once(spool, tmp_path, monkeypatch):
    writer, source = spool
    store = tmp_path / "store"
    store.mkdir()
    monkeypatch.setattr(reader_module, "local_file", lambda url, say: Path(url))
    # the index says that it is gone, and the file is still there
    monkeypatch.setattr(parts_module.Index, "drop", lambda index, folder: shutil.copytree(folder, tmp_path / "killed"))
    name = next(iter(writer.parts()))
    shutil.copy(writer.folder / name, store / name)
    with writer._sync_lock:
        writer._index.parts[name].archived = str(store / name)
    writer.change_part(name, here=False)
    monkeypatch.undo()
    monkeypatch.setattr(reader_module, "local_file", lambda url, say: Path(url))
    killed = tmp_path / "killed"
    assert (killed / name).exists()
    assert_whole(killed, source)
    with SpoolWriter(killed) as again:
        assert again.resume()[ENGINE_ID].seq == BATCHES and not (killed / name).exists()
    assert_whole(killed, source)


def test_a_full_disk_lets_go_of_what_is_in_the_archive(spool, tmp_path, monkeypatch):
    """The index, which must say so first, had no space to be written in: the disk stayed full for ever."""
    writer, source = spool
    store, write = tmp_path / "store", Index.write
    store.mkdir()
    reserve = writer.folder / RESERVE_NAME

    def full(index, folder):
        if reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        write(index, folder)

    monkeypatch.setattr(Index, "write", full)
    retain(writer, store)
    assert not part_paths(writer.folder) and reserve.stat().st_size == RESERVE_BYTES
    monkeypatch.setattr(reader_module, "local_file", lambda url, say: Path(url))
    assert_whole(writer.folder, source)
    writer.close()
    assert not reserve.exists()
