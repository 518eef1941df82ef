"""Hooks at the module boundaries of a model that hand over what goes in and what comes out.

What is tapped are the children of each decoder layer and the final norm; their names are those of the model's
implementation in transformers, too (vllm/model_executor/models/llama.py and its like). What makes logits is more than a
module: each generation hands over what its sampler gets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import never_raise

_CHILD = re.compile(r"(?:^|\.)(layers\.\d+\.[^.]+)$")
FINAL_NORM = "norm"
HEAD = "lm_head"

Keep = Callable[[str, Any], None]
"""Gets `NAME.input` or `NAME.output` and its tensor, [rows of the step, width]; it must copy what it keeps."""


def tap(model: Any, keep: Keep, is_open: Callable[[], bool]) -> list[Any]:
    """Tap every module of a model; return the hooks, each with a `remove()`.

    Args:
        model: vLLM's.
        keep: gets every state.
        is_open: asked before anything is done.
    """
    taps, hooks = _Taps(keep, is_open), []
    for name, module in model.named_modules():
        if key := _key(name):
            hooks.append(module.register_forward_pre_hook(never_raise(taps.before(key)), with_kwargs=True))
            hooks.append(module.register_forward_hook(never_raise(taps.behind(key))))
    return hooks


class _Taps:
    def __init__(self, keep: Keep, is_open: Callable[[], bool]) -> None:
        self._keep = keep
        self._is_open = is_open
        self._given: dict[str, Any] = {}

    def before(self, key: str) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._is_open():
                states = [value for value in (*args, *kwargs.values()) if _is_state(value)]
                # a norm that adds its residual writes over both of them
                self._given[key] = states[0] + states[1] if states[1:] else states[0].clone() if states else None

        return hook

    def behind(self, key: str) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            given = self._given.pop(key, None)
            made, *others = output if isinstance(output, tuple) else (output,)
            if given is None or not _is_state(made):
                return
            # the sum as the engine goes on with it
            self._keep(f"{key}.input", others[0] if others and _is_state(others[0]) else given)
            self._keep(f"{key}.output", made)

        return hook


def _key(name: str) -> str | None:
    if found := _CHILD.search(name):
        return found[1]
    return FINAL_NORM if name.endswith(f"model.{FINAL_NORM}") else None


def _is_state(value: Any) -> bool:
    return bool(hasattr(value, "is_floating_point") and value.is_floating_point() and value.dim() == 2)
