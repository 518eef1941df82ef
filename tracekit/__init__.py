"""tracekit: record what an inference engine really did, replay it, and name the first diverging token.

Example:
    import tracekit

    trace = tracekit.open_trace("trace.arrow")
    trace.table("tokens").to_pandas()
    found = tracekit.replay(trace, model="./checkpoint-0")
    if found.result.verdict.layer != "none":
        print(found.result.verdict.since)
    tracekit.read_replay("replay.arrow").tokens

What this module names is what people may rely on; everything else is private. Nothing heavy is imported before it is
used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tracekit.errors import (
    AttachError,
    CacheError,
    ChecksumError,
    DaemonError,
    DamagedFooterError,
    EngineEnvError,
    MetricsError,
    ModelError,
    NoModelFolderError,
    NoSuchEngineError,
    NoSuchObjectError,
    NotAMetricError,
    NotArrowError,
    NotATraceError,
    NoteError,
    NotMarkedError,
    OutputError,
    OutputExistsError,
    ProtocolMismatchError,
    ReplayRefused,
    SchemaTooNewError,
    StoreError,
    TraceCorruptError,
    TraceError,
    TracekitError,
    TraceTruncatedError,
    TrainerDumpError,
    UnreadableTraceError,
    UsageError,
    WorkersError,
)

if TYPE_CHECKING:
    from tracekit.client import Client
    from tracekit.replay.output import read_replay
    from tracekit.replay.runner import replay
    from tracekit.rpc.client import ControlClient
    from tracekit.trace.reader import open_trace

__version__ = "0.1.0"

__all__ = [
    "AttachError",
    "CacheError",
    "ChecksumError",
    "Client",
    "ControlClient",
    "DaemonError",
    "DamagedFooterError",
    "EngineEnvError",
    "MetricsError",
    "ModelError",
    "NoModelFolderError",
    "NoSuchEngineError",
    "NoSuchObjectError",
    "NotAMetricError",
    "NotATraceError",
    "NotArrowError",
    "NotMarkedError",
    "NoteError",
    "OutputError",
    "OutputExistsError",
    "ProtocolMismatchError",
    "ReplayRefused",
    "SchemaTooNewError",
    "StoreError",
    "TraceCorruptError",
    "TraceError",
    "TraceTruncatedError",
    "TracekitError",
    "TrainerDumpError",
    "UnreadableTraceError",
    "UsageError",
    "WorkersError",
    "__version__",
    "open_trace",
    "read_replay",
    "replay",
]

_MODULES = {
    "Client": "tracekit.client",
    "ControlClient": "tracekit.rpc.client",
    "open_trace": "tracekit.trace.reader",
    "read_replay": "tracekit.replay.output",
}


def __getattr__(name: str) -> Any:
    if name == "replay":  # a package that can be called
        return importlib.import_module("tracekit.replay")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
