"""The encoder of V0's hooks, on objects made here: what no CPU engine does (async output, swap), and what is lost."""

import functools
import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from tracekit.recorder.vllm.events import Admitted, Dispatch, Event, Finished, Moves, Preempted, Step
from tracekit.recorder.vllm.v0.rows import V0Rows
from tracekit.recorder.vllm.v0.sampler import Scored
from tracekit.recorder.vllm.v0.sampling import sampling_of
from tracekit.tables import ACCEPTED, DISCARDED, NEW, PREEMPTED, PREFILL, RESUMED


@dataclass
class Params:
    logprobs: int | None = 0
    extra_args: dict[str, Any] = field(default_factory=lambda: {"rollout": 7})
    logits_processors: list[Any] | None = None


def admitted(request_id: str, num_prompt: int = 20, logprobs: int | None = 0) -> Admitted:
    sequence = SimpleNamespace(get_prompt_len=lambda: num_prompt, prompt_token_ids=list(range(num_prompt)))
    fields = {"sampling_params": Params(logprobs), "trace_headers": None, "lora_request": None}
    group = SimpleNamespace(request_id=request_id, seqs=[sequence], **fields)
    return Admitted(1, group)


def part(
    request_id: str,
    chunk: int,
    *,
    is_prompt: bool,
    do_sample: bool = True,
    hits: tuple[int, ...] = (),
    table: tuple[int, ...] = (),
) -> Any:
    return SimpleNamespace(
        request_id=request_id,
        token_chunk_size=chunk,
        is_prompt=is_prompt,
        do_sample=do_sample,
        computed_block_nums=hits,
        sampling_params=Params(),
        block_tables={7: list(table)},
    )


def step(number: int, *parts: Any, version: int = 0, moves: tuple[Moves, ...] = ()) -> Step:
    """A step that samples token 100 + its number, with logprob minus that number, for each part."""
    reported = SimpleNamespace(logprob=-float(number), rank=1)
    sample = SimpleNamespace(output_token=100 + number, logprobs={100 + number: reported})
    outputs = [SimpleNamespace(samples=[sample] if p.do_sample else [], prompt_logprobs=None) for p in parts]
    at = Dispatch(number, 10 * number, version, 0, 25)
    return Step(at, list(parts), outputs, 10 * number + 5, moves=moves)


def encode(*events: Event) -> tuple[dict[str, Any], V0Rows]:
    rows = V0Rows(num_blocks=100, block_size=16)
    for event in events:
        rows.add(event)
    return rows.take(), rows


def test_behind_missing_steps_nothing_is_told_of_who_may_have_been_in_them() -> None:
    rows = V0Rows(num_blocks=100, block_size=16, first_step=0)
    for event in (admitted("a"), step(0, part("a", 20, is_prompt=True)), admitted("b")):
        rows.add(event)
    rows.add(step(2, part("a", 1, is_prompt=False), part("b", 1, is_prompt=False)))
    assert rows.take_orphans() == {"scheduled": 2, "tokens": 2}
    rows.add(admitted("c"))
    rows.add(step(3, part("c", 20, is_prompt=True)))
    tokens = rows.take()["tokens"]
    assert tokens["request"].tolist() == [0, 2] and tokens["position"].tolist() == [20, 20]


def test_tokens_that_a_request_ends_with_and_nobody_saw_are_counted() -> None:
    # somebody's append_output took the place of ours
    _, rows = encode(admitted("a"), step(0, part("a", 20, is_prompt=True)), Finished(["a"], "length", 5, 99, 6))
    assert rows.take_orphans() == {"tokens": 5}


def test_a_token_sampled_after_the_end_is_discarded() -> None:
    # with async output processing a finished request runs one more step
    tables, _ = encode(
        admitted("a"),
        step(0, part("a", 20, is_prompt=True)),
        step(1, part("a", 1, is_prompt=False)),
        Finished(["a"], "stop", 2, 99, 2),
        step(2, part("a", 1, is_prompt=False)),
    )
    tokens = tables["tokens"]
    assert tokens["flags"].tolist() == [ACCEPTED, ACCEPTED, DISCARDED]
    assert tokens["position"].tolist() == [20, 21, 22]
    assert tokens["rollout_logprob"].tolist() == [0.0, -1.0, -2.0]
    assert tables["finishes"]["engine_step"].tolist() == [1]
    assert tables["finishes"]["num_output_tokens"].tolist() == [2]
    assert tables["steps"]["kv_usage"].tolist() == [0.75] * 3


def test_recomputed_and_swapped_requests_come_back() -> None:
    tables, _ = encode(
        admitted("a"),
        admitted("b"),
        step(0, part("a", 20, is_prompt=True), part("b", 20, is_prompt=True)),
        Preempted("a", True),
        Preempted("b", False),
        step(1, part("a", 21, is_prompt=True), part("b", 1, is_prompt=False)),
    )
    rows = tables["scheduled"]
    found = list(
        zip(*(rows[c].tolist() for c in ("engine_step", "request", "num_computed", "num_tokens", "flags")), strict=True)
    )
    assert found == [
        (0, 0, 0, 20, NEW | PREFILL),
        (0, 1, 0, 20, NEW | PREFILL),
        (1, 0, 0, 21, RESUMED | PREFILL),
        (1, 1, 20, 1, RESUMED),
        (1, 0, 0, 0, PREEMPTED),
        (1, 1, 0, 0, PREEMPTED),
    ]
    assert tables["tokens"]["position"].tolist() == [20, 20, 21, 21]


def test_tokens_of_a_prefix_hit_are_not_computed_but_the_last_always_is() -> None:
    tables, _ = encode(
        admitted("a", 40),
        admitted("b", 32),
        step(
            0, part("a", 36, is_prompt=True, do_sample=False, hits=(1, 2)), part("b", 32, is_prompt=True, hits=(1, 2))
        ),
        step(1, part("a", 4, is_prompt=True, hits=(1, 2))),
    )
    assert tables["scheduled"]["num_computed"].tolist() == [32, 31, 36]
    assert tables["scheduled"]["num_tokens"].tolist() == [4, 1, 4]
    assert tables["steps"]["num_scheduled_tokens"].tolist() == [5, 4]


def cache_rows(tables: dict[str, Any]) -> list[tuple[Any, ...]]:
    """(engine step, request, block, block id, tokens, versions) of each row; -1 for a null version."""
    names = ("engine_step", "request", "block", "block_id", "num_tokens", "min_weight_version", "max_weight_version")
    found = tables.get("cache", {name: np.array([], "u4") for name in names})
    columns = [np.ma.filled(found[name].astype("i8"), -1).tolist() for name in names]
    return [(*row[:5], row[5:]) for row in zip(*columns, strict=True)]


def test_a_hit_has_the_versions_that_computed_its_blocks() -> None:
    first, second = tuple(range(5)), (0, 1, 2, 9)
    tables, _ = encode(
        admitted("a", 40),
        admitted("b", 50),
        step(0, part("a", 40, is_prompt=True, table=first), version=0),
        *(step(n, part("a", 1, is_prompt=False, table=first), version=n // 5) for n in range(1, 10)),
        step(10, part("b", 50, is_prompt=True, hits=(0, 1, 2), table=second), version=3),
        admitted("whole", 48),
        # its last token is computed again, into a block that is shared
        step(11, part("whole", 48, is_prompt=True, hits=(0, 1, 2), table=(0, 1, 2)), version=4),
        admitted("again", 49),
        step(12, part("again", 49, is_prompt=True, hits=(0, 1, 2), table=(0, 1, 2, 8)), version=4),
    )
    mixed = [(0, 0), (0, 0), (0, 1)]
    whole = [(10, 1, i, i, 16, found) for i, found in enumerate(mixed)]
    assert cache_rows(tables)[:3] == whole
    assert cache_rows(tables)[3:6] == [(11, 2, i, i, 16 - (i == 2), found) for i, found in enumerate(mixed)]
    assert [row[-1] for row in cache_rows(tables)[6:]] == [(0, 0), (0, 0), (0, 4)]


def test_blocks_that_move_take_their_versions_along() -> None:
    tables, _ = encode(
        admitted("a", 32),
        admitted("b", 32),
        step(0, part("a", 32, is_prompt=True, table=(0, 1)), version=1),
        Preempted("a", False),
        # a's blocks go out while b's prompt takes their place
        step(1, part("b", 32, is_prompt=True, table=(0, 1)), version=2, moves=(Moves(swap_out=[(0, 70), (1, 71)]),)),
        step(2, part("a", 1, is_prompt=False, table=(5, 4, 6)), version=3, moves=(Moves(swap_in=[(70, 5), (71, 4)]),)),
        admitted("c", 40),
        step(3, part("c", 40, is_prompt=True, hits=(7, 3), table=(7, 3, 9)), version=3, moves=(Moves(copy=[(0, 7)]),)),
    )
    assert cache_rows(tables) == [
        (2, 0, 0, 5, 16, (1, 1)),
        (2, 0, 1, 4, 16, (1, 1)),
        (3, 2, 0, 7, 16, (2, 2)),
        (3, 2, 1, 3, 16, (-1, -1)),
    ]


def test_after_a_missing_step_nothing_is_known_but_what_is_computed_anew() -> None:
    hits = {"is_prompt": True, "hits": (0, 1)}
    lost = step(1, part("a", 1, is_prompt=False, table=(0, 1, 2)))
    tables, rows = encode(
        admitted("a", 32),
        step(0, part("a", 32, is_prompt=True, table=(0, 1))),
        step(2, part("a", 1, is_prompt=False, table=(0, 1, 2))),
        admitted("b", 33),
        step(3, part("b", 33, **hits, table=(0, 1, 8)), version=1),
        admitted("c", 48),
        step(4, part("c", 48, is_prompt=True, table=(3, 4, 5)), version=1),
        admitted("d", 33),
        step(5, part("d", 33, **hits, table=(3, 4, 9)), version=1),
        # a's place is not known: what it writes is computed by nobody knows whom
        step(6, part("a", 1, is_prompt=False, table=(0, 1, 4)), version=1),
        admitted("e", 33),
        step(7, part("e", 33, **hits, table=(3, 4, 9)), version=1),
    )
    assert [row[-1] for row in cache_rows(tables)] == [*[(-1, -1)] * 2, *[(1, 1)] * 2, (1, 1), (-1, -1)]
    assert rows.count(lost) == {"steps": 1, "scheduled": 1, "tokens": 1}
    assert rows.count(step(8, part("new", 33, **hits)))["cache"] == 2


def test_logprobs_are_null_for_who_did_not_ask() -> None:
    tables, _ = encode(admitted("a", logprobs=None), step(3, part("a", 20, is_prompt=True)))
    assert tables["tokens"]["rollout_logprob"].tolist() == [None]
    assert tables["tokens"]["rank"].tolist() == [None]


def test_rows_of_a_request_that_was_not_admitted_are_counted() -> None:
    parts = [part("x", 20, is_prompt=True), part("y", 5, is_prompt=True, do_sample=False)]
    tables, rows = encode(step(0, *parts), Finished(["x"], "stop", 0, 9, 1))
    assert [len(tables[name]["engine_step"]) for name in ("steps", "scheduled", "tokens")] == [1, 0, 0]
    assert "finishes" not in tables
    assert rows.take_orphans() == {"scheduled": 2, "tokens": 1}
    assert rows.take_orphans() == {}
    assert rows.count(step(0, *parts)) == {"steps": 1, "scheduled": 2, "tokens": 1}


def test_children_know_their_parent() -> None:
    others = ["odd_parallel_sample_", "odd_parallel_sample_²"]
    tables, _ = encode(admitted("job_parallel_sample_2"), *map(admitted, others))
    assert tables["requests"]["external_id"] == ["job", *others]
    assert tables["requests"]["parent_id"] == ["job", None, None]
    assert tables["requests"]["index"].tolist() == [2, 0, 0]
    assert json.loads(tables["requests"]["labels"][0]) == {"rollout": 7}


def test_two_requests_of_one_id_at_once_are_counted_and_not_mixed_up() -> None:
    rows = V0Rows(num_blocks=10, block_size=16)
    first = admitted("a")
    rows.add(first)
    rows.add(first._replace(again=True))
    rows.add(first)  # the two may be under way yet
    assert len(rows.take()["requests"]["request"]) == 1 and rows.num_live() == 0
    assert rows.take_orphans() == {"requests": 2}


def test_alternatives_are_ranked_whether_or_not_the_sampled_token_is_one_of_them() -> None:
    def sampled(token_id: int, rank: int, *others: tuple[int, int]) -> Any:
        # the sampled token first, as the engine makes it; its entry becomes that of an alternative in place
        reported = {token_id: SimpleNamespace(logprob=-float(rank), rank=rank)}
        for other, at in others:
            reported[other] = SimpleNamespace(logprob=-float(at), rank=at)
        samples = [SimpleNamespace(output_token=token_id, logprobs=reported)]
        return SimpleNamespace(samples=samples, prompt_logprobs=None)

    both = [part("a", 20, is_prompt=True), part("b", 20, is_prompt=True)]
    both[0].sampling_params = both[1].sampling_params = Params(2)
    among, beyond = sampled(7, 2, (5, 1), (7, 2)), sampled(9, 40, (4, 1), (3, 2))
    event = Step(Dispatch(0, 10, 0, 0, 25), both, [among, beyond], 15)
    tables, rows = encode(admitted("a", logprobs=2), admitted("b", logprobs=2), event)
    found = {name: values.tolist() for name, values in tables["topk"].items()}
    assert found == {
        "request": [0, 0, 1, 1],
        "position": [20] * 4,
        "rank": [1, 2, 1, 2],
        "token_id": [5, 7, 4, 3],
        "logprob": [-1.0, -2.0, -1.0, -2.0],
    }
    assert rows.count(event) == {"steps": 1, "scheduled": 2, "tokens": 2, "topk": 4}


def logit_bias_logits_processor(bias: Any, ids: Any, logits: Any) -> Any:
    return logits


class AllowedTokenIdsLogitsProcessor:
    allowed_ids = (3, 5)


class NoBadWordsLogitsProcessor:
    bad_words_ids = ((8, 9),)


def test_what_the_engine_turned_into_functions_is_read_back() -> None:
    bias = functools.partial(logit_bias_logits_processor, {4: 1.5})
    own = [bias, AllowedTokenIdsLogitsProcessor(), NoBadWordsLogitsProcessor()]
    found = sampling_of(Params(logits_processors=own))
    assert found["logit_bias"] == {"4": 1.5} and found["allowed_token_ids"] == [3, 5]
    assert found["bad_words_token_ids"] == [[8, 9]] and found["logits_processors"] is None
    assert len(sampling_of(Params(logits_processors=[bias, len]))["logits_processors"]) == 1


def test_values_of_who_did_not_ask_come_beside_the_outputs() -> None:
    for option, expected in (("engine", None), ("both", [-3.5, -2.5])):
        rows = V0Rows(100, 16, option)
        rows.add(admitted("a", logprobs=None))
        rows.add(admitted("b"))
        event = step(1, part("a", 20, is_prompt=True), part("b", 20, is_prompt=True))
        outputs = Scored(event.outputs)
        outputs.scores = [(-2.5, -3.5 if option == "both" else None), (-1.0, -7.0 if option == "both" else None)]
        rows.add(event._replace(outputs=outputs))
        tokens = rows.take()["tokens"]
        assert tokens["rollout_logprob"].tolist() == [-2.5, -1.0]
        assert np.ma.getmaskarray(tokens["rank"]).tolist() == [True, False]
        first = [tokens[name][0] for name in ("raw_logprob", "processed_logprob")]
        assert [None if value is np.ma.masked else value for value in first] == (expected or [None, None])
