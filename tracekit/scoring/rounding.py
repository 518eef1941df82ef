"""The V0 engine rounds sampling values to the dtype of its logits before it uses them; replay has to do the same.

vllm/model_executor/sampling_metadata.py of 0.8.5 (`SamplingTensors.from_lists`) makes tensors of the logits' dtype: in
bfloat16 a temperature of 0.7 is 0.69921875 and a top-p of 0.9 is 0.8984375. V1 keeps float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

ROUNDED = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


def sampling_dtype(engine: Mapping[str, Any]) -> str | None:
    """Return the dtype that an engine rounds sampling values to ("bfloat16", "float16"), None where it does not.

    Args:
        engine: a row of the `engines` table.
    """
    dtype = model_dtype(engine) if engine.get("kind") == "v0" else None
    return dtype if dtype in ("bfloat16", "float16") else None


def model_dtype(engine: Mapping[str, Any]) -> str | None:
    """Return the dtype that an engine casts its weights to when it loads them, None where its row does not tell.

    Args:
        engine: a row of the `engines` table.
    """
    try:
        named = json.loads(engine.get("config") or "{}")["vllm"]["model_config"]["dtype"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    dtype = str(named).removeprefix("torch.")
    return dtype if dtype in ("bfloat16", "float16", "float32") else None


def round_sampling(sampling: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return sampling parameters as an engine uses them that rounds them to `dtype`."""
    import torch

    def rounded(value: Any) -> Any:
        return float(torch.tensor(value, dtype=getattr(torch, dtype))) if isinstance(value, int | float) else value

    return {name: rounded(value) if name in ROUNDED else value for name, value in sampling.items()}
