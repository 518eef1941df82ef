"""Prompt logprobs: of the request's own prompt, each position once, with values that can be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from tracekit.audit.findings import BREAKS_REPLAY, Array, Broken, Check
from tracekit.audit.rows import EngineRows, place_key
from tracekit.join import lookup, pick


def asked_alternatives(params: dict[str, object]) -> int:
    """How many alternatives a request's parameters ask for at each prompt position, as far as they are recorded."""
    k = params.get("prompt_logprobs")
    return max(k, 0) if isinstance(k, int) else 0


def _ids(rows: EngineRows) -> Iterator[Broken]:
    scored = rows["prompt_logprobs"]
    prompts = rows.requests.column("prompt_token_ids").combine_chunks()
    flat = pc.list_flatten(prompts).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.r_[0, np.cumsum(rows.num_prompt)]
    row, position = rows.row_of(scored["request"]), scored["position"]
    inside = (row >= 0) & (position >= 1) & (position < pick(rows.num_prompt, row, 0))
    ids = pick(flat, np.where(inside, starts[row] + position, -1), -1)
    yield Broken(
        (row >= 0) & (ids != scored["token_id"]),
        scored,
        lambda i: (
            f"token {scored['token_id'][i]} is scored at position {position[i]}, "
            + (f"where the prompt has {ids[i]}" if inside[i] else "where no prompt token follows another")
        ),
    )


def _missing(rows: EngineRows) -> Iterator[Broken]:
    requests, scored = rows["requests"], rows["prompt_logprobs"]
    # recorders of trace schema 2 took none
    asks = np.array([params.get("prompt_logprobs") is not None for params in rows.sampling], dtype=bool)
    ended = np.array([reason in ("stop", "length") for reason in rows.reasons], dtype=bool)
    done = np.isin(requests["request"], rows["finishes"]["request"][ended])
    places, times = np.unique(place_key(scored), return_counts=True)
    again = times[lookup(places, place_key(scored))] > 1
    yield Broken(again, scored, lambda i: f"position {scored['position'][i]} is scored more than once")
    owner = np.bincount(lookup(requests["request"], places >> 32) + 1, minlength=len(requests["request"]) + 1)[1:]
    wanted = np.maximum(rows.num_prompt - 1, 0)
    yield Broken(
        asks & done & (owner != wanted) & bool(scored["request"].size),
        requests,
        lambda i: f"{owner[i]} of {wanted[i]} prompt positions are scored",
    )


def _value(rows: EngineRows) -> Iterator[Broken]:
    is_v0 = rows.about.get("kind") == "v0"
    for table in ("prompt_logprobs", "prompt_topk"):
        scored = rows[table]
        logprob = scored["logprob"]
        # V0 truncates, which leaves nothing to a token that it cuts off
        wrong = np.isnan(logprob) | (logprob > 0) | (np.isneginf(logprob) & (not is_v0))
        if str(rows.about.get("logprobs_mode", "")).endswith("logits"):
            wrong = np.zeros(wrong.shape, dtype=bool)
        wrong |= scored["rank"] < 1
        yield Broken(wrong, scored, lambda i, t=scored: _shown(t, i))  # type: ignore[misc]


def _shown(table: dict[str, Array], i: int) -> str:
    return f"position {table['position'][i]} has logprob {table['logprob'][i]} and rank {table['rank'][i]}"


def _alternatives(rows: EngineRows) -> Iterator[Broken]:
    scored, topk = rows["prompt_logprobs"], rows["prompt_topk"]
    asked = np.array([asked_alternatives(params) for params in rows.sampling], dtype=np.int64)
    wanted = pick(asked, rows.row_of(scored["request"]), 0)
    place = place_key(scored)
    at = lookup(place, place_key(topk))
    k = pick(wanted, at, 0)
    yield Broken(
        (topk["rank"] > k) | (at < 0),
        topk,
        lambda i: f"rank {topk['rank'][i]} at position {topk['position'][i]}, of {k[i]} asked for",
    )
    found = np.bincount(at[at >= 0], minlength=place.size)
    once = place_key({"request": at, "position": topk["rank"]})
    found -= np.bincount(at[at >= 0], np.r_[False, once[1:] == once[:-1]][: at.size][at >= 0], place.size).astype(int)
    yield Broken(
        found != wanted,
        scored,
        lambda i: f"position {scored['position'][i]} does not have each of its {wanted[i]} alternatives once",
    )
    own, same = pick(scored["logprob"], at, np.nan), topk["token_id"] == pick(scored["token_id"], at, -1)
    yield Broken(
        same & (np.asarray(own, np.float32).view(np.uint32) != topk["logprob"].view(np.uint32)),
        topk,
        lambda i: f"position {topk['position'][i]} has logprob {own[i]}, among the alternatives {topk['logprob'][i]}",
    )


_NEEDS = frozenset({"requests", "prompt_logprobs"})
_DO_NOT_USE = "Do not use the prompt logprobs of the requests it names, and report them with the version of vLLM."

CHECKS = (
    Check(
        "prompt-logprob-id",
        BREAKS_REPLAY,
        "What is scored at a prompt position is the prompt's token there, else the numbers are another text's.",
        _DO_NOT_USE,
        _ids,
        _NEEDS,
    ),
    Check(
        "prompt-logprob-missing",
        BREAKS_REPLAY,
        "Where a client asked for prompt logprobs each position but the first has one, else its list is shifted.",
        _DO_NOT_USE,
        _missing,
        _NEEDS | {"finishes"},
    ),
    Check(
        "prompt-logprob-value",
        BREAKS_REPLAY,
        "A prompt logprob is the logarithm of a probability and its rank counts from 1.",
        _DO_NOT_USE,
        _value,
    ),
    Check(
        "prompt-alternatives",
        BREAKS_REPLAY,
        "A prompt position has each alternative that its request asked for once, with the logprob that it has itself.",
        _DO_NOT_USE,
        _alternatives,
        _NEEDS | {"prompt_topk"},
    ),
)
