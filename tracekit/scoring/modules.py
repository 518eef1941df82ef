"""Each module of a model replayed on the input that an engine recorded for it, and states of the engine grafted in.

A module that gives another output on the same input is at fault by itself: nothing that went wrong before it can be the
reason. One forward of the model does for all of them: hooks put every module's recorded input in the place of its own.
How far a module may be off is told by the model's own precision: its output in the engine's dtype against one precision
higher, on the same input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracekit.errors import ModelError

HEAD = "lm_head"
FINAL_NORM = "norm"
_LAYER = re.compile(r"(?:^|\.)(layers\.(\d+))$")
_CHILD = re.compile(r"(?:^|\.)(layers\.\d+\.[^.]+)$")
SELF_TEST = 8  # positions
_TINY = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12, torch.float32: 2.0**-24}

F8 = NDArray[np.float64]
States = Mapping[str, Tensor]
"""`NAME.input` and `NAME.output` of each recorded module, [T, width]; of `lm_head` the rows that were sampled from."""


@dataclass(frozen=True, eq=False)
class ModuleErrors:
    """One module over the recorded positions; shares of the norm of its exact output.

    Attributes:
        name: as `layers.3.self_attn`.
        error: [T] of the engine's output against the exact one.
        noise: [T] of the output in the engine's precision against the exact one.
    """

    name: str
    error: F8
    noise: F8


def module_errors(model: Any, exact: Any, token_ids: Tensor, states: States) -> list[ModuleErrors]:
    """Replay every recorded module that the model has under the same name.

    Args:
        model: transformers' causal LM in the engine's dtype.
        exact: the same one precision higher (float32 for bfloat16, float64 for float32).
        token_ids: [T] int64, those whose states were recorded, from position 0.
        states: of the engine.

    Raises:
        ModelError: none of the recorded modules is in the model.
    """
    low, high = (replayed(one, token_ids, states) for one in (model, exact))
    sound = _sound(exact, token_ids[:SELF_TEST])
    names = [name for name in high if f"{name}.output" in states and name in sound]
    if not names:
        raise ModelError(f"{type(model).__name__} has none of the modules that were recorded")
    found = []
    for name in names:
        found.append(error_of(name, states[f"{name}.output"], low[name], high[name], model.dtype))
    return found


def error_of(name: str, recorded: Tensor, low: Tensor, high: Tensor, dtype: torch.dtype) -> ModuleErrors:
    """Set a recorded state against what it should be.

    Args:
        name: whose it is.
        recorded: [T, width]; an engine leaves out rows that pad its vocabulary.
        low: [T, width or more] in the engine's precision.
        high: the same one precision higher.
        dtype: the engine's.
    """
    width = recorded.shape[-1]
    truth = high.double()[..., :width]
    size = torch.linalg.vector_norm(truth, dim=-1).clamp(min=1e-30)
    theirs, ours = recorded.double().to(truth.device), low.double()[..., :width]
    theirs = torch.where(torch.isfinite(theirs), theirs, truth)  # what a mask put there is not the module's
    error, noise = (torch.linalg.vector_norm(made - truth, dim=-1) / size for made in (theirs, ours))
    floor = _TINY.get(dtype, 2.0**-24)
    return ModuleErrors(name, error.cpu().numpy(), noise.clamp(min=floor).cpu().numpy())


def narrow_head(model: Any, states: States) -> float:
    """Return what a head in bfloat16 leaves of the error of the engine's logits, as a share; NaN without them."""
    head = model.get_output_embeddings()
    if f"{HEAD}.output" not in states or head is None or _changes_logits(model.config):
        return float("nan")
    hidden, theirs = states[f"{HEAD}.input"].to(head.weight.device), states[f"{HEAD}.output"].double()
    with torch.inference_mode():
        exact, narrow = (
            torch.nn.functional.linear(hidden.to(dtype), head.weight.to(dtype)).double().cpu()[:, : theirs.shape[-1]]
            for dtype in (torch.float32, torch.bfloat16)
        )
    finite = torch.isfinite(theirs)
    left, all_of_it = ((theirs - made)[finite].abs().mean() for made in (narrow, exact))
    return float(left / all_of_it.clamp(min=1e-30))


def graft(model: Any, token_ids: Tensor, states: States, head_rows: Tensor, boundary: int) -> F8:
    """Return logprobs of the rows that the engine sampled from, its state put in at one boundary.

    Args:
        model: transformers' causal LM.
        token_ids: [T] int64, from position 0, and the token that was sampled from the last of them.
        states: of the engine.
        head_rows: [R] positions of the rows that the engine sampled from.
        boundary: the layer whose input is replaced; the number of layers for that of the final norm.

    Returns:
        [R] nats, raw.
    """
    layers = {int(found[2]): module for name, module in model.named_modules() if (found := _LAYER.search(name))}
    if boundary in layers:
        target, state = layers[boundary], states[f"layers.{boundary}.input_layernorm.input"]
    else:
        target, state = children(model)[FINAL_NORM], states[f"{FINAL_NORM}.input"]
    with torch.inference_mode(), _replaced({target: state}):
        logits = model(input_ids=token_ids[:-1].to(model.device)[None], use_cache=False).logits[0]
    return raw_logprobs(logits[head_rows.to(logits.device)], token_ids, head_rows)


def raw_logprobs(logits: Tensor, token_ids: Tensor, head_rows: Tensor) -> F8:
    """Return [R] nats of the token ids behind R positions under their [R, V] logits."""
    chosen = token_ids[head_rows + 1].to(logits.device)
    logprobs = torch.log_softmax(logits.double(), dim=-1).gather(1, chosen[:, None])[:, 0]
    values: F8 = logprobs.cpu().numpy()
    return values


def replayed(model: Any, token_ids: Tensor, states: States) -> dict[str, Tensor]:
    """Return [T, width] of every module on its recorded input."""
    modules = {name: module for name, module in children(model).items() if f"{name}.input" in states}
    made: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            made[name] = (output[0] if isinstance(output, tuple) else output)[0]

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    with _replaced({module: states[f"{name}.input"] for name, module in modules.items()}):
        run_body(model, token_ids, hooks)
    head = model.get_output_embeddings()
    if f"{HEAD}.input" in states and head is not None and not _changes_logits(model.config):
        with torch.inference_mode():
            made[HEAD] = head(states[f"{HEAD}.input"].to(head.weight.device, head.weight.dtype))
    return made


def own_states(model: Any, token_ids: Tensor) -> dict[str, Tensor]:
    """Return the model's own states, named as an engine's."""
    states: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            states[f"{name}.input"] = first_input(args, kwargs)[0].clone()
            states[f"{name}.output"] = (output[0] if isinstance(output, tuple) else output)[0].clone()

        return hook

    hooks = [m.register_forward_hook(keep(name), with_kwargs=True) for name, m in children(model).items()]
    run_body(model, token_ids, hooks)
    return states


def run_body(model: Any, token_ids: Tensor, hooks: Iterable[Any]) -> Tensor:
    """Run a model's body on [T] ids, then remove the hooks; return what its head gets, [T, width]."""
    try:
        with torch.inference_mode():
            out: Tensor = model.base_model(input_ids=token_ids.to(model.device)[None], use_cache=False)[0]
        return out[0]
    finally:
        for hook in hooks:
            hook.remove()


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the state that a module is called with, [1, T, width]."""
    given: Tensor = args[0] if args else kwargs["hidden_states"]
    return given


def put_in(args: tuple[Any, ...], kwargs: dict[str, Any], state: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a module with a recorded state, [T, width] at least, in place of its own."""
    own = first_input(args, kwargs)
    given = state.to(own.device, own.dtype)[None, : own.shape[1]]
    return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": given})


def _sound(model: Any, token_ids: Tensor) -> set[str]:
    """The self-test: modules that give the model's own output where its own input is put in their place."""
    states = own_states(model, token_ids)
    made = replayed(model, token_ids, states)
    return {HEAD, *(name for name, output in made.items() if torch.equal(output, states[f"{name}.output"]))}


@contextmanager
def _replaced(inputs: Mapping[Any, Tensor]) -> Iterator[None]:
    """Put a state in the place of the first input of some modules."""

    def put(state: Tensor) -> Any:
        return lambda _module, args, kwargs: put_in(args, kwargs, state)

    hooks = [module.register_forward_pre_hook(put(state), with_kwargs=True) for module, state in inputs.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def children(model: Any) -> dict[str, Any]:
    """Return every child of a layer and the final norm, by name."""
    found = {}
    for name, module in model.named_modules():
        if child := _CHILD.search(name):
            found[child[1]] = module
        elif name.endswith(f"model.{FINAL_NORM}"):
            found[FINAL_NORM] = module
    return found


def layers_of(model: Any) -> dict[int, Any]:
    """Return the decoder layers by number."""
    return {int(found[2]): module for name, module in model.named_modules() if (found := _LAYER.search(name))}


def _changes_logits(config: Any) -> bool:
    """Whether something comes behind the output embedding, as soft-capping or a scale: it is not told apart from it."""
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    return any(getattr(config, name, None) not in (None, 1.0) for name in names)
