"""The engines that the corpus runs on: one start each, many cases a start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COMMON = {"max_model_len": 512, "enforce_eager": True, "seed": 0, "max_num_seqs": 32, "block_size": 32}
V1 = {**COMMON, "num_gpu_blocks_override": 96, "max_num_batched_tokens": 1024, "logprobs_mode": "processed_logprobs"}
V0 = {**COMMON, "block_size": 16, "num_gpu_blocks_override": 192}
LONG = {**V1, "dtype": "bfloat16", "max_model_len": 4096, "num_gpu_blocks_override": 640}


@dataclass(frozen=True)
class Group:
    engine: str
    model: str
    """demo | gemma3-270m | tiny; see `models`."""
    args: Mapping[str, Any]

    @property
    def dtype(self) -> str:
        return str(self.args["dtype"])


GROUPS = {
    "v1-fp32": Group("v1", "demo", {**V1, "dtype": "float32"}),
    "v1-bf16": Group("v1", "demo", {**V1, "dtype": "bfloat16"}),
    "latest-fp32": Group("latest", "demo", {**V1, "dtype": "float32"}),
    "latest-bf16": Group("latest", "demo", {**V1, "dtype": "bfloat16"}),
    "v1-long": Group("v1", "demo", LONG),
    "latest-long": Group("latest", "demo", LONG),
    "v0-fp32": Group("v0", "demo", {**V0, "dtype": "float32"}),
    "v1-gemma": Group("v1", "gemma3-270m", {**V1, "dtype": "float32", "num_gpu_blocks_override": 64}),
    "v1-tiny": Group("v1", "tiny", {**V1, "dtype": "float32"}),
    # few blocks, small chunks: requests are preempted, prompts run in pieces
    "v1-tight": Group(
        "v1", "demo", {**V1, "dtype": "float32", "num_gpu_blocks_override": 24, "max_num_batched_tokens": 64}
    ),
    "v1-lora": Group("v1", "demo", {**V1, "dtype": "float32", "enable_lora": True, "max_lora_rank": 8}),
    "latest-spec": Group(
        "latest",
        "demo",
        {
            **V1,
            "dtype": "float32",
            "speculative_config": {
                "method": "ngram",
                "num_speculative_tokens": 3,
                "prompt_lookup_max": 3,
                "prompt_lookup_min": 1,
            },
        },
    ),
}
