"""The scorer against the model's own forward, on tiny random models of several architectures."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.tiny_models import VOCAB, configs, write_model
from tracekit.errors import ModelError, ReplayRefused, UsageError
from tracekit.scores import Scores, Values
from tracekit.scoring.batching import plan_batches
from tracekit.scoring.float32_head import Float32Head
from tracekit.scoring.head import SplitModel
from tracekit.scoring.params import Params
from tracekit.scoring.scorer import Scorer
from tracekit.scoring.spans import Span, whole
from tracekit.scoring.types import Sequence

NOTHING = Params()
SAMPLING = Params(temperature=0.7, top_p=0.9, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, name) for name in configs()}


def some_sequences(num: int = 5, params: Params = NOTHING, seed: int = 0) -> list[Sequence]:
    rng = np.random.default_rng(seed)
    return [
        Sequence(
            0,
            i,
            rng.integers(3, VOCAB, int(rng.integers(1, 12))).astype(np.uint32),
            rng.integers(3, VOCAB, int(rng.integers(1, 17))).astype(np.uint32),
            params,
        )
        for i in range(num)
    ]


def score(scorer: Scorer, sequences: list[Sequence], **how: object) -> list[Scores[Values]]:
    """The scores of whole sequences, read as they are."""
    return [found.readings[0] for found in scorer.score([whole(s) for s in sequences], **how)]


def own_logprobs(model: torch.nn.Module, sequence: Sequence) -> np.ndarray:
    """[T] by the model's own forward over the whole sequence and a log-softmax."""
    ids = torch.from_numpy(np.concatenate([sequence.prompt_token_ids, sequence.token_ids]).astype(np.int64))
    with torch.inference_mode():
        logprobs = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0].float().log_softmax(dim=-1)
    num_prompt = len(sequence.prompt_token_ids)
    return logprobs[num_prompt - 1 : -1].gather(1, ids[num_prompt:, None]).squeeze(1).numpy()


def assert_same(ours: list[Scores[Values]], theirs: list[Scores[Values]], *, atol: float) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for name in ("raw_logprob", "forced_logprob", "raw_noise_gain"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", configs())
def test_raw_logprobs_are_those_of_the_models_own_forward(folders: dict[str, Path], name: str) -> None:
    sequences = some_sequences()
    scores = score(Scorer.load(folders[name], dtype="float32", device="cpu"), sequences, max_batch_tokens=64)
    model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32).eval()
    for sequence, its_scores in zip(sequences, scores, strict=True):
        np.testing.assert_allclose(its_scores.raw_logprob, own_logprobs(model, sequence), rtol=0, atol=2e-5)
        assert its_scores.raw_logprob.min() < -1, "a model this flat would prove nothing"


@pytest.mark.parametrize("name", ["llama", "qwen3-tied"])
def test_the_head_is_float32_while_the_body_is_not(folders: dict[str, Path], name: str) -> None:
    sequence = some_sequences(1)[0]
    scorer = Scorer.load(folders[name], device="cpu")
    (scores,) = score(scorer, [sequence], max_batch_tokens=64)
    model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        ((hidden, _),) = scorer.body.run([whole(sequence)], 64, share=True, kvs={})
        assert hidden.dtype == torch.bfloat16
        by_hand = (hidden.float() @ model.get_output_embeddings().weight.float().T).log_softmax(dim=-1)
    targets = torch.from_numpy(sequence.token_ids.astype(np.int64))
    by_hand = by_hand[-len(targets) :].gather(1, targets[:, None]).squeeze(1)
    np.testing.assert_allclose(scores.raw_logprob, by_hand.numpy(), rtol=0, atol=2e-6)
    assert np.abs(scores.raw_logprob - own_logprobs(model, sequence)).max() > 1e-3, "a bfloat16 head differs"


def test_a_narrow_head_rounds_what_goes_in_and_what_comes_out(folders: dict[str, Path]) -> None:
    sequence = some_sequences(1)[0]
    scorer = Scorer.load(folders["llama"], dtype="float32", head="bfloat16", device="cpu")
    (scores,) = score(scorer, [sequence], max_batch_tokens=64)
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32).eval()
    with torch.inference_mode():
        ((hidden, _),) = scorer.body.run([whole(sequence)], 64, share=True, kvs={})
        logits = hidden.bfloat16() @ model.get_output_embeddings().weight.bfloat16().T
        assert hidden.dtype == torch.float32 and logits.dtype == torch.bfloat16
        by_hand = logits.float().log_softmax(dim=-1)
    targets = torch.from_numpy(sequence.token_ids.astype(np.int64))
    by_hand = by_hand[-len(targets) :].gather(1, targets[:, None]).squeeze(1)
    same = np.abs(scores.raw_logprob - by_hand.numpy()) < 2e-6
    assert same.mean() > 0.7, "but for sums in another order at the edge of two numbers"
    assert np.abs(scores.raw_logprob - own_logprobs(model, sequence)).max() > 1e-3


def test_a_tied_head_leaves_the_embedding_in_the_bodys_dtype(folders: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama-tied"], dtype=torch.bfloat16).eval()
    embedding = model.get_input_embeddings()
    split = SplitModel(model)
    assert embedding.weight.dtype == torch.bfloat16
    assert split.hidden_states(torch.tensor([[3, 4]])).dtype == torch.bfloat16
    assert split.logits(torch.zeros(2, 32, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("name", ["qwen3", "gemma2-softcap"])
def test_batch_shape_and_chunk_size_change_nothing_but_rounding(folders: dict[str, Path], name: str) -> None:
    sequences = some_sequences(9, SAMPLING)
    scorer = Scorer.load(folders[name], dtype="float32", device="cpu")
    reference = score(scorer, sequences, max_batch_tokens=1)
    for max_batch_tokens, chunk_rows in [(1, 1), (40, 3), (1000, 7), (1000, 1000)]:
        other = replace(scorer, chunk_rows=chunk_rows)
        assert_same(score(other, sequences, max_batch_tokens=max_batch_tokens), reference, atol=5e-5)


def test_the_same_shape_gives_exactly_the_same_scores(folders: dict[str, Path]) -> None:
    sequences = some_sequences(6, SAMPLING)
    scorer = Scorer.load(folders["qwen3"], device="cpu")
    assert_same(score(scorer, sequences, max_batch_tokens=64), score(scorer, sequences, max_batch_tokens=64), atol=0.0)
    again = Scorer.load(folders["qwen3"], dtype="bfloat16", device="cpu")
    assert_same(score(again, sequences, max_batch_tokens=64), score(scorer, sequences, max_batch_tokens=64), atol=0.0)


def test_results_are_in_the_order_of_the_sequences(folders: dict[str, Path]) -> None:
    sequences = some_sequences(7)
    sequences.insert(3, Sequence(0, 99, np.array([5], np.uint32), np.array([], np.uint32), Params()))
    scores = score(Scorer.load(folders["llama"], dtype="float32", device="cpu"), sequences, max_batch_tokens=30)
    assert [len(s.raw_logprob) for s in scores] == [len(s.token_ids) for s in sequences]
    assert scores[3].edge_logprobs.shape == (0, 2)
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32).eval()
    for sequence, its_scores in zip(sequences, scores, strict=True):
        if len(sequence.token_ids):
            np.testing.assert_allclose(its_scores.raw_logprob, own_logprobs(model, sequence), rtol=0, atol=2e-5)


def test_logits_never_exist_for_more_rows_than_a_chunk(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Scorer.load(folders["llama"], dtype="float32", device="cpu")
    scorer = replace(loaded, chunk_rows=4)
    seen: list[int] = []
    forward = Float32Head.forward

    def counting_forward(self: Float32Head, hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.numel() // hidden.shape[-1])
        return forward(self, hidden)

    monkeypatch.setattr(Float32Head, "forward", counting_forward)
    sequences = some_sequences(6)
    score(scorer, sequences, max_batch_tokens=1000)
    assert max(seen) == 4
    assert sum(seen) == sum(len(s.token_ids) for s in sequences), "only completion positions go through the head"


def test_a_chunk_of_logits_stays_within_its_bound(folders: dict[str, Path]) -> None:
    scorer = Scorer.load(folders["llama"], dtype="float32", device="cpu")
    assert 4 * VOCAB * scorer.chunk_rows <= 64 << 20 < 4 * VOCAB * (scorer.chunk_rows + 1)


def test_progress_adds_up_to_the_recorded_tokens(folders: dict[str, Path]) -> None:
    sequences = some_sequences(6)
    seen: list[int] = []
    scorer, total = Scorer.load(folders["llama"], device="cpu"), sum(len(s.token_ids) for s in sequences)
    score(scorer, sequences, max_batch_tokens=32, on_tokens=seen.append)
    assert len(seen) > 1
    assert sum(seen) == total
    seen.clear()
    score(replace(scorer, chunk_rows=1), sequences, max_batch_tokens=4096, on_tokens=seen.append)
    assert seen == [total]  # a batch at once: its first chunk did not cost what the body of all did


def test_processed_logprobs_use_each_requests_own_parameters(folders: dict[str, Path]) -> None:
    plain = some_sequences(4)
    hot = [Sequence(s.engine, s.request, s.prompt_token_ids, s.token_ids, Params(top_k=3)) for s in plain]
    scorer = Scorer.load(folders["llama"], dtype="float32", device="cpu")
    mixed = score(scorer, [plain[0], hot[1], plain[2], hot[3]], max_batch_tokens=1000)
    for i in (0, 2):
        assert (mixed[i].processed_logprob == mixed[i].raw_logprob).all()
        assert (mixed[i].kept_count == VOCAB).all()
    for i in (1, 3):
        assert (mixed[i].kept_count == 3).all()
        outside = np.isneginf(mixed[i].processed_logprob)
        assert outside.any() and np.isfinite(mixed[i].forced_logprob).all()


def test_a_caller_who_lets_torch_round_float32_products_changes_nothing(folders: dict[str, Path]) -> None:
    sequences = some_sequences(3)
    scorer = Scorer.load(folders["llama"], dtype="float32", device="cpu")
    exact = score(scorer, sequences, max_batch_tokens=64)
    torch.set_float32_matmul_precision("medium")
    try:
        assert_same(score(scorer, sequences, max_batch_tokens=64), exact, atol=0.0)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tokens_beyond_the_vocabulary_are_another_models(folders: dict[str, Path]) -> None:
    scorer = Scorer.load(folders["llama"], device="cpu")
    alien = Sequence(0, 0, np.array([5], np.uint32), np.array([7, VOCAB], np.uint32), Params())
    with pytest.raises(ModelError, match=f"token id {VOCAB} but the model's vocabulary is {VOCAB}: this is another"):
        score(scorer, [alien], max_batch_tokens=64)
    biased = Sequence(0, 0, np.array([5], np.uint32), np.array([7], np.uint32), Params(logit_bias=((5000, 1.0),)))
    with pytest.raises(ModelError, match="token id 5000"):
        score(scorer, [biased], max_batch_tokens=64)


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_positions_beyond_a_learned_table_are_another_models(folders: dict[str, Path], name: str) -> None:
    scorer = Scorer.load(folders[name], dtype="float32", device="cpu")
    ids = np.full(257, 5, np.uint32)
    scorer.score([whole(Sequence(0, 0, ids[:1], ids[1:], Params()))], max_batch_tokens=512)
    with pytest.raises(ModelError, match="request 7 runs 257 positions but the model has 256"):
        scorer.score([whole(Sequence(0, 7, ids[:2], ids[1:], Params()))], max_batch_tokens=512)


def test_an_empty_prompt_is_refused(folders: dict[str, Path]) -> None:
    empty = Sequence(0, 4, np.array([], np.uint32), np.array([7], np.uint32), Params())
    with pytest.raises(ReplayRefused, match="request 4 has an empty prompt"):
        score(Scorer.load(folders["llama"], device="cpu"), [empty], max_batch_tokens=64)


def test_folders_that_hold_no_model_get_one_sentence(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        Scorer.load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no config\.json"):
        Scorer.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        Scorer.load(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="unknown dtype 'int3'"):
        Scorer.load(folders["llama"], dtype="int3")
    with pytest.raises(UsageError, match="no device"):
        Scorer.load(folders["llama"], device="abacus")


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path, folders: dict[str, Path]) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["llama"], tmp_path / "holed")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 weight, the first model"):
        Scorer.load(folder)


def test_an_architecture_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    config.architectures, config.initializer_range = ["BertLMHeadModel"], 0.5
    BertLMHeadModel(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["is_decoder"] is False
    with pytest.raises(ModelError, match="BertLMHeadModel"):
        Scorer.load(tmp_path, dtype="float32")


def test_an_architecture_whose_halves_do_not_add_up_is_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32).eval()
    forward = LlamaForCausalLM.forward

    def forward_with_a_side_door(self, input_ids, **kwargs):  # type: ignore[no-untyped-def]
        output = forward(self, input_ids=input_ids, **kwargs)
        output.logits = output.logits + input_ids.unsqueeze(-1) % 7
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward_with_a_side_door)
    with pytest.raises(ModelError, match="does not give its own logits"):
        SplitModel(model)


def test_batches_hold_like_lengths_within_the_bound() -> None:
    lengths = [3, 50, 4, 4, 120, 9]
    batches = plan_batches(lengths, 100)
    assert batches == [[4], [1, 5], [2, 3, 0]]
    assert plan_batches([], 10) == []
    with pytest.raises(ValueError, match="at least 1"):
        plan_batches([1], 0)


def test_a_part_of_a_sequence_gets_the_scores_of_its_tokens(folders: dict[str, Path]) -> None:
    rng = np.random.default_rng(1)
    prompt, tokens = (rng.integers(3, VOCAB, num).astype(np.uint32) for num in (6, 10))
    sequence = Sequence(0, 0, prompt, tokens, SAMPLING)
    scorer = Scorer.load(folders["llama"], dtype="float32", device="cpu")
    (both,) = scorer.score([whole(sequence, [NOTHING, SAMPLING])], max_batch_tokens=64)
    assert [len(reading.raw_logprob) for reading in both.readings] == [10, 10]
    for reading, params in zip(both.readings, (NOTHING, SAMPLING), strict=True):
        (alone,) = score(scorer, [replace(sequence, params=params)], max_batch_tokens=64)
        assert_same([reading], [alone], atol=0.0)
    head = Span(sequence=sequence, readings=(SAMPLING,), stop=9)
    assert head.outputs == (0, 4)
    (part,) = scorer.score([head], max_batch_tokens=64)
    assert_same([part.readings[0]], [both.readings[1].each(lambda column: column[:4])], atol=1e-5)
    with pytest.raises(ValueError, match="positions 3 to 9 of 15 over the KV of 0"):
        Span(sequence=sequence, readings=(SAMPLING,), start=3, stop=9)
