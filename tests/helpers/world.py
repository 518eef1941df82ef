"""An engine's sampler written out plainly, row by row in float64, and runs in which it did what it was told or not.

Nothing of the scorer's is in it: what the engine did is this file's, what the trainer makes of it is tracekit's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from tracekit.diagnose.data import OTHER_PRECISION, OTHER_SHAPE, PROFILE, TRAINER, RolloutInfo, Run
from tracekit.replay.profiles import profile_of, settings_of
from tracekit.replay.rollouts import Rollout
from tracekit.scores import Scores, Values
from tracekit.scoring.params import Params, parse_params
from tracekit.scoring.profile import profile_rows
from tracekit.scoring.rows import score_rows
from tracekit.scoring.sampling import Segment
from tracekit.scoring.types import Sequence

PROMPT = np.array([3, 5, 8, 13], np.uint32)


@dataclass(frozen=True)
class Sampler:
    """What an engine really does."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    barred: tuple[int, ...] = ()
    low_head: bool = False
    biased: tuple[int, int, float] | None = None  # first and last id, and what is added to their logits
    before: float = 0.0  # deviation of what moves logits before a low head rounds them

    def params(self) -> Params:
        """As a request names it, which says nothing of masks and heads."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        names += ("frequency_penalty", "presence_penalty")
        return parse_params({name: getattr(self, name) for name in names})

    def logprobs(self, logits: np.ndarray, output: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Raw and processed logprobs of one row; -inf where a token is dropped."""
        x = logits.astype(np.float64)
        if self.before:
            x += self.before * np.random.default_rng(output[-1:] or 0).standard_normal(x.size)
        if self.low_head:
            x = torch.tensor(x).float().bfloat16().double().numpy()
        x[list(self.barred)] = -np.inf
        if self.biased:
            x[self.biased[0] : self.biased[1] + 1] += self.biased[2]
        raw = x - np.logaddexp.reduce(x)
        seen = set(PROMPT.tolist()) | set(output)
        for token in seen:
            x[token] = x[token] / self.repetition_penalty if x[token] > 0 else x[token] * self.repetition_penalty
        for token in set(output):
            x[token] -= self.frequency_penalty * output.count(token) + self.presence_penalty
        x = x / self.temperature
        p = np.exp(x - x.max())
        p[p < self.min_p * p.max()] = 0
        if self.top_k:
            p[p < np.sort(p)[-self.top_k]] = 0
        if self.top_p < 1:
            order = np.argsort(-p, kind="stable")
            before = np.cumsum(p[order]) - p[order]
            p[order[before >= self.top_p * p.sum()]] = 0
        with np.errstate(divide="ignore"):
            return raw, np.log(p / p.sum())


@dataclass(frozen=True)
class World:
    """Contexts with their logits, some nearly certain and some flat, over tokens of which few are frequent."""

    num_rollouts: int = 16
    length: int = 48
    vocab: int = 400
    seed: int = 0
    flat: bool = False

    def logits(self) -> np.ndarray:
        """[rollouts, length, vocab] float32."""
        rng = np.random.default_rng(self.seed)
        shape = (self.num_rollouts, self.length, self.vocab)
        if self.flat:
            return (0.3 * rng.standard_normal(shape)).astype(np.float32)
        frequent = 4.0 * np.exp(-np.arange(self.vocab) / 12.0)[rng.permutation(self.vocab)]
        found = 1.5 * rng.standard_normal(shape) + frequent
        best = rng.integers(0, self.vocab, shape[:2])
        bonus = rng.choice([14.0, 7.0, 4.0], size=shape[:2], p=[0.3, 0.4, 0.3])
        np.put_along_axis(found, best[..., None], np.take_along_axis(found, best[..., None], 2) + bonus[..., None], 2)
        return (found + 6.0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Played:
    """What an engine sampled and recorded."""

    tokens: np.ndarray  # [rollouts, length]
    raw: np.ndarray
    processed: np.ndarray


def play(world: World, sampler: Sampler, *, eps: float, later: Sampler | None = None, since: int = 0) -> Played:
    """Let an engine sample, its logits off by noise of size ``eps``; from output index ``since`` on it is ``later``."""
    rng = np.random.default_rng(world.seed + 1000)
    logits = world.logits() + eps * rng.standard_normal(world.logits().shape)
    found = [np.zeros(logits.shape[:2]) for _ in range(3)]
    for i, rollout in enumerate(logits):
        output: list[int] = []
        for t, row in enumerate(rollout):
            raw, processed = (later if later and t >= since else sampler).logprobs(row, output)
            token = int(rng.choice(row.size, p=np.exp(processed)))
            for array, value in zip(found, (token, raw[token], processed[token]), strict=True):
                array[i, t] = value
            output.append(token)
    return Played(found[0].astype(np.int64), found[1], found[2])


def run_of(world: World, played: Played, recorded: np.ndarray, params: Params, *, eps: float) -> Run:
    """What a replay hands to the diagnosis: the trainer's scores under the recorded parameters, noise and profile."""
    n = world.num_rollouts * world.length
    sequences = [Sequence(0, i, PROMPT, row.astype(np.uint32), params) for i, row in enumerate(played.tokens)]
    rollouts = [
        Rollout(
            s, f"r{i}", recorded[i], np.zeros(world.length, int), np.arange(world.length), np.zeros(world.length, int)
        )
        for i, s in enumerate(sequences)
    ]
    rng = np.random.default_rng(world.seed + 2000)
    base = world.logits().reshape(n, -1)
    scores = {
        name: _score(base + eps * rng.standard_normal(base.shape), sequences) for name in (OTHER_SHAPE, OTHER_PRECISION)
    }
    own = base + eps * rng.standard_normal(base.shape)
    scores[TRAINER] = _score(own, sequences)
    chosen = torch.from_numpy(played.tokens.reshape(-1))
    profiles = (
        profile_rows(torch.from_numpy(own.astype(np.float32)), chosen)
        .numpy()
        .reshape(world.num_rollouts, world.length, -1)
    )
    by_key = {(0, i): {PROFILE: replace(scores[TRAINER], profile=rows)} for i, rows in enumerate(profiles)}
    dtype = "float32" if eps < 1e-3 else "bfloat16"
    return Run(
        rollouts=[RolloutInfo(0, i, f"r{i}", len(PROMPT)) for i in range(world.num_rollouts)],
        rollout=np.repeat(np.arange(world.num_rollouts), world.length),
        position=np.tile(len(PROMPT) + np.arange(world.length), world.num_rollouts),
        token_id=played.tokens.reshape(-1),
        rollout_logprob=recorded.reshape(-1).astype(np.float32).astype(np.float64),
        weight_version=np.zeros(n, np.int64),
        engine_step=np.tile(np.arange(world.length), world.num_rollouts),
        temperature=np.full(n, params.temperature),
        kept_mass=np.full(n, params.top_p),
        rank=np.zeros(n, np.int64),
        scores=scores,
        logprobs_modes=("processed_logprobs",),
        settings=settings_of(rollouts),
        profile=profile_of(rollouts, [by_key]),
        dtype=dtype,
        engine_dtype=dtype,
        head_dtype="float32",  # as the trace has it, whatever the engine does
    )


def _score(logits: np.ndarray, sequences: list[Sequence]) -> Scores[Values]:
    segments = [Segment(s.params, s.prompt_token_ids, s.token_ids, 0, len(s.token_ids)) for s in sequences]
    chosen = torch.from_numpy(np.concatenate([s.token_ids for s in sequences]).astype(np.int64))
    (found,) = score_rows(torch.from_numpy(logits.astype(np.float32)), chosen, [segments])
    return found.each(lambda c: c.to(torch.float64 if c.is_floating_point() else torch.int64).numpy())
