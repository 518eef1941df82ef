"""Where a rollout leaves its replay: first token not bit-equal, beyond noise, that changes a decision, of a shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, Mask, Run
from tracekit.diagnose.metrics import EPSILON, bit_equal
from tracekit.diagnose.noise import TokenNoise


@dataclass(frozen=True)
class Onset:
    """One token at which something starts.

    Attributes:
        position: 0-based over prompt and completion.
        output_index: position minus the prompt's length.
        token_id: the recorded token.
        weight_version: of the weights that sampled it.
        engine_step: that sampled it.
        recorded: rollout logprob, nats.
        replayed: the scorer's, nats, of the semantic that was compared.
        d: replayed − recorded, nats.
        sigma: what the noise of this run gives this token, nats.
    """

    position: int
    output_index: int
    token_id: int
    weight_version: int
    engine_step: int
    recorded: float
    replayed: float
    d: float
    sigma: float


@dataclass(frozen=True)
class RolloutOnsets:
    """The onsets of one rollout; None where there is none.

    Attributes:
        engine: its number in the trace.
        request: its number within the engine.
        request_id: what the engine called it.
        num_tokens: tokens that were scored.
        num_beyond_noise: of these, tokens beyond noise.
        first_not_bit_equal: first token whose replayed value differs as float32.
        first_other_choice: first token that is the most likely one on one side only: the engine ranked it first and it
            is not the scorer's argmax, or the other way round. Noise does that, too, where two tokens are as likely.
        first_clipped: first token whose ratio e^d is outside PPO's clip range, be that noise or not.
        first_beyond_noise: first token that is beyond noise by itself.
        shift_start: where a sustained shift most likely starts, given where its evidence is 100 to 1.
        shift_range: output indices between which it starts with 90 % confidence, both included; empty without a shift.
        log_e: evidence for a sustained shift, log e-value in nats.
    """

    engine: int
    request: int
    request_id: str
    num_tokens: int
    num_beyond_noise: int
    first_not_bit_equal: Onset | None
    first_other_choice: Onset | None
    first_clipped: Onset | None
    first_beyond_noise: Onset | None
    shift_start: Onset | None
    shift_range: list[int]
    log_e: float

    @property
    def onset(self) -> Onset | None:
        """The earlier of the token beyond noise and the start of the shift; the former where both may be the same."""
        alone, shift = self.first_beyond_noise, self.shift_start
        if alone is None or shift is None:
            return alone or shift
        first, last = self.shift_range
        return alone if first <= alone.output_index <= last or alone.position < shift.position else shift


def find_onsets(run: Run, replay: F8, noise: TokenNoise) -> list[RolloutOnsets]:
    """Find the onsets of every rollout.

    Args:
        run: the recorded tokens.
        replay: [N] nats, the scorer's values of the semantic that is compared.
        noise: the noise of every token under that semantic.

    Returns:
        One entry per rollout, in the run's order. Tokens whose recorded value is not a number start nothing.
    """
    sigma, beyond = noise.sigma, noise.beyond
    different = run.valid & ~bit_equal(run.rollout_logprob, replay)
    other_choice = (run.rank > 0) & ((run.rank == 1) != (run.trainer.argmax_token_id == run.token_id))
    with np.errstate(over="ignore", invalid="ignore"):
        clipped = run.valid & (np.abs(np.expm1(replay - run.rollout_logprob)) > EPSILON)
    bounds = np.searchsorted(run.rollout, np.arange(len(run.rollouts) + 1))
    found = []
    for i, (info, start, end) in enumerate(zip(run.rollouts, bounds[:-1], bounds[1:], strict=True)):
        span = slice(int(start), int(end))
        shift_range = int(noise.shifts.first[i]), int(noise.shifts.last[i])
        found.append(
            RolloutOnsets(
                engine=info.engine,
                request=info.request,
                request_id=info.request_id,
                num_tokens=int(end - start),
                num_beyond_noise=int(np.count_nonzero(beyond[span])),
                first_not_bit_equal=_first(run, replay, sigma, different, span),
                first_other_choice=_first(run, replay, sigma, other_choice, span),
                first_clipped=_first(run, replay, sigma, clipped, span),
                first_beyond_noise=_first(run, replay, sigma, beyond, span),
                shift_start=onset_at(run, replay, sigma, int(noise.shifts.start[i])) if noise.shifts.sure[i] else None,
                shift_range=[int(run.output_index[j]) for j in shift_range] if noise.shifts.sure[i] else [],
                log_e=float(noise.shifts.log_e[i]),
            )
        )
    return found


def earliest(rollouts: Sequence[RolloutOnsets]) -> int | None:
    """Return the index of the rollout whose onset was sampled first; None where none has one."""
    starts = [(r.onset.engine_step, i) for i, r in enumerate(rollouts) if r.onset]
    return min(starts)[1] if starts else None


def _first(run: Run, replay: F8, sigma: F8, which: Mask, span: slice) -> Onset | None:
    hits = np.flatnonzero(which[span])
    if not hits.size:
        return None
    return onset_at(run, replay, sigma, span.start + int(hits[0]))


def onset_at(run: Run, replay: F8, sigma: F8, i: int) -> Onset:
    """Return token `i` of the run as something that starts there."""
    return Onset(
        position=int(run.position[i]),
        output_index=int(run.output_index[i]),
        token_id=int(run.token_id[i]),
        weight_version=int(run.weight_version[i]),
        engine_step=int(run.engine_step[i]),
        recorded=float(run.rollout_logprob[i]),
        replayed=float(replay[i]),
        d=float(replay[i] - run.rollout_logprob[i]),
        sigma=float(sigma[i]),
    )
