"""What the diagnosis works on: flat arrays over all scored tokens of a run, and their scores.

`N` is the number of scored tokens, in order of (engine, request, position). Every logprob is in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from tracekit.diagnose.modules import Modules
from tracekit.diagnose.profile import Profile
from tracekit.diagnose.reran import Reran
from tracekit.diagnose.settings import Settings
from tracekit.diagnose.view import TrainerView
from tracekit.scores import Scores, Values

F8 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# the layers of mismatch, lowest first
Layer = Literal["none", "semantic", "inference path"]
NONE: Layer = "none"
SEMANTIC: Layer = "semantic"
INFERENCE_PATH: Layer = "inference path"
LAYERS: tuple[Layer, ...] = (NONE, SEMANTIC, INFERENCE_PATH)

# the passes that every run has, by their names in `Run.scores`
TRAINER = "trainer"  # as the trainer scores
OTHER_SHAPE = "noise.shape"  # the same weights and precision in another batch shape, on a sample
OTHER_PRECISION = "noise.precision"  # the same weights in another body precision, on a sample
ACCUSED = "noise.accused"  # the same, on rollouts that a first look accuses
PROFILE = "profile"  # the trainer's raw logits in short, on a sample: `Run.profile`, no scores

# passes of some runs
KV_RECOMPUTED = "kv.recomputed"  # KV of older weights computed again, on a sample of the rollouts where that differs
KV_KEPT = "kv.kept"  # KV of older weights kept, on a sample of the rollouts where that differs
KV_BORROWED = "kv.borrowed"  # rollouts whose first blocks are of another prompt, behind that one's tokens
WEIGHTS_BEFORE = "weights.before"  # each token under the weights before its own, where the first look diverges
WEIGHTS_AFTER = "weights.after"  # the same under those after
NARROW_HEAD = "head.bfloat16"  # the trainer's, with a head in bfloat16, where the first look suspects that
CUT_HEAD = "head.cut"  # the trainer's, without the rows of its head that the engine's has not, where something is off
ROUNDED_SAMPLING = "sampling.rounded"  # sampling parameters rounded to bfloat16, where that changes any
MASTERS = "weights.masters"  # the stored weights, not cast as the engine received them; in float32, on a sample


@dataclass(frozen=True)
class RolloutInfo:
    """One recorded request."""

    engine: int
    request: int
    request_id: str
    num_prompt_tokens: int


@dataclass(frozen=True)
class Strata:
    """Under which circumstances each token was sampled, [N] each, as the trace tells; -1 where it does not."""

    num_cached: I8  # tokens of KV that its request found computed when it began or was last resumed
    oldest_found: I8  # oldest weight version that computed a part of these; -1 also for none
    newest_found: I8  # newest
    batch_size: I8  # requests in the step that sampled it
    prefill: I8  # 1 where that step computed prompt tokens of its request, too, else 0
    num_preempted: I8  # how often its request was thrown out before
    num_drafts: I8 | None = None  # drafted tokens that this step verified for its request
    num_chunks: I8 | None = None  # steps that computed prompt tokens of its request, up to this one
    adapters: I8 | None = None  # number of the set of adapters in the step's batch, 0 for none


@dataclass(frozen=True)
class Run:
    """The recorded tokens of a run that were scored, with the passes that scored them."""

    rollouts: list[RolloutInfo]
    rollout: I8  # [N], index into rollouts, non-decreasing
    position: I8  # [N], 0-based over prompt and completion
    token_id: I8  # [N]
    rollout_logprob: F8  # [N], as the engine reported it
    weight_version: I8  # [N]
    engine_step: I8  # [N]
    temperature: F8  # [N], that the processed scores divide the logits by
    kept_mass: F8  # [N], the share of the mass that truncation must keep: top-p, 1 without it
    rank: I8  # [N], the engine's rank of the token, 1 = its most likely; 0 where none is known that can be compared
    scores: dict[str, Scores[Values]]  # by the name of the pass; those of a pass on a sample are NaN elsewhere
    logprobs_modes: tuple[str, ...] = ()  # what the engines declare
    num_kv_unknown: int = 0  # rollouts of several weight versions of whose KV the trace does not tell
    noise_dtype: str = ""  # of the body in the pass that measures what precision does
    settings: Settings | None = None  # sampling parameters of each token
    profile: Profile | None = None  # raw logits of some tokens
    strata: Strata | None = None  # None where the trace has no steps
    dtype: str = ""  # of the body in the trainer's pass
    engine_dtype: str | None = None  # of the weights as the engine received them, where the trace tells
    vocab_size: int = 0  # words that the scorer divides by; 0 where that is not known
    head_dtype: str | None = None  # that the engine computes logits in, where the trace tells
    reran: Reran | None = None  # what the engine said when the tokens were forced through it again
    modules: Modules | None = None  # each module against its recorded input, where the engine was probed
    view: TrainerView | None = None  # what the trainer used for them, where its dump was given

    @property
    def trainer(self) -> Scores[Values]:
        """The scores of the trainer's own pass."""
        return self.scores[TRAINER]

    @cached_property
    def engine(self) -> I8:
        """Number of the engine, [N]."""
        engines = np.array([r.engine for r in self.rollouts], dtype=np.int64)
        return engines[self.rollout]

    @cached_property
    def output_index(self) -> I8:
        """Position minus the prompt's length, [N]."""
        lengths = np.array([r.num_prompt_tokens for r in self.rollouts], dtype=np.int64)
        return self.position - lengths[self.rollout]

    @cached_property
    def valid(self) -> Mask:
        """Tokens whose recorded logprob is a finite number, [N]; the others are counted and named, never used."""
        return np.isfinite(self.rollout_logprob)
