"""Logprobs that nobody asked for, from V1's model runner 1: class-level wraps of its sampler, in the worker's process.

A batch with `max_num_logprobs` of 0 has every row's sampled token reported, and the scheduler hands a request only
what it asked for (vllm/v1/worker/gpu_input_batch.py, vllm/v1/core/sched/scheduler.py). Raw and processed: the engine
reports one of them, we compute the other from the tensors that its sampler works on (vllm/v1/sample/sampler.py) and
send it along (`v1.column`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import failed, never_raise
from tracekit.recorder.vllm import hooks
from tracekit.recorder.vllm.sampler import Held, held_now, say_not_both, say_unasked
from tracekit.recorder.vllm.v1 import column as v1_column


def missing_features() -> str:
    """Name what this vLLM lacks of what the wraps rely on; empty when nothing is missing."""
    try:
        from vllm.v1.sample import sampler
        from vllm.v1.sample.ops import topk_topp_sampler
        from vllm.v1.worker.gpu_input_batch import InputBatch
    except Exception as error:
        return f"the sampler of V1: {error}"
    needs = {
        "InputBatch.max_num_logprobs": isinstance(vars(InputBatch).get("max_num_logprobs"), property),
        "Sampler.forward": "forward" in vars(sampler.Sampler),
        "Sampler.sample": "sample" in vars(sampler.Sampler),
        "Sampler.compute_logprobs": "compute_logprobs" in vars(sampler.Sampler),
        "apply_top_k_top_p": hasattr(topk_topp_sampler, "apply_top_k_top_p"),
    }
    return ", ".join(name for name, there in needs.items() if not there)


def attach(option: str) -> None:
    """Wrap batch and sampler once per process; `option` is `engine` or `both`."""
    missing = missing_features()
    if missing:
        say_unasked(f"this vLLM lacks {missing}")
        return
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.worker.gpu_input_batch import InputBatch

    hooks.wrap(InputBatch, "max_num_logprobs", _max_num_logprobs)
    if option == "both":
        hooks.after(Sampler, "__init__", _on_sampler_built)
        hooks.wrap(Sampler, "forward", _forward)
        hooks.wrap(Sampler, "sample", _sample)
        for name in ("apply_top_k_top_p", "apply_top_k_top_p_pytorch"):
            if hasattr(topk_topp_sampler, name):
                hooks.wrap(topk_topp_sampler, name, _masking)


def _max_num_logprobs(original: Callable[..., Any], self: Any) -> int:
    asked: int | None = original(self)
    return 0 if asked is None else asked


def _on_sampler_built(sampler: Any, _result: None, *_args: Any, **_kwargs: Any) -> None:
    adopt(sampler)


def adopt(sampler: Any) -> None:
    """Listen to what a sampler cuts with; once."""
    if getattr(sampler, "_tracekit_adopted", False):
        return
    sampler._tracekit_adopted = True

    def on_cut(_module: Any, args: tuple[Any, ...], _output: Any) -> None:
        held = held_now()
        if held is not None:
            logits, _, k, p = args
            held.cut = (logits, k, p)

    # torch's hook stays with the module: while nothing is held it does nothing
    sampler.topk_topp_sampler.register_forward_hook(never_raise(on_cut))


# The parameters below have vLLM's names, so that it may also pass them by name.


def _forward(
    original: Callable[..., Any], self: Any, logits: Any, sampling_metadata: Any, *args: Any, **kwargs: Any
) -> Any:
    try:
        held = _begin(self, logits, sampling_metadata, args, kwargs)
    except Exception as error:
        failed("Sampler.forward", error)
        held = None
    if held is None:
        return original(self, logits, sampling_metadata, *args, **kwargs)
    with held:
        output = original(self, logits, sampling_metadata, *args, **kwargs)
    _end(self, held, output)
    return output


def _begin(sampler: Any, logits: Any, metadata: Any, args: Any, kwargs: Any) -> Held | None:
    if args or kwargs:
        # speculation's bonus token: its rows become part of a larger output
        say_not_both("a step of speculation samples in two parts")
        return None
    mode = sampler.logprobs_mode
    if metadata.max_num_logprobs is None or metadata.max_num_logprobs < 0:
        return None
    if mode == "processed_logprobs":
        # before the call: where the logits are float32 already, it works on them in place
        return Held(sampler.compute_logprobs(logits))
    return Held() if mode == "raw_logprobs" else None


@never_raise
def _end(sampler: Any, held: Held, output: Any) -> None:
    import torch

    tensors, sampled = output.logprobs_tensors, output.sampled_token_ids
    if tensors is None or sampled.shape != (tensors.logprobs.shape[0], 1):
        return
    logprobs = held.before
    if logprobs is None:
        masked = _masked(sampler, held)
        if masked is None:
            return
        logprobs = masked.log_softmax(dim=-1, dtype=torch.float32)
    values = logprobs.gather(-1, sampled.long()).squeeze(1)
    output.logprobs_tensors = v1_column.append(tensors, values)


def _masked(sampler: Any, held: Held) -> Any:
    """The logits as the sampler left them; where its kernel never writes them down, made again as vLLM itself does."""
    if held.masked is not None:
        return held.masked
    if held.cut is None:
        return held.logits  # all greedy: nothing after the logits processors
    path = getattr(sampler.topk_topp_sampler.forward, "__name__", "")
    if path not in ("forward_cuda", "forward_hip"):
        # nobody knows whether this one leaves its input alone
        say_not_both(f"unknown sampling path {path}")
        return None
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    logits, k, p = held.cut
    return apply_top_k_top_p(logits.clone(), k, p)


def _sample(original: Callable[..., Any], self: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
    held = held_now()
    if held is not None:
        held.logits = logits
    return original(self, logits, *args, **kwargs)


def _masking(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    masked = original(*args, **kwargs)
    held = held_now()
    if held is not None:
        held.masked = masked
    return masked
