"""Profiles of logits: any sampling parameters, tried on what is kept of a row, give what a plain sampler gives."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.world import Sampler, World, play, run_of
from tracekit.diagnose.profile import predict, spread, to_bfloat16

SAMPLERS = {
    "nothing": Sampler(),
    "hot": Sampler(temperature=1.7),
    "cold": Sampler(temperature=0.13),
    "in between": Sampler(temperature=0.77),
    "top-p": Sampler(temperature=0.7, top_p=0.9),
    "top-k": Sampler(top_k=20),
    "min-p": Sampler(temperature=1.2, min_p=0.05),
    "all three": Sampler(temperature=0.9, top_p=0.95, top_k=50, min_p=0.01),
    "repetition penalty": Sampler(repetition_penalty=1.2),
    "counting penalty": Sampler(temperature=0.8, top_p=0.95, frequency_penalty=0.4, presence_penalty=-0.3),
    "bfloat16 head": Sampler(low_head=True),
}
# another sampler than the recorded one took the tokens, so that a prediction is never the trainer's own score
WORLD = World(num_rollouts=4, length=32, seed=3)


@pytest.fixture(scope="module")
def run():
    played = play(WORLD, Sampler(temperature=0.9), eps=0.0)
    return run_of(WORLD, played, played.raw, Sampler().params(), eps=0.0), played


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_prediction_is_what_the_sampler_says(run, name):
    (run, played), sampler = run, SAMPLERS[name]
    settings = run.settings[run.profile.index]
    for field in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty"):
        settings = settings.but(field, getattr(sampler, field))
    settings = settings.but("presence_penalty", sampler.presence_penalty)
    found = predict(run.profile, settings, low_head=sampler.low_head)
    drawn = spread(run.profile, settings)
    expected = [_by_hand(sampler, played, i, t) for i, t in np.ndindex(played.tokens.shape)]
    logprob, entropy, variance, first, num_kept = np.array(expected).T
    told = np.isfinite(drawn.entropy)
    assert told.mean() > 0.6 and (num_kept[~told] >= 128).all()
    if sampler.low_head:
        told[:] = False  # nobody asks what such a head would have drawn
    assert np.array_equal(found.inside, np.isfinite(logprob))
    # a token of the edge weighs thousandths, and which it is hangs on the sum over the tail
    for got, value, tolerance in ((drawn.entropy, entropy, 0.03), (drawn.variance, variance, 0.1)):
        np.testing.assert_allclose(got[told], value[told], rtol=0, atol=tolerance)
    known = np.isfinite(found.logprob)
    # tokens of the tail that a penalty moves are not known one by one
    tolerance = 0.01 if "penalty" in name else 3e-3
    np.testing.assert_allclose(found.first[known], first[known], rtol=0, atol=tolerance)
    inside = known & found.inside
    off = np.abs(found.logprob - logprob)[inside]
    assert np.quantile(off, 0.9) < tolerance / 2 and off.max() < tolerance


def _by_hand(sampler, played, i, t):
    _, log_p = sampler.logprobs(WORLD.logits()[i, t], played.tokens[i, :t].tolist())
    kept = np.isfinite(log_p)
    p = np.exp(log_p[kept])
    entropy = -(p * log_p[kept]).sum()
    return log_p[played.tokens[i, t]], entropy, (p * (log_p[kept] + entropy) ** 2).sum(), log_p.max(), kept.sum()


def test_a_mask_takes_its_tokens_out(run):
    run, played = run
    barred = np.arange(0, 400, 3)
    found = predict(run.profile, run.settings[run.profile.index], barred=barred)
    for row, (i, t) in enumerate(np.ndindex(played.tokens.shape)):
        if played.tokens[i, t] % 3:
            _, log_p = Sampler(barred=tuple(barred)).logprobs(WORLD.logits()[i, t], [])
            # those of the tail are not known one by one: what they weigh stays in the sum
            assert found.logprob[row] == pytest.approx(log_p[played.tokens[i, t]], abs=0.1)


def test_what_a_profile_cannot_tell_is_not_a_number(run):
    run, _ = run
    settings = run.settings[run.profile.index]
    assert np.isnan(predict(run.profile, settings.but("top_k", 200)).logprob).all()
    flat = np.isnan(predict(run.profile, settings.but("min_p", 1e-6)).logprob)
    assert flat.any()


def test_a_top_p_whose_edge_lies_beyond_the_kept_tokens_is_told_from_its_mass(run):
    run, played = run
    found = predict(run.profile, run.settings[run.profile.index].but("top_p", 0.999))
    for row, (i, t) in enumerate(np.ndindex(played.tokens.shape)):
        _, log_p = Sampler(top_p=0.999).logprobs(WORLD.logits()[i, t], [])
        if np.isfinite(value := log_p[played.tokens[i, t]]):
            assert found.logprob[row] == pytest.approx(value, abs=2e-3)


def test_values_are_rounded_as_bfloat16_rounds():
    import torch

    values = np.random.default_rng(0).standard_normal(1000) * 20
    values = values.astype(np.float32).astype(np.float64)
    assert np.array_equal(to_bfloat16(values), torch.tensor(values).float().bfloat16().double().numpy())
    assert to_bfloat16(np.array([-np.inf]))[0] == -np.inf


def test_a_profile_says_how_often_a_token_was_there(run):
    run, played = run
    profile = run.profile
    for row, (i, t) in enumerate(np.ndindex(played.tokens.shape)):
        before = played.tokens[i, :t].tolist()
        for token, seen in [
            *zip(profile.ids[row], profile.seen[row], strict=True),
            (played.tokens[i, t], profile.own_seen[row]),
        ]:
            assert seen == (before.count(token) or (0 if token in (3, 5, 8, 13) else -1))


def test_a_small_vocabulary_is_kept_whole():
    world = replace(WORLD, vocab=40)
    played = play(world, Sampler(), eps=0.0)
    run = run_of(world, played, played.raw, Sampler().params(), eps=0.0)
    found = predict(run.profile, run.settings[run.profile.index].but("top_k", 200))
    assert np.allclose(found.logprob, run.rollout_logprob, atol=1e-5)
