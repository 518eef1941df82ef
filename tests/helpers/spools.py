"""Spools for tests: batches put one by one, what is in a folder, and bytes written over."""

from helpers.factories import ENGINE_ID, count_rows, make_tables
from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekit.trace.reader import open_trace

OTHER = "b" * 32


TOKENS = 3


def put(writer, seq, *, engine=0, engine_id=ENGINE_ID, last=False, first_seq=0):
    tables = make_tables(num_requests=1, tokens=TOKENS, first_request=seq, seed=seq, engine=False)
    produced = {name: count * seq for name, count in count_rows(tables).items()}
    writer.append(to_record_batch(tables, engine), BatchMeta(engine, engine_id, seq, produced, {}, last))


def seqs(folder, engine=0):
    return [stored.meta.seq for stored, number in open_trace(folder).stored if number == engine]


def overwrite(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
