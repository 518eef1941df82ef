"""What goes into each module, told from what came out of those before it: faults that stand between modules.

A module that is replayed on its recorded input says nothing of how that input came about: an embedding that is scaled,
a sum that is not the sum, a layer that is left out. Each such joint is checked by itself: layers begin with the
recorded state and modules give what they gave, so that nothing that went wrong before can be the reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracekit.scoring.modules import (
    FINAL_NORM,
    HEAD,
    SELF_TEST,
    ModuleErrors,
    States,
    children,
    error_of,
    first_input,
    layers_of,
    own_states,
    put_in,
    run_body,
)

EMBEDDING = "embed_tokens"
BETWEEN = "between"
"""As `layers.3.between`: what layer 3 adds and hands on between its modules and behind them."""
_FIRST = "input_layernorm"


def joint_errors(model: Any, exact: Any, token_ids: Tensor, states: States, head_rows: Tensor) -> list[ModuleErrors]:
    """Check the input of every recorded module; several of one layer are one.

    Args:
        model: transformers' causal LM in the engine's dtype.
        exact: the same one precision higher.
        token_ids: [T] int64, those whose states were recorded, from position 0.
        states: of the engine.
        head_rows: [R] positions of the rows of the head.
    """
    low, high = (_arriving(one, token_ids, states) for one in (model, exact))
    sound = _sound(exact, token_ids[:SELF_TEST])
    found: dict[str, list[ModuleErrors]] = {}
    for place in (place for place in high if f"{place}.input" in states and place in sound | {HEAD}):
        theirs, rows = states[f"{place}.input"], head_rows if place == HEAD else slice(None)
        one = error_of(_name(place, exact), theirs, low[place][rows], high[place][rows], model.dtype)
        found.setdefault(one.name, []).append(one)
    return [_joined(name, same) for name, same in found.items()]


def _arriving(model: Any, token_ids: Tensor, states: States) -> dict[str, Tensor]:
    """Return [T, width] of what arrives at every module, whose name is its key."""
    made: dict[str, Tensor] = {}

    def begin(number: int) -> Any:
        first = f"layers.{number}.{_FIRST}"

        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            made[first] = first_input(args, kwargs)[0].clone()
            if f"{first}.input" not in states:
                return None  # it never ran: what the layer before it gave goes on
            return put_in(args, kwargs, states[f"{first}.input"])

        return hook

    def arrive(name: str) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            made.setdefault(name, first_input(args, kwargs)[0].clone())

        return hook

    def leave(name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            first, *others = output if isinstance(output, tuple) else (output,)
            state = states[f"{name}.output"].to(first.device, first.dtype)[None]
            return (state, *others) if isinstance(output, tuple) else state

        return hook

    hooks = [m.register_forward_pre_hook(begin(n), with_kwargs=True) for n, m in layers_of(model).items()]
    for name, module in children(model).items():
        hooks.append(module.register_forward_pre_hook(arrive(name), with_kwargs=True))
        if f"{name}.output" in states:
            hooks.append(module.register_forward_hook(leave(name)))
    made[HEAD] = run_body(model, token_ids, hooks)
    return made


def _sound(model: Any, token_ids: Tensor) -> set[str]:
    """The self-test: modules at which the model's own states arrive where its own states are put in."""
    states = own_states(model, token_ids)
    arriving = _arriving(model, token_ids, states)
    return {
        name for name in children(model) if name in arriving and torch.equal(arriving[name], states[f"{name}.input"])
    }


def _name(place: str, model: Any) -> str:
    """Whose joint the input of a module is."""
    numbers = sorted(layers_of(model))
    if place in (HEAD, FINAL_NORM):
        return f"{HEAD}.rows" if place == HEAD else f"layers.{numbers[-1]}.{BETWEEN}"
    _, number, child = place.split(".")
    if child == _FIRST:
        before = int(number) - 1
        return EMBEDDING if before < numbers[0] else f"layers.{before}.{BETWEEN}"
    return f"layers.{number}.{BETWEEN}"


def _joined(name: str, same: list[ModuleErrors]) -> ModuleErrors:
    return ModuleErrors(name, *(np.max([getattr(one, of) for one in same], axis=0) for of in ("error", "noise")))
