"""Three parties and one referee: whose values leave the scorer's, the engine's or the trainer's."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tracekit.diagnose.data import Run
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.frameworks import Measured, Pairs, measure_all
from tracekit.diagnose.metrics import bit_equal, measure
from tracekit.diagnose.objective import DEFAULT_CLIP, Lag, Objective, corrected, levels
from tracekit.diagnose.remarks import Remark
from tracekit.diagnose.view import F8, Mask, TrainerView
from tracekit.scores import Scores

Fault = Literal["none", "engine", "trainer", "both", "neither agrees with the scorer", "not known"]
AGREES: Code = "trainer agrees with engine"  # code of the cause that neither is wrong, but what both were compared with
DRAWN: Code = "drawn otherwise"  # code of the cause that says of the tokens, not of anyone's values
COPIED = 0.99  # share of old_logprobs that are the engine's to the bit, where it did not compute them itself


@dataclass(frozen=True)
class Gap:
    """How far two parties are apart on the tokens that both have.

    Attributes:
        num_tokens: that both have.
        d_mean: mean of the first minus the second, nats.
        d_abs_mean: mean |difference|, nats.
        d_abs_max: the largest, nats.
        bit_equal: share that is the same to the bit, as float32.
    """

    num_tokens: int
    d_mean: float
    d_abs_mean: float
    d_abs_max: float
    bit_equal: float


@dataclass(frozen=True)
class Party:
    """What a trainer's dump says of a run.

    Attributes:
        format: of the dump.
        fault: whose values are off, the scorer being the referee; "neither agrees with the scorer" where engine and
            trainer agree with each other; "not known" where the dump has no old_logprob.
        num_sequences: in the dump.
        num_joined: of these, joined with a rollout of the run.
        num_ambiguous: that fit several rollouts which nothing tells apart; they were not joined.
        num_unknown: that are of no rollout of the run.
        num_rollouts: of the run, that have a sequence.
        num_tokens: of the run, that have an old_logprob and are trained on.
        engine_scorer: engine minus scorer.
        trainer_scorer: trainer minus scorer.
        trainer_engine: trainer minus engine.
        copied: whether the trainer's old_logprobs are the engine's to the bit: not recomputed, or by the same kernels.
        metrics: each framework's own, over the tokens that are trained on.
        objective: ratios, clip rates and the like; null without an old_logprob.
    """

    format: str
    fault: Fault
    num_sequences: int
    num_joined: int
    num_ambiguous: int
    num_unknown: int
    num_rollouts: int
    num_tokens: int
    engine_scorer: Gap
    trainer_scorer: Gap
    trainer_engine: Gap
    copied: bool
    metrics: list[Measured]
    objective: Objective | None


def usable(view: TrainerView, values: F8) -> Mask:
    """[N] tokens that are trained on and have a finite value."""
    mask: Mask = view.trained & (view.sequence >= 0) & np.isfinite(values)
    return mask


def is_copied(run: Run, view: TrainerView, lens: str) -> bool:
    """Whether the trainer's values are the engine's to the bit where the scorer's are not."""
    use = usable(view, view.old_logprob) & run.valid & (run.trainer.kept_count != 1)
    if np.count_nonzero(use) < 16:
        return False
    own = bit_equal(view.old_logprob, run.rollout_logprob)[use].mean()
    scorers = bit_equal(run.trainer.logprob(lens), run.rollout_logprob)[use].mean()
    return bool(own >= COPIED and scorers < COPIED)


def three_parties(
    run: Run, expect: str, causes: Seq[Explanation], *, engine_is_off: bool, clip: tuple[float, float] | None
) -> Party | None:
    """Say whose values are off, and measure what the objective makes of them.

    Args:
        run: with the trainer's view; without one there is nothing to say.
        expect: what the trainer takes logprobs for.
        causes: of the verdict.
        engine_is_off: whether the engine's values leave the scorer's.
        clip: the clip range that was asked for.
    """
    view = run.view
    if view is None:
        return None
    scorer = run.trainer.logprob(expect)
    use = usable(view, view.old_logprob) & run.valid & np.isfinite(scorer)
    old = np.where(use, view.old_logprob, np.nan)
    engine = np.where(run.valid & (view.sequence >= 0), run.rollout_logprob, np.nan)
    pairs = _pairs(run, view, use, clip)
    return Party(
        format=view.format,
        fault=_fault(causes, engine_is_off, bool(use.any())),
        num_sequences=view.num_sequences,
        num_joined=view.num_joined,
        num_ambiguous=view.num_ambiguous,
        num_unknown=view.num_unknown,
        num_rollouts=len(np.unique(run.rollout[view.sequence >= 0])),
        num_tokens=int(use.sum()),
        engine_scorer=_gap(engine, scorer),
        trainer_scorer=_gap(old, scorer),
        trainer_engine=_gap(old, engine),
        copied=is_copied(run, view, expect),
        metrics=measure_all(pairs),
        objective=_objective(run, view, use, pairs, expect, clip, not causes and not engine_is_off),
    )


def of_trainer(causes: Seq[Explanation]) -> list[Explanation]:
    """Those that are the trainer's."""
    return [cause for cause in causes if cause.code.startswith("trainer ")]


def not_judged(party: Party | None) -> list[Remark]:
    """Say what of a trainer's dump could not be judged."""
    if party is None:
        return []
    found = []
    if party.num_ambiguous:
        found.append(Remark("not joined", {"count": party.num_ambiguous}))
    if not party.num_tokens:
        found.append(Remark("not compared", {}))
    return found


def _fault(causes: Seq[Explanation], engine_is_off: bool, has_old: bool) -> Fault:
    trainers = of_trainer(causes)
    engines = engine_is_off or any(cause not in trainers and cause.code != DRAWN for cause in causes)
    if any(cause.code == AGREES for cause in trainers):
        return "neither agrees with the scorer"
    if trainers:
        return "both" if engines else "trainer"
    if not has_old:
        return "engine" if engines else "not known"
    return "engine" if engines else "none"


def _gap(one: F8, other: F8) -> Gap:
    found = measure(other, one)
    return Gap(found.num_tokens, found.d_mean, found.d_abs_mean, found.d_abs_max, found.bit_equal)


def _pairs(run: Run, view: TrainerView, use: Mask, clip: tuple[float, float] | None) -> Pairs:
    """The tokens that the loss counts, with the engine's values as the trainer holds them."""
    held = np.where(np.isfinite(view.held_logprob), view.held_logprob, run.rollout_logprob)
    current = np.where(np.isfinite(view.current_logprob), view.current_logprob, view.old_logprob)
    _, sequence = np.unique(view.sequence[use], return_inverse=True)
    return Pairs(
        rollout=held[use],
        old=view.old_logprob[use],
        current=current[use],
        advantage=view.advantage[use],
        sequence=sequence.astype(np.int64),
        clip=clip or view.clip or DEFAULT_CLIP,
    )


def _objective(
    run: Run, view: TrainerView, use: Mask, pairs: Pairs, expect: str, clip: tuple[float, float] | None, clean: bool
) -> Objective | None:
    if not use.any():
        return None
    scorer = run.trainer.logprob(expect)[use]
    lag = (view.train_version - run.weight_version)[use]
    lag = lag[np.isfinite(lag)]
    entropy = view.entropy[use]
    own = entropy[np.isfinite(entropy)]
    scored = _finite_mean(run.trainer, use)
    return Objective(
        clip_low=pairs.clip[0],
        clip_high=pairs.clip[1],
        clip_source="given" if clip else "the dump" if view.clip else "PPO's default",
        has_current=bool(np.isfinite(view.current_logprob[use]).any()),
        entropy=float(own.mean()) if own.size else scored,
        lag=Lag(float(lag.min()), float(lag.mean()), float(lag.max())) if lag.size else None,
        as_trained=levels(pairs),
        engine_corrected=corrected(pairs, rollout=scorer),
        trainer_corrected=corrected(pairs, old=scorer),
        below_is_clean=clean,
    )


def _finite_mean(scores: Scores[F8], use: Mask) -> float:
    entropy = scores.entropy[use]
    entropy = entropy[np.isfinite(entropy)]
    return float(entropy.mean()) if entropy.size else float("nan")


def rollouts_of_trainer(run: Run) -> list[int]:
    """Return the rollouts that have an old_logprob behind the same context, indices into the run's."""
    view = run.view
    assert view is not None
    found: list[int] = np.unique(run.rollout[usable(view, view.old_logprob) & view.paired]).tolist()
    return found


def trainer_as_engine(run: Run) -> Run:
    """Return the run of those rollouts with the trainer's old_logprobs in place of the recorded values."""
    view = run.view
    assert view is not None
    own = rollouts_of_trainer(run)
    keep = np.isin(run.rollout, own)
    at = np.cumsum(keep) - 1
    profile = None if run.profile is None else run.profile[keep[run.profile.index]]
    old = np.where(usable(view, view.old_logprob) & view.paired, view.old_logprob, np.nan)
    return replace(
        run,
        rollouts=[run.rollouts[i] for i in own],
        rollout=np.searchsorted(own, run.rollout[keep]),
        position=run.position[keep],
        token_id=run.token_id[keep],
        rollout_logprob=old[keep],
        weight_version=run.weight_version[keep],
        engine_step=run.engine_step[keep],
        temperature=run.temperature[keep],
        kept_mass=run.kept_mass[keep],
        rank=np.zeros_like(run.rank[keep]),
        scores={name: scores.each(lambda values: values[keep]) for name, scores in run.scores.items()},
        settings=None if run.settings is None else run.settings[keep],
        profile=None if profile is None else replace(profile, index=at[profile.index]),
        engine_dtype=run.dtype,  # the trainer's body, whose head is float32
        head_dtype="float32",
        strata=None,
        reran=None,
        modules=None,
        view=None,
    )
