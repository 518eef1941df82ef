"""Noise that is larger at some places and tokens: once the other precision shows it, nobody is accused."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.synthetic import Made, make_run
from tracekit.diagnose.data import ACCUSED, OTHER_PRECISION, Run
from tracekit.diagnose.local import local_noise
from tracekit.diagnose.noise import measure_noise
from tracekit.diagnose.verdict import judge

MADE = Made(num_rollouts=6, length=700, temperature=1.0, top_p=1.0, eps=0.03, engine_eps=0.03)
PLACE = 300  # of rollout 1, from which on noise is larger
TOKEN = 555  # of rollout 0, which rounding moves far


def moved(run: Run, values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Log odds moved by so many nats."""
    odds = values - np.log(-np.expm1(np.minimum(values, -1e-9)))
    return -np.log1p(np.exp(-(odds + by)))


def uneven(seed: int = 0) -> tuple[Run, np.ndarray]:
    """A clean run whose scorer has more noise at a place and at a token; and where, [N] by how much."""
    run = make_run(replace(MADE, seed=seed))
    rng = np.random.default_rng(seed + 100)
    by = np.where((run.rollout == 1) & (run.output_index >= PLACE), 0.09 * rng.standard_normal(run.rollout.size), 0.0)
    by[TOKEN] = 3.0
    return replace(run, rollout_logprob=moved(run, run.rollout_logprob, by)), by


def looked_at(run: Run, by: np.ndarray) -> Run:
    """With the accused rollouts in the other precision, as far off as the record: it is the scorer that is noisy."""
    exact = run.scores[OTHER_PRECISION].each(np.copy)
    exact.raw_logprob[:] = np.where(run.rollout < 2, moved(run, exact.raw_logprob, by), np.nan)
    return replace(run, scores={**run.scores, ACCUSED: exact})


def test_a_clean_run_with_uneven_noise_is_accused_at_first_and_then_not():
    run, by = uneven()
    first = judge(run).verdict
    assert first.layer == "inference path" and first.noise.excess <= 1
    assert {r.request for r in first.rollouts if r.onset} == {0, 1}
    assert first.rollouts[0].onset.output_index == TOKEN
    second = judge(looked_at(run, by)).verdict
    assert second.layer == "none" and second.noise.scale == first.noise.scale


@pytest.mark.parametrize("fault", ["token", "place"])
def test_a_fault_that_another_precision_does_not_show_stays(fault):
    run, by = uneven()
    off = np.zeros_like(by)
    if fault == "token":
        off[TOKEN - 5] = 3.0
    else:
        off[(run.rollout == 0) & (run.output_index >= 400)] = 0.25
    hurt = looked_at(replace(run, rollout_logprob=moved(run, run.rollout_logprob, off)), by)
    verdict = judge(hurt).verdict
    assert verdict.layer == "inference path" and verdict.since_rollout == 0
    expected = TOKEN - 5 if fault == "token" else 400
    assert verdict.since.output_index == pytest.approx(expected, abs=0 if fault == "token" else 12)


def test_even_noise_raises_no_line():
    run = make_run(MADE)
    seen = replace(run, scores={**run.scores, ACCUSED: run.scores[OTHER_PRECISION]})
    plain, local = measure_noise(run, "raw"), measure_noise(seen, "raw")
    assert local.floor.scale == plain.floor.scale
    ratio = local.sigma / plain.sigma
    assert ratio.min() >= 1 - 1e-9 and np.median(ratio) < 1.05 and np.quantile(ratio, 0.99) < 1.5
    assert (local_noise(run, np.ones(run.rollout.size, bool), 0.03, 0.05) == 1).all()
