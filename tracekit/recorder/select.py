"""What an adapter is, and how the right one is found: by probing features, not by comparing version strings."""

from typing import Protocol

SUPPORTED = "vLLM V1 engines, 0.18 to 0.32, and the V0 engine of vLLM 0.8.5"


class UnsupportedEngine(Exception):
    """This vLLM has none of the features an adapter needs; the text names it and the supported range."""


class EngineAdapter(Protocol):
    """One generation of vLLM."""

    kind: str

    def attach(self) -> None:
        """Wrap the engine's classes; idempotent, opens nothing."""


def select_adapter() -> EngineAdapter:
    """Return the adapter whose features this vLLM has.

    Raises:
        UnsupportedEngine: no adapter fits.
    """
    from tracekit.recorder.vllm.snapshot import vllm_version
    from tracekit.recorder.vllm.v0 import adapter as v0
    from tracekit.recorder.vllm.v1 import adapter as v1

    # a vLLM with both has a V1 engine older than what the V1 adapter knows
    adapter: EngineAdapter
    if v0.is_installed():
        adapter, missing = v0.V0Adapter(), v0.missing_features()
    else:
        adapter, missing = v1.V1Adapter(), v1.missing_features()
    if not missing:
        return adapter
    raise UnsupportedEngine(f"vLLM {vllm_version()} is not supported (it lacks {missing}); supported are {SUPPORTED}")
