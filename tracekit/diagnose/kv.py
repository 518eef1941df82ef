"""Over which KV the tokens were sampled, where weights changed within a rollout: as the trace tells, or otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import KV_KEPT, KV_RECOMPUTED, Run
from tracekit.diagnose.noise import TokenNoise
from tracekit.diagnose.student import ahead

HYPOTHESES = {KV_RECOMPUTED: "recomputed", KV_KEPT: "kept"}


@dataclass(frozen=True)
class KvHypothesis:
    """Another history of the KV against the recorded one, on the rollouts where the two differ.

    Attributes:
        name: "recomputed" under the weights of each token, or "kept" from older weights throughout.
        num_rollouts: that were tested; a sample where there are many.
        num_recorded_better: of these, rollouts whose values the recorded history explains better.
        median_nats: by which the recorded history is ahead in log-likelihood, the median over rollouts.
        total_nats: the sum.
        d_abs_mean: mean |replayed − recorded| under this hypothesis, nats, over the tokens where the two differ.
        d_abs_mean_recorded: the same under the recorded history.
    """

    name: str
    num_rollouts: int
    num_recorded_better: int
    median_nats: float
    total_nats: float
    d_abs_mean: float
    d_abs_mean_recorded: float


def test_kv(run: Run, noise: TokenNoise, lens: str) -> list[KvHypothesis]:
    """Weigh the other histories of the KV that were scored.

    Args:
        run: the tokens.
        noise: of every token under the lens: sigma, and the tail of its Student's t.
        lens: "raw" or "processed".
    """
    found = []
    recorded = run.trainer.logprob(lens) - run.rollout_logprob
    for of_pass, name in HYPOTHESES.items():
        if of_pass not in run.scores:
            continue
        other = run.scores[of_pass].logprob(lens) - run.rollout_logprob
        use = np.isfinite(recorded) & np.isfinite(other) & (noise.sigma > 0) & (other != recorded)
        if not use.any():
            continue
        rollouts, index = np.unique(run.rollout[use], return_inverse=True)
        by_token = ahead(recorded[use], other[use], noise.sigma[use], noise.floor.degrees)
        nats = np.bincount(index, weights=by_token)
        found.append(
            KvHypothesis(
                name=name,
                num_rollouts=len(rollouts),
                num_recorded_better=int(np.count_nonzero(nats > 0)),
                median_nats=float(np.median(nats)),
                total_nats=float(nats.sum()),
                d_abs_mean=float(np.abs(other[use]).mean()),
                d_abs_mean_recorded=float(np.abs(recorded[use]).mean()),
            )
        )
    return found
