"""Seeded runs made in numpy: logits with noise stand for an engine and for the passes of a scorer.

The sampler is written out here once more, plainly, so that the diagnosis is tested against something it did not write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import OTHER_PRECISION, OTHER_SHAPE, TRAINER, RolloutInfo, Run
from tracekit.scores import Scores, Values

VOCAB = 160
EPS = 0.04  # logit noise of each side


@dataclass(frozen=True)
class Made:
    """How a run is made.

    `shift` changes the engine's logits from what the trainer's weights give; `certain` is the share of tokens without
    a choice.
    """

    num_rollouts: int = 16
    length: int = 48
    num_prompt: int = 5
    temperature: float = 0.7
    top_p: float = 0.9
    engine_temperature: float | None = None
    recorded: str = "processed"
    eps: float = EPS
    engine_eps: float = EPS
    shift: float = 0.0
    shift_from: int = 0
    shift_rollouts: int | None = None
    certain: float | None = None
    seed: int = 0
    declared: str = "processed_logprobs"


def make_run(made: Made) -> Run:
    rng = np.random.default_rng(made.seed)
    n = made.num_rollouts * made.length
    logits = _language_like_logits(rng, n)
    if made.certain is not None:
        sure = np.flatnonzero(rng.random(n) < made.certain)
        logits[sure, logits[sure].argmax(axis=1)] += 14.0
    # noise whose size varies from context to context has the heavy tails that real scorers show
    spread = np.exp(0.35 * rng.standard_normal((n, 1)))

    def noisy(eps: float) -> np.ndarray:
        return logits + eps * spread * rng.standard_normal(logits.shape)

    output_index = np.tile(np.arange(made.length), made.num_rollouts)
    rollout = np.repeat(np.arange(made.num_rollouts), made.length)
    engine = noisy(made.engine_eps)
    moved = (output_index >= made.shift_from) & (rollout < (made.shift_rollouts or made.num_rollouts))
    engine += made.shift * moved[:, None] * rng.standard_normal(logits.shape)
    sampled_at = made.engine_temperature or made.temperature
    probs = np.exp(processed(engine, sampled_at, made.top_p))
    token = np.array([rng.choice(VOCAB, p=p / p.sum()) for p in probs])
    rows = np.arange(n)
    log_q = processed(engine, sampled_at, made.top_p) if made.recorded == "processed" else log_softmax(engine)
    trainer = score(noisy(made.eps), token, made.temperature, made.top_p)
    exact = score(logits, token, made.temperature, made.top_p)
    scores = {TRAINER: trainer, OTHER_SHAPE: trainer, OTHER_PRECISION: exact}
    return Run(
        rollouts=[RolloutInfo(0, i, f"request-{i}", made.num_prompt) for i in range(made.num_rollouts)],
        rollout=rollout,
        position=made.num_prompt + output_index,
        token_id=token.astype(np.int64),
        rollout_logprob=log_q[rows, token].astype(np.float32).astype(np.float64),
        weight_version=np.zeros(n, dtype=np.int64),
        engine_step=output_index.astype(np.int64),
        temperature=np.full(n, made.temperature),
        kept_mass=np.full(n, made.top_p),
        rank=1 + (engine > engine[rows, token][:, None]).sum(axis=1),
        scores={**scores, **_alternatives(noisy(made.eps), token, made)},
        logprobs_modes=(made.declared,),
        head_dtype="float32",
    )


def _alternatives(logits: np.ndarray, token: np.ndarray, made: Made) -> dict[str, Scores[Values]]:
    if made.temperature == 1.0 or made.top_p == 1.0:
        return {}
    return {
        "sampling.no_temperature": score(logits, token, 1.0, made.top_p),
        "sampling.no_truncation": score(logits, token, made.temperature, 1.0),
    }


def _language_like_logits(rng: np.random.Generator, n: int) -> np.ndarray:
    """A third of the contexts nearly certain, the rest with a few to many candidates."""
    logits = 1.5 * rng.standard_normal((n, VOCAB))
    best = rng.integers(0, VOCAB, n)
    logits[np.arange(n), best] += rng.choice([12.0, 6.0, 3.0], size=n, p=[0.35, 0.4, 0.25])
    return logits


def log_softmax(logits: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


def kept(log_q: np.ndarray, top_p: float) -> np.ndarray:
    """Smallest set of the most likely tokens that holds top_p of the mass."""
    order = np.argsort(-log_q, axis=1)
    mass = np.cumsum(np.take_along_axis(np.exp(log_q), order, axis=1), axis=1)
    inside = np.empty(log_q.shape, dtype=bool)
    np.put_along_axis(inside, order, np.c_[np.zeros(len(mass)), mass[:, :-1]] < top_p, axis=1)
    return inside


def processed(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    log_q = log_softmax(logits / temperature)
    with np.errstate(divide="ignore", invalid="ignore"):
        return log_softmax(np.where(kept(log_q, top_p), log_q, -np.inf))


def score(logits: np.ndarray, token: np.ndarray, temperature: float, top_p: float) -> Scores[Values]:
    rows = np.arange(token.size)
    raw = log_softmax(logits)
    log_q = log_softmax(logits / temperature)
    inside = kept(log_q, top_p)
    own = processed(logits, temperature, top_p)
    forced_in = inside.copy()
    forced_in[rows, token] = True
    forced = log_softmax(np.where(forced_in, log_q, -np.inf))
    last_in = np.where(inside, log_q, np.inf).argmin(axis=1)
    first_out = np.where(inside, -np.inf, log_q).argmax(axis=1)
    fewer, more = inside.copy(), inside.copy()
    fewer[rows, last_in] = inside.sum(axis=1) == 1
    more[rows, first_out] = True
    with np.errstate(divide="ignore", invalid="ignore"):
        edges = [log_softmax(np.where(mask, log_q, -np.inf))[rows, token] for mask in (fewer, more)]
    return Scores(
        raw_logprob=_float32(raw[rows, token]),
        processed_logprob=_float32(own[rows, token]),
        forced_logprob=_float32(forced[rows, token]),
        kept_count=inside.sum(axis=1).astype(np.int64),
        argmax_token_id=raw.argmax(axis=1),
        raw_noise_gain=_gain(raw, token),
        processed_noise_gain=_gain(forced, token) / temperature,
        edge_logprobs=np.column_stack(edges),
        entropy=-(np.exp(raw) * raw).sum(axis=1),
        kept_mass=(np.exp(log_softmax(logits / temperature)) * inside).sum(axis=1),
        profile=np.empty((token.size, 0), np.float32),
    )


def _gain(log_p: np.ndarray, token: np.ndarray) -> np.ndarray:
    p = np.exp(log_p)
    p[np.arange(token.size), token] = 0.0
    rest = p.sum(axis=1)
    return np.sqrt(rest**2 + (p**2).sum(axis=1))


def _float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(np.float64)


def edit(run: Run, change: Callable[[np.ndarray], np.ndarray]) -> Run:
    """The same run with other recorded values."""
    from dataclasses import replace

    return replace(run, rollout_logprob=change(run.rollout_logprob.copy()))


def off_by(scores: Scores[Values], away: np.ndarray) -> Scores[Values]:
    """The scores with raw and processed logprobs of every token, [N], moved by so many nats."""
    other = scores.each(np.copy)
    other.forced_logprob[:] += away
    other.raw_logprob[:] += away
    return other
