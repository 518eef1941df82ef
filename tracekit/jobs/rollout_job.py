"""The job file of a rollout of prompts, checked before anything heavy is started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracekit.jobs.prompts import check_sampling, parse_prompts


@dataclass(frozen=True)
class RolloutJob:
    """What `tracekit.jobs.rollout` is told to do.

    Example:
        RolloutJob([{"prompt": "Hi", "sampling": {}}], {"temperature": 0.7}, {"enforce_eager": True})
    """

    prompts: list[dict[str, Any]]
    """As from `parse_prompts`."""
    sampling: Mapping[str, Any]
    """Defaults for all prompts."""
    engine_args: Mapping[str, Any]
    """For `vllm.LLM`, beside the model."""

    @classmethod
    def of(cls, prompts: Path, sampling: Mapping[str, Any], engine_args: Mapping[str, Any]) -> RolloutJob:
        """Read and check.

        Raises:
            UsageError: the prompts file cannot be read, or a field is not as vLLM takes it.
        """
        return cls(parse_prompts(prompts), check_sampling(sampling), engine_args)

    def argv(self, python: Path, model: Path, folder: Path, completions: Path | None) -> list[str]:
        """Write the job into `folder` and return the command that runs it.

        Args:
            python: the interpreter of the engine environment.
            model: folder of the model.
            folder: for the job file, and for what the client received where nobody asked for it.
            completions: where what the client received goes.
        """
        job = {**vars(self), "model": str(model), "output": str(completions or folder / "completions.jsonl")}
        path = folder / "job.json"
        path.write_text(json.dumps(job))
        return [str(python), "-m", "tracekit.jobs.rollout", str(path)]
