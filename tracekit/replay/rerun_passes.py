"""In which ways an engine runs its tokens again, and which rollouts in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.reran import ALONE, COMPOSED, PREFILLED, UNCACHED
from tracekit.replay.rerun_recorded import Recorded
from tracekit.replay.rerun_script import Event, as_recorded, most_tokens, uncached
from tracekit.replay.rollouts import Rollout
from tracekit.replay.sampling import pick
from tracekit.replay.stages import Group

SAMPLE_TOKENS = 2048  # that run alone: one at a time they cost as many forwards


@dataclass(frozen=True)
class Passes:
    """What the engine of one re-run plays.

    Attributes:
        events: of each way, by its name.
        first: folder of the weights that the engine begins with.
        room: tokens of the largest step.
        num_tokens: that are forced, in all ways.
    """

    events: dict[str, list[Event]]
    first: str
    room: int
    num_tokens: int


def plan_passes(recorded: Recorded, rollouts: Seq[Rollout], folders: Mapping[int, str], group: Group) -> Passes:
    """Return the recorded composition first, then what changes one thing after the other.

    Args:
        recorded: the engine's rows.
        rollouts: of this engine, that are scored.
        folders: with the weights of each version that a step ran on.
        group: weight version to the oldest one with the same weights.
    """
    steps = recorded.rows["steps"]
    first, loaded = (folders[steps[at]["weight_version"]] for at in (0, -1))
    composed = as_recorded(recorded, folders)
    events = {COMPOSED: composed}
    if recorded.rows["cache"] and recorded.row["kind"] == "v1":  # V0 cannot be told to leave its cache alone
        events[UNCACHED] = [["begin"], ["load", first], *uncached(composed, recorded)]
    sample = _alone(rollouts, group)
    prompts = [rollout for rollout in sample if _as_prompt(recorded, rollout)]
    for how, event, which in ((ALONE, "alone", sample), (PREFILLED, "prefill", prompts)):
        own, loaded = _one_by_one(event, which, folders, loaded)
        events[how] = [["begin"], ["room", recorded.room], *own]
    num_tokens = len(recorded.rows["tokens"]) * (1 + (UNCACHED in events))
    num_tokens += sum(rollout.num_tokens for rollout in [*sample, *prompts])
    room = most_tokens(events.get(UNCACHED, []))
    events[COMPOSED] = [["room", recorded.room], *composed]
    return Passes(events, first, room, num_tokens)


def _alone(rollouts: Seq[Rollout], group: Group) -> list[Rollout]:
    """A sample of the rollouts whose tokens and KV are of one version's weights, spread evenly."""
    plain = [i for i, r in enumerate(rollouts) if len({group(v) for v in r.versions}) == 1]
    lengths = np.array([r.num_tokens for r in rollouts])
    chosen = pick(plain, lengths, lengths, max_tokens=SAMPLE_TOKENS, max_cost=None) if plain else []
    return [rollouts[i] for i in chosen]


def _as_prompt(recorded: Recorded, rollout: Rollout) -> bool:
    """Whether prompt logprobs, raw in V1 and without penalties in V0, are what the engine reports of sampled tokens."""
    params = rollout.sequence.params
    if recorded.row["kind"] == "v0":
        return not (params.penalizes or params.logit_bias)
    is_raw = params.temperature == 1 and not (params.truncates or params.penalizes or params.logit_bias)
    return is_raw or recorded.row["logprobs_mode"] == "raw_logprobs"


def _one_by_one(
    event: str, sample: Iterable[Rollout], folders: Mapping[int, str], loaded: str
) -> tuple[list[Event], str]:
    events: list[Event] = []
    for rollout in sorted(sample, key=lambda r: folders[int(r.weight_version[0])]):
        folder = folders[int(rollout.weight_version[0])]
        if folder != loaded:
            events.append(["load", folder])
            loaded = folder
        events.append([event, rollout.sequence.request, rollout.sequence.token_ids.tolist()])
    return events, loaded
