"""The scorer on random batches, against one that is as plain as can be: one sequence alone, in float64.

The batches hold what packing could get wrong: prefixes of one another, twins, empty completions, prompts of one token
or longer than a batch, ids at both ends of the vocabulary, and sampling parameters of every kind side by side.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.tiny_models import VOCAB, write_model
from tracekit.scoring.params import Params
from tracekit.scoring.scorer import Scorer
from tracekit.scoring.spans import Span, whole
from tracekit.scoring.types import Sequence

ARCHITECTURES = ["llama-tied", "qwen2-sliding", "gemma3-mixed", "gpt-oss-sinks", "opt", "mamba"]
ROUNDS = 4
TOLERANCE = 3e-5  # of a float32 body, whose logits reach 10


def random_params(rng: np.random.Generator) -> Params:
    def maybe(value, otherwise):
        return value if rng.random() < 0.3 else otherwise

    ids = rng.choice(VOCAB, 40, replace=False).tolist()
    return Params(
        temperature=maybe(float(rng.uniform(0.3, 1.7)), 1.0),
        top_p=maybe(float(rng.uniform(0.05, 0.99)), 1.0),
        top_k=maybe(int(rng.integers(1, VOCAB + 5)), 0),
        min_p=maybe(float(rng.uniform(0.001, 0.4)), 0.0),
        repetition_penalty=maybe(float(rng.uniform(0.7, 1.5)), 1.0),
        frequency_penalty=maybe(float(rng.uniform(-1, 1)), 0.0),
        presence_penalty=maybe(float(rng.uniform(-1, 1)), 0.0),
        logit_bias=maybe(((0, 1.5), (VOCAB - 1, -2.0)), ()),
        allowed_token_ids=maybe(tuple(ids), ()),
        bad_words=maybe(((ids[0],), (ids[1], ids[2])), ()),
        min_tokens=3,
        stop_token_ids=maybe((2, ids[3]), ()),
    )


def random_sequences(rng: np.random.Generator) -> list[Sequence]:
    def ids(num: int) -> np.ndarray:
        return rng.choice([0, VOCAB - 1, *range(VOCAB)], num).astype(np.uint32)

    found: list[Sequence] = []
    for request in range(int(rng.integers(1, 9))):
        known = np.concatenate([found[-1].prompt_token_ids, found[-1].token_ids]) if found else ids(50)
        kind = rng.integers(5)
        if kind == 0 and found:  # a twin, whose parameters are another's
            prompt, tokens = found[-1].prompt_token_ids, found[-1].token_ids
        elif kind <= 2:  # a prompt that goes on from part of the one before
            prompt = np.concatenate([known[: rng.integers(1, len(known) + 1)], ids(int(rng.choice([0, 0, 1, 9])))])
            tokens = ids(int(rng.choice([0, 1, 3, 20])))
        elif kind == 3 and len(known) > 1:  # the one before, cut elsewhere
            cut = int(rng.integers(1, len(known)))
            prompt, tokens = known[:cut], known[cut : cut + int(rng.integers(0, 30))]
        else:
            prompt, tokens = ids(int(rng.choice([1, 2, 17, 60]))), ids(int(rng.choice([0, 1, 8])))
        found.append(Sequence(0, request, prompt.astype(np.uint32), tokens.astype(np.uint32), random_params(rng)))
    return found


def plain_processed(logits: np.ndarray, params: Params, sequence: Sequence, at: int) -> tuple[float, int, bool]:
    """Log-probability of token `at`, size of the kept set, and whether its edge is too close to call in float32."""
    prompt, output = sequence.prompt_token_ids.tolist(), sequence.token_ids[:at].tolist()
    barred = set(range(VOCAB)) - set(params.allowed_token_ids) if params.allowed_token_ids else set()
    for word in params.bad_words:
        *before, last = word
        if output[len(output) - len(before) :] == before:
            barred.add(last)
    if at < params.min_tokens:
        barred |= set(params.stop_token_ids)
    values = {token: float(logits[token]) for token in range(VOCAB)}
    for token, bias in params.logit_bias:
        values[token] += bias
    for token in set(prompt) | set(output):
        factor = params.repetition_penalty
        values[token] *= 1 / factor if values[token] > 0 else factor
    for token in set(output):
        values[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    order = sorted((v / params.temperature, t) for t, v in values.items() if t not in barred)[::-1]
    weights = [np.exp(value - order[0][0]) for value, _ in order]
    close = False
    if params.min_p:
        close |= any(abs(weight / params.min_p - 1) < 1e-3 for weight in weights)
        weights = [weight for weight in weights if weight >= params.min_p]
    if params.top_k:
        close |= params.top_k < len(weights) and weights[params.top_k - 1] / weights[params.top_k] - 1 < 1e-4
        weights = weights[: params.top_k]
    if params.top_p < 1:
        before = np.cumsum([0, *weights[:-1]]) / sum(weights)
        close |= bool((np.abs(before - params.top_p) < 1e-4).any())
        weights = weights[: int((before < params.top_p).sum())]
    rank = (
        [token for _, token in order].index(sequence.token_ids[at]) if sequence.token_ids[at] not in barred else VOCAB
    )
    return float(np.log(weights[rank] / sum(weights))) if rank < len(weights) else -np.inf, len(weights), close


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_batches_are_scored_as_one_by_one_in_float64(root: Path, name: str) -> None:
    folder = write_model(root / name, name)
    loaded = Scorer.load(folder, dtype="float32", device="cpu")
    # the fused kernel of experts takes no float64
    how = {"experts_implementation": "eager"} if name == "gpt-oss-sinks" else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **how).eval()
    num_finite = 0
    for seed in range(ROUNDS):
        rng = np.random.default_rng(seed)
        sequences = random_sequences(rng)
        readings = [(s.params, random_params(rng))[: rng.integers(1, 3)] for s in sequences]
        scorer = replace(loaded, chunk_rows=int(rng.choice([1, 5, 1000])))
        how = {"max_batch_tokens": int(rng.choice([1, 7, 40, 1000])), "share": bool(rng.random() < 0.8)}
        found = scorer.score([whole(s, r) for s, r in zip(sequences, readings, strict=True)], **how)
        for sequence, its_readings, scores in zip(sequences, readings, found, strict=True):
            assert len(scores.readings) == len(its_readings)
            if not len(sequence.token_ids):
                assert all(len(reading.raw_logprob) == 0 for reading in scores.readings)
                continue
            with torch.inference_mode():
                rows = model(input_ids=torch.from_numpy(sequence.input_ids).unsqueeze(0), use_cache=False).logits[0]
            rows = rows[len(sequence.prompt_token_ids) - 1 :].double().numpy()
            for params, reading in zip(its_readings, scores.readings, strict=True):
                for at, logits in enumerate(rows):
                    where = f"seed {seed}, request {sequence.request}, token {at}, {how}, {params}"
                    raw = logits[sequence.token_ids[at]] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
                    assert abs(reading.raw_logprob[at] - raw) < TOLERANCE, where
                    expected, kept, close = plain_processed(logits, params, sequence, at)
                    if close:
                        continue
                    num_finite += np.isfinite(expected)
                    assert reading.kept_count[at] == kept, where
                    assert np.isclose(reading.processed_logprob[at], expected, rtol=0, atol=5 * TOLERANCE), where
    assert num_finite > 50, "tokens that no reading keeps would prove nothing"


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "mamba"])
def test_random_cuts_over_kept_kv_change_nothing(root: Path, name: str) -> None:
    scorer = Scorer.load(write_model(root / f"{name}-cut", name), dtype="float32", device="cpu")
    for seed in range(ROUNDS):
        rng = np.random.default_rng(100 + seed)
        sequences = [s for s in random_sequences(rng) if len(s.token_ids)]
        size = int(rng.choice([1, 7, 40, 1000]))
        alone = [scorer.score([whole(s)], max_batch_tokens=1000)[0].readings[0].raw_logprob for s in sequences]
        cuts = [int(rng.integers(0, s.num_inputs + 1)) for s in sequences]
        heads = [
            Span(sequence=s, readings=(s.params,), stop=cut, keep_kv=True) if cut else None
            for s, cut in zip(sequences, cuts, strict=True)
        ]
        kept = iter(scorer.score([head for head in heads if head], max_batch_tokens=size))
        first = [next(kept) if head else None for head in heads]
        tails = [
            Span(sequence=s, readings=(s.params,), start=cut, stop=s.num_inputs, past=head.kv if head else None)
            for s, cut, head in zip(sequences, cuts, first, strict=True)
        ]
        rest = scorer.score(tails, max_batch_tokens=size)
        for head, tail, expected in zip(first, rest, alone, strict=True):
            parts = [found.readings[0].raw_logprob for found in (head, tail) if found]
            np.testing.assert_allclose(np.concatenate(parts), expected, rtol=0, atol=TOLERANCE, err_msg=f"seed {seed}")
