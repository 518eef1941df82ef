"""Student's t, single-token residuals, and the e-value of a sustained shift."""

import math
from dataclasses import replace

import numpy as np
import pytest

from helpers.synthetic import Made, make_run
from tracekit.diagnose.chance import chance_of, furthest_token
from tracekit.diagnose.noise import DEGREES, ROBUST_OF_T, measure_noise
from tracekit.diagnose.pooled import Change
from tracekit.diagnose.residual import JUMP_BEYOND, residuals
from tracekit.diagnose.shift import Shifts, find_shifts, log_e_of_run
from tracekit.diagnose.student import fit_student, two_sided_quantile, two_sided_tail


@pytest.mark.parametrize(
    ("share", "degrees", "expected"), [(0.05, 5, 2.570582), (0.001, 3, 12.923979), (0.01, 30, 2.749996)]
)
def test_quantiles_are_those_of_the_tables(share, degrees, expected):
    assert two_sided_quantile(share, degrees) == pytest.approx(expected, rel=1e-5)
    assert two_sided_tail(expected, degrees) == pytest.approx(share, rel=1e-4)


def test_fit_finds_scale_and_tail():
    rng = np.random.default_rng(1)
    unit = rng.uniform(0.1, 2.0, 20_000)
    fit = fit_student(0.3 * unit * rng.standard_t(4, unit.size), unit)
    assert fit.scale == pytest.approx(0.3, rel=0.03)
    assert 3.0 <= fit.degrees <= 5.0


def test_likelihood_is_that_of_the_density():
    fit = fit_student(np.array([0.5, -0.2, 0.1]), np.array([1.0, 2.0, 0.5]), tails=(3.0,))
    x = np.array([0.5, -0.1, 0.2]) / fit.scale
    constant = math.gamma(2) / (math.gamma(1.5) * math.sqrt(3 * math.pi))
    density = constant * (1 + x**2 / 3) ** -2 / fit.scale / np.array([1.0, 2.0, 0.5])
    assert fit.log_likelihood == pytest.approx(float(np.log(density).sum()))


def test_fit_of_residuals_that_are_all_zero_is_finite():
    assert math.isfinite(fit_student(np.zeros(5), np.ones(5), tails=(3.0,)).log_likelihood)


def test_an_edge_flip_is_seen_as_a_jump_not_as_noise():
    run = make_run(Made(num_rollouts=4))
    scores = run.trainer
    # forced tokens have no smooth response at all: their logprob moves only when one more token is kept
    jump = scores.edge_logprobs[:, 1]
    flips = np.flatnonzero((scores.kept_count == 1) & (np.abs(jump - scores.forced_logprob) > 0.002))
    assert flips.size
    other = scores.forced_logprob.copy()
    other[flips] = jump[flips]
    found = residuals(run, scores, "processed", other, 0.05)
    assert np.all(np.abs(found.smooth[flips]) > 100)
    assert np.all(np.abs(found.z[flips]) <= JUMP_BEYOND)
    same = np.setdiff1d(np.arange(other.size), flips)
    assert np.array_equal(found.z[same], found.smooth[same])


def test_raw_has_no_edge():
    run = make_run(Made(num_rollouts=2))
    found = residuals(run, run.trainer, "raw", run.trainer.raw_logprob - 1.0, 0.05)
    assert np.all(np.isnan(found.edge))
    assert np.array_equal(found.z, found.smooth)


def shifts_of(z, num_rollouts):
    rollout = np.repeat(np.arange(num_rollouts), z.size // num_rollouts)
    return find_shifts(z, np.ones(z.size, dtype=bool), rollout, num_rollouts, 6.0)


def test_a_clean_rollout_seldom_reaches_the_alarm():
    rng = np.random.default_rng(7)
    found = shifts_of(rng.standard_t(6.0, 2000 * 48), 2000)
    assert found.sure.mean() <= 0.01
    assert np.exp(found.at_end).mean() <= 1.3  # an e-value has mean 1 under the null


def test_a_wider_scale_from_one_token_on_is_found_and_dated():
    rng = np.random.default_rng(8)
    z = rng.standard_t(6.0, (200, 48))
    z[:, 16:] *= 4.0
    found = shifts_of(z.ravel(), 200)
    assert found.sure.mean() > 0.95
    start, first, last = (found_at - np.arange(200) * 48 for found_at in (found.start, found.first, found.last))
    assert np.median(np.abs(start - 16)) <= 1
    assert np.mean((first <= 16) & (last >= 16)) >= 0.9 and np.median(last - first) < 10


def test_a_shift_that_ends_again_is_found_at_its_height():
    z = np.random.default_rng(8).standard_t(6.0, (200, 96))
    z[:, 16:32] *= 4.0
    found = shifts_of(z.ravel(), 200)
    assert found.sure.mean() > np.mean(found.at_end > np.log(100)) + 0.2


def test_evidence_is_averaged_over_the_run():
    found = shifts_of(np.r_[np.zeros(48), np.full(48, 6.0)], 2)
    assert found.log_e[1] > found.log_e[0] + 10
    assert log_e_of_run(found) == pytest.approx(float(np.log(np.exp(found.at_end).mean())))


def test_the_chance_of_a_clean_run_is_that_of_the_least_likely_sign_and_pays_for_four():
    run = make_run(Made())
    none = np.zeros(run.token_id.size, dtype=bool)
    quiet = Shifts(np.zeros(16), np.zeros(16), *[np.full(16, -1)] * 3)
    clean = replace(measure_noise(run, "raw"), z=np.full(none.size, 0.5), beyond=none, shifts=quiet)
    assert chance_of(run, clean, []) == 1.0
    two = none.copy()
    two[[3, 48 + 3]] = True  # in two of 16 rollouts
    few = 1 - 0.99**16 - 16 * 0.01 * 0.99**15
    assert chance_of(run, replace(clean, beyond=two), []) == pytest.approx(4 * few)
    many = none.copy()
    many[:3] = True  # in one rollout, whose tokens are no witnesses of their own
    assert chance_of(run, replace(clean, beyond=many), []) == pytest.approx(4 * (1 - 0.99**16))
    one = replace(quiet, at_end=np.r_[np.log(16_000.0), np.full(15, -50.0)])
    assert chance_of(run, replace(clean, shifts=one), []) == pytest.approx(4 / 1000)
    change = Change("output_index", None, 9, 8, 10, True, 0.0005, 16, 0.6, 1.2)
    assert chance_of(run, clean, [change]) == pytest.approx(0.002)
    z = clean.z.copy()
    z[3] = 30 / ROBUST_OF_T
    furthest = z.size * two_sided_tail(30.0, DEGREES)
    assert chance_of(run, replace(clean, z=z), []) == pytest.approx(4 * furthest)
    z[3], none[3] = np.nan, True
    assert furthest_token(replace(clean, z=z)) == 1.0
    z[3] = 1e9
    assert furthest_token(replace(clean, z=z)) < 1e-40
    assert furthest_token(replace(clean, z=z, blurred=none)) == 1.0  # its unit does not hold


def test_rollouts_without_a_usable_token_say_nothing():
    found = find_shifts(np.ones(4), np.zeros(4, dtype=bool), np.array([0, 0, 1, 1]), 2, 5.0)
    assert found.start.tolist() == [-1, -1]
    assert found.log_e.tolist() == [0.0, 0.0]
    assert not found.sure.any()
