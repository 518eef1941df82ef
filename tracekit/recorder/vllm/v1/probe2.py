"""Probing of V1's model runner 2, which 0.32 takes where Triton works: written against its source.

`prepare_inputs` is where the order of a step's rows is settled, and only real batches come through it; `sample` makes
logits, a row for each of `InputBatch.req_ids` where nothing is drafted (vllm/v1/worker/gpu/model_runner.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import failed, say_once
from tracekit.recorder.vllm import hooks
from tracekit.recorder.vllm.probe import PLACE, PURPOSE, on_step_done
from tracekit.recorder.vllm.v1.probe import admit_new, on_reloaded, probing_of


def attach(folder: str, sample: float = 1.0) -> None:
    """Wrap model runner 2 once per process, where it is; of a share of requests that is recorded some are probed."""
    try:
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    except Exception:
        return  # this vLLM has model runner 1 alone
    missing = missing_features(GPUModelRunner)
    if missing:
        say_once(f"model runner 2 is not probed: it lacks {missing}")
        return
    hooks.after(GPUModelRunner, "prepare_inputs", _prepared_for(folder, sample), PURPOSE)
    hooks.wrap(GPUModelRunner, "sample", _sample, PURPOSE)
    if "reload_weights" in vars(GPUModelRunner):
        hooks.after(GPUModelRunner, "reload_weights", on_reloaded, PURPOSE)
    hooks.after(GPUModelRunner, "sample_tokens", on_step_done, PURPOSE)


def missing_features(runner: Any) -> str:
    """Name what this model runner 2 lacks of what the wraps rely on; empty when nothing is missing."""
    return ", ".join(name for name in ("prepare_inputs", "sample", "sample_tokens") if name not in vars(runner))


def _prepared_for(folder: str, sample: float) -> Callable[..., None]:
    def _on_prepared(runner: Any, batch: Any, scheduler_output: Any, *_args: Any, **_kwargs: Any) -> None:
        probing = probing_of(runner, folder, sample)
        if probing is None or probing.is_over:
            return
        admit_new(probing, scheduler_output)
        names, computed = list(batch.req_ids), batch.num_computed_tokens_np.tolist()
        nums = batch.num_scheduled_tokens.tolist()
        parts = {name: (start, num) for name, start, num in zip(names, computed, nums, strict=True)}
        probing.begin(parts, lambda: names)

    return _on_prepared


def _sample(
    original: Callable[..., Any], self: Any, hidden_states: Any, input_batch: Any, *args: Any, **kw: Any
) -> Any:
    probing = getattr(self, PLACE, None)
    if probing is None or probing.is_over or input_batch.num_draft_tokens:
        return original(self, hidden_states, input_batch, *args, **kw)
    model, compute, before = self.model, self.model.compute_logits, vars(self.model).get("compute_logits")

    def compute_logits(hidden: Any, *more: Any, **named: Any) -> Any:
        logits = compute(hidden, *more, **named)
        try:
            if logits is not None:
                probing.head(hidden, logits)
        except Exception as error:
            failed("sample", error)
        return logits

    model.compute_logits = compute_logits  # for this call: what it returns is what the sampler gets
    try:
        return original(self, hidden_states, input_batch, *args, **kw)
    finally:
        del model.compute_logits
        if before is not None:
            model.compute_logits = before
