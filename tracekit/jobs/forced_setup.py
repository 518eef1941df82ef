"""What both generations share: what an engine is told before it starts, and how its steps are compared."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from tracekit.jobs.forced_engine import CannotForceError
from tracekit.recorder.vllm.snapshot import jsonable, vllm_version

Part = tuple[int, int]


def know_model(path: str | None) -> None:
    """Hand vLLM the class of the model: else it asks a process of its own, which imports everything anew.

    Args:
        path: module and class, as the recorded worker told it; a class that is not vLLM's own is left alone.
    """
    if path is None or not path.startswith("vllm."):
        return
    from vllm import ModelRegistry

    module, _, name = path.rpartition(".")
    ModelRegistry.register_model(name, getattr(importlib.import_module(module), name))


def settings_of(config: Any) -> dict[str, Any]:
    """Return version and settings of an engine, as the column `engines.config` has them."""
    return {"version": vllm_version(), "vllm": jsonable(config), "hf_config": jsonable(config.model_config.hf_config)}


def check_settings(config: Any, expected: Mapping[str, Any]) -> None:
    """Make sure that an engine is what was recorded, before its weights are loaded.

    Args:
        config: vLLM's.
        expected: dotted name of a setting to its recorded value.

    Raises:
        CannotForceError: a setting is another.
    """
    here = settings_of(config)
    differ = []
    for name, recorded in expected.items():
        value: Any = here
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value != recorded:
            differ.append(f"{name} is {value!r} here and was {recorded!r}")
    if differ:
        raise CannotForceError("the engine cannot be made the recorded one: " + "; ".join(differ))


def compare_parts(engine_step: int, there: Mapping[int, Part], here: Mapping[int, Part]) -> None:
    """Make sure that a step computes what it did.

    Args:
        engine_step: of the recording.
        there: tokens of each request and the position of the first, as recorded.
        here: the same, as scheduled.

    Raises:
        CannotForceError: it does not.
    """
    for request in sorted(here.keys() | there.keys()):
        if here.get(request) != there.get(request):
            told = f"{_part(there.get(request))} recorded, {_part(here.get(request))} here"
            raise CannotForceError(f"engine step {engine_step} is composed otherwise: of request {request} {told}")


def _part(row: Part | None) -> str:
    return "no token" if row is None else f"{row[0]} tokens from position {row[1]} on"


def sampling_params(recorded: Mapping[str, Any]) -> Any:
    """The recorded parameters as vLLM's, what its front end resolved included; no seed: nothing is left to chance."""
    from vllm import SamplingParams

    given = {**recorded, "seed": None, "logprobs": 0, "output_kind": None, "skip_clone": False}
    params = SamplingParams()
    for name in type(params).__struct_fields__:
        value = given.get(name.lstrip("_"))
        if value is not None:
            setattr(params, name, _typed(name, value))
    return params


def _typed(name: str, value: Any) -> Any:
    """JSON has lists for sets, and texts for keys."""
    if name == "_all_stop_token_ids":
        return set(value)
    return {int(token): bias for token, bias in value.items()} if name == "logit_bias" else value
