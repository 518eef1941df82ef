"""Which base of the rotary embedding explains what an engine's attention gives on its recorded inputs."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
from torch import Tensor

from tracekit.scoring.modules import States, replayed

_MOST_POSITIONS = 64
_GRID = np.linspace(0.6, 1.4, 17)  # powers of the base
_REFINED = 12
_GOLDEN = (np.sqrt(5) - 1) / 2


def fit_base(model: Any, token_ids: Tensor, states: States, kind: str) -> tuple[float, float, float] | None:
    """Return the base of a model's plain rotary embedding, the one that fits, and what share of the error that leaves.

    Args:
        model: transformers' causal LM, one precision higher than the engine.
        token_ids: [T] int64, those whose states were recorded, from position 0.
        states: of the engine.
        kind: of the modules that apply it.

    Returns:
        None where the model has another kind of embedding, or none.
    """
    rotary: Any = getattr(model.base_model, "rotary_emb", None)
    inverse: Any = getattr(rotary, "inv_freq", None)
    base = _base_of(model.config)
    if inverse is None or base is None:
        return None
    plain = base ** -np.linspace(0, 1, len(inverse), endpoint=False)
    if not np.allclose(inverse.double().cpu().numpy(), plain, rtol=1e-4):
        return None  # scaled in some other way
    few = {name: state[:_MOST_POSITIONS] for name, state in states.items() if name.startswith("layers.")}
    ids = token_ids[:_MOST_POSITIONS]

    def error(power: float) -> float:
        rotary.inv_freq = inverse**power
        made = replayed(model, ids, few)
        names = [name for name in made if name.endswith(kind) and f"{name}.output" in few]
        theirs = [few[f"{name}.output"].double().to(made[name].device) for name in names]
        pairs = zip(theirs, (made[name].double() for name in names), strict=True)
        return float(np.mean([float((one - other).norm() / other.norm()) for one, other in pairs]))

    try:
        at = float(_GRID[int(np.argmin([error(power) for power in _GRID]))])
        best = _least(error, at - 0.05, at + 0.05)
        left = error(best) / max(error(1.0), 1e-30)
    finally:
        rotary.inv_freq = inverse
    return base, float(base**best), left


def _least(function: Any, low: float, high: float) -> float:
    """Golden-section search."""
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = function(a), function(b)
    for _ in range(_REFINED):
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = function(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = function(b)
    return (low + high) / 2


def _base_of(config: Any) -> float | None:
    parameters = getattr(config, "rope_parameters", None) or {}
    base = parameters.get("rope_theta") or getattr(config, "rope_theta", None)
    return float(base) if isinstance(base, int | float) and log(base) > 0 else None
