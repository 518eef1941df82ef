"""What an engine's generation_config.json says, read where it lies on this disk and never over the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tracekit.recorder.vllm.snapshot import jsonable

FILE = "generation_config.json"


def generation_config(model_config: Any) -> dict[str, Any] | None:
    """Return the sampling defaults that vLLM's front end takes from the file; None where they are not known.

    An engine's core does not read the file itself.

    Args:
        model_config: vLLM's ModelConfig.
    """
    source = model_config.generation_config
    place = str((model_config.hf_config_path or model_config.model) if source in ("auto", "vllm") else source)
    try:
        if Path(place).is_dir():
            found: Any = jsonable(model_config.try_get_generation_config())
        else:
            found = _cached(place, model_config.revision)
    except Exception:
        return None
    return found if isinstance(found, dict) else None


def _cached(name: str, revision: str | None) -> Any:
    """What the front end, which has just loaded it, left in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, FILE, revision=revision)
    # a value that is not a path says that the hub has no such file
    return json.loads(Path(path).read_text(encoding="utf-8")) if isinstance(path, str) else None if path is None else {}
