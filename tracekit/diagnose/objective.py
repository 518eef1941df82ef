"""The objective's ratios, split into the backend's share and the policy's: what a loss would clip, because of whom.

The ratio that a loss should see is current / old: how far the policy moved. What it sees where the engine's value
stands for `old` is current / rollout = (current / old) × (old / rollout): the policy's share times the backend's. In
logarithms the two add up to the total, token by token. PPO and GRPO clip the token's ratio; GSPO that of the sequence,
e^(mean log-ratio) (Zheng et al. 2025, eq. 7); truncated and masked importance sampling cap e^d of a token or e^Σd of a
sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tracekit.diagnose.frameworks import Pairs
from tracekit.diagnose.metrics import ess, k3
from tracekit.diagnose.view import F8

DEFAULT_CLIP = (0.2, 0.2)  # PPO's, Schulman et al. 2017; the defaults of verl, TRL and OpenRLHF
CAP = 2.0  # of truncated importance sampling, as verl and TIS have it


@dataclass(frozen=True)
class Share:
    """One ratio over the tokens or the sequences of a run.

    Attributes:
        ratio_mean: mean ratio.
        clip_rate: share of ratios outside the clip range.
        kl: mean of ratio − log ratio − 1, nats: kl_new_old.
        ess: (Σ ratio)² / (N Σ ratio²), 0 to 1, unclamped.
        capped: share of ratios above the cap of truncated importance sampling.
    """

    ratio_mean: float
    clip_rate: float
    kl: float
    ess: float
    capped: float


@dataclass(frozen=True)
class Level:
    """A ratio at one level, and its two parts.

    Attributes:
        name: "token" (PPO, GRPO, TIS), "sequence mean" (GSPO) or "sequence sum" (sequence-level importance sampling).
        count: of the ratios.
        total: current over rollout.
        backend: old over rollout.
        policy: current over old.
    """

    name: str
    count: int
    total: Share
    backend: Share
    policy: Share


@dataclass(frozen=True)
class Lag:
    """Weight version that the update starts from, minus the one that sampled the token.

    Attributes:
        smallest: of all tokens that are trained on.
        mean: over them.
        largest: of them.
    """

    smallest: float
    mean: float
    largest: float


@dataclass(frozen=True)
class Objective:
    """What the objective sees.

    Attributes:
        clip_low: low part of the clip range: ratios below 1 − clip_low are clipped.
        clip_high: its high part.
        clip_source: where the clip range was taken from.
        has_current: whether the dump has the updated policy; without it the policy's share is that of no step.
        entropy: mean entropy of the trainer's distribution, nats; the scorer's raw one where the dump has none.
        lag: null where the dump does not say which version the update starts from.
        as_trained: with the values as they are.
        engine_corrected: with the scorer's values for the engine's: what is left where the engine is put right.
        trainer_corrected: with the scorer's values for the trainer's.
        below_is_clean: whether nothing below the objective is wrong; else nothing is to be blamed on it.
    """

    clip_low: float
    clip_high: float
    clip_source: str
    has_current: bool
    entropy: float
    lag: Lag | None
    as_trained: list[Level]
    engine_corrected: list[Level]
    trainer_corrected: list[Level]
    below_is_clean: bool


def levels(pairs: Pairs) -> list[Level]:
    """Measure the three levels."""
    total, backend, policy = pairs.current - pairs.rollout, pairs.d, pairs.current - pairs.old
    found = []
    for name, of in (("token", lambda v: v), ("sequence mean", pairs.means), ("sequence sum", pairs.sums)):
        shares = [_share(of(log_ratio), pairs.clip) for log_ratio in (total, backend, policy)]
        found.append(Level(name, int(of(total).size), *shares))
    return found


def corrected(pairs: Pairs, *, rollout: F8 | None = None, old: F8 | None = None) -> list[Level]:
    """Measure the levels with the scorer's values in place of one side's; the policy's step stays what it is."""
    step = pairs.current - pairs.old
    changed = replace(
        pairs, rollout=pairs.rollout if rollout is None else rollout, old=pairs.old if old is None else old
    )
    return levels(replace(changed, current=changed.old + step))


def _share(log_ratio: F8, clip: tuple[float, float]) -> Share:
    if not log_ratio.size:
        return Share(*(float("nan"),) * 5)
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.exp(log_ratio)
        return Share(
            ratio_mean=float(ratio.mean()),
            clip_rate=float(((ratio < 1 - clip[0]) | (ratio > 1 + clip[1])).mean()),
            kl=float(k3(log_ratio).mean()),
            ess=ess(log_ratio),
            capped=float((ratio > CAP).mean()),
        )
