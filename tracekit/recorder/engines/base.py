"""What an adapter is, and how the right one is found: by probing features, not by comparing version strings."""

from typing import Protocol

SUPPORTED = "vLLM V1 engines, 0.18 to 0.32"


class UnsupportedEngine(Exception):
    """This vLLM has none of the features an adapter needs; the text names it and the supported range."""


class EngineAdapter(Protocol):
    """One generation of vLLM."""

    kind: str

    def attach(self) -> None:
        """Wrap the engine's classes; idempotent, opens nothing."""


def vllm_version() -> str:
    """The installed vLLM's version, for messages and the trace only."""
    try:
        from vllm.version import __version__

        return str(__version__)
    except Exception:
        return "unknown"


def select_adapter() -> EngineAdapter:
    """Return the adapter whose features this vLLM has.

    Raises:
        UnsupportedEngine: no adapter fits.
    """
    from tracekit.recorder.engines import v1

    missing = v1.missing_features()
    if not missing:
        return v1.V1Adapter()
    raise UnsupportedEngine(f"vLLM {vllm_version()} is not supported (it lacks {missing}); supported are {SUPPORTED}")
