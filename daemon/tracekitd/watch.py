"""What is looked at in the batches themselves, for the metrics and who follows; a fault of it stops nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from tracekit.rpc import messages
from tracekit.trace.batch import BatchMeta, rows_of
from tracekitd.log import say
from tracekitd.mismatch import Mismatch

_STEP = ("engine_step", "weight_version", "num_requests", "num_waiting", "kv_usage")


class Watch:
    """Sees every record batch on its way to the disk, on the one thread that makes them.

    Attributes:
        mismatch: what trainers say against what engines reported; None until somebody wants to know.
        steps: the newest step of each engine, by its number.
        stall_secs: how long lossless recorders made their engines wait, by engine.
    """

    def __init__(self, *, compare: bool) -> None:
        self.mismatch = Mismatch() if compare else None
        self.steps: dict[int, dict[str, Any]] = {}
        self.stall_secs: Counter[int] = Counter()
        self._failed = False

    def compare(self) -> None:
        """Compare what trainers say from now on."""
        if self.mismatch is None:
            self.mismatch = Mismatch()

    def live(self, engine: int) -> messages.Live | None:
        """Return what an engine did last, or None before its first step."""
        step = self.steps.get(engine)
        if step is None:
            return None
        sums = self.mismatch.newest.get(engine) if self.mismatch is not None else None
        live = messages.Live(**{name: step[name] for name in _STEP})
        if sums is not None and sums.num_tokens:
            live.compared_tokens = sums.num_tokens
            live.ratio_mean, live.mismatch_kl = sums.ratio / sums.num_tokens, sums.kl / sums.num_tokens
        return live

    def see(self, batch: pa.RecordBatch, meta: BatchMeta) -> None:
        """Look at a batch; never raises."""
        if self._failed:
            return
        try:
            if self.mismatch is not None:
                self.mismatch.see(batch, meta.engine, meta.engine_id)
            if steps := rows_of(batch, "steps")[-1:].to_pylist():
                self.steps[meta.engine] = steps[0]
            for row in rows_of(batch, "stalls").to_pylist():
                self.stall_secs[meta.engine] += (row["end_ns"] - row["begin_ns"]) / 1e9
        except Exception as error:
            self._failed = True
            say(f"the metrics of mismatch and stalls stand still: {type(error).__name__}: {error}")
