"""What trainers compute again against what engines reported, while both come in: sums for the metrics, no verdict.

d = old_logprob − rollout_logprob per token, in nats; ratio = e^d, and mismatch_kl = e^d − d − 1 (Schulman's k3), as in
`tracekit.diagnose.metrics` and prime-rl's `mismatch_kl`. A rollout is kept until memory is short, and an annotation
until its rollout has ended.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracekit.tables import ACCEPTED
from tracekit.trace.batch import rows_of
from tracekit.trace.names import Name, is_meant, names_of, names_said

MAX_BYTES = 64 << 20  # of rollouts, and again of annotations that wait: 16 million tokens each
ITEM_BYTES = 1000  # what one costs beside its values
MAX_SAME = 16  # requests, and annotations that wait, under one name; what is beyond it is not looked at

F4 = npt.NDArray[np.float32]
Key = tuple[int, int]  # engine, request


@dataclass
class Sums:
    """Over tokens that both sides have a finite value for.

    Example:
        Sums(num_tokens=2048, ratio=2050.3, kl=1.9)
    """

    num_tokens: int = 0
    ratio: float = 0.0
    kl: float = 0.0

    def add(self, d: npt.NDArray[np.float64]) -> None:
        """Add tokens whose e^d is finite."""
        self.num_tokens += d.size
        self.ratio += float(np.exp(d).sum())
        self.kl += float((np.expm1(d) - d).sum())


@dataclass
class _Rollout:
    engine_id: str
    names: tuple[Name, ...]
    parts: list[F4] = field(default_factory=list)
    size: int = 0
    ended: bool = False


@dataclass(frozen=True)
class _Said:
    request_id: str
    index: int
    engine_id: str | None
    run: str | None
    train_step: int | None
    old: F4

    @property
    def names(self) -> tuple[Name, ...]:
        return names_said(self.request_id, self.index)

    @property
    def whom(self) -> tuple[Any, ...]:
        """What makes a later one take the place of an earlier one."""
        return self.request_id, self.index, self.engine_id, self.run


class Mismatch:
    """Sees record batches on their way to the disk, on one thread; anybody reads the sums.

    Attributes:
        total: sums by engine since the daemon began.
        newest: sums by engine over the newest step of a trainer.
        train_step: that step; None where no annotation names one.
        outcomes: annotations with old_logprobs, by what became of them.
        num_not_finite: tokens that one side has no finite value for, or whose ratio is none.
    """

    def __init__(self) -> None:
        self.total: dict[int, Sums] = {}
        self.newest: dict[int, Sums] = {}
        self.train_step: int | None = None
        self.outcomes: Counter[str] = Counter()
        self.num_not_finite = 0
        self._rollouts: OrderedDict[Key, _Rollout] = OrderedDict()
        self._by_name: dict[Name, list[Key]] = {}
        self._waiting: OrderedDict[tuple[Any, ...], _Said] = OrderedDict()  # in the order they came
        self._waiting_for: dict[Name, list[tuple[Any, ...]]] = {}
        self._runs: dict[int, str | None] = {}  # by engine
        self._rollout_bytes = self._said_bytes = 0

    def see(self, batch: pa.RecordBatch, engine: int, engine_id: str) -> None:
        """Take what a batch of one engine or trainer has of rollouts and annotations."""
        for row in rows_of(batch, "engines").to_pylist():
            self._runs[engine] = row["run"]
        self._admit(rows_of(batch, "requests"), engine, engine_id)
        self._take_tokens(rows_of(batch, "tokens"), engine)
        for request in rows_of(batch, "finishes").field("request").to_pylist():
            if (rollout := self._rollouts.get((engine, request))) is not None:
                rollout.ended = True
                for name in rollout.names:
                    for whom in tuple(self._waiting_for.get(name, ())):
                        if whom in self._waiting:
                            self._compare(self._waiting[whom])
        for said in _annotations(rows_of(batch, "annotations")):
            self._wait(said)
        self._forget()

    def _admit(self, rows: pa.StructArray, engine: int, engine_id: str) -> None:
        columns = [rows.field(name).to_pylist() for name in ("request", "external_id", "index", "request_id")]
        for request, external_id, index, request_id in zip(*columns, strict=True):
            if (engine, request) in self._rollouts:
                continue
            names = names_of(external_id, index, request_id)
            self._rollouts[engine, request] = _Rollout(engine_id, names)
            self._rollout_bytes += ITEM_BYTES
            for name in names:
                _append(self._by_name, name, (engine, request))

    def _take_tokens(self, rows: pa.StructArray, engine: int) -> None:
        """Add the accepted tokens, which lie in the order of their requests and positions."""
        accepted = (rows.field("flags").to_numpy() & ACCEPTED) != 0
        requests = rows.field("request").to_numpy()[accepted]
        if not requests.size:
            return
        values = rows.field("rollout_logprob").to_numpy(zero_copy_only=False).astype(np.float32)[accepted]
        bounds = [0, *(np.flatnonzero(np.diff(requests)) + 1).tolist(), requests.size]
        for begin, end in itertools.pairwise(bounds):
            rollout = self._rollouts.get((engine, int(requests[begin])))
            if rollout is not None:
                rollout.parts.append(values[begin:end].copy())
                rollout.size += end - begin
                self._rollout_bytes += 4 * (end - begin)

    def _wait(self, said: _Said) -> None:
        if said.whom in self._waiting:
            self._drop(said.whom)
        self._waiting[said.whom] = said
        self._said_bytes += 4 * said.old.size + ITEM_BYTES
        for name in said.names:
            _append(self._waiting_for, name, said.whom)
        self._compare(said)

    def _compare(self, said: _Said) -> None:
        """Compare an annotation with its rollout, if that has ended, and forget the annotation."""
        found = self._find(said)
        if not found or not all(self._rollouts[key].ended for key in found):
            return
        self._drop(said.whom)
        if len(found) > 1:
            self.outcomes["ambiguous"] += 1
            return
        (key,) = found
        rollout = self._rollouts[key]
        if said.old.size > rollout.size:
            self.outcomes["too long"] += 1
            return
        rollout.parts = [np.concatenate(rollout.parts)]
        self.outcomes["compared"] += 1
        # a client may have cut the end off, as where a stop string ended it
        self._add(key[0], said.train_step, said.old.astype(np.float64) - rollout.parts[0][: said.old.size])

    def _find(self, said: _Said) -> list[Key]:
        for name in said.names:
            found = [
                key
                for key in self._by_name.get(name, ())
                if is_meant((self._rollouts[key].engine_id, self._runs.get(key[0])), said.engine_id, said.run)
            ]
            if found:
                return found
        return []

    def _add(self, engine: int, train_step: int | None, d: npt.NDArray[np.float64]) -> None:
        with np.errstate(over="ignore"):
            good = d[np.isfinite(np.exp(d)) & np.isfinite(d)]
        self.num_not_finite += d.size - good.size
        if train_step is not None and train_step > (-1 if self.train_step is None else self.train_step):
            self.train_step, self.newest = train_step, {}
        self.total.setdefault(engine, Sums()).add(good)
        if train_step == self.train_step:
            self.newest.setdefault(engine, Sums()).add(good)

    def _forget(self) -> None:
        while self._rollout_bytes > MAX_BYTES:
            key, rollout = self._rollouts.popitem(last=False)
            self._rollout_bytes -= 4 * rollout.size + ITEM_BYTES
            for name in rollout.names:
                _remove(self._by_name, name, key)
        while self._said_bytes > MAX_BYTES:
            self._drop(next(iter(self._waiting)))
            self.outcomes["without its rollout"] += 1

    def _drop(self, whom: tuple[Any, ...]) -> None:
        said = self._waiting.pop(whom)
        self._said_bytes -= 4 * said.old.size + ITEM_BYTES
        for name in said.names:
            _remove(self._waiting_for, name, whom)

    @property
    def num_waiting(self) -> int:
        """Annotations whose rollout has not come to its end, or never came."""
        return len(self._waiting)


def _annotations(rows: pa.StructArray) -> Iterator[_Said]:
    names = ("request_id", "index", "engine_id", "run", "train_step")
    columns = [rows.field(name).to_pylist() for name in names]
    for row, (request_id, index, engine_id, run, train_step) in enumerate(zip(*columns, strict=True)):
        old = rows.field("old_logprobs")[row].values.to_numpy()
        if old.size:
            yield _Said(request_id, index, engine_id, run, train_step, old.copy())


def _append(lists: dict[Any, list[Any]], name: Any, item: Any) -> None:
    own = lists.setdefault(name, [])
    if len(own) < MAX_SAME:
        own.append(item)


def _remove(lists: dict[Any, list[Any]], name: Any, item: Any) -> None:
    left = [other for other in lists.get(name, ()) if other != item]
    if left:
        lists[name] = left
    else:
        lists.pop(name, None)
