"""The engine's logprobs as the trainer holds them are not those that the engine reported: pairing, without numerics."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.diagnose.data import F8, SEMANTIC, Mask, Run
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.neighbours import shifted
from tracekit.diagnose.onset import onset_at
from tracekit.diagnose.view import TrainerView

CODES: tuple[Code, ...] = (
    "trainer sentinel",
    "trainer wrong entry",
    "trainer holds shifted",
    "trainer holds other values",
)

ZERO = 0.0  # OpenRLHF and NeMo-RL fill it in where a logprob is missing
LOWEST = -9999.0  # SkyRL's floor; ms-swift's padding is -1e10
_DIGITS = 1e-5  # of the value: what printing and reading back may cost
_MOST = 0.9  # of the values that differ, what names a kind


def detect(evidence: Evidence) -> list[Explanation]:
    """Compare held with reported values, and all values with sentinels."""
    run, view = evidence.run, evidence.run.view
    if view is None:
        return []
    return [*_sentinels(evidence, run, view), *_others(evidence, run, view)]


def _sentinels(evidence: Evidence, run: Run, view: TrainerView) -> Iterator[Explanation]:
    """Values that no computation gave: a constant that is known, or no number where others have one."""
    use = view.trained & (view.sequence >= 0)
    certain = np.fmin(run.trainer.logprob(evidence.expect), run.rollout_logprob) > -0.01
    for name, values in (("old_logprob", view.old_logprob), ("rollout_logprob", view.held_logprob)):
        if np.isfinite(values[use]).any():
            wrong = use & ~((values > LOWEST) & np.isfinite(values) & ((values != ZERO) | certain))
            if wrong.any():
                first = values[int(np.flatnonzero(wrong)[0])]
                yield _named(evidence, "trainer sentinel", wrong, [name, f"{first:g}"])


def _others(evidence: Evidence, run: Run, view: TrainerView) -> Iterator[Explanation]:
    held, engine = view.held_logprob, run.rollout_logprob
    with np.errstate(invalid="ignore"):
        both = view.trained & (held > LOWEST) & np.isfinite(engine) & (held != ZERO)
    differs = both & ~_equal(held, engine)
    count = int(np.count_nonzero(differs))
    if not count or _is_rounding(held[both], engine[both]):
        return
    late, early = (differs & _equal(held, shifted(run, engine, by)) for by in (1, -1))
    guesses: dict[tuple[Code] | tuple[Code, str], Mask] = {
        ("trainer wrong entry",): differs & _equal(held, view.best_other),
        ("trainer holds shifted", "late"): late,
        ("trainer holds shifted", "early"): early,
    }
    best, hits = max(guesses.items(), key=lambda guess: np.count_nonzero(guess[1]))
    code, names = best[0], list(best[1:])
    if np.count_nonzero(hits) < _MOST * np.count_nonzero(differs & ~_edges(run)):
        code, names = "trainer holds other values", []
    yield _named(evidence, code, differs, names)


def _edges(run: Run) -> Mask:
    """[N] first and last token of each rollout: a shift brings them values from elsewhere."""
    changes = np.flatnonzero(np.diff(run.rollout))
    edges = np.zeros(run.rollout.size, dtype=bool)
    edges[[0, -1]] = True
    edges[changes] = edges[changes + 1] = True
    return edges


def _equal(one: F8, other: F8) -> Mask:
    with np.errstate(invalid="ignore"):
        mask: Mask = np.abs(one - other) <= _DIGITS * np.maximum(np.abs(other), 1e-3)
    return mask


def _is_rounding(held: F8, engine: F8) -> bool:
    """Whether the trainer stored fewer digits: half precision, or three decimals and more."""
    return bool(np.all(np.abs(held - engine) <= np.maximum(2.0**-8 * np.abs(engine), 0.5e-3)))


def _named(evidence: Evidence, code: Code, wrong: Mask, names: list[str]) -> Explanation:
    run = evidence.run
    first = int(np.flatnonzero(wrong)[0])
    rollouts = np.unique(run.rollout[wrong]).tolist()
    return Explanation(
        code,
        SEMANTIC,
        margin=float("nan"),
        share=float("nan"),
        since=onset_at(run, run.trainer.logprob(evidence.lens), evidence.judged.sigma, first),
        since_rollout=rollouts[0],
        rollouts=rollouts,
        numbers={"count": float(wrong.sum()), "position": float(run.position[first])},
        names=["trainer", *names],
    )
