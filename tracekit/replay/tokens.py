"""The tokens table of a trace as columns of numbers, and whether they can be compared with anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from tracekit import tables
from tracekit.diagnose.skipped import REASONS
from tracekit.errors import ReplayRefused

if TYPE_CHECKING:
    import pyarrow as pa

Columns = dict[str, npt.NDArray[Any]]

_HOW_TO_ASK = (
    'ask for them with SamplingParams(logprobs=0), or "logprobs": 0 in a server request, or record with '
    "--logprobs engine"
)

_PROMPTS = {  # what prompt logprobs are, by the engine's generation
    "v0": "after temperature and truncation, without penalties",
    "v1": "raw: V1 leaves temperature, penalties and truncation out of them",
}


def columns(table: pa.Table) -> Columns:
    """Return the columns of the token table, in its order; a null logprob is NaN, rank 0."""
    names = ("engine", "request", "position", "engine_step", "weight_version")
    out = {name: table.column(name).to_numpy().astype(np.int64) for name in names}
    out |= {name: table.column(name).to_numpy() for name in ("token_id", "flags")}
    out["rank"] = pc.fill_null(table.column("rank"), 0).to_numpy().astype(np.int64)
    logprob = table.column("rollout_logprob")
    out["has_logprob"] = np.asarray(pc.is_valid(logprob).to_numpy(), dtype=bool)
    others = [pc.is_valid(table.column(name)) for name in ("raw_logprob", "processed_logprob")]
    out["has_both"] = np.asarray(pc.or_(*others).to_numpy(), dtype=bool)
    for name in ("rollout_logprob", "raw_logprob", "processed_logprob"):
        out[name] = np.asarray(table.column(name).to_numpy(), dtype=np.float64)
    return out


def accepted(tokens: Columns) -> tuple[Columns, int]:
    """Return the tokens that became output, and how many did not."""
    kept = (tokens["flags"] & tables.ACCEPTED) != 0
    if kept.all():
        return tokens, 0
    return {name: values[kept] for name, values in tokens.items()}, int(np.count_nonzero(~kept))


def check_logprobs(tokens: Columns, num_prompt: int = 0, kinds: Iterable[str] = ()) -> None:
    """Make sure that there is something to compare.

    Args:
        tokens: the accepted ones.
        num_prompt: prompt logprobs that were recorded.
        kinds: the generations of the engines.

    Raises:
        ReplayRefused: there is no token, or none has a logprob as the engine reports it.
    """
    if not tokens["token_id"].size:
        raise ReplayRefused("the trace holds no accepted token, so there is nothing to replay")
    if tokens["has_logprob"].any():
        return
    if tokens["has_both"].any():
        what = REASONS["not reported"].what
        raise ReplayRefused(f"the trace holds only requests {what}, so there is nothing to compare")
    if num_prompt:
        meant = " or ".join(sorted({_PROMPTS.get(kind, _PROMPTS["v1"]) for kind in kinds}))
        raise ReplayRefused(
            f"the job asked for the logprobs of prompts, not for those of sampled tokens: {num_prompt:,} prompt "
            f"logprobs are recorded ({meant}), which replay does not score; for sampled tokens, {_HOW_TO_ASK}"
        )
    raise ReplayRefused(f"the trace holds no logprobs because the job did not ask for them: {_HOW_TO_ASK}")


def by_request(tokens: Columns) -> Iterator[tuple[tuple[int, int], Columns]]:
    """Yield (engine, request) and the tokens of each."""
    engine, request = tokens["engine"], tokens["request"]
    starts = np.flatnonzero(np.r_[True, (np.diff(engine) != 0) | (np.diff(request) != 0)])
    for start, end in zip(starts, np.r_[starts[1:], engine.size], strict=True):
        yield (int(engine[start]), int(request[start])), {name: v[start:end] for name, v in tokens.items()}
