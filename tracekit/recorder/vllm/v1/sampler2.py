"""The same as `v1.sampler` from V1's model runner 2, which 0.32 takes where Triton works: written against its source.

`SamplingStates.max_num_logprobs` of -1 means that nobody in the batch asked; `Sampler.__call__` scores the sampled
tokens from the model's logits or from those that `Sampler.sample` returns (vllm/v1/worker/gpu/sample/).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import never_raise
from tracekit.recorder.vllm import hooks
from tracekit.recorder.vllm.sampler import Held, held_now, say_not_both, say_unasked
from tracekit.recorder.vllm.v1 import column as v1_column


def is_there() -> bool:
    """Whether this vLLM has model runner 2."""
    try:
        from vllm.v1.worker.gpu.sample import sampler

        return hasattr(sampler, "Sampler")
    except Exception:
        return False


def missing_features() -> str:
    """Name what this model runner 2 lacks of what the wraps rely on; empty when nothing is missing."""
    from vllm.v1.worker.gpu.sample import logprob, sampler, states

    made = vars(sampler.Sampler)
    cut = inspect.signature(made["_sample_random"]).parameters if "_sample_random" in made else {}
    call = list(inspect.signature(made["__call__"]).parameters) if "__call__" in made else []
    needs = {
        "SamplingStates.max_num_logprobs": "max_num_logprobs" in vars(states.SamplingStates),
        "Sampler.__call__(logits, input_batch)": call[1:] == ["logits", "input_batch"],
        "Sampler.sample": "sample" in made,
        "Sampler._sample_random(top_k, top_p, use_fused_sampler)": not cut
        or {"top_k", "top_p", "use_fused_sampler"} <= set(cut),
        "compute_token_logprobs": hasattr(logprob, "compute_token_logprobs"),
    }
    return ", ".join(name for name, there in needs.items() if not there)


def attach(option: str) -> None:
    """Wrap states and sampler once per process, where they are; `option` is `engine` or `both`."""
    if not is_there():
        return
    from vllm.v1.worker.gpu.sample.sampler import Sampler
    from vllm.v1.worker.gpu.sample.states import SamplingStates

    missing = missing_features()
    if missing:

        def tell(_sampler: Any, _result: None, *_args: Any, **_kwargs: Any) -> None:
            say_unasked(f"model runner 2 lacks {missing}")

        hooks.after(Sampler, "__init__", tell)
        return
    hooks.after(Sampler, "__init__", _built_for(option))
    hooks.wrap(SamplingStates, "max_num_logprobs", _max_num_logprobs)
    if option == "both":
        hooks.wrap(Sampler, "__call__", _call)
        hooks.wrap(Sampler, "sample", _sample)
        if "_sample_random" in vars(Sampler):
            hooks.wrap(Sampler, "_sample_random", _sample_random)


def adopt(sampler: Any, option: str, vllm_config: Any) -> None:
    """Do for a sampler that is there what is done for a new one."""
    if not missing_features():
        _built_for(option)(sampler, None, vllm_config)


def _built_for(option: str) -> Callable[..., None]:
    def _on_sampler_built(sampler: Any, _result: None, vllm_config: Any = None, *_args: Any, **_kwargs: Any) -> None:
        mode = sampler.logprobs_mode
        fused = getattr(sampler, "use_flashinfer", False) or getattr(sampler, "use_xpu_sampler", False)
        if mode.startswith("processed") and fused:
            say_unasked("asking for processed ones would take this engine off its fused sampler")
        else:
            sampler.sampling_states._tracekit_forced = True
        if option != "both":
            return
        sharded = getattr(getattr(vllm_config, "parallel_config", None), "enable_batch_sharded_sampling", False)
        if sharded:
            say_not_both("sampling is sharded over the batch")
        sampler._tracekit_both = mode.endswith("logprobs") and not sharded

    return _on_sampler_built


def _max_num_logprobs(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    asked = original(self, *args, **kwargs)
    return max(asked, 0) if getattr(self, "_tracekit_forced", False) else asked


# The parameters below have vLLM's names, so that it may also pass them by name.


def _call(original: Callable[..., Any], self: Any, logits: Any, input_batch: Any) -> Any:
    if not getattr(self, "_tracekit_both", False):
        return original(self, logits, input_batch)
    with Held() as held:
        output = original(self, logits, input_batch)
    _end(self, held, logits, output)
    return output


@never_raise
def _end(sampler: Any, held: Held, logits: Any, output: Any) -> None:
    tensors, sampled = output.logprobs_tensors, output.sampled_token_ids
    if tensors is None or held.logits is None or sampled.shape != (tensors.logprobs.shape[0], 1):
        return
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
    from vllm.v1.worker.gpu.sample.logprob import compute_token_logprobs

    # the model's own logits are never written to: what is processed is a copy
    if sampler.logprobs_mode == "raw_logprobs":
        logits = held.logits
        if held.cut is not None:
            logits = apply_top_k_top_p(logits.clone(), *held.cut)
    output.logprobs_tensors = v1_column.append(tensors, compute_token_logprobs(logits, sampled)[:, 0])


def _sample(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    result = original(*args, **kwargs)
    held = held_now()
    if held is not None:
        held.logits = result[1]
    return result


def _sample_random(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    held = held_now()
    if held is not None:
        _note_cut(held, original, args, kwargs)
    return original(*args, **kwargs)


@never_raise
def _note_cut(held: Held, original: Callable[..., Any], args: Any, kwargs: Any) -> None:
    given = _signature(original).bind(*args, **kwargs).arguments
    if given["use_fused_sampler"]:
        held.cut = (given["top_k"], given["top_p"])


@functools.cache
def _signature(method: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(method)
