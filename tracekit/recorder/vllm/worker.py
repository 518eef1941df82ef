"""What only a worker knows: runs in its process, as plain methods that the engine core calls by name.

vLLM loads the plug-in in every worker process before it looks at the worker's class, so that a method set on
`WorkerBase` can be called through the executor's collective_rpc; `worker_extension_cls` stays free for its users.
Answers are plain values, errors too: an exception in a worker may end the engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import let_pass
from tracekit.recorder.vllm.fingerprint import fingerprints
from tracekit.recorder.vllm.hooks import add, after, wrap
from tracekit.recorder.vllm.snapshot import dumps

SPEC = {"block_size": "block_size", "kv_dtype": "dtype"}
DESCRIBE, FINGERPRINT = "tracekit_describe", "tracekit_fingerprint"


def attach(worker_base: type) -> None:
    """Give vLLM's worker class our methods, which nobody calls while nothing is recorded; idempotent.

    Args:
        worker_base: the class that all workers of this vLLM derive from.
    """
    for name, method in ((DESCRIBE, describe), (FINGERPRINT, fingerprint)):
        add(worker_base, name, method)
    after(worker_base, "__init__", _on_built)


def describe(worker: Any) -> dict[str, Any]:
    """Return `rank`, `pid` and `config` (JSON) of a worker, or `error`."""
    try:
        return {"rank": rank_of(worker), "pid": os.getpid(), "config": dumps(_config(worker))}
    except Exception as error:
        let_pass(error)
        return {"error": f"{type(error).__name__}: {error}"}


def fingerprint(worker: Any) -> dict[str, Any]:
    """Return `rank` and `tensors` (see `fingerprints`) of a worker, or `error`."""
    try:
        if getattr(worker, "_tracekit_asleep", False):
            return {"error": "the weights are asleep"}
        return {"rank": rank_of(worker), "tensors": fingerprints(worker.get_model())}
    except Exception as error:
        let_pass(error)
        return {"error": f"{type(error).__name__}: {error}"}


def rank_of(worker: Any) -> int:
    """The rank of a worker in its engine."""
    return int(getattr(worker, "rank", 0))


def _on_built(worker: Any, _result: None, *_args: Any, **_kwargs: Any) -> None:
    # reading memory that a sleeping GPU worker has unmapped would end its process
    for name, around in (("sleep", _sleep), ("wake_up", _wake_up)):
        for owner in type(worker).__mro__:
            if name in vars(owner):
                wrap(owner, name, around)
                break


def _sleep(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    self._tracekit_asleep = True
    return original(self, *args, **kwargs)


def _wake_up(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(self, *args, **kwargs)
    tags = args[0] if args else kwargs.get("tags")
    if tags is None or "weights" in tags:
        self._tracekit_asleep = False
    return result


def _config(worker: Any) -> dict[str, Any]:
    """All that can be found; what this vLLM does not have is left out."""
    runner = worker.model_runner
    model = worker.get_model()
    facts: dict[str, Callable[[], Any]] = {
        "worker": lambda: _path(worker),
        "model_runner": lambda: _path(runner),
        "model_runner_version": lambda: _runner_version(runner),
        "model": lambda: _path(model),
        "attention": lambda: _attention(runner),
        "kv_cache_dtype": lambda: str(runner.kv_cache_dtype).removeprefix("torch."),
        "cudagraph_mode": lambda: runner.compilation_config.cudagraph_mode.name,
        "sampler": lambda: _path(runner.sampler),
        "top_k_top_p": lambda: runner.sampler.topk_topp_sampler.forward.__name__,
        "logprobs_mode": lambda: str(runner.sampler.logprobs_mode),
        "head": lambda: _head(model),
        "parameters": lambda: _parameters(model),
        "torch": _torch,
        "device": lambda: _device(worker),
    }
    found = {}
    for name, fact in facts.items():
        try:
            found[name] = fact()
        except Exception:
            continue
    return found


def _path(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _runner_version(runner: Any) -> str:
    modules = [owner.__module__ for owner in type(runner).__mro__]
    # vLLM's second model runner lives in a package, the first in one file
    if any(module.startswith("vllm.v1.worker.gpu.") for module in modules):
        return "v2"
    return "v1" if any(module.startswith("vllm.v1.worker.") for module in modules) else "v0"


def _attention(runner: Any) -> list[Any]:
    """Backends of each KV cache group; V0 has one for all layers."""
    groups = getattr(runner, "attn_groups", None)
    if groups is None:
        return [[{"backend": runner.attn_backend.get_name()}]]
    return [[_attention_group(group) for group in of_cache] for of_cache in groups]


def _attention_group(group: Any) -> dict[str, Any]:
    spec = group.kv_cache_spec
    found = {key: getattr(spec, name) for key, name in SPEC.items() if hasattr(spec, name)}
    found = {key: str(value).removeprefix("torch.") for key, value in found.items()}
    return {"backend": group.backend.get_name(), "num_layers": len(group.layer_names), **found}


def _head(model: Any) -> dict[str, Any]:
    owner = model if hasattr(model, "lm_head") else model.language_model
    head = owner.lm_head
    shared = [m for m in model.modules() if m is not head and getattr(m, "weight", None) is head.weight]
    found = {
        "dtype": str(head.weight.dtype).removeprefix("torch."),
        "tied": bool(shared) or type(head).__name__ == "VocabParallelEmbedding",
        "quant_method": type(head.quant_method).__name__ if getattr(head, "quant_method", None) else None,
    }
    computed = getattr(getattr(owner, "logits_processor", None), "head_dtype", None)
    return {**found, "computed_in": str(computed).removeprefix("torch.")} if computed is not None else found


def _parameters(model: Any) -> dict[str, Any]:
    parameters = list(model.parameters())
    empty = sum(not p.numel() for p in parameters)
    # the CPU builds hand a Linear's weight to oneDNN and leave an empty parameter
    packed = any(hasattr(m, "cpu_linear") and not m.weight.numel() for m in model.modules() if hasattr(m, "weight"))
    return {"num": len(parameters), "num_empty": empty, "packed": packed}


def _torch() -> dict[str, Any]:
    import torch

    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "num_threads": torch.get_num_threads(),
        "num_interop_threads": torch.get_num_interop_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cuda_matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cuda_matmul_bf16_reduced": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def _device(worker: Any) -> dict[str, Any]:
    import torch

    device = torch.device(worker.device or worker.model_runner.device)
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    return {"type": device.type, "isa": torch.backends.cpu.get_cpu_capability()}
