"""Tokens for themselves: they belong to a request, leave no hole, and carry values that can be."""

import numpy as np

from tracekit.audit.findings import Finding, finding
from tracekit.audit.rows import EngineRows

__all__ = ["both_logprobs", "logprobs", "positions", "references", "token_ids"]


def references(rows: EngineRows) -> list[Finding]:
    """Whatever names a request names one that was admitted."""
    found: list[Finding] = []
    for table in ("tokens", "topk", "scheduled", "cache", "finishes"):
        columns, text = rows[table], f"{table} row of a request never admitted"
        unknown = rows.row_of(columns["request"]) < 0
        found += finding("unknown-request", rows.engine, unknown, columns, lambda _, text=text: text)  # type: ignore[misc]
    numbers = rows["requests"]["request"]
    twice = np.r_[False, numbers[1:] == numbers[:-1]]
    return found + finding("request-twice", rows.engine, twice, rows["requests"], lambda _: "admitted twice")


def positions(rows: EngineRows) -> list[Finding]:
    """Accepted tokens of a request follow the prompt and each other, each position once."""
    tokens = rows.accepted
    request, position = tokens["request"], tokens["position"]
    if not request.size:
        return []
    first = np.r_[True, request[1:] != request[:-1]]
    at = rows.row_of(request)
    prompt = np.where(at < 0, 0, rows.num_prompt[at] if rows.num_prompt.size else 0)
    # a prompt of embeddings has no ids: its first position is taken as told
    expected = np.where(first, np.where(prompt > 0, prompt, position), np.r_[0, position[:-1] + 1])
    again = ~first & (position == np.r_[-1, position[:-1]])
    found = finding("position-twice", rows.engine, again, tokens, lambda i: f"position {position[i]} accepted twice")
    hole = (position != expected) & ~again
    return found + finding(
        "position-hole", rows.engine, hole, tokens, lambda i: f"position {position[i]} where {expected[i]} should be"
    )


def logprobs(rows: EngineRows) -> list[Finding]:
    """Logprobs are numbers at most 0, and are there where the client asked for them."""
    tokens = rows["tokens"]
    values, rank = tokens["rollout_logprob"], tokens["rank"]
    if str(rows.about.get("logprobs_mode", "")).endswith("logits"):
        return []

    def place(i: int) -> str:
        return f"position {tokens['position'][i]} has logprob {values[i]}"

    missing = rank < 0  # null together with the logprob
    asked = np.array([params.get("logprobs") is not None for params in rows.sampling], dtype=bool)
    at = rows.row_of(tokens["request"])
    wanted = np.where(at < 0, False, asked[at] if asked.size else False)
    return [
        *finding("logprob-nan", rows.engine, np.isnan(values) & ~missing, tokens, place),
        *finding("logprob-positive", rows.engine, values > 0, tokens, place),
        *finding("logprob-infinite", rows.engine, np.isneginf(values), tokens, place),
        *finding(
            "logprob-missing",
            rows.engine,
            np.isnan(values) & missing & wanted,
            tokens,
            lambda i: f"position {tokens['position'][i]} has no logprob though the client asked for it",
        ),
    ]


def both_logprobs(rows: EngineRows) -> list[Finding]:
    """Raw and processed logprobs are at most 0, and the engine's own kind is what it reported, bit for bit."""
    tokens = rows["tokens"]
    reported = tokens["rollout_logprob"]
    found: list[Finding] = []
    for name in ("raw_logprob", "processed_logprob"):
        values = tokens[name]
        found += finding(
            "logprob-positive",
            rows.engine,
            values > 0,
            tokens,
            lambda i, name=name, values=values: f"position {tokens['position'][i]} has {name} {values[i]}",  # type: ignore[misc]
        )
        if rows.about.get("logprobs_mode") != f"{name}s":
            continue
        there = ~np.isnan(values) & ~np.isnan(reported)
        found += finding(
            "logprob-not-the-engines",
            rows.engine,
            there & (values.view(np.uint32) != reported.view(np.uint32)),
            tokens,
            lambda i, name=name, values=values: (  # type: ignore[misc]
                f"position {tokens['position'][i]} has {name} {values[i]}, but the engine reported {reported[i]}"
            ),
        )
    return found


def token_ids(rows: EngineRows) -> list[Finding]:
    """Token ids lie within the model's vocabulary, where the configuration tells its size."""
    hf_config = rows.config.get("hf_config")
    size = hf_config.get("vocab_size") if isinstance(hf_config, dict) else None
    if not isinstance(size, int):
        return []
    tokens = rows["tokens"]
    return finding(
        "token-outside-vocabulary",
        rows.engine,
        tokens["token_id"] >= size,
        tokens,
        lambda i: f"position {tokens['position'][i]} holds token {tokens['token_id'][i]} of a vocabulary of {size}",
    )
