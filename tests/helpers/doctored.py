"""Traces that one rule of `tracekit doctor` is broken in, and what their clients received."""

import numpy as np

from helpers.factories import make_engine, make_tables, make_weights, write_trace
from tracekit.audit.doctor.examine import examine
from tracekit.tables import ACCEPTED, TABLES
from tracekit.trace.reader import open_trace


def asking(**engine):
    """Two requests of eight tokens that asked for logprobs, on weights that change before step 4."""
    tables = make_tables(2, 8, sampling_params={"temperature": 1.0, "logprobs": 0}, engine=make_engine(**engine))
    tables["weights"] = make_weights(4)
    tables["tokens"] = {name: values.copy() for name, values in tables["tokens"].items()}  # from what scheduled shares
    for name in ("tokens", "steps"):
        tables[name]["weight_version"] = (tables[name]["engine_step"] >= 4).astype("u4")
    tables["tokens"]["raw_logprob"] = tables["tokens"]["rollout_logprob"].copy()
    tables["tokens"]["processed_logprob"] = tables["tokens"]["rollout_logprob"] / np.float32(0.7)
    return tables


def report_of(path, tables, view=None, **spool):
    write_trace(path / "t.arrow", [tables], **spool)
    return examine(open_trace(path / "t.arrow"), view)


def found(report):
    return {(f.check.id, e.request, e.engine_step) for f in report.violations for e in f.examples}


def at(tables, name, **where):
    """Index of the one row with these values."""
    columns = tables[name]
    (index,) = np.flatnonzero(np.logical_and.reduce([columns[key] == value for key, value in where.items()]))
    return index


def put(tables, name, index, **values):
    for column, value in values.items():
        tables[name][column][index] = value


def drop(tables, name, index):
    for column, values in tables[name].items():
        kept = [v for i, v in enumerate(values) if i != index]
        tables[name][column] = np.ma.masked_array(kept, dtype=values.dtype) if isinstance(values, np.ndarray) else kept


def append(tables, name, **values):
    """Append a row; what is not named is zero, or null where it may be."""
    for column, old in tables[name].items():
        missing = column not in values and TABLES[name][column].endswith("?")
        more = np.ma.masked_array([values.get(column, 0)], mask=missing, dtype=getattr(old, "dtype", object))
        tables[name][column] = np.ma.append(old, more) if hasattr(old, "dtype") else [*old, values.get(column)]


def steer(tables, *names):
    """Let the engine be told so: attach, detach…"""
    row = {name: np.zeros(len(names), "i8") for name in TABLES["control"] if name != "engine"}
    texts = {"name": list(names), "arguments": ["{}"] * len(names), "answer": ["null"] * len(names)}
    tables["control"] = {**row, **texts}


def view_of(tables):
    """What the clients of these tables received."""
    tokens = tables["tokens"]
    for number, name in enumerate(tables["requests"]["external_id"]):
        own = np.flatnonzero((tokens["request"] == number) & (tokens["flags"] == ACCEPTED))
        yield {
            "request_id": name,
            "index": 0,
            "prompt_token_ids": tables["requests"]["prompt_token_ids"][number].tolist(),
            "token_ids": tokens["token_id"][own].tolist(),
            "logprobs": [float(v) for v in tokens["rollout_logprob"][own]],
            "finish_reason": "length",
        }


def nearly(value):
    return float(np.nextafter(np.float32(value), np.float32(0)))


CLIENTS = [
    ("client-logprobs", lambda v: {"logprobs": [*v["logprobs"][:3], nearly(v["logprobs"][3]), *v["logprobs"][4:]]}),
    ("client-logprobs", lambda v: {"logprobs": v["logprobs"][:7]}),
    ("client-tokens", lambda v: {"token_ids": [1, *v["token_ids"][1:]]}),
    ("client-tokens", lambda v: {"token_ids": v["token_ids"][:7], "logprobs": None}),
    ("client-prompt", lambda v: {"prompt_token_ids": [1]}),
    ("client-finish", lambda v: {"finish_reason": "stop"}),
    ("client-unknown", lambda v: {"request_id": "nobody"}),
    ("client-value", lambda v: {"logprobs": None}),
    ("client-value", lambda v: {"logprobs": [*v["logprobs"][:7], None]}),
    ("client-value", lambda v: {"token_ids": None}),
    ("client-value", lambda v: {"token_ids": [*v["token_ids"][:7], None]}),
    ("client-value", lambda v: {"token_ids": [*v["token_ids"][:7], 3.0]}),
    ("client-value", lambda v: {"prompt_token_ids": "Hi"}),
    ("client-value", lambda v: {"index": None}),
    ("client-value", lambda v: {"request_id": None}),
    ("client-value", lambda v: {"finish_reason": 1}),
    ("client-index", lambda v: {"index": 1}),
]


def make_shed(tables, index):
    """The row of a request that was shed."""
    names = ("request", "time_ns", "request_id", "external_id", "index")
    return {**{name: tables["requests"][name][index : index + 1] for name in names}, "reason": ["full"]}
