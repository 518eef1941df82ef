"""Whether onsets fall on what the trace recorded: cached boundary, block edge, chunks, weights, drafts and the like.

An event is a token at which something happened; an onset coincides with a kind of event where it lies on such a token,
or at most `REACH` after it: what happens at a token may show a little later. Were onsets to fall anywhere among the
tokens of their rollouts, each would coincide with probability `share`, that of the rollout's tokens which do. The
number that coincide is then at least what it is with a probability that is computed exactly (the sum of independent
trials of unlike probability), times the number of kinds that were looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, I8, Mask, Run

CLEAR = 0.01  # of chance, all kinds together
REACH = 1


@dataclass(frozen=True)
class Coincidence:
    """One kind of event against the onsets.

    Attributes:
        kind: of the event.
        num_onsets: in rollouts that have an event of this kind.
        num_coincide: of these, on such an event.
        expected: how many chance would give.
        chance: that chance gives at least so many, all kinds considered.
    """

    kind: str
    num_onsets: int
    num_coincide: int
    expected: float
    chance: float


def events_of(run: Run, block_size: int | None = None) -> dict[str, Mask]:
    """Return the tokens at which each kind of event happened, [N] each, kinds without any left out.

    Args:
        run: the tokens, with their strata where the trace tells them.
        block_size: of the KV cache, in tokens; None where the trace does not tell.
    """
    same = np.r_[False, np.diff(run.rollout) == 0]

    def changes(values: I8) -> Mask:
        moved: Mask = same & np.r_[False, np.diff(values) != 0]
        return moved

    found = {"weight change": changes(run.weight_version)}
    if block_size:
        found["block edge"] = run.position % block_size == 0
    if run.strata is not None:
        strata = run.strata
        found["first token after cached blocks"] = ~same & (strata.num_cached > 0)
        found["preemption"] = changes(strata.num_preempted)
        found["batch change"] = changes(strata.batch_size)
        found["prefill in the step"] = same & (strata.prefill == 1)
        if strata.num_drafts is not None:
            found["verified drafts"] = strata.num_drafts > 0
        if strata.num_chunks is not None:
            found["first token of a prompt in chunks"] = ~same & (strata.num_chunks > 1)
        if strata.adapters is not None:
            found["adapter change"] = changes(strata.adapters)
    return {kind: mask for kind, mask in found.items() if mask.any()}


def coincide(run: Run, onsets: Sequence[int], events: Mapping[str, Mask]) -> list[Coincidence]:
    """Weigh every kind of event, the least likely to be chance first.

    Args:
        run: the tokens.
        onsets: their indices into the run's tokens, one per rollout at most.
        events: [N] by kind, where they happened.
    """
    found = [_weigh(run, onsets, kind, mask, len(events)) for kind, mask in events.items()]
    return sorted((each for each in found if each.num_onsets), key=lambda each: (each.chance, each.kind))


def _weigh(run: Run, onsets: Sequence[int], kind: str, mask: Mask, num_kinds: int) -> Coincidence:
    near = mask.copy()
    for step in range(1, REACH + 1):
        near[step:] |= mask[:-step] & (run.rollout[step:] == run.rollout[:-step])
    sizes = np.bincount(run.rollout, minlength=len(run.rollouts))
    shares = np.bincount(run.rollout, weights=near, minlength=len(run.rollouts)) / np.maximum(sizes, 1)
    of = np.array([i for i in onsets if shares[run.rollout[i]] > 0], dtype=np.int64)
    own = shares[run.rollout[of]]
    hits = int(np.count_nonzero(near[of]))
    chance = float(min(_at_least(own, hits) * num_kinds, 1.0))
    return Coincidence(kind, int(of.size), hits, float(own.sum()), chance)


def _at_least(shares: F8, hits: int) -> float:
    """Probability that at least so many of independent trials succeed (Poisson binomial, by convolution)."""
    counts = np.ones(1)
    for share in shares:
        counts = np.convolve(counts, [1 - share, share])
    return float(counts[hits:].sum())
