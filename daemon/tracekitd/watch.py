"""What is looked at in the batches themselves, for the metrics alone; a fault of it stops nothing else."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from tracekit.trace.batch import BatchMeta, rows_of
from tracekitd.log import say
from tracekitd.mismatch import Mismatch


class Watch:
    """Sees every record batch on its way to the disk, on the one thread that makes them.

    Attributes:
        mismatch: what trainers say against what engines reported.
        stall_secs: how long lossless recorders made their engines wait, by engine.
    """

    def __init__(self) -> None:
        self.mismatch = Mismatch()
        self.stall_secs: Counter[int] = Counter()
        self._failed = False

    def see(self, batch: pa.RecordBatch, meta: BatchMeta) -> None:
        """Look at a batch; never raises."""
        if self._failed:
            return
        try:
            self.mismatch.see(batch, meta.engine, meta.engine_id)
            for row in rows_of(batch, "stalls").to_pylist():
                self.stall_secs[meta.engine] += (row["end_ns"] - row["begin_ns"]) / 1e9
        except Exception as error:
            self._failed = True
            say(f"the metrics of mismatch and stalls stand still: {type(error).__name__}: {error}")
