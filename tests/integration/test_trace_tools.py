"""`recover`, `merge`, `filter` and `export`: whole traces in, whole traces out, and nothing missing without a word."""

import json
import os
import shutil

import pyarrow as pa
import pytest
from click.testing import CliRunner

from helpers.factories import ENGINE_ID, make_engine, make_tables, write_spool, write_trace
from tracekit.cli.main import cli
from tracekit.errors import NotATraceError, TraceError, UsageError
from tracekit.tables import TABLES
from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekit.trace.reader import open_trace
from tracekit.trace.recover import recover
from tracekit.trace.seal import seal
from tracekit.trace.segments import segment_paths
from tracekit.trace.spool import SpoolWriter

OTHER = "c" * 32
BATCHES = [
    make_tables(num_requests=2, tokens=3, first_request=2 * n, first_step=3 * n, seed=n, engine=n == 0)
    for n in range(6)
]


def run(*arguments):
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.return_value or 0, done.output


@pytest.fixture
def sealed(tmp_path):
    write_trace(tmp_path / "t.arrow", BATCHES, batch_rows=7)
    return tmp_path / "t.arrow"


def batch_places(path):
    data, places = path.read_bytes(), []
    while (at := data.find(b'"crcs":', places[-1] + 1 if places else 0)) >= 0:
        places.append(at)
    return data, places


def rows_of(path, name="tokens"):
    return open_trace(path).table(name).to_pylist()


@pytest.mark.parametrize("damage", ["nothing", "footer", "middle", "first", "last", "head"])
def test_recover_leaves_out_the_damaged_batch_of_a_sealed_trace_at_most(sealed, tmp_path, damage):
    truth = rows_of(sealed)
    data, places = batch_places(sealed)
    data = bytearray(data)
    if damage == "footer":
        data = data[:-100]
    elif damage == "head":
        data[:200] = bytes(200)
    elif damage != "nothing":
        data[places[{"middle": 1, "first": 0, "last": -1}[damage]] + 3] ^= 1
    sealed.write_bytes(data)
    code, said = run("recover", sealed, "-o", tmp_path / "r.arrow")
    found = rows_of(tmp_path / "r.arrow")
    batches = len(places)
    if damage in ("nothing", "footer", "head"):
        assert found == truth and code == 0 and "lost" not in said
        return
    assert code == 3 and len(truth) - len(found) in (len(truth) // batches, 12) and all(row in truth for row in found)
    trace = open_trace(tmp_path / "r.arrow")
    assert not trace.complete
    counted = [loss for loss in trace.all_losses() if loss.engine == 0]
    assert sum(loss.rows.get("tokens", 0) for loss in counted) == len(truth) - len(found)
    # of a batch at an edge nobody can tell whose it was
    assert any(loss.engine is None for loss in trace.all_losses()) == (damage != "middle")


def test_recover_takes_a_spool_and_a_segment(tmp_path):
    folder = write_spool(tmp_path / "spool", BATCHES)
    (path,) = segment_paths(folder)
    stored = open_trace(folder).stored[2][0]
    data = bytearray(path.read_bytes())
    data[stored.offset + stored.length - 300] ^= 1
    path.write_bytes(data)
    for number, given in enumerate((folder, path)):
        assert run("recover", given, "-o", tmp_path / f"{number}.arrow")[0] == 3
        assert len(rows_of(tmp_path / f"{number}.arrow")) == 30


def test_recover_makes_nothing_of_nothing(tmp_path):
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 100)
    with pytest.raises(NotATraceError, match="nothing of a trace"):
        recover(tmp_path / "noise", tmp_path / "r.arrow")
    with pytest.raises(TraceError, match="no such trace"):
        recover(tmp_path / "missing", tmp_path / "r.arrow")
    assert not (tmp_path / "r.arrow").exists()


def thirds(tmp_path, cuts=((1, 2), (3, 4), (5, 6))):
    """Three daemons, one after the other, each with a third of one engine's batches."""
    produced, paths = {}, []
    from collections import Counter

    from helpers.factories import count_rows

    produced = Counter()
    metas = []
    for seq, tables in enumerate(BATCHES, 1):
        produced.update(count_rows(tables))
        metas.append((tables, BatchMeta(0, ENGINE_ID, seq, dict(produced), {}, seq == len(BATCHES))))
    for number, (first, last) in enumerate(cuts):
        with SpoolWriter(tmp_path / f"s{number}") as writer:
            for tables, meta in metas[first - 1 : last]:
                writer.append(to_record_batch(tables, 0), meta)
        paths.append(tmp_path / f"t{number}.arrow")
        seal(tmp_path / f"s{number}", paths[-1])
    return paths


def test_one_job_over_three_daemons_is_one_trace_and_nothing_is_lost(tmp_path):
    paths = thirds(tmp_path)
    assert not open_trace(paths[1]).complete
    trace = open_trace(tmp_path / "t?.arrow")
    assert trace.complete and len(trace.tallies) == 1
    code, said = run("merge", *paths[::-1], "-o", tmp_path / "m.arrow")
    assert code == 0 and "lost" not in said
    assert open_trace(tmp_path / "m.arrow").complete
    write_trace(tmp_path / "whole.arrow", BATCHES)
    for name in TABLES:
        assert rows_of(tmp_path / "m.arrow", name) == rows_of(tmp_path / "whole.arrow", name)


def test_what_is_in_none_of_them_is_lost_to_the_row(tmp_path):
    paths = thirds(tmp_path, ((1, 2), (4, 4), (6, 6)))
    assert run("merge", paths[0], paths[2], paths[1], "-o", tmp_path / "m.arrow")[0] == 3
    losses = open_trace(tmp_path / "m.arrow").all_losses()
    assert [(loss.from_seq, loss.to_seq, loss.rows["tokens"]) for loss in losses] == [(3, 3, 6), (5, 5, 6)]
    assert open_trace(tmp_path / "t?.arrow").all_losses() == losses


def test_merge_takes_other_engines_and_refuses_copies(tmp_path, sealed):
    write_trace(tmp_path / "o.arrow", [make_tables(engine=make_engine(engine_id=OTHER))], engine_id=OTHER)
    assert run("merge", sealed, tmp_path / "o.arrow", "-o", tmp_path / "m.arrow")[0] == 0
    assert [row["engine_id"] for row in open_trace(tmp_path / "m.arrow").engines()] == [ENGINE_ID, OTHER]
    shutil.copy(sealed, tmp_path / "copy.arrow")
    with pytest.raises(TraceError, match="is in two of the files"):
        run("merge", sealed, tmp_path / "copy.arrow", "-o", tmp_path / "n.arrow")


def test_filter_keeps_what_is_asked_for_and_says_so(tmp_path, sealed):
    write_trace(tmp_path / "o.arrow", [make_tables(engine=make_engine(engine_id=OTHER))], engine_id=OTHER)
    run("merge", sealed, tmp_path / "o.arrow", "-o", tmp_path / "m.arrow")
    assert run("filter", tmp_path / "m.arrow", "-o", tmp_path / "f.arrow", "--only", 0, "--requests", "3:4")[0] == 0
    trace = open_trace(tmp_path / "f.arrow")
    assert trace.complete and list(trace.tallies) == [0]
    assert trace.table("tokens").to_pylist() == [row for row in rows_of(sealed) if row["request"] in (3, 4)]
    assert trace.table("steps").equals(open_trace(sealed).table("steps"))
    assert trace.notes() == ["filtered: engines 0", "filtered: requests 3 to 4"]
    for bad in ([], ["--requests", "4"], ["--requests", "4:3"], ["--only", "7"]):
        with pytest.raises(UsageError):
            run("filter", sealed, "-o", tmp_path / "g.arrow", *bad)


def test_what_was_lost_stays_lost_in_a_part(tmp_path):
    write_trace(tmp_path / "t.arrow", BATCHES, skip={3})
    losses = open_trace(tmp_path / "t.arrow").all_losses()
    assert run("filter", tmp_path / "t.arrow", "-o", tmp_path / "f.arrow", "--requests", "0:1")[0] == 3
    assert open_trace(tmp_path / "f.arrow").all_losses() == losses


def test_what_nobody_knows_whose_it_was_stays_lost_in_each_part(tmp_path, sealed):
    data, places = batch_places(sealed)
    data = bytearray(data)
    data[places[-1] + 3] ^= 1
    sealed.write_bytes(data)
    run("recover", sealed, "-o", tmp_path / "r.arrow")
    assert run("filter", tmp_path / "r.arrow", "-o", tmp_path / "f.arrow", "--only", "0")[0] == 3
    unknown = [loss for loss in open_trace(tmp_path / "r.arrow").all_losses() if loss.engine is None]
    assert unknown == [loss for loss in open_trace(tmp_path / "f.arrow").all_losses() if loss.engine is None] != []


def test_recover_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "t.arrow")
    with pytest.raises(TraceError, match=r"cannot read .*t\.arrow: Not a regular file"):
        run("recover", tmp_path / "t.arrow", "-o", tmp_path / "o.arrow")


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.zst"])
def test_export_writes_json_lines(sealed, tmp_path, ending):
    options = ["--zstd"] if ending.endswith("zst") else []
    assert run("export", sealed, "--jsonl", tmp_path / "out", *options)[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{name}.{ending}" for name in TABLES}
    raw = (tmp_path / f"out/tokens.{ending}").read_bytes()
    text = pa.input_stream(pa.py_buffer(raw), compression="zstd").read() if options else raw
    assert [json.loads(line) for line in text.splitlines()] == rows_of(sealed)
    for bad in ([], ["--parquet", tmp_path / "p", "--jsonl", tmp_path / "q"], ["--parquet", tmp_path / "p", "--zstd"]):
        with pytest.raises(UsageError):
            run("export", sealed, *bad)
