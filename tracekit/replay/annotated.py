"""What trainers said of the rollouts through the daemon, as the third party of a run: joined by the requests' ids."""

from __future__ import annotations

from collections.abc import Mapping, Set
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tracekit.diagnose.view import TrainerView
from tracekit.replay.joining import Decode, Joined, join_samples
from tracekit.replay.rollouts import Rollout
from tracekit.replay.third import Key, view_of
from tracekit.trace.annotated import read_annotations
from tracekit.trainer.types import Sample, sample

if TYPE_CHECKING:
    from tracekit.trace.reader import Trace

FORMAT = "annotations in the trace"


def annotated_view(
    rollouts: Seq[Rollout], trace: Trace, decode: Decode | None = None, cut: Set[Key] = frozenset()
) -> TrainerView | None:
    """Return what trainers said of the tokens of a run; None where they computed nothing of theirs.

    Args:
        rollouts: of the run, in its order.
        trace: of the run.
        decode: ids to text.
        cut: engine and request of those that their client ended.
    """
    said = read_annotations(trace)
    if not any("old_logprobs" in one or "advantages" in one for one in said.of_request.values()):
        return None
    samples: list[Sample] = []
    joined = Joined()
    num_wrong = 0
    for at, rollout in enumerate(rollouts):
        key = rollout.sequence.engine, rollout.sequence.request
        if key not in said.of_request:
            continue
        one = _sample(rollout, said.of_request[key])
        if one is None:
            num_wrong += 1
            continue
        found = join_samples([rollout], [one], decode, {0} if key in cut else frozenset())
        joined.spans += [replace(span, rollout=at, sample=len(samples)) for span in found.spans]
        has_ids = "token_ids" in said.of_request[key]
        for pair in found.mispaired:
            # of a value too many nobody said which token it is of
            pair = replace(pair, rollout=at, trainer_ids=pair.trainer_ids if has_ids else [])
            joined.mispaired.append(pair)
        samples.append(one)
    joined.ambiguous.update(range(len(samples), len(samples) + said.num_ambiguous + num_wrong))
    total = len(samples) + said.num_ambiguous + num_wrong + len(said.unknown)
    return view_of(rollouts, samples, joined, trace.table("topk"), FORMAT, total, None)


def _sample(rollout: Rollout, said: Mapping[str, Any]) -> Sample | None:
    """The sequence that a trainer made of a rollout; None where its values do not fit the ids that it gives itself."""
    own = rollout.sequence
    prompt, completion = own.prompt_token_ids.tolist(), own.token_ids.tolist()
    old, ids = said.get("old_logprobs", []), said.get("token_ids", [])
    if ids:
        num_prompt = len(ids) - len(old) if old else min(len(prompt), len(ids))
        if num_prompt < 0:
            return None
    else:
        length = len(old) or len(completion)
        num_prompt = len(prompt)
        # an id that stands for one that nobody told
        ids = [*prompt, *completion[:length], *[0] * (length - len(completion))]
    size, advantages = len(ids) - num_prompt, said.get("advantages", [])
    if not size or len(advantages) not in (0, 1, size):
        return None
    return sample(
        f"{said['request_id']}/{said['index']}",
        np.array(ids),
        num_prompt=num_prompt,
        step=said.get("train_step"),
        old_logprob=old or None,
        advantage=None if not advantages else advantages[0] if len(advantages) == 1 else advantages,
    )
