"""Sampling parameters against a slow reference in plain Python, which works on one row of floats."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.distribution import is_kept, processed_logprobs
from tracekit.errors import ReplayRefused
from tracekit.scoring import selection, truncation
from tracekit.scoring.params import Params, parse_params, untestable
from tracekit.scoring.rows import score_rows
from tracekit.scoring.sampling import Segment, reweigh
from tracekit.scoring.sweep import Sweep
from tracekit.scoring.truncation import Limits, truncate

VOCAB = 24


def reference(logits: list[float], params: Params, prompt: list[int], output: list[int]) -> list[float]:
    """Processed logprobs of one row, in float64; -inf where the token is dropped."""
    x = list(logits)
    for token in range(VOCAB):
        if params.allowed_token_ids and token not in params.allowed_token_ids:
            x[token] = -math.inf
    for word in params.bad_words:
        *prefix, last = word
        if len(output) >= len(prefix) and output[len(output) - len(prefix) :] == prefix:
            x[last] = -math.inf
    if len(output) < params.min_tokens:
        for token in params.stop_token_ids:
            x[token] = -math.inf
    for token, value in params.logit_bias:
        x[token] += value
    for token in set(prompt) | set(output):
        x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
    for token in set(output):
        x[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    x = [value / params.temperature for value in x]

    def probs() -> list[float]:
        best = max(x)
        weights = [math.exp(value - best) for value in x]
        return [weight / sum(weights) for weight in weights]

    if params.min_p:
        p = probs()
        x = [value if p[i] >= params.min_p * max(p) else -math.inf for i, value in enumerate(x)]
    if 0 < params.top_k < VOCAB:
        kth = sorted(x, reverse=True)[params.top_k - 1]
        x = [value if value >= kth else -math.inf for value in x]
    if params.top_p < 1:
        p, mass = probs(), 0.0
        ascending = sorted(range(VOCAB), key=lambda i: x[i])
        for token in ascending[:-1]:
            mass += p[token]
            if mass <= 1 - params.top_p:
                x[token] = -math.inf
    return [math.log(p) if p else -math.inf for p in probs()]


def spread_logits(rows: int, seed: int) -> torch.Tensor:
    """Logits without near ties, so that float32 and float64 sort and cut them alike."""
    rng = np.random.default_rng(seed)
    grid = np.stack([rng.permutation(VOCAB) for _ in range(rows)])
    return torch.tensor((grid - VOCAB / 2) * 0.37 + rng.uniform(-0.1, 0.1, grid.shape), dtype=torch.float32)


def segments_of(params: Params, prompt: list[int], tokens: list[int]) -> list[Segment]:
    return [Segment(params, np.array(prompt, np.uint32), np.array(tokens, np.uint32), 0, len(tokens))]


def assert_matches_reference(params: Params, prompt: list[int], tokens: list[int], seed: int = 0) -> None:
    logits = spread_logits(len(tokens), seed)
    got = processed_logprobs(logits, segments_of(params, prompt, tokens))
    for t in range(len(tokens)):
        expected = torch.tensor(reference(logits[t].tolist(), params, prompt, tokens[:t]))
        torch.testing.assert_close(got[t], expected.float(), rtol=1e-4, atol=1e-4)


TOKENS = [4, 9, 4, 4, 1, 9, 2, 9]
ONE_AT_A_TIME = {
    "temperature": Params(temperature=0.7),
    "top_p": Params(top_p=0.83),
    "top_k": Params(top_k=5),
    "min_p": Params(min_p=0.1),
    "repetition": Params(repetition_penalty=1.4),
    "frequency": Params(frequency_penalty=0.5),
    "presence": Params(presence_penalty=-0.5),
    "bias": Params(logit_bias=((3, 2.0), (9, -50.0))),
    "allowed": Params(allowed_token_ids=(1, 4, 9, 20)),
    "bad_words": Params(bad_words=((5,), (4, 9), (9, 4, 4))),
    "min_tokens": Params(min_tokens=3, stop_token_ids=(0, 7)),
    "all": Params(
        temperature=0.8,
        top_p=0.91,
        top_k=9,
        min_p=0.01,
        repetition_penalty=1.1,
        frequency_penalty=0.2,
        presence_penalty=0.3,
        logit_bias=((2, 1.0),),
        allowed_token_ids=tuple(range(1, 22)),
        bad_words=((4, 9), (1,)),
        min_tokens=2,
        stop_token_ids=(3,),
    ),
}


@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_each_parameter_matches_the_reference(name: str) -> None:
    params = ONE_AT_A_TIME[name]
    assert params != Params()
    assert_matches_reference(params, [11, 12, 4], TOKENS)


@settings(max_examples=60, deadline=None)
@given(
    params=st.builds(
        Params,
        temperature=st.sampled_from([0.31, 0.7, 1.0, 1.9]),
        top_p=st.sampled_from([0.111, 0.517, 0.913, 1.0]),
        top_k=st.integers(0, VOCAB + 2),
        min_p=st.sampled_from([0.0, 0.013, 0.21]),
        repetition_penalty=st.sampled_from([0.7, 1.0, 1.5]),
        frequency_penalty=st.sampled_from([-1.0, 0.0, 0.53]),
        presence_penalty=st.sampled_from([-0.7, 0.0, 1.1]),
        bad_words=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple), max_size=2).map(tuple),
        min_tokens=st.integers(0, 4),
        stop_token_ids=st.just((0,)),
    ),
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=7),
    seed=st.integers(0, 1000),
)
def test_combinations_match_the_reference(params: Params, tokens: list[int], seed: int) -> None:
    assert_matches_reference(params, [1, 20], tokens, seed)


def test_rows_of_different_requests_do_not_touch_each_other() -> None:
    everyone = list(ONE_AT_A_TIME.values())
    logits = spread_logits(len(everyone) * 3, 1)
    prompt, tokens = np.array([11, 4], np.uint32), np.array(TOKENS, np.uint32)
    segments = [Segment(params, prompt, tokens, 2, 5) for params in everyone]
    together = processed_logprobs(logits, segments)
    for i, segment in enumerate(segments):
        alone = processed_logprobs(logits[3 * i : 3 * i + 3], [segment])
        assert torch.equal(together[3 * i : 3 * i + 3], alone)


@pytest.mark.parametrize(("width", "num"), [(50_003, 128), (33_000, 7), (700, 9), (90, 40), (5, 9)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_largest_values_are_found_without_sorting(width: int, num: int, ties: bool) -> None:
    rows = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    rows[0, -1] = 9.0
    if ties:
        rows = rows.bfloat16().float()
    expected = rows.topk(min(num, width)).values
    assert torch.equal(selection.largest(rows, num), expected)
    ids = selection.largest_ids(rows, num)
    assert torch.equal(rows.gather(1, ids).sort(descending=True).values, expected)
    assert all(len(set(line)) == len(line) for line in ids.tolist())


def top_p_by_sort(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """[R, V] bool: drop from the least likely up, as long as what was dropped adds up to no more than 1 - p."""
    ordered, index = logits.double().sort(dim=-1, stable=True)
    dropped = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p.unsqueeze(1)
    dropped[:, -1] = False
    return torch.empty_like(dropped).scatter_(1, index, ~dropped)


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 12.0])
@pytest.mark.parametrize("ties", [False, True])
def test_top_p_without_sorting_is_top_p_by_sorting(spread: float, ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(24, 20_011, generator=torch.Generator().manual_seed(3)) * spread
    logits[::2, 77] += 4.0  # one likely token before a flat rest
    if ties:
        logits = logits.bfloat16().float()
    top_p = torch.linspace(0.02, 0.999, 24)
    sorted_widths: list[int] = []
    by_sort = selection.descending
    monkeypatch.setattr(truncation, "descending", lambda rows: sorted_widths.append(rows.shape[1]) or by_sort(rows))
    limits = Limits(torch.ones(24), torch.zeros(24), torch.zeros(24, dtype=torch.long), top_p)
    sweep = Sweep(logits)
    kept = torch.cat(
        [
            is_kept(logits[block], truncate(logits[block], sweep.plain(block), limits[block]), torch.ones(24)[block])
            for block in sweep.blocks()
        ]
    )
    expected = top_p_by_sort(logits, top_p)
    differing = (kept != expected).sum(dim=-1)
    assert differing.max() <= 1, "a float32 total puts the edge within a rounding of it"
    assert (differing > 0).sum() <= 2
    assert 20_011 not in sorted_widths or spread == 0.0 or ties, "no whole row is sorted"


def test_a_token_outside_the_kept_set_is_minus_infinity_and_still_has_a_forced_logprob() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    segments = [
        Segment(Params(temperature=0.5, top_k=2), np.array([0], np.uint32), np.array([3, 1], np.uint32), 0, 2),
    ]
    (scores,) = score_rows(logits, torch.tensor([3, 1]), [segments])
    assert scores.kept_count.tolist() == [2, 2]
    assert scores.processed_logprob.tolist() == pytest.approx([-math.inf, -math.log1p(math.exp(2.0))])
    assert scores.forced_logprob[0].item() == pytest.approx(-math.log(math.exp(6) + math.exp(4) + 1))
    assert scores.forced_logprob[1] == scores.processed_logprob[1]
    # Neither one token fewer nor one more brings token 3 in; for token 1, it is the one that goes.
    assert scores.edge_logprobs[0].tolist() == [-math.inf, -math.inf]
    assert scores.edge_logprobs[1].tolist() == pytest.approx(
        [-math.inf, 4 - math.log(math.exp(6) + math.exp(4) + math.exp(2))]
    )


def test_the_edge_lets_the_next_token_in_and_never_drops_the_last() -> None:
    logits = torch.tensor([[5.0, 1.0, 0.0], [5.0, 1.0, 0.0]])
    segments = [Segment(Params(top_k=1), np.array([0], np.uint32), np.array([0, 1], np.uint32), 0, 2)]
    (scores,) = score_rows(logits, torch.tensor([0, 1]), [segments])
    assert scores.kept_count.tolist() == [1, 1]
    assert scores.edge_logprobs[0].tolist() == pytest.approx([0.0, -math.log1p(math.exp(-4))])
    assert scores.edge_logprobs[1].tolist() == pytest.approx([-math.inf, 1 - math.log(math.exp(5) + math.exp(1))])


def test_a_masked_token_has_the_logit_it_would_have_had() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    params = Params(allowed_token_ids=(1, 2))
    (scores,) = score_rows(logits, torch.tensor([0]), [segments_of(params, [0], [0])])
    assert scores.processed_logprob.item() == -math.inf
    assert scores.forced_logprob.item() == pytest.approx(2 - math.log(math.exp(2) + math.exp(1) + 1))
    assert scores.edge_logprobs.tolist() == [[-math.inf, -math.inf]]


@pytest.mark.parametrize("params", [Params(), Params(temperature=0.6), Params(temperature=0.6, top_k=4)])
def test_noise_gain_is_the_length_of_the_gradient(params: Params) -> None:
    logits = spread_logits(3, 8).double().mul_(0.2).requires_grad_()
    tokens = logits.detach().topk(3).indices[:, 1].tolist()
    segments = segments_of(params, [0], tokens)
    (scores,) = score_rows(logits.detach().float(), torch.tensor(tokens), [segments])
    kept = processed_logprobs(logits.detach().float(), segments) > -torch.inf
    scaled = (logits / params.temperature).masked_fill(~kept, -torch.inf)
    picked = scaled.log_softmax(dim=-1)[torch.arange(3), tokens]
    (gradient,) = torch.autograd.grad(picked.sum(), logits)
    torch.testing.assert_close(scores.processed_noise_gain, gradient.norm(dim=-1).float())


@pytest.mark.parametrize(
    "params",
    [
        Params(),
        Params(temperature=0.7),
        Params(top_p=0.9),
        Params(temperature=1.3, top_p=0.95),
        Params(temperature=4.0),
        Params(temperature=3.0, top_p=0.9, logit_bias=((5, 100.0),)),
        Params(top_k=300, top_p=0.8),
        Params(top_k=3),
        Params(min_p=1e-4),
        Params(top_p=0.9, allowed_token_ids=tuple(range(0, 17_000, 2)), frequency_penalty=0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [1.0, 5.0, 12.0])
def test_scores_are_those_of_a_float64_softmax(params: Params, spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(12, 17_003, generator=generator) * spread
    tokens = torch.randint(0, 17_003, (12,), generator=generator)
    tokens[:6] = logits[:6].topk(4).indices[:, 2]
    segments = segments_of(params, [0], tokens.tolist())
    whole = processed_logprobs(logits, segments).double()
    (scores,) = score_rows(logits.clone(), tokens, [segments])

    raw = logits.double().log_softmax(dim=-1)
    picked = torch.arange(12), tokens
    assert (scores.raw_logprob - raw[picked]).abs().max() < 1e-5
    torch.testing.assert_close(scores.entropy.double(), -(raw.exp() * raw).sum(dim=-1), rtol=1e-5, atol=1e-5)
    assert scores.argmax_token_id.tolist() == logits.argmax(dim=-1).tolist()
    torch.testing.assert_close(scores.processed_logprob.double(), whole[picked], rtol=1e-5, atol=1e-5)
    kept = whole > -torch.inf
    assert scores.kept_count.tolist() == kept.sum(dim=-1).tolist()
    reweigh(logits, segments)
    before = (logits.double() / params.temperature).log_softmax(dim=-1)
    torch.testing.assert_close(scores.kept_mass.double(), (before.exp() * kept).sum(dim=-1), rtol=1e-5, atol=1e-6)
    kept[picked] = True
    forced = before.masked_fill(~kept, -torch.inf).log_softmax(dim=-1)
    torch.testing.assert_close(scores.forced_logprob.double(), forced[picked], rtol=1e-5, atol=1e-5)


def test_each_reading_is_scored_as_if_it_were_the_only_one() -> None:
    logits = spread_logits(2, 5)
    readings = [
        segments_of(params, [0], [3, 1]) for params in (Params(temperature=0.5, top_k=2), Params(), Params(top_p=0.6))
    ]
    together = score_rows(logits.clone(), torch.tensor([3, 1]), readings)
    for scores, segments in zip(together, readings, strict=True):
        (alone,) = score_rows(logits.clone(), torch.tensor([3, 1]), [segments])
        assert all(torch.equal(getattr(scores, name), value) for name, value in vars(alone).items())


def test_noise_gain_of_a_near_certain_token_keeps_its_digits() -> None:
    (scores,) = score_rows(torch.tensor([[20.0, 0.0]]), torch.tensor([0]), [segments_of(Params(), [0], [0])])
    assert scores.raw_noise_gain.item() == pytest.approx(math.sqrt(2) * math.exp(-20), rel=1e-3)


def test_parameters_are_read_with_the_defaults_of_vllm() -> None:
    assert parse_params({}) == Params()
    assert parse_params({"top_k": -1, "top_p": 1.0, "logit_bias": None, "n": 4, "seed": 3}) == Params()
    assert parse_params({"temperature": 0.0, "top_p": 0.5, "top_k": 3, "min_p": 0.2}) == Params(greedy=True)
    assert parse_params({"logit_bias": {"7": 1}}).logit_bias == ((7, 1.0),)
    private = parse_params({"min_tokens": 2, "_all_stop_token_ids": [2], "_bad_words_token_ids": [[1, 2]]})
    assert (private.stop_token_ids, private.bad_words) == ((2,), ((1, 2),))


@pytest.mark.parametrize(
    ("sampling", "word"),
    [
        ({"bad_words": ["no"]}, "bad_words"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"structured_outputs": {"regex": "a+"}}, "grammar"),
        ({"thinking_token_budget": 10}, "thinking_token_budget"),
    ],
)
def test_what_the_trace_does_not_tell_is_refused(sampling: dict, word: str) -> None:
    assert untestable(sampling) in sampling
    with pytest.raises(ReplayRefused, match=word):
        parse_params(sampling)


def test_malformed_parameters_are_refused() -> None:
    with pytest.raises(ReplayRefused, match="cannot be read"):
        parse_params({"temperature": "warm"})
