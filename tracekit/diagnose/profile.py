"""Raw logits of a sample of tokens, kept short, from which any sampling parameters can be tried without the model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tracekit.diagnose.settings import F8, NEUTRAL, PENALTIES, Mask, Settings
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
    first: F8  # logprob of the most likely token, nats


@dataclass(frozen=True)
class Bias:
    """A bias on the logits of a range of ids that nobody asked for."""

    first: int
    last: int
    by: float
    own: Mask  # [n] whether the recorded token is in the range


@dataclass(frozen=True)
class Spread:
    """What a sampler would have drawn in place of the profiled tokens, [n] each; NaN where the profile cannot tell."""

    entropy: F8  # of the kept distribution, nats; NaN also where top-p's edge lies beyond the K
    variance: F8  # of the logprob of a token drawn from it, nats²; NaN as the entropy
    before: F8  # probability of all of the K that is likelier than the recorded token
    own: F8  # probability of the recorded token; of all beyond the K together, where it is one of those


@dataclass(frozen=True)
class _Kept:
    """The kept distribution: [n, K], and [n]."""

    gaps: F8  # [n, K] (logit − best) / temperature
    p: F8  # [n, K] probabilities, 0 where truncated
    stays: Mask  # [n, K]
    own_gap: F8
    log_mass: F8  # of the kept weights, the best's being 1
    rest: tuple[F8, F8, F8]  # weight of all other tokens, mean and mean square of their gaps
    whole: Mask  # nothing is truncated
    known: Mask


def predict(
    profile: Profile,
    settings: Settings,
    *,
    low_head: bool = False,
    barred: I8 | None = None,
    bias: Bias | None = None,
) -> Predicted:
    """Apply sampling parameters as vLLM V1 does: penalties, temperature, min-p, top-k, top-p.

    Args:
        profile: n tokens.
        settings: of the same tokens.
        low_head: round the raw logits to bfloat16 first, as a head in that precision does.
        barred: token ids that a mask bars.
        bias: on the raw logits.
    """
    kept = _distribution(profile, settings, low_head, barred, bias)
    last = np.where(kept.stays, kept.gaps, np.inf).min(axis=1)
    inside = kept.whole | (kept.own_gap >= last)
    with np.errstate(invalid="ignore"):
        log_forced = np.where(inside, kept.log_mass, np.logaddexp(kept.log_mass, kept.own_gap))
    own = np.exp(kept.own_gap - log_forced)
    nan = np.where(kept.known, 0.0, np.nan)
    squares = np.einsum("nk,nk->n", kept.p, kept.p)
    return Predicted(
        logprob=kept.own_gap - log_forced + nan,
        inside=inside,
        gain=np.sqrt((1 - own) ** 2 + np.maximum(squares - own**2, 0.0)) / settings.temperature + nan,
        first=nan - kept.log_mass,
    )


def spread(profile: Profile, settings: Settings) -> Spread:
    """Describe the distribution that `predict` takes the recorded token's logprob from."""
    kept = _distribution(profile, settings)
    rest, rest_mean, rest_square = kept.rest
    p_rest = np.where(kept.whole, rest * np.exp(-kept.log_mass), 0.0)
    finite = np.where(kept.stays, kept.gaps, 0.0)
    mean = (kept.p * finite).sum(axis=1) + p_rest * rest_mean
    square = (kept.p * finite**2).sum(axis=1) + p_rest * rest_square
    likelier = np.where(kept.gaps > kept.own_gap[:, None] + 1e-12, kept.p, 0.0).sum(axis=1)
    listed = np.where(kept.known & (kept.whole | (rest == 0) | ~kept.stays[:, -1]), 0.0, np.nan)
    beyond = (p_rest > 0) & (kept.own_gap < kept.gaps[:, -1] - 1e-12)
    own = np.where(beyond, p_rest, np.exp(kept.own_gap - kept.log_mass))
    variance = np.maximum(square - mean**2, 0.0)
    return Spread(kept.log_mass - mean + listed, variance + listed, likelier + listed, own + listed)


def _distribution(
    profile: Profile, settings: Settings, low_head: bool = False, barred: I8 | None = None, bias: Bias | None = None
) -> _Kept:
    logits, own = profile.logits, profile.own
    if low_head:
        logits, own = to_bfloat16(logits), to_bfloat16(own)
    if bias is not None:
        logits = logits + bias.by * ((profile.ids >= bias.first) & (profile.ids <= bias.last))
        own = own + bias.by * bias.own
    penalizes = any((getattr(settings, name) != NEUTRAL[name]).any() for name in PENALTIES)
    if penalizes:
        logits = _penalized(logits, profile.seen, settings)
        own = _penalized(own[:, None], profile.own_seen[:, None], settings)[:, 0]
    if barred is not None:
        logits = np.where(np.isin(profile.ids, barred), -np.inf, logits)
    if penalizes or barred is not None or bias is not None:
        logits = -np.sort(-logits, axis=1)
    beta, best = 1 / settings.temperature, logits[:, 0]
    with np.errstate(invalid="ignore"):  # where a mask bars all of the K, the profile cannot tell
        gaps = (logits - best[:, None]) * beta[:, None]
    weights = np.exp(gaps)
    rest = profile.tail.at(beta, profile.logits[:, 0] - best)
    total = weights.sum(axis=1) + rest[0]
    stays, whole, known = _kept(gaps, weights, rest[0], total, settings)
    weights *= stays
    log_mass = np.log(np.where(whole, total, _mass(weights, stays, rest[0], total, settings)))
    p = weights * np.exp(-log_mass)[:, None]
    return _Kept(gaps, p, stays, (own - best) * beta, log_mass, rest, whole, known)


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
