"""One trace out of several places: engines numbered, each batch once, and all that is told of an engine together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tracekit.errors import TraceError
from tracekit.trace.ledger import UNKNOWN_ENGINE
from tracekit.trace.runs import touched
from tracekit.trace.segments import newest
from tracekit.trace.sources import Source, Stored
from tracekit.trace.tally import Tally, free_number

Numbered = list[tuple[Stored, int]]


def combine(path: str, sources: Sequence[Source]) -> tuple[Numbered, dict[int, Tally]]:
    """Return the batches of all sources with the numbers of their engines, and the engines.

    Raises:
        TraceError: two sealed files hold the same batches of an engine.
    """
    engines = _Engines()
    stored: Numbered = []
    sealed = [source for source in sources if source.is_sealed]
    for source in sealed:
        stored += _sealed(path, source, engines)
    runs = {tally.engine_id: list(tally.runs) for tally in engines.tallies.values()}
    for source in sources:
        if not source.is_sealed:
            for batch in newest(source.batches):
                first, last = batch.meta.first, batch.meta.seq
                if not touched(runs.get(batch.meta.engine_id, ()), first, last):
                    stored.append((batch, engines.add(batch).engine))
            engines.know(source)
    stored.sort(key=lambda pair: (pair[1], pair[0].meta.seq))
    return stored, dict(sorted(engines.tallies.items()))


class _Engines:
    """The engines seen so far, by number and by id."""

    def __init__(self) -> None:
        self.tallies: dict[int, Tally] = {}
        self._by_id: dict[str, Tally] = {}

    def of(self, engine_id: str, wanted: int) -> Tally:
        """Return an engine; a new one gets the number it wants, if that is free."""
        tally = self._by_id.get(engine_id)
        if tally is None:
            number = wanted if wanted not in self.tallies else free_number(self.tallies, wanted)
            tally = self._by_id[engine_id] = self.tallies[number] = Tally(number, engine_id)
        return tally

    def add(self, batch: Stored) -> Tally:
        """Count a hot batch."""
        tally = self.of(batch.meta.engine_id, batch.meta.engine)
        tally.add_hot(batch.meta)
        return tally

    def know(self, source: Source) -> None:
        """Take what the index of a spool says."""
        for engine_id, standing in source.engines.items():
            self.of(engine_id, standing.engine).know(standing.run())
        for loss in source.losses:
            self.of(loss["engine_id"], free_number(self.tallies))


def _sealed(path: str, source: Source, engines: _Engines) -> Iterable[tuple[Stored, int]]:
    added: dict[str, Tally] = {}
    for batch in source.batches:
        meta = batch.meta
        if not meta.engine_id:  # holds what damage took of nobody knows whom
            yield batch, UNKNOWN_ENGINE
            continue
        tally = added.get(meta.engine_id)
        if tally is None:
            tally = added[meta.engine_id] = engines.of(meta.engine_id, meta.engine)
            known = bool(tally.pieces or tally.standing)
            if not tally.add_sealed(meta) or (known and tally.settled):
                raise TraceError(f"engine {meta.engine_id} is in two of the files: {path}")
        tally.stored.update(meta.rows)
        yield batch, tally.engine
