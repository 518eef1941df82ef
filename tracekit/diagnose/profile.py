"""Raw logits of a sample of tokens, kept short, from which any sampling parameters can be tried without the model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tracekit.diagnose.settings import F8, PENALTIES, Mask, Settings
from tracekit.diagnose.tail import Tail

I8 = np.typing.NDArray[np.int64]


@dataclass(frozen=True)
class Profile:
    """What is kept of n tokens' rows of logits, [n] each, the K largest logits of a row one by one."""

    index: I8  # which tokens of the run, ascending
    own: F8  # raw logit of the recorded token
    logits: F8  # [n, K] the largest raw logits, descending; -inf beyond the vocabulary
    ids: I8  # [n, K] their tokens, -1 beyond the vocabulary
    tail: Tail  # all other tokens, measured from the largest logit
    seen: I8  # [n, K] how often each of these tokens was in the output before; -1 where not even in the prompt
    own_seen: I8  # the same of the recorded token

    def __getitem__(self, rows: Any) -> Profile:
        """Return the profile of some of its tokens."""
        return Profile(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Predicted:
    """What a sampler would have said of the profiled tokens, [n] each; NaN where the profile cannot tell."""

    logprob: F8  # of the recorded token, put into the kept set where it is not in it, nats
    inside: Mask  # whether it is in the kept set
    gain: F8  # first-order response of the logprob to noise of deviation 1 on every logit
    entropy: F8  # of the kept distribution, nats; NaN also where top-p's edge lies beyond the K
    variance: F8  # of the logprob of a token drawn from it, nats²; NaN as the entropy
    first: F8  # logprob of its most likely token, nats
    kept: F8  # log of the share of the mass that truncation leaves


def predict(profile: Profile, settings: Settings, *, low_head: bool = False, barred: I8 | None = None) -> Predicted:
    """Apply sampling parameters as vLLM V1 does: penalties, temperature, min-p, top-k, top-p.

    Args:
        profile: n tokens.
        settings: of the same tokens.
        low_head: round the raw logits to bfloat16 first, as a head in that precision does.
        barred: token ids that a mask bars.
    """
    logits, own, ids_out = profile.logits, profile.own, np.zeros(profile.ids.shape, bool)
    if low_head:
        logits, own = to_bfloat16(logits), to_bfloat16(own)
    if any(
        (getattr(settings, name) != neutral).any() for name, neutral in zip(PENALTIES, (1.0, 0.0, 0.0), strict=True)
    ):
        logits = _penalized(logits, profile.seen, settings)
        own = _penalized(own[:, None], profile.own_seen[:, None], settings)[:, 0]
    if barred is not None:
        ids_out = np.isin(profile.ids, barred)
    logits = np.where(ids_out, -np.inf, logits)
    order = np.argsort(-logits, axis=1, kind="stable")
    logits = np.take_along_axis(logits, order, axis=1)
    beta = 1 / settings.temperature
    best = logits[:, 0]
    gaps = (logits - best[:, None]) * beta[:, None]
    weights = np.exp(gaps)
    rest, rest_mean, rest_square = profile.tail.at(beta, profile.logits[:, 0] - best)
    total = weights.sum(axis=1) + rest
    stays, whole, known = _kept(gaps, weights, rest, total, settings)
    weights = weights * stays
    log_kept = np.log(np.where(whole, total, _mass(weights, stays, rest, total, settings)))
    own_gap = (own - best) * beta
    last = np.where(stays, gaps, np.inf).min(axis=1)
    inside = whole | (own_gap >= last)
    log_forced = np.where(inside, log_kept, np.logaddexp(log_kept, own_gap))
    p = weights * np.exp(-log_kept)[:, None]
    p_rest = np.where(whole, rest * np.exp(-log_kept), 0.0)
    finite = np.where(stays, gaps, 0.0)
    mean = (p * finite).sum(axis=1) + p_rest * rest_mean
    square = (p * finite**2).sum(axis=1) + p_rest * rest_square
    own_p = np.exp(own_gap - log_forced)
    nan = np.where(known, 0.0, np.nan)
    listed = np.where(whole | (rest == 0) | ~stays[:, -1], nan, np.nan)
    return Predicted(
        logprob=own_gap - log_forced + nan,
        inside=inside,
        gain=np.sqrt((1 - own_p) ** 2 + np.maximum((p**2).sum(axis=1) - own_p**2, 0.0)) * beta + nan,
        entropy=log_kept - mean + listed,
        variance=np.maximum(square - mean**2, 0.0) + listed,
        first=nan - log_kept,
        kept=log_kept - np.log(total) + nan,
    )


def _kept(gaps: F8, weights: F8, rest: F8, total: F8, settings: Settings) -> tuple[Mask, Mask, Mask]:
    """Which of the K stay [n, K], whether all other tokens do [n], and whether the profile can tell [n]."""
    width = gaps.shape[1]
    top_k = np.where(settings.top_k > 0, settings.top_k, np.inf)[:, None]
    with np.errstate(divide="ignore"):
        stays = (gaps >= np.log(settings.min_p)[:, None]) & (np.arange(width) < top_k) & np.isfinite(gaps)
    cut = (settings.min_p > 0) | (settings.top_k > 0)
    beyond = (rest > 0) & stays[
        :, -1
    ]  # the edge of min-p or top-k may lie among the tokens that are not kept one by one
    known = ~(cut & beyond)
    weights = weights * stays
    mass = np.where(cut, weights.sum(axis=1), total)
    nucleus = weights.cumsum(axis=1) - weights < (settings.top_p * mass)[:, None]
    stays &= nucleus | (settings.top_p >= 1)[:, None]
    stays[:, 0] = True
    return stays, ~cut & (settings.top_p >= 1), known


def _mass(weights: F8, stays: Mask, rest: F8, total: F8, settings: Settings) -> F8:
    """Mass of the kept set; where top-p's edge lies beyond the K, that of top-p itself: a token there weighs little."""
    own = weights.sum(axis=1)
    beyond = (rest > 0) & stays[:, -1]
    mass: F8 = np.where(beyond, np.maximum(settings.top_p * total, own), own)
    return mass


def _penalized(logits: F8, seen: I8, settings: Settings) -> F8:
    repetition, frequency, presence = (getattr(settings, name)[:, None] for name in PENALTIES)
    scaled = np.where(logits > 0, logits / repetition, logits * repetition)
    out: F8 = np.where(seen >= 0, scaled, logits) - np.maximum(seen, 0) * frequency - (seen > 0) * presence
    return out


def to_bfloat16(values: F8) -> F8:
    """Round float32 values to bfloat16, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    out: F8 = np.where(np.isfinite(values), rounded.view(np.float32), values).astype(np.float64)
    return out
