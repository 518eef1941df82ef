"""Metrics against numbers worked out by hand, and their behaviour at the edges."""

import math

import numpy as np
import pytest

from tracekit.diagnose.metrics import measure


def of(rollout, replay, kept=None, outside=None, **more):
    rollout, replay = np.asarray(rollout, dtype=float), np.asarray(replay, dtype=float)
    kept = np.full(rollout.size, 5) if kept is None else np.asarray(kept)
    outside = np.zeros(rollout.size, dtype=bool) if outside is None else np.asarray(outside)
    return measure(rollout, replay, kept, outside, **more)


def test_two_tokens_by_hand():
    found = of([-1.0, -2.0], [-0.5, -2.25])  # d = +0.5, −0.25
    assert found.ratio_mean == pytest.approx((math.exp(0.5) + math.exp(-0.25)) / 2)
    assert found.mismatch_kl == pytest.approx((math.exp(0.5) - 1.5 + math.exp(-0.25) - 0.75) / 2)
    assert found.k1 == pytest.approx(-0.125)
    assert found.d_mean == pytest.approx(0.125)
    assert found.d_abs_mean == pytest.approx(0.375)
    assert found.d_abs_max == 0.5
    assert found.clip_rate == 1.0
    a, b = math.exp(0.5), math.exp(-0.25)
    assert found.ess == pytest.approx((a + b) ** 2 / (2 * (a * a + b * b)))


def test_identical_values_are_perfect():
    found = of([-1.0, -0.25, 0.0], [-1.0, -0.25, -0.0], kept=[5, 5, 1])
    assert (found.ratio_mean, found.mismatch_kl, found.clip_rate, found.ess) == (1.0, 0.0, 0.0, 1.0)
    assert found.bit_equal == 1.0 and found.bit_equal_free == 1.0
    assert found.forced == pytest.approx(1 / 3)


def test_clip_range_is_epsilon_on_the_ratio():
    inside, outside = math.log(1.19), math.log(1.21)
    assert of([0.0, 0.0], [inside, outside]).clip_rate == 0.5
    assert of([0.0, 0.0], [inside, outside], epsilon=0.3).clip_rate == 0.0
    assert of([0.0], [math.log(0.79)]).clip_rate == 1.0


def test_forced_tokens_do_not_flatter_bit_equality():
    found = of([0.0, 0.0, -1.0, -2.0], [0.0, 0.0, -1.1, -2.0], kept=[1, 1, 4, 4])
    assert found.bit_equal == 0.75
    assert found.bit_equal_free == 0.5


def test_bits_are_those_of_float32():
    found = of([np.float32(-0.1)], [-0.1])
    assert found.bit_equal == 1.0


def test_not_finite_values_are_counted_and_enter_nothing():
    found = of([np.nan, -np.inf, -1.0], [-1.0, -1.0, -1.0])
    assert found.num_not_finite == 2
    assert found.num_tokens == 1
    assert found.ratio_mean == 1.0


def test_what_only_the_scorer_lacks_is_not_said_of_the_record():
    found = of([-1.0, -1.0], [np.nan, -1.0])
    assert (found.num_tokens, found.num_not_finite) == (1, 0)


def test_tokens_outside_the_kept_set_are_counted():
    assert of([-1.0, -1.0], [-1.0, -1.0], outside=[True, False]).num_outside == 1


def test_no_token_gives_nan_not_an_error():
    found = of([], [])
    assert found.num_tokens == 0
    assert math.isnan(found.ratio_mean) and math.isnan(found.ess) and math.isnan(found.clip_rate)


def test_effective_sample_size_survives_enormous_ratios():
    assert of([-2000.0, -1.0], [-1.0, -1.0]).ess == pytest.approx(0.5)
