"""Packed, shared and continued over kept KV against each sequence alone, over architectures and their odd attention."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.tiny_models import VOCAB, architectures, write_model
from tracekit.errors import ModelError
from tracekit.scoring.attention import Rule
from tracekit.scoring.batching import plan_packs
from tracekit.scoring.forest import grow
from tracekit.scoring.params import Params
from tracekit.scoring.scorer import Scorer
from tracekit.scoring.spans import Span, whole
from tracekit.scoring.types import Sequence

NOT_PACKED = {"mamba", "jamba", "qwen3-next", "longrope"}
PLAIN = (Params(),)


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory):
    """Filled as tests ask for them, so that each model is loaded once."""
    root = tmp_path_factory.mktemp("models")

    class Loaded(dict[str, Scorer]):
        root: Path

        def __missing__(self, name: str) -> Scorer:
            self[name] = Scorer.load(write_model(root / name, name), dtype="float32", device="cpu")
            return self[name]

    loaded = Loaded()
    loaded.root = root
    return loaded


def group_of_sequences(seed: int = 0) -> list[Sequence]:
    """Two groups of prompts longer than any window, a nested prefix, a twin, and one inside another."""
    rng = np.random.default_rng(seed)

    def ids(num: int) -> np.ndarray:
        return rng.integers(3, VOCAB, num).astype(np.uint32)

    prompt, other = ids(30), ids(21)
    longer = np.concatenate([prompt, ids(9)])
    pairs = [(prompt, ids(11)), (prompt, ids(5)), (longer, ids(12)), (longer, ids(3)), (other, ids(7)), (other, ids(8))]
    pairs += [pairs[0], (longer[:25], longer[25:33]), (ids(4), ids(1))]
    return [Sequence(0, i, p, t, Params()) for i, (p, t) in enumerate(pairs)]


def own_logprobs(model: torch.nn.Module, sequence: Sequence) -> np.ndarray:
    """[T] by the model's own forward of the sequence alone, log-softmax in float64."""
    ids = torch.from_numpy(sequence.input_ids).unsqueeze(0)
    with torch.inference_mode():
        logprobs = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(dim=-1)
    chosen = torch.from_numpy(sequence.token_ids.astype(np.int64)).unsqueeze(1)
    return logprobs[-len(chosen) :].gather(1, chosen).squeeze(1).numpy()


def raw(scorer: Scorer, spans: list[Span], **how: object) -> list[np.ndarray]:
    found = scorer.score(spans, **{"max_batch_tokens": 1000, **how})
    return [scores.readings[0].raw_logprob for scores in found]


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray], atol: float = 1e-5) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("name", architectures())
def test_shared_or_not_packed_or_alone_the_numbers_are_the_same(scorers: dict[str, Scorer], name: str) -> None:
    scorer, sequences = scorers[name], group_of_sequences()
    assert scorer.packing == ("by length" if name in NOT_PACKED else "packed"), scorer.body.why_by_length
    spans = [whole(sequence) for sequence in sequences]
    shared = raw(scorer, spans)
    assert np.concatenate(shared).std() > 0.1, "a model this flat would prove nothing"
    assert_close(raw(scorer, spans, share=False), shared)
    assert_close(raw(scorer, spans, max_batch_tokens=24), shared)
    model = AutoModelForCausalLM.from_pretrained(scorers.root / name, dtype=torch.float32).eval()
    assert_close(shared, [own_logprobs(model, sequence) for sequence in sequences])


@pytest.mark.parametrize("name", [name for name in architectures() if name not in NOT_PACKED])
def test_a_cut_over_its_own_kv_changes_nothing(scorers: dict[str, Scorer], name: str) -> None:
    scorer, sequence = scorers[name], group_of_sequences()[2]
    (uncut,) = raw(scorer, [whole(sequence)])
    cuts = [0, 1, 20, 39, 45, sequence.num_inputs]
    found, kv = [], None
    for start, stop in pairwise(cuts):
        span = Span(sequence=sequence, readings=PLAIN, start=start, stop=stop, past=kv, keep_kv=True)
        (scores,) = scorer.score([span], max_batch_tokens=1000)
        kv = scores.kv
        assert kv is not None and kv.length == stop and kv.nbytes > 0
        found.append(scores.readings[0].raw_logprob)
    assert_close([np.concatenate(found)], [uncut])
    over_a_part = Span(sequence=sequence, readings=PLAIN, start=40, stop=sequence.num_inputs, past=kv.truncated(40))
    assert_close(raw(scorer, [over_a_part]), [uncut[2:]])


def test_kv_of_other_weights_is_what_later_tokens_see(scorers: dict[str, Scorer], tmp_path: Path) -> None:
    scorer, sequence = scorers["qwen3"], group_of_sequences()[2]
    older = Scorer.load(write_model(tmp_path, "qwen3", seed=5), dtype="float32", device="cpu")
    head = Span(sequence=sequence, readings=PLAIN, stop=43, keep_kv=True)
    (kept,) = older.score([head], max_batch_tokens=1000)
    tail = Span(sequence=sequence, readings=PLAIN, start=43, stop=sequence.num_inputs, past=kept.kv)
    (own,) = scorer.score([head], max_batch_tokens=1000)
    beside = replace(tail, past=own.kv)
    mixed, unmixed = raw(scorer, [tail, beside])
    ids = torch.from_numpy(sequence.input_ids).unsqueeze(0)
    folders = tmp_path, scorers.root / "qwen3"
    old, new = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in folders)
    with torch.inference_mode():
        cache = old(input_ids=ids[:, :43], use_cache=True).past_key_values
        logprobs = new(input_ids=ids[:, 43:], past_key_values=cache).logits[0].log_softmax(dim=-1)
    chosen = torch.from_numpy(sequence.token_ids[43 + 1 - len(sequence.prompt_token_ids) :].astype(np.int64))
    np.testing.assert_allclose(mixed, logprobs.gather(1, chosen[:, None])[:, 0].numpy(), rtol=0, atol=2e-5)
    (fresh,) = raw(scorer, [whole(sequence)])
    assert_close([unmixed], [fresh[-len(mixed) :]])
    assert np.abs(unmixed - mixed).max() > 0.01, "the weights of the KV must matter"


def test_a_chunked_rule_is_asked_for_the_true_positions_of_a_piece() -> None:
    from transformers.masking_utils import causal_mask_function, chunked_causal_mask_function

    rule = Rule(chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long)), False)
    first, mask = rule.mask(6, 10, torch.device("cpu"))
    assert first == 4 and mask is not None
    assert mask.int().tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1]]
    assert rule.mask(4, 8, torch.device("cpu")) == (4, None), "within a chunk it is plainly causal"
    assert Rule(causal_mask_function, True).mask(4, 8, torch.device("cpu")) == (0, None)


def test_spans_over_the_same_past_share_what_they_have_in_common(scorers: dict[str, Scorer]) -> None:
    scorer, sequences = scorers["llama"], group_of_sequences()
    longer = [sequences[2], sequences[3]]
    (head,) = scorer.score([Span(sequence=longer[0], readings=PLAIN, stop=10, keep_kv=True)], max_batch_tokens=100)
    tails = [Span(sequence=s, readings=PLAIN, start=10, stop=s.num_inputs, past=head.kv) for s in longer]
    assert [len(piece.ids) for piece in grow(tails, share=True).pieces] == [29, 11, 2]
    assert_close(raw(scorer, tails), raw(scorer, [whole(s) for s in longer]))


def test_an_architecture_that_cannot_be_packed_refuses_kv_by_name(scorers: dict[str, Scorer]) -> None:
    span = Span(sequence=group_of_sequences()[0], readings=PLAIN, stop=20, keep_kv=True)
    with pytest.raises(ModelError, match="MambaForCausalLM cannot score tokens over the KV of other weights: packed"):
        scorers["mamba"].score([span], max_batch_tokens=100)


def test_a_prefix_runs_once_and_only_where_that_saves_work() -> None:
    spans = [whole(sequence) for sequence in group_of_sequences()]
    shared = grow(spans, share=True)
    assert sum(len(piece.ids) for piece in shared.pieces) < 0.6 * sum(span.stop for span in spans)
    for span, leaf in zip(spans, shared.leaves, strict=True):
        chain = [shared.pieces[i] for i in shared.chain(leaf)]
        assert np.array_equal(np.concatenate([piece.ids for piece in chain]), span.input_ids)
    assert shared.leaves[0] == shared.leaves[6], "twins run once"
    alone = grow(spans, share=False)
    assert [len(piece.ids) for piece in alone.pieces] == [span.stop for span in spans]
    short = [Sequence(0, i, np.array([1, 5, 7 + i], np.uint32), np.array([9], np.uint32), Params()) for i in range(3)]
    assert len(grow([whole(s) for s in short], share=True).pieces) == 3, "a cut after two tokens saves nothing"


def test_packs_hold_whole_groups_and_only_a_large_one_is_spread() -> None:
    rng = np.random.default_rng(0)
    spans = []
    for group, num in enumerate((8, 2, 2)):
        prompt = rng.integers(3, VOCAB, 40).astype(np.uint32)
        tokens = rng.integers(3, VOCAB, (num, 31)).astype(np.uint32)
        spans += [whole(Sequence(0, group, prompt, row, Params())) for row in tokens]
    forest = grow(spans, share=True)
    packs = plan_packs(forest, 205)
    assert sorted(i for pack in packs for i in pack) == list(range(len(forest.pieces)))
    assert [sum(len(forest.pieces[i].ids) for i in pack) for pack in packs] == [190, 90 + 100, 100]
    seen: set[int] = set()
    for pack in packs:
        for i in pack:
            assert forest.pieces[i].parent is None or forest.pieces[i].parent in seen
            seen.add(i)
    with pytest.raises(ValueError, match="at least 1"):
        plan_packs(forest, 0)
