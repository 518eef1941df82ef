"""What an engine of any generation is to its switch, beside how it begins and ends to be recorded."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from tracekit.errors import UsageError
from tracekit.recorder.redact import redaction
from tracekit.recorder.settings import Options
from tracekit.recorder.vllm.describe import about
from tracekit.recorder.vllm.probe import COMPILED

REDACTED = "nothing is probed: prompts are redacted here, and states tell what they were"


class Held:
    """An engine that is held weakly: being attachable keeps none alive.

    Args:
        kind: the generation.
        owner: vLLM's object that stands for the engine, with its `vllm_config`.
        unwatch: takes the hooks out.
    """

    def __init__(self, kind: str, owner: Any, unwatch: Callable[[], None]) -> None:
        self._owner = weakref.ref(owner)
        self._about = about(kind, owner.vllm_config)
        self._is_eager = bool(owner.vllm_config.model_config.enforce_eager)
        self._last_step = 0  # of earlier recordings
        self.hooks_off = unwatch

    def about(self) -> dict[str, Any]:
        """Return what the engine is."""
        return self._about

    def is_gone(self) -> bool:
        """Whether nobody holds the engine any more."""
        return self._owner() is None

    def refuses(self, options: Options) -> str:
        """Return why it cannot be recorded so, or nothing."""
        try:
            redaction(options.key_file())
        except UsageError as error:
            return f"prompts and tokens cannot be redacted: {error}"
        if options.probe is None:
            return ""
        return REDACTED if options.key_file() else "" if self._is_eager else COMPILED

    def _ended(self, engine_step: int) -> None:
        self._last_step = engine_step - 1
