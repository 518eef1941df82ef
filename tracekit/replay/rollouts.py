"""The nouns of a replay's input: rollouts that can be scored, and all that a trace says beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.diagnose.data import RolloutInfo, Run
from tracekit.diagnose.result import Data, Sample
from tracekit.diagnose.skipped import REASONS, Skipped
from tracekit.replay.history import Computed
from tracekit.scores import Scores, Values
from tracekit.scoring.types import Sequence

I8 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rollout:
    """One request with its completion: what to score, and what the engine said about each of its T accepted tokens."""

    sequence: Sequence
    request_id: str
    rollout_logprob: npt.NDArray[np.float64]  # [T] nats, NaN where the record has NaN
    weight_version: I8  # [T]
    engine_step: I8  # [T]
    rank: I8  # [T] the engine's, 1 = its most likely token; 0 where none was recorded or parameters reorder tokens
    history: tuple[Computed, ...] = ()  # of its KV, where it is of more than one weight version and the trace tells

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.sequence.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """T, the length of the completion."""
        return len(self.sequence.token_ids)

    @cached_property
    def versions(self) -> list[int]:
        """Weight versions of its tokens and of their KV, ascending."""
        of_kv = {computed.weight_version for computed in self.history}
        found = {v for computed in self.history for block in computed.found for v in (block.oldest, block.newest)}
        return sorted({int(v) for v in np.unique(self.weight_version)} | of_kv | {v for v in found if v is not None})


@dataclass(frozen=True)
class Rollouts:
    """All rollouts of a trace that can be scored, the count of what cannot, and what else a replay has to know."""

    rollouts: list[Rollout]
    skipped: list[Skipped]
    num_discarded: int  # sampled tokens that never became output; not scored
    num_lost_rows: int  # rows that the trace itself knows are missing
    logprobs_modes: tuple[str, ...]  # one for each kind of engine in the trace
    models: tuple[str, ...]  # that the engines name, each once
    config: Mapping[str, Any]  # of the language model that the engine ran; empty where the trace does not tell
    dtype: str | None  # of the weights as the engines received them, where the trace tells
    weight_changes: list[dict[str, Any]]  # rows of the table `weights`
    head_dtype: str | None = None  # that the engines compute logits in, where all that tell it agree
    num_before: int = 0  # tokens of these requests that were sampled before the recorder was attached; not scored
    sample: Sample | None = None  # what these were chosen from, where time was bounded

    @property
    def vocab_size(self) -> int | None:
        """Rows of the engine's head, where the trace tells."""
        size = self.config.get("vocab_size")
        return size if isinstance(size, int) else None

    @property
    def versions(self) -> list[int]:
        """Weight versions that sampled a scored token, or computed KV that it was sampled over, ascending."""
        return sorted({version for rollout in self.rollouts for version in rollout.versions})

    @property
    def ran(self) -> set[tuple[int, int]]:
        """The (engine, weight version) pairs of the scored tokens and their KV."""
        return {(r.sequence.engine, version) for r in self.rollouts for version in r.versions}

    def data(self) -> Data:
        """Return the counts, for the result."""
        return Data(
            num_rollouts=len(self.rollouts),
            num_tokens=sum(r.num_tokens for r in self.rollouts),
            num_discarded=self.num_discarded,
            num_before=self.num_before,
            num_lost_rows=self.num_lost_rows,
            skipped_requests=self.skipped,
            sample=self.sample,
            lost=bool(self.num_lost_rows or any(REASONS[s.why].is_loss for s in self.skipped)),
        )

    def run(self, scores: Mapping[str, Scores[Values]], noise_dtype: str, num_kv_unknown: int) -> Run:
        """Return what the diagnosis works on.

        Args:
            scores: by the name of the pass, over all tokens of all rollouts.
            noise_dtype: of the body in the pass that measures what precision does.
            num_kv_unknown: rollouts of several weights of whose KV nothing is known.
        """
        rollouts = self.rollouts
        lengths = [r.num_tokens for r in rollouts]
        return Run(
            rollouts=[
                RolloutInfo(r.sequence.engine, r.sequence.request, r.request_id, r.num_prompt_tokens) for r in rollouts
            ],
            rollout=np.repeat(np.arange(len(rollouts)), lengths),
            position=np.concatenate([r.num_prompt_tokens + np.arange(r.num_tokens) for r in rollouts]),
            token_id=np.concatenate([r.sequence.token_ids.astype(np.int64) for r in rollouts]),
            rollout_logprob=np.concatenate([r.rollout_logprob for r in rollouts]),
            weight_version=np.concatenate([r.weight_version for r in rollouts]),
            engine_step=np.concatenate([r.engine_step for r in rollouts]),
            temperature=np.repeat([r.sequence.params.temperature for r in rollouts], lengths),
            kept_mass=np.repeat([r.sequence.params.top_p for r in rollouts], lengths),
            rank=np.concatenate([r.rank for r in rollouts]),
            scores=dict(scores),
            logprobs_modes=self.logprobs_modes,
            num_kv_unknown=num_kv_unknown,
            noise_dtype=noise_dtype,
        )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a model's configuration that is the language model's."""
    part = config.get("text_config")
    return part if isinstance(part, Mapping) and "vocab_size" not in config else config
