"""All ways by which weights change in a V1 engine, and what its workers tell.

RPCs and steps go through one single-threaded loop of the engine core and one queue to the workers: what came before a
schedule() is executed before its step (vllm/v1/engine/core.py; vllm/v1/executor/multiproc_executor.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import let_pass, never_raise, say_once
from tracekit.recorder.session import Session
from tracekit.recorder.vllm import worker
from tracekit.recorder.vllm.calls import method_name, noted, watch_loads
from tracekit.recorder.vllm.hooks import wrap
from tracekit.recorder.vllm.recording import BY_REQUEST, Recording

# Worker RPCs that leave the weights alone; any other name may change them and starts a new weight version.
READ_ONLY_RPC = (
    *("get_", "list_", "check_", "save_", "is_", "init_", "profile", "report_", "execute_", "compute_"),
    *("sleep", "remove_lora", "pin_lora"),
)

Of = Callable[[Any], "V1Weights | None"]


def attach(core: Any, of: Of) -> None:
    """Wrap what changes weights; idempotent.

    Args:
        core: the module vllm.v1.engine.core.
        of: finds the recording of an engine core.
    """
    hooks: dict[str, Callable[..., None]] = {
        "add_request": _nothing,
        "collective_rpc": _on_rpc,
        "sleep": _nothing,
        "wake_up": _on_wake_up,
        "add_lora": _on_add_lora,
        "remove_lora": _on_remove_lora,
        "set_weight_version": _on_label,
    }
    for name, hook in hooks.items():
        if name in vars(core.EngineCore):
            wrap(core.EngineCore, name, _around(of, core, hook), "weights")

    # where user code shares the process; where vLLM starts one for the engine, this is too late for it
    def built(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _meet(of, self, core)

    wrap(core.EngineCore, "__init__", built, "weights")


class V1Weights(Recording):
    """The part of a V1 engine's recording that follows its weights."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.asked = False
        self._in_process = False

    def ask(self, executor: Any, in_process: bool) -> None:
        """Ask the workers what they are and what weights they loaded; the rest of the trace does not need it.

        Args:
            executor: vLLM's, with collective_rpc.
            in_process: whether user code runs in the process of the weights.
        """
        self.asked = True
        try:
            described = executor.collective_rpc(worker.DESCRIBE)
        except Exception as error:
            let_pass(error)
            say_once(f"the workers cannot be asked, so nothing is known of them: {type(error).__name__}: {error}")
            return
        self.meet(described, executor, lambda executor: executor.collective_rpc(worker.FINGERPRINT))
        local = getattr(getattr(executor, "driver_worker", None), "worker", None)
        if local is not None:
            self._in_process = in_process
            watch_loads(self, local.get_model())

    def admitted(self, request: Any, first: bool) -> None:
        """Note a request.

        Args:
            request: vLLM's Request.
            first: whether the engine had none, so that its owner may have worked on the weights.
        """
        if request.lora_request is not None:
            self.adapter(request.lora_request, BY_REQUEST, time.monotonic_ns())
        if first and self._in_process:
            self.look()


@never_raise
def _meet(of: Of, engine_core: Any, core: Any) -> None:
    recording = of(engine_core)
    if recording is not None and not recording.asked:
        recording.ask(engine_core.model_executor, not isinstance(engine_core, core.EngineCoreProc))


def _around(of: Of, core: Any, hook: Callable[..., None]) -> Callable[..., Any]:
    def around(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        # before the first change: the weights are still those that were loaded
        _meet(of, self, core)
        return noted(of(self), hook, original, self, *args, **kwargs)

    return around


# The parameters below have vLLM's names, so that it may also pass them by name.


def _nothing(_recording: V1Weights, _begin_ns: int, *_args: Any, **_kwargs: Any) -> None:
    pass


def _on_rpc(
    recording: V1Weights, begin_ns: int, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None
) -> None:
    name = method_name(method)
    if name == "add_lora" and args:
        recording.adapter(args[0], name, begin_ns)
    elif not name.startswith(READ_ONLY_RPC):
        recording.changed(name, begin_ns, args, kwargs)


def _on_wake_up(recording: V1Weights, begin_ns: int, tags: Any = None) -> None:
    # level 2 of sleep drops the weights, so that they come back as whatever is in their memory
    if tags is None or "weights" in tags:
        recording.changed("wake_up", begin_ns, (tags,))


def _on_add_lora(recording: V1Weights, begin_ns: int, lora_request: Any) -> None:
    recording.adapter(lora_request, "add_lora", begin_ns)


def _on_remove_lora(recording: V1Weights, _begin_ns: int, lora_id: int) -> None:
    recording.forget_adapter(lora_id)


def _on_label(recording: V1Weights, _begin_ns: int, weight_version: Any) -> None:
    recording.label(str(weight_version), None, method="set_weight_version")
