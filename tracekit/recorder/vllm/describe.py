"""The row of the `engines` table: what is the same for all generations."""

import os
import socket
import time
from typing import Any

from tracekit import __version__
from tracekit.recorder.settings import logprobs_option
from tracekit.recorder.vllm.snapshot import dumps, jsonable, vllm_environment, vllm_version


def engine_row(engine_id: str, kind: str, config: Any, logprobs_mode: str, resolved: dict[str, Any]) -> dict[str, Any]:
    """Describe the engine of this process.

    Args:
        engine_id: 32 hex digits.
        kind: v0 | v1.
        config: the engine's VllmConfig.
        logprobs_mode: what the logprobs are that it reports, as in vLLM's option.
        resolved: more settings for the config snapshot.
    """
    model = config.model_config
    settings = {
        "vllm": jsonable(config),
        "hf_config": jsonable(model.hf_config),
        **resolved,
        "environment": vllm_environment(),
        "recorder": {"logprobs": logprobs_option()},
    }
    return {
        "engine_id": engine_id,
        "kind": kind,
        "engine_version": vllm_version(),
        "recorder_version": __version__,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "rank": getattr(config.parallel_config, "data_parallel_rank", 0) or 0,
        "wall_ns": time.time_ns(),
        "mono_ns": time.monotonic_ns(),
        "model": str(model.model),
        "logprobs_mode": logprobs_mode,
        "config": dumps(settings),
    }
