"""Recorded traces as lint reads them: what an engine resolved, weights that change, hits of the prefix cache."""

import json

import numpy as np

from helpers.factories import make_cache, make_engine, make_tables, make_weights, write_trace
from tracekit.audit.lint.from_trace import subjects_of
from tracekit.audit.lint.run import lint
from tracekit.tables import NEW, PREFILL
from tracekit.trace.reader import open_trace


def recorded(path, tables):
    write_trace(path / "t.arrow", [tables])
    (subject,) = subjects_of(open_trace(path / "t.arrow"))
    return {one.rule.id: one.detail for one in lint([subject])}


def config(**changes):
    vllm = {
        "model_config": {"dtype": "torch.bfloat16", "logprobs_mode": "raw_logprobs", "generation_config": "auto"},
        "cache_config": {"enable_prefix_caching": True, "block_size": 4, "cache_dtype": "auto"},
        "scheduler_config": {"async_scheduling": False},
        "device_config": {"device_type": "cpu"},
    }
    for name, values in changes.items():
        vllm[name] = {**vllm.get(name, {}), **values}
    return json.dumps({"vllm": vllm})


def engine(tables, **changes):
    tables["engines"] = make_engine(config=config(**changes))
    return tables


def weights(tables, first_step, *more):
    tables["weights"] = make_weights(first_step, *more)
    tables["tokens"] = {name: values.copy() for name, values in tables["tokens"].items()}
    for name in ("tokens", "steps"):
        tables[name]["weight_version"] = (tables[name]["engine_step"] >= first_step).astype("u4")


def control(tables, *rows):
    tables["control"] = {
        "engine_step": np.array([row[0] for row in rows], "u4"),
        "time_ns": np.full(len(rows), 2_000_000_000, "i8"),
        "name": [row[1] for row in rows],
        "arguments": [json.dumps(row[2]) for row in rows],
        "answer": [json.dumps(row[3]) for row in rows],
    }


def hit_after_update():
    """Request 0 in steps 0 to 7; weights change before step 4; request 1 has its prompt and starts with a hit at 4."""
    tables = engine(make_tables(2, 8))
    prompts = tables["requests"]["prompt_token_ids"]
    prompts[1] = prompts[0]
    weights(tables, 4)
    mine = tables["scheduled"]["request"] == 1
    early = mine & (tables["scheduled"]["engine_step"] < 4)
    tables["scheduled"] = {name: values[~early].copy() for name, values in tables["scheduled"].items()}
    at = np.flatnonzero((tables["scheduled"]["request"] == 1) & (tables["scheduled"]["engine_step"] == 4))
    tables["scheduled"]["num_computed"][at] = 4
    tables["scheduled"]["num_tokens"][at] = 1
    tables["scheduled"]["flags"][at] = NEW | PREFILL
    tables["cache"] = make_cache((4, 1, 4, [(0, 0), (0, 1)]))
    return tables


def set_to(table, **columns):
    return lambda tables: tables[table].update(columns)
