"""Probing of V1's model runner 1: a wrap in the worker's process.

The rows of a step stand in the order of the runner's input batch (vllm/v1/worker/gpu_model_runner.py `execute_model`,
`_prepare_inputs`), and what the sampler will get waits in `execute_model_state`. Dummy and profiling runs do not come
through `execute_model`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracekit.recorder.guard import failed, say_once
from tracekit.recorder.vllm import hooks
from tracekit.recorder.vllm.probe import COMPILED, PLACE, PURPOSE, Probing
from tracekit.recorder.vllm.shares import is_within
from tracekit.recorder.vllm.v1.rows import family_of


def attach(folder: str, sample: float = 1.0) -> None:
    """Wrap the model runner once per process; of a share of requests that is recorded, `sample`, some are probed."""
    try:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    except Exception as error:
        say_once(f"nothing is probed: this vLLM has no model runner of that kind ({error})")
        return
    hooks.wrap(GPUModelRunner, "execute_model", _execute_model(folder, sample), PURPOSE)
    hooks.after(GPUModelRunner, "reload_weights", on_reloaded, PURPOSE)


def probing_of(runner: Any, folder: str, sample: float = 1.0) -> Probing | None:
    """What probes this runner; None where a graph hides its modules."""
    if not runner.model_config.enforce_eager:
        say_once(COMPILED)
        return None
    found: Probing | None = getattr(runner, PLACE, None)
    if found is None:
        found = Probing(runner.get_model(), Path(folder), lambda name: is_within(family_of(name), sample))
        setattr(runner, PLACE, found)
    return found


def on_reloaded(runner: Any, _result: Any, *_args: Any, **_kwargs: Any) -> None:
    """Probe requests under the new weights, too."""
    probing = getattr(runner, PLACE, None)
    if probing is not None:
        probing.rearm()


def admit_new(probing: Probing, scheduled: Any) -> None:
    """Probe new requests of a step (a `SchedulerOutput`) that begin uncached and without an adapter."""
    probing.forget(scheduled.finished_req_ids)
    probing.admit(
        {
            new.req_id: len(new.prompt_token_ids)
            for new in scheduled.scheduled_new_reqs
            if new.num_computed_tokens == 0 and new.prompt_token_ids and new.lora_request is None
        }
    )


def _execute_model(folder: str, sample: float) -> Callable[..., Any]:
    def execute_model(original: Callable[..., Any], self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        probing = None
        try:
            probing = probing_of(self, folder, sample)
            if probing is not None and not probing.is_over:
                _begin(self, probing, scheduler_output)
        except Exception as error:
            failed("execute_model", error)
        try:
            return original(self, scheduler_output, *args, **kwargs)
        finally:
            if probing is not None:
                try:
                    _end(self, probing)
                except Exception as error:
                    failed("execute_model", error)

    return execute_model


def _begin(runner: Any, probing: Probing, scheduled: Any) -> None:
    admit_new(probing, scheduled)
    cached = scheduled.scheduled_cached_reqs
    starts = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
    starts |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    parts = {name: (starts[name], num) for name, num in scheduled.num_scheduled_tokens.items()}
    # the runner orders its batch when it begins
    probing.begin(parts, lambda: [name for name in runner.input_batch.req_ids if name in parts])


def _end(runner: Any, probing: Probing) -> None:
    state = getattr(runner, "execute_model_state", None)
    if state is not None and state.logits is not None and state.spec_decode_metadata is None:
        probing.head(state.sample_hidden_states, state.logits)
    probing.end()
