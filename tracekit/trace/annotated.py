"""What trainers said of the rollouts through the daemon: each annotation with the request that it is of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tracekit.trace.names import Name, is_meant, names_of, names_said
from tracekit.trace.reader import Trace

Key = tuple[int, int]  # engine and request
VALUES = ("advantages", "old_logprobs", "token_ids")  # lists, which are empty where nothing was said


@dataclass
class Annotations:
    """What was said last of each thing, by request.

    Attributes:
        of_request: columns of the table `annotations`, by engine and request.
        num_ambiguous: ids that fit several requests.
        unknown: a row of each id that fits none.
        rows: every row that fits one request, with that, in the order in which they were said.
    """

    of_request: dict[Key, dict[str, Any]]
    num_ambiguous: int = 0
    unknown: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)
    rows: list[tuple[Key, dict[str, Any]]] = field(default_factory=list)


def read_annotations(trace: Trace) -> Annotations:
    """Find the request of each annotation, by the ids that `tracekit.trace.names` gives."""
    requests = trace.table("requests").select(["engine", "request", "request_id", "external_id", "index"]).to_pylist()
    engines = {row["engine"]: (row["engine_id"], row.get("run")) for row in trace.engines()}
    by_name: dict[Name, list[Key]] = defaultdict(list)
    for row in requests:
        for name in names_of(row["external_id"], row["index"], row["request_id"]):
            by_name[name].append((row["engine"], row["request"]))
    found = Annotations({})
    ambiguous: set[tuple[Any, ...]] = set()
    for row in sorted(trace.table("annotations").to_pylist(), key=lambda row: row["wall_ns"]):
        names = names_said(row["request_id"], row["index"])
        own = next((fit for name in names if (fit := _fitting(by_name.get(name, ()), row, engines))), [])
        thing = (*names[0], row["engine_id"], row["run"])
        if not own:
            found.unknown.setdefault(thing, row)
            continue
        if len(own) > 1:
            ambiguous.add(thing)
            continue
        found.rows.append((own[0], row))
        said = {name: value for name, value in row.items() if value is not None and not (name in VALUES and not value)}
        found.of_request.setdefault(own[0], {}).update(said)
    found.num_ambiguous = len(ambiguous)
    return found


def _fitting(keys: Iterable[Key], row: Mapping[str, Any], engines: Mapping[int, tuple[str, str | None]]) -> list[Key]:
    """Those of the engine and the run that an annotation names."""
    return [key for key in keys if is_meant(engines.get(key[0], ("", None)), row["engine_id"], row["run"])]
