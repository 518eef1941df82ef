"""How far other logprobs of the same tokens are from a pass, in units of the noise that moves logits.

Noise on the logits moves the log odds of a token, log p − log(1 − p), by nearly the same amount whatever p is: the
response of a logprob to first order, `gain`, is (1 − p) times that of the log odds, and what is nearly certain answers
exponentially where a first-order unit would expect a straight line. So residuals are differences of log odds. A token
whose 1 − p is below what float32 resolves next to 1 has none to speak of: `RESOLUTION` stands beside 1 − p, and counts
as noise of its own. So does what a float32 sum over a vocabulary loses (`sum_noise`): torch's log_softmax on a CPU
drops what is small beside the sum so far, so that flat distributions come out too high by up to 3e-10 nats per word
(1e-5 of 49,152 words, 7e-5 of 262,144), all of their tokens alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, Mask, Run
from tracekit.scores import PROCESSED, RAW, Scores, Values

# two spacings of float32 next to 1: log-softmax adds the weights of the others to that of the most likely token
RESOLUTION = 2.0**-22
_SUM = 2.0**-18  # nats that a logprob may be off by whatever the logits, where the vocabulary is small or not known
_SUM_PER_WORD = 2.0**-33

# A jump is only looked for where smooth noise would have to be this many of its deviations: looking everywhere would
# let the nearest of three values pass for the right one and make the noise look smaller than it is.
JUMP_BEYOND = 3.0
MEDIAN = 0.6745  # of |x| for a standard normal


def sum_noise(run: Run) -> float:
    """Return what a float32 sum over the run's vocabulary may cost a logprob, nats."""
    return max(_SUM, _SUM_PER_WORD * run.vocab_size)


@dataclass(frozen=True)
class Residuals:
    """How far other logprobs are from a pass, over the noise expected; NaN where one of the two is missing.

    Attributes:
        smooth: [N] log odds, other − pass, over what noise does to them.
        edge: [N] the same size at the nearer of the two values with one token fewer or one more kept; NaN for none.
    """

    smooth: F8
    edge: F8

    @property
    def z(self) -> F8:
        """[N] the smaller one where a jump explains a token much better, but no less than an ordinary token shows."""
        size = np.abs(self.smooth)
        with np.errstate(invalid="ignore"):
            jumps = (size > JUMP_BEYOND) & (self.edge < size)
        settled: F8 = np.where(jumps, np.copysign(np.maximum(self.edge, MEDIAN), self.smooth), self.smooth)
        return settled


def free_tokens(scores: Scores[Values], semantic: str) -> Mask:
    """Return the tokens that had an alternative, [N]: the logprob of a forced one is 0 whatever the noise."""
    alone = (scores.kept_count == 1) & np.isfinite(scores.processed_logprob) & (semantic == PROCESSED)
    free: Mask = (scores.gain(semantic) > 0) & ~alone
    return free


def response(scores: Scores[Values], semantic: str) -> F8:
    """Return how far noise of deviation 1 on every logit moves the log odds of each token, [N]; 0 for a forced one.

    It is 1 to sqrt(2) over the temperature: sqrt(1 + the sum of the squared shares of the other tokens).
    """
    rest = -np.expm1(np.minimum(scores.logprob(semantic), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = scores.gain(semantic) / rest
    return np.where(free_tokens(scores, semantic), np.where(np.isfinite(ratio), ratio, np.nan), 0.0)


def residuals(run: Run, scores: Scores[Values], semantic: str, other: F8, logit_noise: F8 | float) -> Residuals:
    """Compare other logprobs with a pass, each token in its own unit.

    Noise on the logits moves a logprob in two ways: smoothly, and by a jump when the token at the edge of top-p, top-k
    or min-p changes sides. The scores tell the two values of such a jump. Where the edge moves, top-p holds the kept
    mass near top-p, so the token responds as it does before truncation. Raw has no edge.

    Args:
        run: the tokens.
        scores: the pass that is compared with.
        semantic: "raw", or anything else for the forced processed values.
        other: [N] nats.
        logit_noise: deviation of the noise of a logit, [N] or one for all.
    """
    own = scores.logprob(semantic)
    temperature = run.temperature if semantic != RAW else np.ones_like(own)
    # a token so certain that its response is lost in rounding answers as one with a single rival does
    slope = response(scores, semantic)
    slope = np.where(np.isnan(slope) | (slope > 2 / temperature), np.sqrt(2) / temperature, slope)
    smooth = _log_odds(other) - _log_odds(own)
    lost = sum_noise(run)
    smooth /= _unit(own, other, slope * logit_noise, lost)
    edges = scores.edge_logprobs
    at_own = np.isclose(edges, own[:, None], rtol=1e-6, atol=1e-6)  # nothing truncates, or one token alone is kept
    edges = np.where(np.isfinite(edges) & ~at_own & (semantic != RAW), edges, np.nan)
    sizes = [_at_edge(run, edges[:, i], other, logit_noise) for i in (0, 1)]
    return Residuals(np.where(np.isfinite(other), smooth, np.nan), np.fmin(*sizes))


def _log_odds(logprob: F8) -> F8:
    """[N] log p − log(1 − p), which ends where float32 does."""
    below = np.minimum(logprob, 0.0)
    odds: F8 = below - np.log(RESOLUTION - np.expm1(below))
    return odds


def _unit(one: F8, other: F8, noise: F8, lost: float) -> F8:
    """[N] what noise does to the difference of log odds: all of it where either of the two can show it."""
    rest = -np.expm1(np.minimum(np.minimum(one, other), 0.0))
    unit: F8 = np.hypot(noise * rest, lost) / (rest + RESOLUTION)
    return unit


def _at_edge(run: Run, edge: F8, other: F8, logit_noise: F8 | float) -> F8:
    """[N] residual at one value of a jump: in log odds, or as a choice before truncation, whichever is smaller."""
    noise, lost = np.sqrt(2) * logit_noise / run.temperature, sum_noise(run)
    odds = np.abs(_log_odds(other) - _log_odds(edge)) / _unit(edge, other, noise, lost)
    before = (1 - np.exp(np.minimum(edge, 0.0)) * run.kept_mass) * noise
    nearer: F8 = np.fmin(odds, np.abs(other - edge) / np.hypot(before, lost))
    return nearer
