"""A trainer's dump as the third party of a run: its values beside the engine's and the scorer's, token by token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Set
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracekit.diagnose.data import Run
from tracekit.diagnose.explain.trainer_values import leaves
from tracekit.diagnose.view import F8, Masked, TrainerView
from tracekit.errors import ReplayRefused
from tracekit.plural import plural
from tracekit.replay.joining import Decode, Joined, Span, join_samples
from tracekit.replay.rollouts import Rollout, Rollouts
from tracekit.scores import Scores, Values
from tracekit.trace.values import json_object
from tracekit.trainer.types import Dump, Sample, Text, sample

if TYPE_CHECKING:
    import pyarrow as pa

    from tracekit.trace.reader import Trace

_COLUMNS = {
    "old_logprob": "old_logprob",
    "held_logprob": "rollout_logprob",
    "current_logprob": "current_logprob",
    "advantage": "advantage",
    "entropy": "entropy",
    "version": "version",
    "train_version": "train_version",
}


Key = tuple[int, int]  # engine, request
Leaking = Callable[[Seq[Rollout], TrainerView, Dump], dict[str, Scores[Values]]]
"""See `tracekit.replay.leaks.leak_scores`."""


def add_trainer(
    run: Run, rollouts: Rollouts, dump: Dump, trace: Trace, model: Path, expect: str, leaking: Leaking
) -> Run:
    """Return a run with the trainer's view, and with what more must be scored where its values leave the scorer's.

    Args:
        run: the tokens of the rollouts, scored.
        rollouts: of the run.
        dump: what the trainer used.
        trace: of the run.
        model: a model folder, whose tokenizer tells texts.
        expect: what the trainer's values should be, "processed" or "raw".
        leaking: scores rollouts behind what lay before them in the trainer's batch.

    Raises:
        ReplayRefused: as `trainer_view`.
    """
    view = trainer_view(rollouts.rollouts, dump, trace.table("topk"), model, ended_by_client(trace))
    run = replace(run, view=view)
    if leaves(run, expect) is None:
        return run
    return replace(run, scores={**run.scores, **leaking(rollouts.rollouts, view, dump)})


def trainer_view(
    rollouts: Seq[Rollout], dump: Dump, topk: pa.Table, model: Path | None, cut: Set[Key] = frozenset()
) -> TrainerView:
    """Join a dump with the rollouts of a run.

    Args:
        rollouts: of the run, in its order.
        dump: what the trainer used.
        topk: the table of that name.
        model: a model folder, whose tokenizer tells texts; None where none is here.
        cut: engine and request of those that their client ended.

    Raises:
        ReplayRefused: no sequence of the dump is of this run, or all fit several rollouts.
    """
    decode = decoder(model)
    samples = dump.samples or _of_texts(rollouts, dump.texts, decode)
    ended = {i for i, r in enumerate(rollouts) if (r.sequence.engine, r.sequence.request) in cut}
    found = join_samples(rollouts, samples, decode, ended)
    total = len(dump.samples) + len(dump.texts)
    _refuse_empty(rollouts, samples, found, total, dump.format)
    return view_of(rollouts, samples, found, topk, dump.format, total, dump.clip)


def view_of(
    rollouts: Seq[Rollout],
    samples: Seq[Sample],
    found: Joined,
    topk: pa.Table,
    form: str,
    total: int,
    clip: tuple[float, float] | None,
) -> TrainerView:
    """Return the view of sequences that were joined.

    Args:
        rollouts: of the run, in its order.
        samples: the trainer's sequences.
        found: which of them belongs to which rollout.
        topk: the table of that name.
        form: what they were read from.
        total: how many sequences that had.
        clip: the clip range that it names.
    """
    bounds = np.cumsum([0, *(r.num_tokens for r in rollouts)])
    count = int(bounds[-1])
    columns: dict[str, F8] = {name: np.full(count, np.nan) for name in _COLUMNS}
    trained, paired = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    sequence = np.full(count, -1, dtype=np.int64)
    for span in found.spans:
        one = samples[span.sample]
        here = slice(int(bounds[span.rollout]), int(bounds[span.rollout]) + span.stop - span.start)
        for ours, theirs in _COLUMNS.items():
            columns[ours][here] = getattr(one, theirs)[span.start : span.stop]
        trained[here] = True if one.mask is None else one.mask[span.start : span.stop]
        sequence[here], paired[here] = span.sample, span.exact
    for pair in found.mispaired:
        if "completion" in pair.code:  # up to where the ids part, the context is the same
            paired[int(bounds[pair.rollout]) : int(bounds[pair.rollout + 1])] = True
            paired[sequence < 0] = False
    joined = {span.sample for span in found.spans}
    return TrainerView(
        format=form,
        **columns,
        trained=trained,
        sequence=sequence,
        paired=paired,
        best_other=_best_other(rollouts, topk),
        mispaired=sorted(found.mispaired, key=lambda pair: pair.rollout),
        masked=list(_masked(rollouts, samples, found.spans)),
        num_sequences=total,
        num_joined=len(joined),
        num_ambiguous=found.num_ambiguous,
        num_unknown=total - len(joined) - found.num_ambiguous,
        clip=clip,
    )


def ended_by_client(trace: Trace) -> set[Key]:
    """Return the requests of which a client may have a part only: it left, or vLLM's frontend found a stop string."""
    finished = {
        (row["engine"], row["request"]) for row in trace.table("finishes").to_pylist() if row["reason"] != "abort"
    }
    requests = trace.table("requests").select(["engine", "request", "sampling_params"]).to_pylist()
    said = "sampling parameters"
    keys = {(row["engine"], row["request"]): json_object(row["sampling_params"], said) for row in requests}
    return {key for key, sampling in keys.items() if key not in finished or sampling.get("stop")}


def decoder(model: Path | None) -> Decode | None:
    """Return what makes text of ids, special tokens left out; None where the folder has no tokenizer.json."""
    path = None if model is None else model / "tokenizer.json"
    if path is None or not path.is_file():
        return None
    from tokenizers import Tokenizer

    return partial(Tokenizer.from_file(str(path)).decode, skip_special_tokens=True)


def _of_texts(rollouts: Seq[Rollout], texts: Seq[Text], decode: Decode | None) -> list[Sample]:
    """Give texts the ids of the rollout that reads so, where there is one alone."""
    if texts and decode is None:
        raise ReplayRefused(
            "the trainer's dump has texts and no token ids, which are only found with the model's tokenizer.json: "
            "say where it is (--model FOLDER), or dump token ids"
        )
    by_text: dict[tuple[str, str], list[Rollout]] = defaultdict(list)
    for rollout in rollouts if texts else ():
        assert decode is not None
        key = decode(rollout.sequence.prompt_token_ids.tolist()), decode(rollout.sequence.token_ids.tolist())
        by_text[key].append(rollout)
    found = []
    for text in texts:
        fitting = by_text.get((text.prompt, text.completion), [])
        if len({rollout.sequence.token_ids.tobytes() for rollout in fitting}) == 1:
            own = fitting[0].sequence
            ids = np.concatenate([own.prompt_token_ids, own.token_ids])
            num_prompt = len(own.prompt_token_ids)
            found.append(sample(text.where, ids, num_prompt=num_prompt, advantage=text.advantage, step=text.step))
    return found


def _refuse_empty(rollouts: Seq[Rollout], samples: Seq[Sample], found: Joined, total: int, form: str) -> None:
    if found.spans:
        return
    what = f"of {plural(total, 'sequence')} in the trainer's dump ({form}) none is of a recorded request"
    if found.num_ambiguous:
        raise ReplayRefused(
            f"{what}: {found.num_ambiguous} fit several requests of the same ids, and neither the engine's logprobs "
            "nor a weight version in the dump tells which"
        )
    if not samples:
        raise ReplayRefused(f"{what}: no request reads as one of its texts does")
    first, ours = samples[0], rollouts[0].sequence
    raise ReplayRefused(
        f"{what}: its first begins with the ids {first.token_ids[:4].tolist()}, the first request with "
        f"{ours.prompt_token_ids[:4].tolist()}; is it the dump of this run?"
    )


def _masked(rollouts: Seq[Rollout], samples: Seq[Sample], spans: Seq[Span]) -> list[Masked]:
    """Masks that do not cover what was sampled, one entry per sequence."""
    by_sample: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        if span.exact:
            by_sample[span.sample].append(span)
    found = []
    for s, own in sorted(by_sample.items()):
        mask = samples[s].mask
        if mask is None or not mask.any():
            continue
        first = min(own, key=lambda span: span.start)
        sampled = np.zeros(mask.size, dtype=bool)
        missing = 0
        for span in own:
            sampled[span.start : span.stop] = True
            part = mask[span.start : span.stop]
            missing += int((~part).sum()) if part.any() else 0
        prompt = slice(0, first.start)
        extra = int((mask & ~sampled)[: max(span.stop for span in own)].sum())
        shifts = [by for by in (1, -1) if _is_shifted(mask, sampled, by)]
        if shifts:
            found.append(Masked("trainer mask shifted", first.rollout, shifts[0], extra, missing))
        elif extra and (mask[0] or mask[prompt].all() or len(own) == 1):
            found.append(Masked("trainer mask wrong", first.rollout, 0, extra, missing))
    return found


def _is_shifted(mask: Any, sampled: Any, by: int) -> bool:
    """Whether a mask is what was sampled, moved by some positions; what falls over the end is gone."""
    moved = np.zeros_like(sampled)
    if by > 0:
        moved[by:] = sampled[:-by]
    else:
        moved[:by] = sampled[-by:]
    return not np.array_equal(mask, sampled) and np.array_equal(mask, moved)


def _best_other(rollouts: Seq[Rollout], topk: pa.Table) -> F8:
    """[N] logprob of the most likely recorded alternative to each token; NaN where none was recorded."""
    found: dict[tuple[int, int, int], float] = {}
    columns = {name: topk.column(name).to_numpy() for name in ("engine", "request", "position", "token_id", "logprob")}
    sampled = {
        (r.sequence.engine, r.sequence.request, r.num_prompt_tokens + i): int(token)
        for r in rollouts
        for i, token in enumerate(r.sequence.token_ids)
    } if topk.num_rows else {}  # fmt: skip
    for engine, request, position, token, logprob in zip(*columns.values(), strict=True):
        key = int(engine), int(request), int(position)
        if sampled.get(key, token) != token:
            found[key] = max(float(logprob), found.get(key, -np.inf))
    return np.array(
        [
            found.get((r.sequence.engine, r.sequence.request, r.num_prompt_tokens + i), np.nan)
            for r in rollouts
            for i in range(r.num_tokens)
        ]
    )
