"""From scored units and recorded parameters to what the diagnosis tries other sampling parameters on."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

import numpy as np

from tracekit.diagnose.data import PROFILE
from tracekit.diagnose.profile import Profile
from tracekit.diagnose.settings import NEUTRAL, Settings
from tracekit.diagnose.tail import Tail
from tracekit.replay.rollouts import I8, Rollout
from tracekit.replay.units import UnitScores
from tracekit.scores import Values
from tracekit.scoring.layout import BEST, BETAS, GAPS, IDS, OWN, TAIL
from tracekit.scoring.params import Params


def profile_of(rollouts: Seq[Rollout], scores: Iterable[UnitScores]) -> Profile | None:
    """Return the profile of the tokens that were asked for one; None where no scorer gave any.

    Args:
        rollouts: all of the run, in its order.
        scores: of its units.
    """
    starts = np.cumsum([0, *(r.num_tokens for r in rollouts)])
    number = {(r.sequence.engine, r.sequence.request): i for i, r in enumerate(rollouts)}
    parts = []
    for of_unit in scores:
        for key, by_pass in of_unit.items():
            if PROFILE in by_pass:
                columns = by_pass[PROFILE].profile
                scored = np.flatnonzero(np.isfinite(columns[:, BEST]))
                i = number[key]
                parts.append((int(starts[i]), _part(rollouts[i], columns[scored], scored, int(starts[i]))))
    parts = [part for part in sorted(parts, key=lambda part: part[0]) if part[1].index.size]
    if not parts:
        return None
    every = [part for _, part in parts]
    names = ("index", "own", "logits", "ids", "seen", "own_seen")
    joined = {name: np.concatenate([getattr(part, name) for part in every]) for name in names}
    tail = Tail(every[0].tail.betas, np.concatenate([part.tail.values for part in every]))
    return Profile(**joined, tail=tail)


def settings_of(rollouts: Seq[Rollout]) -> Settings:
    """Return the recorded sampling parameters of every token."""
    lengths = [r.num_tokens for r in rollouts]
    params = [r.sequence.params for r in rollouts]
    values = {name: np.repeat([float(getattr(p, name)) for p in params], lengths) for name in NEUTRAL}
    whole = [_is_whole(p, np.arange(n)) for p, n in zip(params, lengths, strict=True)]
    return Settings(**values, greedy=np.repeat([p.greedy for p in params], lengths), whole=np.concatenate(whole))


def _is_whole(params: Params, output_index: I8) -> np.typing.NDArray[np.bool_]:
    if params.logit_bias or params.allowed_token_ids or params.bad_words:
        return np.zeros(output_index.size, dtype=bool)
    late: np.typing.NDArray[np.bool_] = output_index >= (params.min_tokens if params.stop_token_ids else 0)
    return late


def _part(rollout: Rollout, columns: Values, outputs: I8, start: int) -> Profile:
    """The profile of one rollout's tokens, those at some output indices."""
    best = columns[:, BEST].astype(np.float64)
    ids = columns[:, IDS].astype(np.int64)
    own_ids = rollout.sequence.token_ids[outputs].astype(np.int64)
    seen = _seen(rollout, outputs, np.concatenate([ids, own_ids[:, None]], axis=1))
    return Profile(
        index=start + outputs,
        own=best + columns[:, OWN],
        logits=best[:, None] + columns[:, GAPS],
        ids=ids,
        tail=Tail(np.array(BETAS), columns[:, TAIL].astype(np.float64)),
        seen=seen[:, :-1],
        own_seen=seen[:, -1],
    )


def _seen(rollout: Rollout, outputs: I8, ids: I8) -> I8:
    """How often each token of a row was in the output before it; -1 where not even in the prompt."""
    output = rollout.sequence.token_ids.astype(np.int64)
    values, inverse = np.unique(np.concatenate([output, ids.ravel()]), return_inverse=True)
    counts = np.zeros((output.size + 1, values.size), dtype=np.int16)
    counts[np.arange(1, output.size + 1), inverse[: output.size]] = 1
    wanted = inverse[output.size :].reshape(ids.shape)
    counts = counts.cumsum(axis=0, dtype=np.int16)[outputs]
    found = np.take_along_axis(counts, wanted, axis=1).astype(np.int64)
    in_prompt = np.isin(ids, rollout.sequence.prompt_token_ids.astype(np.int64))
    return np.where((found == 0) & ~in_prompt, -1, found)
