"""What makes recorded values differ from the scorer's, as parts that add up token by token.

Each rung computes the same token's logprob with one thing changed against the rung before. A part is the difference of
two neighboring rungs, so all parts of a token add up to recorded − last rung: the sum telescopes, and the residual is
what float64 loses on the way. Where a token was not run on some rung, the part behind it takes that one's share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, KV_RECOMPUTED, OTHER_PRECISION, TRAINER, Mask, Run
from tracekit.diagnose.reran import ALONE, COMPOSED, PREFILLED, UNCACHED, RerunOf

# parts, by the rung that ends them
STATE, CACHING, BATCH, DECODING = "state", "caching", "batch", "decoding"
KERNELS, PRECISION = "kernels", "precision"
ENDS = {COMPOSED: STATE, UNCACHED: CACHING, ALONE: BATCH, PREFILLED: DECODING}
NAMES = (*ENDS.values(), KERNELS, PRECISION)


@dataclass(frozen=True)
class Part:
    """One part, over all tokens that have it; nats.

    Attributes:
        name: one of `NAMES`.
        num_tokens: that have it.
        num_nonzero: of these, where it is not exactly 0.
        mean: signed.
        mean_abs: mean of the absolute values.
        max_abs: the largest absolute value.
    """

    name: str
    num_tokens: int
    num_nonzero: int
    mean: float
    mean_abs: float
    max_abs: float


@dataclass(frozen=True)
class Parts:
    """The parts of a run.

    Attributes:
        lens: what was compared, "raw" or "processed".
        scorer_dtype: of the scorer's body that stands for the engine's precision.
        engines: the re-runs.
        parts: those that some token has, in the order of the rungs.
        num_tokens: that were compared.
        residual_max: the most by which a token's parts do not add up, nats.
    """

    lens: str
    scorer_dtype: str
    engines: list[RerunOf]
    parts: list[Part]
    num_tokens: int
    residual_max: float


def token_parts(run: Run, lens: str) -> dict[str, F8]:
    """Return every part of every token, [N] each; NaN where a token has it not.

    Args:
        run: with its re-runs.
        lens: what the recorded values are, "raw" or "processed".
    """
    above = run.rollout_logprob
    found = {name: np.full(above.size, np.nan) for name in NAMES}
    for name, values in _rungs(run, lens):
        there = np.isfinite(above) & np.isfinite(values)
        found[name][there] = (above - values)[there]
        above = np.where(there, values, above)
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def split(run: Run, lens: str) -> Parts | None:
    """Return the parts of a run; None where no engine ran it again."""
    if run.reran is None:
        return None
    by_name = token_parts(run, lens)
    last = run.rollout_logprob
    for _, values in _rungs(run, lens):
        last = np.where(np.isfinite(last) & np.isfinite(values), values, last)
    stacked = np.stack([np.nan_to_num(values) for values in by_name.values()]) if by_name else np.zeros((1, last.size))
    residual = np.abs(run.rollout_logprob - last - stacked.sum(axis=0))[run.valid]
    return Parts(
        lens=lens,
        scorer_dtype=_same_precision(run)[1],
        engines=run.reran.engines,
        parts=[_part(name, values) for name, values in by_name.items()],
        num_tokens=int(np.count_nonzero(run.valid)),
        residual_max=float(residual.max()) if residual.size else 0.0,
    )


def _rungs(run: Run, lens: str) -> list[tuple[str, F8]]:
    """The parts, each with the values of the rung that ends it."""
    assert run.reran is not None
    same, dtype = _same_precision(run)
    values, fresh = dict(run.reran.values), _fresh(run, same, lens)
    if UNCACHED in values:  # a scorer over KV of older weights must not come after a re-run without it
        values[UNCACHED] = np.where(_over_older_kv(run) & np.isnan(fresh), np.nan, values[UNCACHED])
        fresh = np.where(np.isnan(values[UNCACHED]), np.nan, fresh)
    rungs = [(part, values[how]) for how, part in ENDS.items() if how in values]
    scored = run.scores[same].logprob(lens)
    rungs.append((KERNELS, np.where(np.isnan(fresh), scored, fresh)))
    if dtype != "float32":
        exact = TRAINER if run.dtype == "float32" else OTHER_PRECISION if run.noise_dtype == "float32" else None
        if exact is not None and exact in run.scores:
            rungs.append((PRECISION, np.where(np.isnan(fresh), run.scores[exact].logprob(lens), np.nan)))
    return rungs


def _fresh(run: Run, same: str, lens: str) -> F8:
    """[N] what the scorer says where it computes KV of older weights again; NaN where it did not try."""
    if same != TRAINER or KV_RECOMPUTED not in run.scores or UNCACHED not in (run.reran.values if run.reran else ()):
        return np.full(run.rollout_logprob.size, np.nan)
    fresh: F8 = run.scores[KV_RECOMPUTED].logprob(lens)
    return fresh


def _over_older_kv(run: Run) -> Mask:
    """[N] whether the request found blocks of another version than the token's."""
    if run.strata is None:
        return np.zeros(run.rollout_logprob.size, dtype=bool)
    older: Mask = (run.strata.oldest_found >= 0) & (run.strata.oldest_found != run.weight_version)
    return older


def _same_precision(run: Run) -> tuple[str, str]:
    """The scorer's pass in the engine's precision, else the trainer's; and the dtype of its body."""
    if run.engine_dtype == run.noise_dtype and OTHER_PRECISION in run.scores:
        return OTHER_PRECISION, run.noise_dtype
    return TRAINER, run.dtype


def _part(name: str, values: F8) -> Part:
    own = values[np.isfinite(values)]
    return Part(
        name=name,
        num_tokens=own.size,
        num_nonzero=int(np.count_nonzero(own)),
        mean=float(own.mean()),
        mean_abs=float(np.abs(own).mean()),
        max_abs=float(np.abs(own).max()),
    )
