"""The target of the `vllm.general_plugins` entry point: vLLM calls it once in each of its processes."""

from __future__ import annotations

import sys

from tracekit.recorder.guard import never_raise, say_off
from tracekit.recorder.settings import attach_folder, daemon_address


@never_raise
def register() -> None:
    """Attach the recorder to this process's vLLM: at once where a daemon is named, else so that it can be told later.

    Must open nothing: vLLM also calls it in short-lived helper processes (model inspection), and before it forks.
    """
    dormant = daemon_address() is None
    if _is_inspection() or (dormant and attach_folder() is None):
        return
    from tracekit.recorder.select import UnsupportedEngine, select_generation

    try:
        generation = select_generation()
    except UnsupportedEngine as reason:
        if not dormant:
            say_off(str(reason))
        return
    generation.attach()


def _is_inspection() -> bool:
    """Whether this is the short-lived process in which vLLM looks at a model's class."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    return getattr(main, "name", "") == "vllm.model_executor.models.registry"
