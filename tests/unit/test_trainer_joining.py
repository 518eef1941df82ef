"""A trainer's sequences are joined with recorded rollouts by what they hold; what does not fit is named or refused."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tracekit.errors import ReplayRefused
from tracekit.replay.joining import join_samples
from tracekit.replay.rollouts import Rollout
from tracekit.replay.third import trainer_view
from tracekit.scoring.params import Params
from tracekit.scoring.types import Sequence
from tracekit.trainer.types import Dump, Sample, Text, sample

TOPK = pa.table({name: pa.array([], pa.uint32()) for name in ("engine", "request", "position", "token_id", "logprob")})


def rollout(request: int, prompt: list[int], completion: list[int], *, engine: int = 0, version: int = 0) -> Rollout:
    own = Sequence(engine, request, np.array(prompt, np.uint32), np.array(completion, np.uint32), Params())
    count = len(completion)
    values = -np.arange(1, count + 1) / (10 + request)
    return Rollout(own, f"r{request}", values, np.full(count, version), np.arange(count), np.ones(count, np.int64))


def trained(prompt: list[int], completion: list[int], **columns: Any) -> Sample:
    return sample("dump:1", [*prompt, *completion], num_prompt=len(prompt), **columns)


def spans(rollouts: list[Rollout], samples: list[Sample]) -> list[tuple[int, int, int, int]]:
    return sorted((s.rollout, s.sample, s.start, s.stop) for s in join_samples(rollouts, samples).spans)


A, B, C = rollout(0, [1, 2], [3, 4, 5]), rollout(1, [1, 2], [3, 4, 6]), rollout(2, [7], [8, 9])


def test_the_order_of_a_dump_means_nothing() -> None:
    samples = [trained([7], [8, 9]), trained([1, 2], [3, 4, 6]), trained([1, 2], [3, 4, 5])]
    assert spans([A, B, C], samples) == [(0, 2, 2, 5), (1, 1, 2, 5), (2, 0, 1, 3)]


def test_several_turns_are_nested_prefixes_of_one_sequence() -> None:
    turns = [
        rollout(0, [1, 2], [3, 4]),
        rollout(1, [1, 2, 3, 4, 20], [5, 6]),
        rollout(2, [1, 2, 3, 4, 20, 5, 6, 21], [7]),
    ]
    whole = [1, 2, 3, 4, 20, 5, 6, 21, 7]
    mask = [0, 0, 1, 1, 0, 1, 1, 0, 1]
    assert spans(turns, [sample("d", whole, mask=mask)]) == [(0, 0, 2, 4), (1, 0, 5, 7), (2, 0, 8, 9)]


def test_a_sequence_that_was_split_by_turn_is_joined_where_each_is_trained_on() -> None:
    turns = [rollout(0, [1, 2], [3, 4]), rollout(1, [1, 2, 3, 4, 20], [5, 6])]
    first = sample("d", [1, 2, 3, 4], mask=[0, 0, 1, 1], old_logprob=[-9.0] * 4)
    second = sample("d", [1, 2, 3, 4, 20, 5, 6], mask=[0, 0, 0, 0, 0, 1, 1], old_logprob=[-8.0] * 7)
    assert spans(turns, [second, first]) == [(0, 1, 2, 4), (1, 0, 5, 7)]


SAME = [rollout(0, [1, 2], [3, 4], version=0), rollout(1, [1, 2], [3, 4], version=1, engine=1)]


def test_rollouts_of_the_same_ids_are_told_by_the_engines_logprobs_or_the_version() -> None:
    held = [trained([1, 2], [3, 4], rollout_logprob=SAME[i].rollout_logprob.tolist(), advantage=i) for i in (1, 0)]
    assert spans(SAME, held) == [(0, 1, 2, 4), (1, 0, 2, 4)]
    versions = [trained([1, 2], [3, 4], version=v, old_logprob=[-1.0, -v]) for v in (1, 0)]
    assert spans(SAME, versions) == [(0, 1, 2, 4), (1, 0, 2, 4)]


def test_where_nothing_tells_them_apart_none_is_joined_unless_it_makes_no_difference() -> None:
    found = join_samples(SAME, [trained([1, 2], [3, 4], advantage=v) for v in (0.0, 1.0)])
    assert (found.spans, found.num_ambiguous) == ([], 2)
    assert len(spans(SAME, [trained([1, 2], [3, 4], advantage=1.0)] * 2)) == 2


def test_two_dumps_of_one_sequence_are_taken_for_the_one_that_has_the_values() -> None:
    bare, whole = trained([7], [8, 9], rollout_logprob=[-1.0, -2.0]), trained([7], [8, 9], old_logprob=[-1.0, -2.0])
    assert spans([C], [bare, whole]) == [(0, 1, 1, 3)]
    other = trained([7], [8, 9], old_logprob=[-1.5, -2.0])
    found = join_samples([C], [whole, other])
    assert (found.spans, found.num_ambiguous) == ([], 2)


IDS = {
    "trainer double bos": (([1, 1, 2], [3, 4, 5]), 1, [2], [1, 2], 3),
    "trainer prompt differs": (([1, 9], [3, 4, 5]), 1, [2], [9], 3),
    "trainer completion truncated": (([1, 2], [3, 4]), 4, [5], [], 1),
    "trainer completion extended": (([1, 2], [3, 4, 5, 0]), 5, [], [0], 1),
    "trainer completion differs": (([1, 2], [3, 9, 5]), 3, [4, 5], [9, 5], 2),
}


@pytest.mark.parametrize("code", IDS)
def test_ids_that_differ_are_named_with_the_first_of_them(code: str) -> None:
    ids, position, engine, trainer, num_tokens = IDS[code]
    (pair,) = join_samples([A, C], [trained([7], [8, 9]), trained(*ids)]).mispaired
    assert (pair.code, pair.rollout, pair.position, pair.num_tokens) == (code, 0, position, num_tokens)
    assert (pair.engine_ids[: len(engine)], pair.trainer_ids[: len(trainer)]) == (engine, trainer)


def test_what_a_stop_string_or_the_client_ended_may_be_shorter() -> None:
    found = join_samples([A, C], [trained([1, 2], [3, 4])], cut={0})
    assert found.mispaired == [] and [(s.rollout, s.start, s.stop, s.exact) for s in found.spans] == [(0, 2, 4, True)]


def test_an_engine_that_doubled_the_first_token_is_named() -> None:
    (pair,) = join_samples([rollout(0, [1, 1, 2], [3, 4])], [trained([1, 2], [3, 4])]).mispaired
    assert (pair.code, pair.position, pair.engine_ids, pair.trainer_ids) == ("engine double bos", 1, [1, 2], [2])


def test_other_ids_of_the_same_text_are_a_completion_that_was_tokenized_again() -> None:
    def decode(ids: Any) -> str:
        return "".join({3: "ab", 4: "c", 30: "a", 31: "bc"}.get(i, "?") for i in ids)

    (pair,) = join_samples([rollout(0, [1], [3, 4])], [trained([1], [30, 31])], decode).mispaired
    assert (pair.code, pair.position) == ("trainer completion retokenised", 1)


def test_a_history_that_was_rendered_again_is_told_from_another_prompt() -> None:
    turns = [rollout(0, [1, 2], [3, 4, 5]), rollout(1, [1, 2, 3, 4, 5, 20], [6, 7])]
    again = sample("d", [1, 2, 3, 45, 20, 6, 7], mask=[0, 0, 1, 1, 0, 1, 1])
    found = {pair.rollout: pair for pair in join_samples(turns, [again]).mispaired}
    assert found[1].code == "trainer history differs" and found[1].position == 3
    assert (found[1].engine_ids[:2], found[1].trainer_ids[:2]) == ([4, 5], [45, 20])


def view(rollouts: list[Rollout], samples: list[Sample], topk: Any = TOPK) -> Any:
    return trainer_view(rollouts, Dump("rows", samples), topk, None)


def test_values_stand_at_their_tokens_and_only_where_the_context_is_the_same() -> None:
    samples = [
        trained([7], [8, 9], old_logprob=[-0.5, -0.6]),
        trained([1, 9], [3, 4, 5], old_logprob=[-1.0, -2.0, -3.0]),
    ]
    seen = view([A, B, C], samples)
    assert seen.old_logprob[[0, 1, 2, 6, 7]].tolist() == [-1.0, -2.0, -3.0, -0.5, -0.6]
    assert np.isnan(seen.old_logprob[3:6]).all() and seen.sequence.tolist() == [1, 1, 1, -1, -1, -1, 0, 0]
    assert seen.paired.tolist() == [False] * 6 + [True] * 2
    assert (seen.num_sequences, seen.num_joined, seen.num_unknown) == (2, 2, 0)


def test_up_to_where_completions_part_their_values_are_compared() -> None:
    seen = view([A], [trained([1, 2], [3, 4], old_logprob=[-1.0, -2.0])])
    assert seen.paired.tolist() == [True, True, False]
    assert seen.old_logprob[:2].tolist() == [-1.0, -2.0] and np.isnan(seen.old_logprob[2])


MASKS = {
    "right": ([0, 0, 1, 1, 1], []),
    "late": ([0, 0, 0, 1, 1], [("trainer mask shifted", 1, 0, 1)]),
    "early": ([0, 1, 1, 1, 0], [("trainer mask shifted", -1, 1, 1)]),
    "the prompt too": ([1, 1, 1, 1, 1], [("trainer mask wrong", 0, 2, 0)]),
    "nothing": ([0, 0, 0, 0, 0], []),
    "not the end": ([0, 0, 1, 1, 0], []),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_compared_with_what_was_sampled(name: str) -> None:
    mask, says = MASKS[name]
    (*found,) = view([A], [sample("d", [1, 2, 3, 4, 5], mask=mask)]).masked
    assert [(m.code, m.shift, m.num_extra, m.num_missing) for m in found] == says


def test_the_best_alternative_is_that_of_the_same_token() -> None:
    rows = [(0, 0, 2, 3, -0.1), (0, 0, 2, 9, -2.0), (0, 0, 3, 9, -0.5), (0, 0, 3, 8, -1.5), (1, 0, 4, 9, -0.2)]
    columns = zip(*rows, strict=True)
    topk = pa.table(dict(zip(("engine", "request", "position", "token_id", "logprob"), columns, strict=True)))
    assert view([A], [trained([1, 2], [3, 4, 5])], topk).best_other.tolist()[:2] == [-2.0, -0.5]


def refused(rollouts: list[Rollout], dump: Dump) -> str:
    with pytest.raises(ReplayRefused) as refusal:
        trainer_view(rollouts, dump, TOPK, None)
    return str(refusal.value)


def test_a_dump_of_another_run_is_refused_and_so_is_one_that_fits_everywhere() -> None:
    assert refused([A], Dump("rows", [trained([50], [51, 52])])) == (
        "of 1 sequence in the trainer's dump (rows) none is of a recorded request: its first begins with the ids "
        "[50, 51, 52], the first request with [1, 2]; is it the dump of this run?"
    )
    assert refused(SAME, Dump("rows", [trained([1, 2], [3, 4], advantage=v) for v in (0.0, 1.0)])) == (
        "of 2 sequences in the trainer's dump (rows) none is of a recorded request: 2 fit several requests of the "
        "same ids, and neither the engine's logprobs nor a weight version in the dump tells which"
    )
    assert refused([A], Dump("texts", [], [Text("d", "a", "b", 0.0, None)])) == (
        "the trainer's dump has texts and no token ids, which are only found with the model's tokenizer.json: say "
        "where it is (--model FOLDER), or dump token ids"
    )
