"""What somebody forged in a spool or a trace costs what it describes, and nobody a traceback."""

import json
import zlib

import pytest

from helpers.factories import make_engine, make_tables, write_spool, write_trace
from helpers.spools import OTHER, overwrite, put, seqs
from tracekit.audit.doctor.examine import examine
from tracekit.errors import OutputError, TraceCorruptError
from tracekit.trace import hot as hot_module
from tracekit.trace import spool as spool_module
from tracekit.trace import weigh as weigh_module
from tracekit.trace.hold import LOCK_NAME
from tracekit.trace.index import INDEX_NAME
from tracekit.trace.ledger import GAP
from tracekit.trace.proof import CRC_KEY, META_KEY, to_metadata
from tracekit.trace.reader import open_trace
from tracekit.trace.seal import seal
from tracekit.trace.segments import Damage, salvage, segment_paths
from tracekit.trace.spool import SpoolWriter


def forged(batch, meta, change):
    """Metadata of which one thing is changed, and the checksum mended."""
    facts = json.loads(to_metadata(batch, meta)[META_KEY])
    change(facts)
    text = json.dumps(facts).encode()
    return {META_KEY: text, CRC_KEY: b"%08x" % zlib.crc32(text)}


FORGERIES = {
    "seq": lambda facts: facts.update(seq=2**64 - 1),
    "negative": lambda facts: facts.update(seq=-1),
    "engine": lambda facts: facts.update(engine=2**40),
    "count": lambda facts: facts.update(produced={"tokens": 10**30}),
    "float": lambda facts: facts.update(produced={"tokens": 1.5}),
    "many": lambda facts: facts.update(lost={str(n): n for n in range(100)}),
    "list": lambda facts: facts.update(produced=[1, 2]),
    "surrogate": lambda facts: facts.update(engine_id="\ud800"),
    "number": lambda facts: facts.update(engine_id=7),
    "bool": lambda facts: facts.update(last=1),
    "runs": lambda facts: facts.update(seqs=[[5, 2]]),
    "ends": lambda facts: facts.update(ends=[{"before": {}, "produced": {}, "lost": {}}], seqs=[]),
    "unknown": lambda facts: facts.update(surprise=1),
    "null": lambda facts: facts.update(rows=None),
    "first": lambda facts: facts.update(first_seq=9),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_description_costs_its_batch_and_nobody_a_traceback(tmp_path, monkeypatch, name):
    folder = tmp_path / "spool"
    with SpoolWriter(folder) as writer:
        put(writer, 1)
        with monkeypatch.context() as patch:
            patch.setattr(spool_module, "to_metadata", lambda batch, meta: forged(batch, meta, FORGERIES[name]))
            put(writer, 2)
        put(writer, 3, last=True)
    assert seqs(folder) == [1, 3]
    assert any(loss.reason == GAP and loss.from_seq == 2 for loss in seal(folder, tmp_path / "t.arrow").losses)
    with pytest.raises(TraceCorruptError):
        import tracekit.trace.seal as seal_module

        monkeypatch.setattr(seal_module, "to_metadata", lambda batch, meta: forged(batch, meta, FORGERIES[name]))
        write_trace(tmp_path / "f.arrow")
        open_trace(tmp_path / "f.arrow").all_losses()


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"tokens": "x"}', '{"tokens": -1}', "9" * 5000, '{"tokens": 1e400}']
)
def test_a_loss_that_nobody_can_have_costs_its_batch(tmp_path, text):
    losses = {"from_seq": [1], "to_seq": [1], "reason": ["x"], "rows": [text]}
    folder = write_spool(tmp_path / "spool", [make_tables(), {"losses": losses}, make_tables()])
    assert seqs(folder) == [1, 3] and not open_trace(folder).complete


def test_a_prompt_that_spells_a_batch_is_not_one(tmp_path, monkeypatch):
    """What a client knows of the format, put into prompt ids of a batch that is damaged around them."""
    monkeypatch.setattr(hot_module, "SMALL_BYTES", 1 << 20)
    fake = write_spool(tmp_path / "fake", [make_tables(seed=9)], engine=1, engine_id=OTHER)
    (found,) = [item for item in salvage(segment_paths(fake)[0]) if not isinstance(item, Damage)]
    message = found.message()
    ids = memoryview(message + bytes(-len(message) % 4)).cast("I")
    tables = make_tables(num_requests=1)
    tables["requests"]["prompt_token_ids"] = [list(ids)]
    folder = write_spool(tmp_path / "spool", [make_tables(), tables, make_tables()])
    stored = open_trace(folder).stored[1][0]
    assert message in stored.message()
    overwrite(stored.path, stored.offset, b"\0" * 64)
    for index in (True, False):
        if not index:
            (folder / INDEX_NAME).unlink()
        assert seqs(folder) == [1, 3] and list(open_trace(folder).tallies) == [0]


@pytest.mark.parametrize("form", ["spool", "sealed"])
def test_a_few_bytes_cannot_claim_much_memory(tmp_path, monkeypatch, form):
    monkeypatch.setattr(weigh_module, "FLOOR_BYTES", 1 << 20)
    tables = make_tables(num_requests=1)
    tables["requests"]["prompt_token_ids"] = [[0] * 2_000_000]
    if form == "spool":
        assert seqs(write_spool(tmp_path / "spool", [tables])) == []
    else:
        monkeypatch.setattr(weigh_module, "MAX_RATIO", 1 << 40)
        write_trace(tmp_path / "t.arrow", [tables])
        monkeypatch.setattr(weigh_module, "MAX_RATIO", 256)
        with pytest.raises(TraceCorruptError, match="more memory"):
            open_trace(tmp_path / "t.arrow")


def test_a_link_as_lock_touches_nothing_behind_it(tmp_path):
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError):
        SpoolWriter(folder)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("change", [{"to_seq": 2**70}, {"reason": "\ud800"}, {"rows": {"tokens": -1}}, {"rows": []}])
def test_a_note_of_what_nobody_can_have_lost_is_left_out_and_said(tmp_path, change):
    loss = {"engine_id": OTHER, "from_seq": 1, "to_seq": 2, "reason": "no daemon", "rows": {"tokens": 4}}
    lines = []
    with SpoolWriter(tmp_path / "spool", say=lines.append) as writer:
        writer.add_losses([loss | change, loss])
    assert len(lines) == 1 and "left out" in lines[0]
    (told,) = open_trace(tmp_path / "spool").all_losses()
    assert (told.from_seq, told.to_seq, told.rows) == (1, 2, {"tokens": 4})


def test_settings_that_are_not_json_are_a_sentence(tmp_path):
    for text in ("", "[]", "{", "[" * 100_000):
        tables = make_tables(engine=make_engine(config=text), sampling_params=None)
        write_trace(tmp_path / f"{len(text)}.arrow", [tables])
        trace = open_trace(tmp_path / f"{len(text)}.arrow")
        if not text:
            assert examine(trace).exit_code == 0
            continue
        with pytest.raises(TraceCorruptError, match="are not a JSON object"):
            examine(trace)
