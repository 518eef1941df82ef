"""Builders of numpy tables and of traces, made by the real writer; for everybody's tests.

Example:
    tables = make_tables(num_requests=2, tokens=8)
    write_trace(tmp_path / "t.arrow", [tables])
"""

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekit.trace.seal import SealReport, seal
from tracekit.trace.spool import SpoolWriter

ENGINE_ID = "0123456789abcdef0123456789abcdef"


def make_engine(**changes):
    """The ``engines`` table with its one row; keyword arguments replace values."""
    row = {
        "engine_id": ENGINE_ID,
        "kind": "v1",
        "engine_version": "0.18.1",
        "recorder_version": "0.1.0",
        "pid": 4242,
        "host": "host",
        "rank": 0,
        "wall_ns": 1_700_000_000_000_000_000,
        "mono_ns": 1_000_000_000,
        "model": "tiny",
        "logprobs_mode": "raw_logprobs",
        "config": json.dumps({"dtype": "bfloat16"}),
        "run": None,
    }
    assert set(changes) <= set(row)
    return {name: [value] for name, value in (row | changes).items()}


def missing(count, dtype):
    """A column of nulls; under the mask is the same each time, not what was in memory."""
    return np.ma.masked_array(np.zeros(count, dtype), mask=True)


def make_tables(
    num_requests=3,
    tokens=8,
    *,
    prompt_tokens=5,
    first_request=0,
    first_step=0,
    seed=0,
    weight_version=0,
    sampling_params=None,
    logprobs=True,
    engine=True,
    finished=True,
):
    """All tables of a small continuous batch: every request gets one token in every engine step.

    Args:
        num_requests, tokens: Requests, and sampled tokens of each.
        prompt_tokens: Length of each prompt; the first sampled token has this position.
        first_request, first_step: Where the numbers start, for a second batch of the same engine.
        sampling_params: Dict, the same for every request.
        logprobs: False: ``rollout_logprob`` and ``rank`` are null.
        engine: Whether the ``engines`` row is there (True, False, or the table itself).
        finished: Whether the requests finish in the last step.
    """
    rng = np.random.default_rng(seed)
    numbers = np.arange(first_request, first_request + num_requests, dtype="u4")
    steps = np.arange(first_step, first_step + tokens, dtype="u4")
    request, step = np.tile(numbers, tokens), np.repeat(steps, num_requests)  # step-major, as an engine works
    index = step - first_step
    count = len(request)
    start_ns = 1_000_000_000 + first_step * 20_000_000
    logprob = np.ma.masked_array(-rng.exponential(0.7, count).astype("f4"), mask=not logprobs)
    tables = {
        "requests": {
            "request": numbers,
            "time_ns": np.full(num_requests, start_ns, "i8"),
            "request_id": [f"internal-{number}" for number in numbers],
            "external_id": [f"request-{number}" for number in numbers],
            "parent_id": [None] * num_requests,
            "index": np.zeros(num_requests, "u4"),
            "prompt_token_ids": [rng.integers(3, 1000, prompt_tokens).astype("u4") for _ in numbers],
            "num_mm_features": np.zeros(num_requests, "u4"),
            "sampling_params": [json.dumps(sampling_params or {"temperature": 1.0})] * num_requests,
            "lora": [None] * num_requests,
            "lora_id": [None] * num_requests,
            "lora_path": [None] * num_requests,
            "cache_salt": [None] * num_requests,
            "labels": ["{}"] * num_requests,
        },
        "tokens": {
            "request": request,
            "position": (prompt_tokens + index).astype("u4"),
            "token_id": rng.integers(3, 1000, count).astype("u4"),
            "rollout_logprob": logprob,
            "raw_logprob": missing(count, "f4"),
            "processed_logprob": missing(count, "f4"),
            "rank": np.ma.masked_array(rng.integers(1, 5, count).astype("u4"), mask=not logprobs),
            "engine_step": step,
            "weight_version": np.full(count, weight_version, "u4"),
            "flags": np.ones(count, "u1"),
        },
        "steps": {
            "engine_step": steps,
            "time_ns": (start_ns + np.arange(tokens) * 20_000_000).astype("i8"),
            "output_ns": (start_ns + np.arange(tokens) * 20_000_000 + 15_000_000).astype("i8"),
            "weight_version": np.full(tokens, weight_version, "u4"),
            "num_requests": np.full(tokens, num_requests, "u4"),
            "num_scheduled_tokens": (num_requests * np.where(steps == first_step, prompt_tokens, 1)).astype("u4"),
            "num_waiting": np.zeros(tokens, "u4"),
            "kv_usage": rng.random(tokens).astype("f4"),
        },
        "scheduled": {
            "engine_step": step,
            "request": request,
            "num_tokens": np.where(index == 0, prompt_tokens, 1).astype("u4"),
            "num_computed": np.where(index == 0, 0, prompt_tokens + index - 1).astype("u4"),
            "num_draft": np.zeros(count, "u4"),
            "flags": np.where(index == 0, 1 | 4, 0).astype("u1"),
        },
    }
    if finished and tokens:
        tables["finishes"] = {
            "request": numbers,
            "engine_step": np.full(num_requests, steps[-1], "u4"),
            "time_ns": np.full(num_requests, start_ns + tokens * 20_000_000, "i8"),
            "reason": ["length"] * num_requests,
            "num_output_tokens": np.full(num_requests, tokens, "u4"),
        }
    if engine:
        tables["engines"] = make_engine() if engine is True else engine
    return tables


def make_weights(*first_steps, **changes):
    """The ``weights`` table with a reload before each of these engine steps; keyword arguments replace columns."""
    count = len(first_steps)
    columns = {
        "weight_version": np.arange(1, count + 1, dtype="u4"),
        "method": ["reload_weights"] * count,
        "arguments": ["{}"] * count,
        "engine_step": np.array(first_steps, "u4"),
        "begin_ns": np.arange(2_000_000_000, 2_000_000_000 + count, dtype="i8"),
        "end_ns": np.arange(2_000_000_001, 2_000_000_001 + count, dtype="i8"),
        "label": [None] * count,
        "checkpoint": [None] * count,
        "lora": [None] * count,
        "num_changed": missing(count, "u4"),
    }
    assert set(changes) <= set(columns)
    return columns | changes


def make_cache(*hits, block_size=2):
    """The ``cache`` table of hits (engine step, request, tokens found, (oldest, newest) version of each block)."""
    rows = [
        (step, request, block, min(block_size, num_tokens - block * block_size), *found)
        for step, request, num_tokens, versions in hits
        for block, found in enumerate(versions)
    ]
    step, request, block, tokens, oldest, newest = np.array(rows, "u4").reshape(-1, 6).T
    return {
        "engine_step": step,
        "request": request,
        "kv_group": np.zeros(len(rows), "u1"),
        "block": block,
        "block_id": block + 1,
        "num_tokens": tokens,
        "hash": missing(len(rows), "u8"),
        "min_weight_version": np.ma.masked_array(oldest, mask=False),
        "max_weight_version": np.ma.masked_array(newest, mask=False),
    }


def make_topk(tables, k):
    """The ``topk`` table of k alternatives beside each token; the first of them is the sampled one."""
    tokens, count = tables["tokens"], len(tables["tokens"]["request"])
    rank = np.tile(np.arange(1, k + 1, dtype="u4"), count)
    logprob = np.repeat(np.asarray(tokens["rollout_logprob"], "f4"), k) - (rank - 1).astype("f4")
    return {
        "request": np.repeat(tokens["request"], k),
        "position": np.repeat(tokens["position"], k),
        "rank": rank,
        "token_id": (np.repeat(tokens["token_id"], k) + rank - 1).astype("u4"),
        "logprob": logprob,
    }


def make_prompt_logprobs(tables):
    """The ``prompt_logprobs`` table of every prompt, brought by the first step."""
    prompts = [np.asarray(ids, "u4") for ids in tables["requests"]["prompt_token_ids"]]
    token_id = np.concatenate([ids[1:] for ids in prompts])
    return {
        "request": np.repeat(tables["requests"]["request"], [len(ids) - 1 for ids in prompts]),
        "position": np.concatenate([np.arange(1, len(ids), dtype="u4") for ids in prompts]),
        "token_id": token_id,
        "logprob": (-np.arange(1, len(token_id) + 1) / 7).astype("f4"),
        "rank": np.full(len(token_id), 3, "u4"),
        "engine_step": np.full(len(token_id), tables["steps"]["engine_step"][0], "u4"),
    }


def make_prompt_topk(scored, k):
    """The ``prompt_topk`` table of k alternatives beside each prompt token; the last of them is the token itself."""
    count = len(scored["request"])
    rank = np.tile(np.arange(1, k + 1, dtype="u4"), count)
    return {
        "request": np.repeat(scored["request"], k),
        "position": np.repeat(scored["position"], k),
        "rank": rank,
        "token_id": (np.repeat(scored["token_id"], k) + k - rank).astype("u4"),
        "logprob": np.repeat(scored["logprob"], k) + (k - rank).astype("f4") / 64,
    }


def count_rows(tables):
    """Rows by table."""
    return {name: len(next(iter(columns.values()))) for name, columns in tables.items()}


def write_spool(folder, batches, *, engine=0, engine_id=ENGINE_ID, last=True, skip=(), segment_bytes=64 << 20) -> Path:
    """Append the batches of one engine (a list of Tables), numbered from 1, to the spool ``folder``.

    Args:
        last: Whether the last batch says goodbye.
        skip: Sequence numbers that never arrive; their rows count as produced.
    """
    produced = Counter()
    with SpoolWriter(folder, segment_bytes=segment_bytes) as writer:
        for seq, tables in enumerate(batches, 1):
            produced.update(count_rows(tables))
            if seq not in skip:
                meta = BatchMeta(engine, engine_id, seq, dict(produced), {}, last and seq == len(batches))
                writer.append(to_record_batch(tables, engine), meta)
        writer.sync()
    return Path(folder)


def write_trace(path, batches=None, *, extra_losses=(), batch_rows=1 << 20, **spool) -> SealReport:
    """Seal batches of one engine (default: one of `make_tables`) into ``path``; keywords go to `write_spool`."""
    with tempfile.TemporaryDirectory() as folder:
        write_spool(folder, [make_tables()] if batches is None else batches, **spool)
        return seal(folder, path, extra_losses, batch_rows=batch_rows)
