"""The errors that people see, and the exit codes they end with.

TracekitError                       exit 1: something failed, one sentence says what
├── UsageError                      exit 2: the caller asked for something impossible
│   └── NoSuchEngineError           the trace has engines, and not this one
├── EngineEnvError                  an engine environment is missing, broken or could not be built
├── ModelError                      a model folder is missing, not loadable, or of another vocabulary
├── TraceError                      a trace cannot be read
│   ├── NotATraceError              not Arrow, or Arrow that is not ours
│   ├── TraceTruncatedError         ends before its own end
│   ├── TraceCorruptError           a checksum or a sequence number does not match
│   └── SchemaTooNewError           written by a newer tracekit
├── OutputError                     an output path exists already or cannot be written
├── DaemonError                     the daemon cannot be reached
│   ├── ProtocolMismatchError       it speaks another protocol version
│   └── NotMarkedError              some engine did not confirm the label of its weights
├── NoteError                       a file is not a recorder's note of what it could not deliver
├── MetricsError                    an engine's metrics cannot be read, or are not those of vLLM
└── ReplayRefused                   a verdict would be a guess: missing logprobs, unknown weights, empty join
"""

from collections.abc import Iterable, Sequence
from typing import Any

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_DATA_LOST = 3
EXIT_DIVERGED = 4


class TracekitError(Exception):
    """Base of every error tracekit raises on purpose; its text is one sentence for the user."""

    exit_code = EXIT_FAILED


class UsageError(TracekitError):
    exit_code = EXIT_USAGE


class NoSuchEngineError(UsageError):
    def __init__(self, engine: int, there: Iterable[int]) -> None:
        numbers = ", ".join(map(str, sorted(there))) or "none"
        super().__init__(f"the trace has no engine {engine}, its engines are: {numbers}")


class EngineEnvError(TracekitError):
    pass


class ModelError(TracekitError):
    pass


class TraceError(TracekitError):
    pass


class NotATraceError(TraceError):
    pass


class TraceTruncatedError(TraceError):
    pass


class TraceCorruptError(TraceError):
    pass


class SchemaTooNewError(TraceError):
    pass


class OutputError(TracekitError):
    pass


class DaemonError(TracekitError):
    pass


class ProtocolMismatchError(DaemonError):
    pass


class NotMarkedError(DaemonError):
    """``marks`` holds what each engine answered, those that confirmed as well."""

    def __init__(self, text: str, marks: Sequence[Any]) -> None:
        super().__init__(text)
        self.marks = list(marks)


class NoteError(TracekitError):
    pass


class MetricsError(TracekitError):
    pass


class ReplayRefused(TracekitError):
    pass
