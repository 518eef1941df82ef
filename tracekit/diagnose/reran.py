"""What an engine said when the recorded tokens were forced through it once more."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

F8 = npt.NDArray[np.float64]

# the ways to run tokens again, by their names in `Reran.values`
COMPOSED = "composed"  # in the recorded composition: batches, chunks, hits, preemptions, weights and KV as they were
UNCACHED = "uncached"  # the same, but what a prefix hit found is computed again
ALONE = "alone"  # one request at a time from an empty cache, token by token; on a sample
PREFILLED = "prefilled"  # one request at a time, prompt and completion as one prompt; on a sample


@dataclass(frozen=True)
class RerunOf:
    """The re-run of one engine of the trace.

    Attributes:
        engine: its number in the trace.
        version: of the vLLM that ran again.
        num_requests: that were played, those that no rollout is made of included.
        num_steps: engine steps that were played in the recorded composition.
        num_tokens: that were forced, in all ways.
        secs: that the re-run took, the start of the engine included.
        num_moved: admissions whose prefix hit lay in other physical blocks than was recorded.
        stopped: by the way, why it was played no further; ways that were played to their end are not in it.
        unlike: what differs between the recorded engine and this one and may move the last bits.
    """

    engine: int
    version: str
    num_requests: int
    num_steps: int
    num_tokens: int
    secs: float
    num_moved: int
    stopped: dict[str, str] = field(default_factory=dict)
    unlike: list[str] = field(default_factory=list)

    @property
    def is_same(self) -> bool:
        """Whether a clean recording would be repeated to the bit."""
        return not self.unlike and not self.num_moved


@dataclass(frozen=True)
class Reran:
    """All re-runs of a run.

    Attributes:
        engines: one for each engine of the scored rollouts.
        values: by the way, [N] logprobs as the engine reports them, nats; NaN where a token was not run.
    """

    engines: list[RerunOf]
    values: dict[str, F8]
