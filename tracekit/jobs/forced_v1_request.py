"""A recorded request as V1's engine core takes it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


def engine_request(own: Mapping[str, Any]) -> Any:
    """Return vLLM's EngineCoreRequest of a request of the job (see `tracekit.jobs.forced`)."""
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id=own["id"],
        prompt_token_ids=list(own["prompt"]),
        mm_features=None,
        sampling_params=_sampling_params(own["sampling"]),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=own["cache_salt"],
        data_parallel_rank=None,
    )


def _sampling_params(recorded: Mapping[str, Any]) -> Any:
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
