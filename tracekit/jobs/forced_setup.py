"""What a re-run's engine is told before it starts, and what it turns out to be."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from tracekit.jobs.forced_engine import CannotForceError
from tracekit.recorder.vllm.snapshot import jsonable, vllm_version


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
