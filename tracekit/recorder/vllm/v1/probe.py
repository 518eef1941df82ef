"""States at module boundaries of the first few requests, from V1's model runner 1: a wrap in the worker's process.

The rows of a step stand in the order of the runner's input batch (vllm/v1/worker/gpu_model_runner.py `execute_model`,
`_prepare_inputs`): as many for each request as it was scheduled. Each step's states of a probed request are a file of
their own, `PID-NUMBER/POSITION.safetensors`, so that a crash takes at most the last; dummy and profiling runs do not
come through `execute_model`, and padding stands behind the last request.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracekit.recorder.guard import failed, say_once
from tracekit.recorder.vllm import hooks
from tracekit.recorder.vllm.taps import HEAD, Taps

MAX_REQUESTS = 4
MAX_POSITIONS = 192  # of a request, from its first
MAX_LOGITS = 48  # rows of logits of a request


def attach(folder: str) -> None:
    """Wrap the model runner once per process."""
    try:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    except Exception as error:
        say_once(f"nothing is probed: this vLLM has no model runner of that kind ({error})")
        return
    hooks.wrap(GPUModelRunner, "execute_model", _execute_model(folder))


def _execute_model(folder: str) -> Callable[..., Any]:
    def execute_model(original: Callable[..., Any], self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        probing = None
        try:
            probing = _probing_of(self, folder)
            probing.begin(scheduler_output)
        except Exception as error:
            failed("execute_model", error)
        try:
            return original(self, scheduler_output, *args, **kwargs)
        finally:
            if probing is not None:
                try:
                    probing.end()
                except Exception as error:
                    failed("execute_model", error)

    return execute_model


def _probing_of(runner: Any, folder: str) -> Probing:
    found: Probing | None = getattr(runner, "_tracekit_probing", None)
    if found is None:
        found = runner._tracekit_probing = Probing(runner, Path(folder))
    return found


class Probing:
    """What one model runner has of its probed requests."""

    def __init__(self, runner: Any, folder: Path) -> None:
        self._runner = runner
        self._folder = folder
        self._next: dict[str, int] = {}  # position that comes next, of those being probed
        self._num_prompt: dict[str, int] = {}
        self._logits: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._scheduled: dict[str, int] = {}
        self._states: dict[str, dict[str, Any]] = {}
        self._open = False
        if not runner.model_config.enforce_eager:
            say_once("nothing is probed: a compiled model has no module boundaries, start vLLM with enforce_eager")
            self._left = 0
            return
        self._left = MAX_REQUESTS
        Taps(runner.get_model(), self._keep, lambda: self._open)

    def begin(self, scheduled: Any) -> None:
        """Look at what a step will run."""
        if not (self._left or self._next):
            return
        for new in scheduled.scheduled_new_reqs:
            if self._left and new.num_computed_tokens == 0 and new.prompt_token_ids and new.lora_request is None:
                self._left -= 1
                self._names[new.req_id] = f"{os.getpid()}-{MAX_REQUESTS - self._left}"
                self._next[new.req_id], self._logits[new.req_id] = 0, 0
                self._num_prompt[new.req_id] = len(new.prompt_token_ids)
        cached = scheduled.scheduled_cached_reqs
        for name, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if self._next.get(name, computed) != computed:
                del self._next[name]  # it was preempted, or a draft was refused: its rows would not go on
        for name in scheduled.finished_req_ids:
            self._next.pop(name, None)
        self._scheduled = scheduled.num_scheduled_tokens
        self._open = any(name in self._next for name in self._scheduled)

    def end(self) -> None:
        """Write what a step gave."""
        if not self._open:
            return
        self._open = False
        from safetensors.torch import save_file

        states, self._states = self._states, {}
        for name, own in states.items():
            folder = self._folder / self._names[name]
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            about = {"request_id": name, "pid": str(os.getpid())}
            save_file(own, folder / f"{self._next[name]:06d}.safetensors", about)
            self._next[name] += self._scheduled[name]
            if self._next[name] >= MAX_POSITIONS:
                del self._next[name]

    def _keep(self, key: str, tensor: Any) -> None:
        start = 0
        of_head = key.startswith(HEAD)
        for row, name in enumerate(self._runner.input_batch.req_ids):
            num = self._scheduled.get(name, 0)
            if name in self._next and (not of_head or self._samples(name, num, key)):
                rows = tensor[row : row + 1] if of_head else tensor[start : start + num]
                self._states.setdefault(name, {})[key] = rows.detach().to("cpu", copy=True).contiguous()
            start += num

    def _samples(self, name: str, num: int, key: str) -> bool:
        if self._next[name] + num < self._num_prompt[name] or self._logits[name] >= MAX_LOGITS:
            return False
        self._logits[name] += key.endswith("output")
        return True
