"""Sampling parameters that an engine fills in where a request does not name them, and where it has them from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracekit.audit.lint.temperature import raised

FILE = "generation_config.json"
OVERRIDE = "override_generation_config"
CLIENT = "the client"

# what vLLM takes where nobody says anything: it changes nothing
NEUTRAL: Mapping[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
LATE = ("presence_penalty", "frequency_penalty")  # 0.18.1 does not take them from either place, 0.32.0 does


@dataclass(frozen=True)
class Defaults:
    """What an engine fills in.

    Only requests get it that come through the API server, or to `LLM` without sampling parameters.
    """

    values: Mapping[str, tuple[float, str]] = field(default_factory=dict)  # name -> value and source
    whole: bool = False  # whether nothing else is filled in; False: the file is not known

    def source(self, name: str, value: float) -> str:
        """Return who is behind a value that changes something; empty where that is not known.

        A client that named the same value as the file is not told apart from one that named none.
        """
        default, source = self.values.get(name, (None, ""))
        if default == value:
            return source
        return CLIENT if self.whole else ""

    def of(self, source: str) -> dict[str, float]:
        """Return the values of one source that change something."""
        return {name: value for name, (value, of) in self.values.items() if of == source and changes(name, value)}


def changes(name: str, value: float) -> bool:
    """Whether a value is another than the one that does nothing."""
    return value > 0 if name == "top_k" else value != NEUTRAL[name]


def defaults_of(settings: Mapping[str, Any], version: tuple[int, ...], file: Mapping[str, Any] | None) -> Defaults:
    """Return what an engine fills in.

    Args:
        settings: `generation_config` and `override_generation_config`, as in `Subject.settings`.
        version: of vLLM.
        file: what is in generation_config.json, empty where there is none; None: not known.
    """
    source, override = settings.get("generation_config"), settings.get(OVERRIDE)
    if source is None:
        return Defaults()
    values: dict[str, tuple[float, str]] = {}
    for said, origin in (({} if source == "vllm" else file or {}, FILE), (override or {}, OVERRIDE)):
        for name in NEUTRAL:
            if name in LATE and version and version < (0, 19):
                continue
            value = said.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                values[name] = (raised(value) if name == "temperature" else value, origin)
    return Defaults(values, whole=source == "vllm" or file is not None)


def read_generation_config(model: Any, source: Any) -> dict[str, Any] | None:
    """Return what is in an engine's generation_config.json; None where its folder is not on this machine.

    Args:
        model: where the engine has its configuration: its model, or its setting `hf_config_path`.
        source: its setting `generation_config`.
    """
    folder = Path(str(model if source in (None, "auto", "vllm") else source))
    if not folder.is_dir():
        return None
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
