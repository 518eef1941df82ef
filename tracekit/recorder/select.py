"""Which generation of vLLM is installed: found by probing features, not by comparing version strings."""

from __future__ import annotations

from typing import Protocol

SUPPORTED = "vLLM V1 engines, 0.18 to 0.32, and the V0 engine of vLLM 0.8.5"


class UnsupportedEngine(Exception):
    """This vLLM has not the features that a generation needs; the text names it and the supported range."""

    def __init__(self, version: str, missing: str) -> None:
        super().__init__(f"vLLM {version} is not supported (it lacks {missing}); supported are {SUPPORTED}")


class Generation(Protocol):
    """What a generation's module `attach` offers."""

    def missing_features(self) -> str:
        """Name what the installed vLLM lacks of what the hooks rely on; empty where nothing is missing."""

    def attach(self) -> None:
        """Put the hooks in; idempotent, opens nothing."""


def select_generation() -> Generation:
    """Return the generation whose features this vLLM has.

    Raises:
        UnsupportedEngine: none fits.
    """
    from tracekit.recorder.vllm.snapshot import vllm_version
    from tracekit.recorder.vllm.v0 import attach as v0
    from tracekit.recorder.vllm.v1 import attach as v1

    # a vLLM with both has a V1 engine older than what is known here
    generation: Generation = v0 if v0.is_installed() else v1
    missing = generation.missing_features()
    if missing:
        raise UnsupportedEngine(vllm_version(), missing)
    return generation
