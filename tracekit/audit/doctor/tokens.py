"""Tokens for themselves: they belong to a request, leave no hole, and carry values that can be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.audit.findings import BREAKS_REPLAY, Array, Broken, Check
from tracekit.audit.rows import EngineRows
from tracekit.join import pick


def _unknown(rows: EngineRows) -> Iterator[Broken]:
    for table in ("joined", "tokens", "topk", "prompt_logprobs", "prompt_topk", "scheduled", "cache", "finishes"):
        text = f"{table} row of a request never admitted"
        yield Broken(rows.row_of(rows[table]["request"]) < 0, rows[table], lambda _, text=text: text)  # type: ignore[misc]


def _twice(rows: EngineRows) -> Iterator[Broken]:
    numbers = rows["requests"]["request"]
    yield Broken(np.r_[False, numbers[1:] == numbers[:-1]], rows["requests"], lambda _: "admitted twice")


def _again(rows: EngineRows) -> Array:
    """Accepted tokens at the position of the one before."""
    request, position = rows.accepted["request"], rows.accepted["position"]
    same: Array = (request[1:] == request[:-1]) & (position[1:] == position[:-1])
    return np.asarray(np.r_[False, same][: request.size])


def _position_twice(rows: EngineRows) -> Iterator[Broken]:
    tokens = rows.accepted
    yield Broken(_again(rows), tokens, lambda i: f"position {tokens['position'][i]} accepted twice")


def _position_hole(rows: EngineRows) -> Iterator[Broken]:
    tokens = rows.accepted
    request, position = tokens["request"], tokens["position"]
    first = np.r_[True, request[1:] != request[:-1]][: request.size]
    prompt = rows.prompt_of(request)
    start = prompt + rows.before_of(request)
    # a prompt of embeddings has no ids: its first position is taken as told
    expected = np.where(first, np.where(prompt > 0, start, position), np.r_[0, position[:-1] + 1][: position.size])
    hole = (position != expected) & ~_again(rows)
    yield Broken(hole, tokens, lambda i: f"position {position[i]} where {expected[i]} should be")


def _nan(rows: EngineRows) -> Iterator[Broken]:
    # the rank is null together with the logprob
    yield _reported(rows, np.isnan(rows["tokens"]["rollout_logprob"]) & (rows["tokens"]["rank"] >= 0))


def _infinite(rows: EngineRows) -> Iterator[Broken]:
    yield _reported(rows, np.isneginf(rows["tokens"]["rollout_logprob"]))


def _positive(rows: EngineRows) -> Iterator[Broken]:
    tokens = rows["tokens"]
    yield _reported(rows, tokens["rollout_logprob"] > 0)
    for name in ("raw_logprob", "processed_logprob"):
        values = tokens[name]
        yield Broken(
            values > 0,
            tokens,
            lambda i, name=name, values=values: f"position {tokens['position'][i]} has {name} {values[i]}",  # type: ignore[misc]
        )


def _reported(rows: EngineRows, wrong: Array) -> Broken:
    """What the engine reported is wrong, unless it reports logits, which may be any number."""
    tokens = rows["tokens"]
    if str(rows.about.get("logprobs_mode", "")).endswith("logits"):
        wrong = np.zeros(wrong.shape, dtype=bool)
    return Broken(
        wrong, tokens, lambda i: f"position {tokens['position'][i]} has logprob {tokens['rollout_logprob'][i]}"
    )


def _missing(rows: EngineRows) -> Iterator[Broken]:
    tokens = rows["tokens"]
    asked = np.array([params.get("logprobs") is not None for params in rows.sampling], dtype=bool)
    wanted = pick(asked, rows.row_of(tokens["request"]), False)
    yield Broken(
        np.isnan(tokens["rollout_logprob"]) & (tokens["rank"] < 0) & wanted,
        tokens,
        lambda i: f"position {tokens['position'][i]} has no logprob though the client asked for it",
    )


def _not_the_engines(rows: EngineRows) -> Iterator[Broken]:
    tokens, name = rows["tokens"], str(rows.about.get("logprobs_mode", "")).removesuffix("s")
    if name not in ("raw_logprob", "processed_logprob"):
        return
    values, reported = tokens[name], tokens["rollout_logprob"]
    there = ~np.isnan(values) & ~np.isnan(reported)
    yield Broken(
        there & (values.view(np.uint32) != reported.view(np.uint32)),
        tokens,
        lambda i: f"position {tokens['position'][i]} has {name} {values[i]}, but the engine reported {reported[i]}",
    )


def _outside(rows: EngineRows) -> Iterator[Broken]:
    tokens, size = rows["tokens"], rows.vocab_size
    if size is None:
        return
    yield Broken(
        tokens["token_id"] >= size,
        tokens,
        lambda i: f"position {tokens['position'][i]} holds token {tokens['token_id'][i]} of a vocabulary of {size}",
    )


_REQUESTS = frozenset({"requests"})
_PLACES = frozenset({"requests", "tokens"})

CHECKS = (
    Check(
        "unknown-request",
        BREAKS_REPLAY,
        "Whatever names a request names one that was admitted, else its prompt and its parameters are not known.",
        "Leave the requests it names out of any comparison, and report the trace: the recorder missed an admission.",
        _unknown,
        _REQUESTS,
    ),
    Check(
        "request-twice",
        BREAKS_REPLAY,
        "A request is admitted once, else nobody knows which of two prompts its tokens follow.",
        "Leave the requests it names out of any comparison, and report the trace: the recorder numbered two alike.",
        _twice,
        _REQUESTS,
    ),
    Check(
        "position-twice",
        BREAKS_REPLAY,
        "An accepted token has a position of its own, else one of two tokens is not in the context of those after it.",
        "Leave the requests it names out of any comparison; `tracekit lint` tells whether the engine lost a token.",
        _position_twice,
        _PLACES,
    ),
    Check(
        "position-hole",
        BREAKS_REPLAY,
        "Accepted tokens follow the prompt and each other, else those after a hole are scored in another context.",
        "Leave the requests it names out of any comparison, and report the trace: a token was not recorded.",
        _position_hole,
        _PLACES,
    ),
    Check(
        "logprob-nan",
        BREAKS_REPLAY,
        "A logprob is a number: where the engine reports none of its tokens can be compared.",
        "Look for NaN in the engine's logits: its weights, its dtype and its logits processors.",
        _nan,
    ),
    Check(
        "logprob-positive",
        BREAKS_REPLAY,
        "A logprob is at most 0, as no probability is above 1.",
        "Look at what the engine's logits processors and its logprobs_mode make of the numbers.",
        _positive,
    ),
    Check(
        "logprob-infinite",
        BREAKS_REPLAY,
        "A sampled token has a probability above 0, so an infinite logprob is of another token or was masked late.",
        "Look at masks and logits processors that run after sampling, and at bad_words and structured outputs.",
        _infinite,
    ),
    Check(
        "logprob-missing",
        BREAKS_REPLAY,
        "A token has a logprob where the client asked for it, else there is nothing to compare.",
        "Record again, or leave the requests it names out of any comparison, and report the trace.",
        _missing,
    ),
    Check(
        "logprob-not-the-engines",
        BREAKS_REPLAY,
        "The recorder's own logprob of the engine's kind is what the engine reported, bit for bit.",
        "Do not rely on the raw and processed logprobs of this trace, and report it with the version of vLLM.",
        _not_the_engines,
    ),
    Check(
        "token-outside-vocabulary",
        BREAKS_REPLAY,
        "A token id lies within the model's vocabulary, else no trainer can score it.",
        "See that the trace names the model that ran, and report it if it does.",
        _outside,
    ),
)
