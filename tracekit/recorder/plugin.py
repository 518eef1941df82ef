"""The target of the `vllm.general_plugins` entry point: vLLM calls it once in each of its processes."""

from __future__ import annotations

from tracekit.recorder.guard import never_raise, say_off
from tracekit.recorder.settings import daemon_address


@never_raise
def register() -> None:
    """Attach the recorder to this process's vLLM, or do nothing where no daemon is named.

    Must open nothing: vLLM also calls it in short-lived helper processes (model inspection), and before it forks.
    """
    if daemon_address() is None:
        return
    from tracekit.recorder.select import UnsupportedEngine, select_generation

    try:
        generation = select_generation()
    except UnsupportedEngine as reason:
        say_off(str(reason))
        return
    generation.attach()
