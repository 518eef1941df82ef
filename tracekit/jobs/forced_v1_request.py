"""A recorded request as V1's engine core takes it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tracekit.jobs.forced_setup import sampling_params


def engine_request(own: Mapping[str, Any]) -> Any:
    """Return vLLM's EngineCoreRequest of a request of the job (see `tracekit.jobs.forced`)."""
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id=own["id"],
        prompt_token_ids=list(own["prompt"]),
        mm_features=None,
        sampling_params=sampling_params(own["sampling"]),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=own["cache_salt"],
        data_parallel_rank=None,
    )
