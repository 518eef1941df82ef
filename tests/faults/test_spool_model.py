"""The spool against a model: appends, syncs, failed syncs, parts, kills and power losses in any order.

What was confirmed is there, once, with its values; an engine is told a number up to which everything is there.
"""

import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from helpers.disk import Disk
from helpers.wire import numbered_tokens
from tracekit.errors import OutputError
from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekit.trace.reader import open_trace
from tracekit.trace.seal import seal
from tracekit.trace.spool import SpoolWriter

ENGINES = ["a" * 32, "b" * 32]
ROWS = 3
MORE = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 4)), max_size=3)


def number_of(engine: int, seq: int) -> int:
    return (engine << 20) + seq * ROWS


class SpoolModel(RuleBasedStateMachine):
    """Producers that send again what they were not told of, as recorders do."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed):
        self.patch = pytest.MonkeyPatch()
        self.base = Path(tempfile.mkdtemp(prefix="tk-model-"))
        self.disk = Disk(self.patch, random.Random(seed))
        self.life = 0
        self.appended = [0, 0]  # handed to this writer, or found by it
        self.acked = [0, 0]
        self.folder = self.base / "0"
        self.open()

    def open(self):
        if self.folder.exists():
            self.disk.watch(self.folder)
        self.writer = SpoolWriter(self.folder, segment_bytes=9_000)
        resume = self.writer.resume()
        for engine, name in enumerate(ENGINES):
            told = resume[name].seq if name in resume else 0
            assert told >= self.acked[engine], "what was confirmed is not told"
            self.acked[engine] = told  # the recorder forgets all up to it
            self.appended[engine] = told

    @rule(engine=st.integers(0, 1), count=st.integers(1, 3), synced=st.booleans())
    def append(self, engine, count, synced):
        self._append(engine, count)
        if synced:
            self.sync()

    @rule(counts=MORE)
    def append_more(self, counts):
        for engine, count in counts:
            self._append(engine, count)

    def _append(self, engine, count):
        for _ in range(count):
            self.appended[engine] += 1
            seq = self.appended[engine]
            tables = numbered_tokens(number_of(engine, seq), ROWS)
            meta = BatchMeta(engine, ENGINES[engine], seq, {"tokens": ROWS * seq})
            self.writer.append(to_record_batch(tables, engine), meta)

    @rule()
    def sync(self):
        self.writer.sync()
        self.acked = list(self.appended)

    @rule(times=st.integers(1, 4))
    def sync_on_a_bad_disk(self, times):
        self.disk.failing = times
        try:
            self.writer.sync()
            self.acked = list(self.appended)
        except OutputError:
            pass
        self.disk.failing = 0

    @rule()
    def make_part(self):
        if names := self.writer.whole():
            self.writer.make_part(names)

    @rule(counts=MORE, power=st.booleans(), end=st.booleans())
    def crash(self, counts, power, end):
        for engine, count in counts:
            self._append(engine, count)
        self.life += 1
        into = self.base / str(self.life)
        if end:
            self.writer.close()
            self.acked = list(self.appended)
        if power:
            self.disk.lose_power(self.folder, into)
        else:
            shutil.copytree(self.folder, into)
        if not end:
            self.writer._let_go()
        shutil.rmtree(self.folder)
        self.folder = into
        self.open()

    @invariant()
    def what_was_confirmed_is_there_once(self):
        if not hasattr(self, "writer"):
            return
        trace = open_trace(self.folder)
        table = trace.table("tokens")
        engines, ids = table["engine"].to_numpy(), table["token_id"].to_numpy()
        for engine in range(2):
            found = ids[engines == engine].astype(np.int64) - (engine << 20)
            assert len(set(found.tolist())) == len(found), "rows are there twice"
            assert set(range(ROWS, ROWS * (self.acked[engine] + 1))) <= set(found.tolist()), "confirmed rows are gone"

    def teardown(self):
        if hasattr(self, "writer"):
            try:
                self.writer.close()
                report = seal(self.folder, self.base / "t.arrow")
                # batches behind a gap are kept, and the gap is said
                assert report.rows["tokens"] >= ROWS * sum(self.appended)
                assert {loss.reason.split(":")[0] for loss in report.losses} <= {"open end", "gap"}
            finally:
                self.disk.reset()
                self.patch.undo()
                shutil.rmtree(self.base)


SpoolModel.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestSpoolModel = SpoolModel.TestCase
