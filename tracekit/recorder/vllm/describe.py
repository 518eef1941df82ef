"""The row of the `engines` table: what is the same for all generations."""

from __future__ import annotations

import os
import socket
import time
from typing import Any, NamedTuple

from tracekit import __version__
from tracekit.recorder.settings import Options, run_name
from tracekit.recorder.vllm.snapshot import dumps, jsonable, vllm_environment, vllm_version


class Described(NamedTuple):
    """What a generation says of an engine."""

    kind: str  # v0 | v1
    config: Any  # the engine's VllmConfig
    logprobs_mode: str  # what the logprobs are that it reports, as in vLLM's option
    resolved: dict[str, Any]  # more settings for the config snapshot


def about(kind: str, config: Any) -> dict[str, Any]:
    """Return what the engine of this process is, in short; it is only read, never computed anew.

    Args:
        kind: the generation.
        config: the engine's VllmConfig.
    """
    return {
        "kind": kind,
        "engine_version": vllm_version(),
        "recorder_version": __version__,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "rank": getattr(config.parallel_config, "data_parallel_rank", 0) or 0,
        "model": str(config.model_config.model),
    }


def engine_row(engine_id: str, described: Described, options: Options) -> dict[str, Any]:
    """Return the row of the engine of this process.

    Args:
        engine_id: 32 hex digits.
        described: what the engine is.
        options: how it is recorded.
    """
    config, model = described.config, described.config.model_config
    settings = {
        "vllm": jsonable(config),
        "hf_config": jsonable(model.hf_config),
        **described.resolved,
        "environment": vllm_environment(),
        "recorder": options.told(),
    }
    return {
        "engine_id": engine_id,
        **about(described.kind, config),
        "wall_ns": time.time_ns(),
        "mono_ns": time.monotonic_ns(),
        "logprobs_mode": described.logprobs_mode,
        "config": dumps(settings),
        "run": run_name(),
    }
