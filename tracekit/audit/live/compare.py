"""A trace against the counters of its engines, which were read before and after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tracekit.audit.live.counters import FINISHED, IN_FLIGHT, QUANTITIES, Counters
from tracekit.audit.live.traced import Quantity, of_a_part, traced
from tracekit.audit.rows import EngineRows, read_engines
from tracekit.errors import MetricsError, NoSuchEngineError, UsageError
from tracekit.trace.ledger import lost_tables
from tracekit.trace.reader import Trace

AGREES, VIOLATED, EXCUSED = "agrees", "violated", "explained by lost rows"
NOT_OFFERED = "these metrics do not offer it"


@dataclass(frozen=True)
class Comparison:
    """One counter of one engine.

    Example:
        Comparison("generation tokens", 480, 512, 500, 500, "agrees", "32 tokens of 2 aborted requests may …")
    """

    name: str
    low: int  # what the trace says of it, see traced.Quantity
    high: int | None
    before: int  # the counter, read before the trace and after it
    after: int
    state: str
    why: str


@dataclass(frozen=True)
class EngineReport:
    """One engine of the trace and the counters that belong to it."""

    engine: int
    label: str  # of the counters; "" where there is none
    moving: bool  # the counters changed while the trace was read: values lie within bounds, they are not equal
    compared: list[Comparison]
    not_compared: dict[str, str]  # quantity -> why

    @property
    def violations(self) -> list[Comparison]:
        """What cannot be."""
        return [comparison for comparison in self.compared if comparison.state == VIOLATED]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return asdict(self)


def compare(
    trace: Trace, before: Mapping[str, Counters], after: Mapping[str, Counters], engine: int | None = None
) -> list[EngineReport]:
    """Compare a trace with counters that were read before and after it.

    Args:
        before, after: by the label of the engine, see `counters.read_counters`.
        engine: which engine of the trace the counters belong to; needed where their labels do not tell.

    Raises:
        UsageError: it is not known which engine they belong to.
        MetricsError: a counter went back.
        TraceCorruptError: a batch is not what was written.
    """
    losses = trace.all_losses()
    return [
        _report(rows, label, before.get(label, {}), after[label], lost_tables(losses, rows.engine))
        for rows, label in _pairs(list(read_engines(trace)), list(after), engine)
    ]


def _pairs(
    engines: Sequence[EngineRows], labels: Sequence[str], engine: int | None
) -> Iterator[tuple[EngineRows, str]]:
    numbers = [rows.engine for rows in engines]
    there = ", ".join(map(str, numbers))
    if engine is not None:
        engines = [rows for rows in engines if rows.engine == engine]
        if not engines:
            raise NoSuchEngineError(engine, numbers)
    if len(engines) == len(labels) == 1:
        yield engines[0], labels[0]
        return
    if not engines:
        raise UsageError("the trace has no engine yet, so there is nothing to compare the metrics with")
    paired = 0
    for label in labels:
        # V1 labels its counters with the data parallel rank
        own = [rows for rows in engines if str(rows.about.get("rank", "")) == (label or "0")]
        if len(own) > 1 or (not own and engine is None):
            raise UsageError(
                f"the metrics are of engine {label or 'unlabelled'} and the trace has engines {there}: "
                "say which one it is with --only N"
            )
        if own:
            paired += 1
            yield own[0], label
    if not paired:
        raise UsageError(f"none of the metrics' engines ({', '.join(labels)}) has the rank of engine {engine}")


def _report(rows: EngineRows, label: str, before: Counters, after: Counters, lost: set[str]) -> EngineReport:
    found, unsaid = traced(rows)
    offered = set(after)
    for name in (name for name in offered if name.startswith(FINISHED)):
        if name not in {quantity.name for quantity in found}:
            found.append(Quantity(name, 0, 0))
    if rows.is_part:
        found = of_a_part(rows, found, unsaid)
    back = [name for name in before if name != IN_FLIGHT and after.get(name, 0) < before[name]]
    if back:
        raise MetricsError(f"the counter of {back[0]} went back: the server was started anew")
    moving = any(before.get(name, 0) != after[name] for name in after)
    compared = []
    for quantity in found:
        if quantity.name not in offered:
            if quantity.name.startswith(FINISHED) and quantity.low == 0:
                continue  # a reason that was never counted has no series in V0
            unsaid[quantity.name] = NOT_OFFERED
        elif quantity.name == IN_FLIGHT and moving:
            unsaid[quantity.name] = "requests come and go while the trace is read"
        else:
            compared.append(_judge(quantity, before.get(quantity.name, 0), after[quantity.name], lost))
    for name in QUANTITIES:
        if name not in offered and name not in unsaid:
            unsaid[name] = NOT_OFFERED
    return EngineReport(rows.engine, label, moving, compared, dict(sorted(unsaid.items())))


def _judge(quantity: Quantity, before: int, after: int, lost: set[str]) -> Comparison:
    fits = quantity.low <= after and (quantity.high is None or before <= quantity.high)
    state = AGREES if fits else EXCUSED if lost & quantity.needs else VIOLATED
    return Comparison(quantity.name, quantity.low, quantity.high, before, after, state, quantity.why)
