"""One engine's tables as numpy columns with their joins, which doctor, lint and live share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tracekit.audit.findings import Array, Columns, select
from tracekit.join import lookup, pair_key, pick
from tracekit.tables import ACCEPTED, NEW, PREEMPTED, TABLES
from tracekit.trace.reader import Trace
from tracekit.trace.redacted import key_of
from tracekit.trace.values import json_object

Made = TypeVar("Made")

_NUMBERS = ("u1", "u4", "u8", "i8", "f4")
_TEXTS = ("requests", "joined", "finishes", "control", "weights", "fingerprints")  # tables whose texts checks read


@dataclass(frozen=True, eq=False)
class EngineRows:
    """Everything recorded of one engine.

    `tables` maps a table to its numeric columns but the engine's number (integers as int64, a null float as NaN, a null
    integer as -1), in the order of `trace.reader.ORDER`; `requests` and `joined` stay Arrow for their texts and lists.
    """

    engine: int
    tables: dict[str, Columns]
    requests: pa.Table
    reasons: list[str]  # of each row of finishes
    labels: list[str | None]  # of each row of weights; one that has a label is not a change
    loras: list[str | None]  # of each row of weights; None where the model's own changed
    tensors: dict[str, list[Any]]  # the texts and shapes of each row of fingerprints
    control: list[dict[str, Any]]
    about: dict[str, Any]  # the row of the engines table, empty where it did not arrive
    joined: pa.Table  # of requests that were under way when the recorder was attached

    def __getitem__(self, table: str) -> Columns:
        return self.tables[table]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The recorded configuration; empty where there is none."""
        return json_object(self.about.get("config"), f"the settings of engine {self.engine}")

    def setting(self, *path: str) -> Any:
        """Return `config["vllm"][path[0]]...`, None where it was not recorded."""
        value: Any = self.config.get("vllm")
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    @cached_property
    def speculates(self) -> bool:
        """Whether a step may accept several tokens of a request."""
        return self.setting("speculative_config") is not None

    @cached_property
    def since_step(self) -> int | None:
        """The step from which on the recorder was attached; None where it was there from the start."""
        return next((int(row["engine_step"]) for row in self.control if row["name"] == "attach"), None)

    @cached_property
    def is_part(self) -> bool:
        """Whether the engine had requests that are not in the trace, or went on after it, and nothing was lost."""
        return self.is_sampled or any(row["name"] in ("attach", "detach") for row in self.control)

    @cached_property
    def is_sampled(self) -> bool:
        """Whether only a share of the requests was recorded."""
        recorder = self.config.get("recorder")
        return isinstance(recorder, dict) and recorder.get("sample", 1) != 1

    @cached_property
    def num_before(self) -> Array:
        """Output tokens that each row of `joined` had before it was recorded."""
        lengths = pc.list_value_length(self.joined.column("token_ids"))
        return np.asarray(lengths.to_numpy(), dtype=np.int64)

    @cached_property
    def accepted(self) -> Columns:
        """The accepted tokens in order of (request, position)."""
        return select(self["tokens"], (self["tokens"]["flags"] & ACCEPTED) != 0)

    @cached_property
    def running(self) -> Columns:
        """The rows of `scheduled` that ran: all but the preemptions."""
        return select(self["scheduled"], (self["scheduled"]["flags"] & PREEMPTED) == 0)

    @cached_property
    def chain(self) -> Columns:
        """The rows of `scheduled` in order of (request, step); within a step preemptions come first."""
        scheduled = self["scheduled"]
        ran: Array = (scheduled["flags"] & PREEMPTED) == 0
        return select(scheduled, np.lexsort((ran, scheduled["engine_step"], scheduled["request"])))

    @cached_property
    def first_hits(self) -> Columns:
        """The rows of `scheduled` of new requests that found a part of their prompt computed."""
        scheduled = self["scheduled"]
        return select(scheduled, ((scheduled["flags"] & NEW) != 0) & (scheduled["num_computed"] > 0))

    @cached_property
    def changes(self) -> Columns:
        """The rows of `weights` that begin a version."""
        return select(self["weights"], np.array([label is None for label in self.labels], dtype=bool))

    @cached_property
    def adapters(self) -> list[str | None]:
        """The adapter of each row of `changes`; None where the model's own weights changed."""
        return [lora for lora, label in zip(self.loras, self.labels, strict=True) if label is None]

    @cached_property
    def num_updates(self) -> int:
        """How often the model's weights changed, as far as fingerprints do not say that nothing did."""
        moved = self.changes["num_changed"] != 0
        return sum(bool(m) and lora is None for m, lora in zip(moved, self.adapters, strict=True))

    @cached_property
    def labelled(self) -> Columns:
        """The rows of `weights` that name a version."""
        return select(self["weights"], np.array([label is not None for label in self.labels], dtype=bool))

    @cached_property
    def num_prompt(self) -> Array:
        """Prompt length of each row of `requests`."""
        lengths = pc.list_value_length(self.requests.column("prompt_token_ids"))
        return np.asarray(lengths.to_numpy(), dtype=np.int64)

    @cached_property
    def sampling(self) -> list[dict[str, Any]]:
        """Sampling parameters of each row of `requests`."""
        texts = self.requests.column("sampling_params").to_pylist()
        parsed = {text: json_object(text, "sampling parameters") for text in set(texts)}
        return [parsed[text] for text in texts]

    @cached_property
    def vocab_size(self) -> int | None:
        """Size of the vocabulary, where the configuration tells; a model of several inputs has it in its text part.

        None where ids are redacted: none of them is of the vocabulary.
        """
        if key_of(self.about):
            return None
        found: Any = self.config.get("hf_config")
        for section in (found, found.get("text_config") if isinstance(found, dict) else None):
            if isinstance(section, dict) and isinstance(section.get("vocab_size"), int):
                return int(section["vocab_size"])
        return None

    def row_of(self, requests: Array) -> Array:
        """Return for each request number its row in `requests`; -1 where there is none."""
        return lookup(self["requests"]["request"], requests)

    def step_of(self, engine_steps: Array) -> Array:
        """Return for each number of a step its row in `steps`; -1 where there is none."""
        return lookup(self["steps"]["engine_step"], engine_steps)

    def before_of(self, requests: Array) -> Array:
        """Return for each request number how many output tokens it had before it was recorded."""
        return pick(self.num_before, lookup(self["joined"]["request"], requests), 0)

    def prompt_of(self, requests: Array) -> Array:
        """Return for each request number the length of its prompt; 0 where the request is not known."""
        return pick(self.num_prompt, self.row_of(requests), 0)


def once(make: Callable[[EngineRows], Made]) -> Callable[[EngineRows], Made]:
    """Let checks share what `make` makes of an engine's rows; it must not hold the rows, which would stay with it."""
    made: WeakKeyDictionary[EngineRows, Made] = WeakKeyDictionary()

    def made_once(rows: EngineRows) -> Made:
        if rows not in made:
            made[rows] = make(rows)
        return made[rows]

    return made_once


def sequence_key(columns: Columns) -> Array:
    """Return one number for each (engine_step, request) of a table's rows."""
    return pair_key(columns["engine_step"], columns["request"])


def place_key(columns: Columns) -> Array:
    """Return one number for each (request, position) of a table's rows."""
    return pair_key(columns["request"], columns["position"])


def read_engines(trace: Trace) -> Iterator[EngineRows]:
    """Yield the rows of each engine of a trace, in order of their numbers.

    Raises:
        TraceCorruptError: a batch is not what was written.
    """
    about = {row["engine"]: row for row in trace.engines()}
    numbers = sorted(trace.numbers)
    tables: dict[int, dict[str, Columns]] = {engine: {} for engine in numbers}
    texts: dict[int, dict[str, pa.Table]] = {engine: {} for engine in numbers}
    for name in (name for name in TABLES if name != "losses"):
        whole = trace.table(name)
        for engine in numbers:
            own = _of_engine(whole, engine)
            tables[engine][name] = _columns(name, own)
            if name in _TEXTS:
                texts[engine][name] = own
    for engine in numbers:
        own = texts[engine]
        reasons, control = own["finishes"].column("reason").to_pylist(), own["control"].to_pylist()
        labels, loras = (own["weights"].column(name).to_pylist() for name in ("label", "lora"))
        tensors = {name: own["fingerprints"].column(name).to_pylist() for name in ("tensor", "dtype", "shape")}
        yield EngineRows(
            engine,
            tables[engine],
            own["requests"],
            reasons,
            labels,
            loras,
            tensors,
            control,
            about.get(engine, {}),
            own["joined"],
        )


def _of_engine(table: pa.Table, engine: int) -> pa.Table:
    column = table.column("engine").to_numpy()
    if column.size and (column == engine).all():
        return table
    return table.filter(pa.array(column == engine))


def _columns(name: str, table: pa.Table) -> Columns:
    found: Columns = {}
    for column, kind in TABLES[name].items():
        base = kind.rstrip("?")
        if base not in _NUMBERS or column == "engine" or column not in table.column_names:
            continue
        values = table.column(column)
        if base == "f4":
            found[column] = values.to_numpy().astype(np.float32)
        else:
            found[column] = (pc.fill_null(values, 0) if values.null_count else values).to_numpy().astype(np.int64)
            if values.null_count:
                found[column][values.is_null().to_numpy()] = -1
    return found
