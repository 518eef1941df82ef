"""What the demo runs: its prompts, its sampling, its engine arguments; and what `record` takes of it by default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tracekit.demo.models import MODELS

PROMPTS = Path(__file__).with_name("prompts.jsonl")
SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 64}
ENGINE_ARGS: dict[str, Any] = {"max_model_len": 1024, "enforce_eager": True, "dtype": "bfloat16"}
# what the article set, one by one, until V1's numbers meant what the trainer took them for
PARITY: dict[str, Any] = {
    "logprobs_mode": "processed_logprobs",
    "enable_prefix_caching": False,
    "async_scheduling": False,
}


class Rollout(NamedTuple):
    """A rollout of prompts with everything filled in."""

    model: str
    """A folder, or a name of `MODELS`."""
    prompts: Path
    sampling: dict[str, Any]
    engine_args: dict[str, Any]
    taken: dict[str, Any]
    """Of the options left out, what was taken for each."""


def fill_in(
    model: str | None, prompts: str | None, sampling: Mapping[str, Any], engine_args: Mapping[str, Any]
) -> Rollout:
    """Fill in what was left out: the demo's prompts come with its sampling, and on `MODELS` with its engine arguments.

    Args:
        model: a folder or a name of `MODELS`; None for the demo model.
        prompts: None or "demo" for the demo's prompts, else a file.
        sampling: fields that were given; they go before the demo's.
        engine_args: as `sampling`.
    """
    taken: dict[str, Any] = {
        option: "demo" for option, given in (("--model", model), ("--prompts", prompts)) if given is None
    }
    model, prompts = model or "demo", prompts or "demo"
    if prompts != "demo":
        return Rollout(model, Path(prompts), dict(sampling), dict(engine_args), taken)
    more_sampling = {key: value for key, value in SAMPLING.items() if key not in sampling}
    more_args = {key: value for key, value in ENGINE_ARGS.items() if model in MODELS and key not in engine_args}
    taken |= {"--sampling": more_sampling} if more_sampling else {}
    taken |= {"--engine-arg": more_args} if more_args else {}
    return Rollout(model, PROMPTS, {**more_sampling, **sampling}, {**more_args, **engine_args}, taken)
