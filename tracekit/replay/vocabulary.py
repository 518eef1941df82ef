"""Heads of different sizes: one that is padded is of the same model, any other is of another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracekit.diagnose.skipped import Skipped
from tracekit.errors import ModelError, ReplayRefused
from tracekit.replay.rollouts import Rollout, Rollouts, text_config
from tracekit.replay.scorers import ScorerLike

_SHAPE = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def fitting(rollouts: Rollouts, scorer: ScorerLike, folder: Path) -> Rollouts:
    """Return the rollouts that a scorer's head has all ids of; those with ids in an engine's padding are left out.

    Args:
        rollouts: of a trace, with its engine's configuration.
        scorer: that is to score them.
        folder: that it was loaded from.

    Raises:
        ModelError: the heads are of different sizes, and nothing says that the rest of the model is the same.
        ReplayRefused: no rollout is left.
    """
    engines, own = rollouts.vocab_size, scorer.vocab_size
    if engines in (None, own):
        return rollouts
    if not _is_same(rollouts.config, text_config(_read(folder / "config.json"))):
        raise ModelError(
            f"the engine ran a model with a vocabulary of {engines} and this one has {own}: another model "
            f"({scorer.name})"
        )
    inside = [rollout for rollout in rollouts.rollouts if _largest(rollout) < own]
    num_beyond = len(rollouts.rollouts) - len(inside)
    if not inside:
        raise ReplayRefused(f"all requests have token ids beyond the {own} of the trainer's head, which is padded less")
    beyond = [Skipped("beyond the vocabulary", None, num_beyond)] if num_beyond else []
    return replace(rollouts, rollouts=inside, skipped=[*rollouts.skipped, *beyond])


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    told = [name for name in _SHAPE if one.get(name) is not None and other.get(name) is not None]
    return {"hidden_size", "num_hidden_layers"} <= set(told) and all(one[name] == other[name] for name in told)


def _largest(rollout: Rollout) -> int:
    sequence = rollout.sequence
    return int(max(sequence.prompt_token_ids.max(initial=0), sequence.token_ids.max(initial=0)))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
