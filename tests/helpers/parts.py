"""One engine whose batches become segments and parts of a spool, and what must then be there."""

from collections import Counter

from helpers.factories import ENGINE_ID, count_rows, make_tables
from tracekit.tables import TABLES
from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekit.trace.reader import open_trace

BATCHES = 12


class Source:
    """One engine's batches, each with its counters."""

    def __init__(self):
        self.produced = Counter()
        self.seq = 0

    def put(self, writer, count=1):
        for _ in range(count):
            self.seq += 1
            first = self.seq == 1
            tables = make_tables(num_requests=2, tokens=3, first_request=2 * self.seq, first_step=3 * self.seq,
                                 seed=self.seq, engine=first)  # fmt: skip
            self.produced.update(count_rows(tables))
            meta = BatchMeta(0, ENGINE_ID, self.seq, dict(self.produced), {}, self.seq == BATCHES)
            writer.append(to_record_batch(tables, 0), meta)
        writer.sync()


def assert_whole(path, source):
    trace = open_trace(path)
    assert trace.complete, trace.losses()
    for name in set(TABLES) - {"losses"}:
        table = trace.table(name)
        assert table.num_rows == trace.rows(name) == source.produced[name], name
    assert trace.table("tokens")["request"].to_pylist() == sorted(
        request for request in range(2, 2 * BATCHES + 2) for _ in range(3)
    )
