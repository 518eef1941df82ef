"""What lint's rules say of vLLM, asked of vLLM itself; no engine is started. Prints one JSON object."""

import inspect
import json
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import torch
from vllm import SamplingParams
from vllm.config import ModelConfig
from vllm.lora.request import LoRARequest

IS_V0 = find_spec("vllm.core") is not None
FILE = {"temperature": 0.6, "top_k": 20, "presence_penalty": 1.5, "eos_token_id": [2, 7]}


def raised() -> dict[str, float]:
    asked = (1e-6, 0.005, 0.01, 0.02, 0.0)
    return {str(value): SamplingParams(temperature=value).temperature for value in asked}


def defaults() -> dict[str, Any]:
    """What a request that says nothing gets, and what generation_config.json changes in one that has parameters."""

    def of(source: str, override: dict[str, Any]) -> Any:
        config = SimpleNamespace(generation_config=source, override_generation_config=override)
        config.try_get_generation_config = lambda: dict(FILE)
        return ModelConfig.get_diff_sampling_param(config)

    given = SamplingParams(temperature=1.0)
    given.update_from_generation_config(dict(FILE), 2)
    return {
        "auto": of("auto", {}),
        "vllm": of("vllm", {}),
        "override": of("auto", {"temperature": 0.9}),
        "override-vllm": of("vllm", {"temperature": 0.9}),
        "given": [given.temperature, given.top_k, given.presence_penalty],
        "barred by min_tokens": sorted(given.all_stop_token_ids),
    }


def adapter_keys() -> list[list[bool]]:
    """For each two of four adapters whether they share blocks."""
    adapters = [
        LoRARequest("x", 1, "/a"),
        LoRARequest("x", 1, "/b"),
        LoRARequest("x", 2, "/a"),
        LoRARequest("y", 1, "/a"),
    ]
    if IS_V0:
        from vllm.sequence import Sequence

        sequences = [SimpleNamespace(prompt_adapter_id=0, lora_int_id=a.lora_int_id) for a in adapters]
        keys = [Sequence.extra_hash(sequence) for sequence in sequences]
    else:
        from vllm.v1.core.kv_cache_utils import _gen_lora_extra_hash_keys

        keys = [_gen_lora_extra_hash_keys(SimpleNamespace(lora_request=a)) for a in adapters]
    return [[one == other for other in keys] for one in keys]


def head_dtype() -> str | None:
    if IS_V0:
        return None
    hf_config = SimpleNamespace(head_dtype="float32")
    config = SimpleNamespace(hf_config=hf_config, dtype=torch.bfloat16, runner_type="generate")
    return str(ModelConfig.head_dtype.fget(config))


def cascade() -> dict[int, bool] | None:
    """For each number of requests with a long common prefix whether cascade attention is used; None: there is none."""
    if IS_V0:
        return None
    try:
        from vllm.v1.attention.backends.flash_attn import use_cascade_attention
    except ImportError:
        return None
    rest = {name: False for name in ("use_alibi", "use_sliding_window", "use_local_attention")}
    sizes = {"num_query_heads": 8, "num_kv_heads": 8, "num_sms": 100, "dcp_world_size": 1}
    return {n: use_cascade_attention(10_000, np.ones(n, np.int32), **sizes, **rest) for n in (7, 8)}


def resets() -> dict[str, Any] | None:
    """What a pause that clears asks for, and what a reset of a connector answers where there is none."""
    if IS_V0:
        return None
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore

    asked: list[Any] = []
    core = SimpleNamespace(reset_mm_cache=lambda: None, reset_encoder_cache=lambda: None)
    core.reset_prefix_cache = lambda **kwargs: asked.append(kwargs) or True
    EngineCore._reset_caches(core)
    return {"pause": asked, "no connector": Scheduler.reset_connector_cache(SimpleNamespace(connector=None))}


def placeholders() -> list[int] | None:
    """Output ids as penalties see them under async scheduling, after a step that sampled 5."""
    if IS_V0:
        return None
    from vllm.v1.worker.gpu_input_batch import InputBatch

    batch = SimpleNamespace(
        sampling_metadata=SimpleNamespace(output_token_ids=[[3, -1]]),
        sampled_token_ids_cpu=torch.tensor([[5]]),
        prev_req_id_to_index={"a": 0},
        req_ids=["a"],
        async_copy_ready_event=SimpleNamespace(synchronize=lambda: None),
    )
    InputBatch.update_async_output_token_ids(batch)
    return batch.sampling_metadata.output_token_ids[0]


def seeded_beside_unseeded() -> int | None:
    """How many tokens one seed gives on the CPU in a batch with a request that has none, from eight global seeds."""
    if IS_V0:
        return None
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    sampler = SimpleNamespace(logprobs_mode="raw_logprobs", use_fp64_gumbel=False)
    found = set()
    for seed in range(8):
        torch.manual_seed(seed)
        generators = {0: torch.Generator().manual_seed(7)}
        found.add(int(TopKTopPSampler.forward_cpu(sampler, torch.zeros(2, 1000), generators, None, None)[0][0]))
    return len(found)


def engine_defaults() -> dict[str, Any]:
    from vllm import EngineArgs

    args = EngineArgs(model="facebook/opt-125m")
    names = ("logprobs_mode", "enforce_eager", "generation_config", "kv_cache_dtype", "dtype", "tensor_parallel_size")
    return {name: getattr(args, name, None) for name in (*names, "disable_cascade_attn", "async_scheduling")}


def kv_dtypes() -> list[str]:
    if IS_V0:
        from vllm.config import CacheDType
    else:
        from vllm.config.cache import CacheDType
    return list(get_args(CacheDType))


def skips_the_cache() -> bool:
    """Whether a request that asks for prompt logprobs does not look for computed blocks."""
    if IS_V0:
        from vllm.core.block_manager import SelfAttnBlockSpaceManager

        return "prompt_logprobs" in inspect.getsource(SelfAttnBlockSpaceManager)
    return bool(SamplingParams(prompt_logprobs=0).skip_reading_prefix_cache)


def prompts_have_a_temperature() -> bool:
    """Whether the temperature and the truncation of a request are among what its prompt is scored with."""
    if IS_V0:
        from vllm.model_executor.sampling_metadata import SamplingTensors

        source = inspect.getsource(SamplingTensors)
        rows = ("temperatures", "top_ps", "top_ks", "min_ps")
        return all(f"{name} += [{name[:-1]}] * prefill_len" in source for name in rows)
    from vllm.v1.worker.gpu.sample import prompt_logprob
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    source = inspect.getsource(GPUModelRunner._get_prompt_logprobs_dict) + inspect.getsource(prompt_logprob)
    assert "compute_logprobs(logits)" in source
    return any(word in source for word in ("temperature", "top_p", "penalt"))


FACTS = (raised, defaults, adapter_keys, head_dtype, cascade, resets, placeholders, seeded_beside_unseeded)
FACTS = (*FACTS, engine_defaults, kv_dtypes, skips_the_cache, prompts_have_a_temperature)

if __name__ == "__main__":
    sys.stdout = sys.stderr  # vLLM's own talk
    found = {fact.__name__: fact() for fact in FACTS}
    print(json.dumps(found), file=sys.__stdout__)
