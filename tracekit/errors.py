"""The errors that people see, and the exit codes they end with.

TracekitError                       exit 1: something failed, one sentence says what
├── UsageError                      exit 2: the caller asked for something impossible
│   └── NoSuchEngineError           the trace has engines, and not this one
├── CacheError                      tracekit's cache folder cannot be written, or its disk is full
├── StoreError                      an object store does not give what was asked of it
│   └── NoSuchObjectError           there is nothing of that name
├── EngineEnvError                  an engine environment is missing, broken or could not be built
├── ModelError                      a model folder is missing, not loadable, or of another vocabulary
│   └── NoModelFolderError          it is missing
├── TraceError                      a trace cannot be read
│   ├── UnreadableTraceError        the system does not let us read it
│   ├── NotATraceError              not Arrow, or Arrow that is not ours
│   │   └── NotArrowError           not Arrow
│   ├── TraceTruncatedError         ends before its own end
│   ├── TraceCorruptError           a checksum or a sequence number does not match
│   │   ├── ChecksumError           a checksum does not
│   │   └── DamagedFooterError      the list of a sealed file's batches cannot be read
│   └── SchemaTooNewError           written by a newer tracekit
├── OutputError                     an output path cannot be written
│   └── OutputExistsError           it exists already
├── DaemonError                     the daemon cannot be reached
│   ├── ProtocolMismatchError       it speaks another protocol version
│   └── NotMarkedError              some engine did not confirm the label of its weights
├── AttachError                     an engine that runs cannot be told to start or stop being recorded
├── NoteError                       a file is not a recorder's note of what it could not deliver
├── MetricsError                    an engine's metrics cannot be read, or are not those of vLLM
│   └── NotAMetricError             a line is not of the text format of Prometheus
├── TrainerDumpError                a trainer's dump cannot be read, or is of no known format
├── WorkersError                    workers of a replay cannot be had, or were lost again and again
└── ReplayRefused                   a verdict would be a guess: missing logprobs, unknown weights, empty join
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
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


class CacheError(TracekitError):
    pass


class StoreError(TracekitError):
    pass


class NoSuchObjectError(StoreError):
    def __init__(self, what: str, url: str) -> None:
        super().__init__(f"there is no {what}: {url}")


class EngineEnvError(TracekitError):
    pass


class ModelError(TracekitError):
    pass


class NoModelFolderError(ModelError):
    def __init__(self, folder: str | Path) -> None:
        name = str(folder)
        if Path(folder).is_file():
            hint = " (it is a file: give the folder it lies in)"
        elif "://" in name or (name.count("/") == 1 and name[0] not in "/.~"):
            hint = " (models of a hub are not fetched: download it, and give its folder)"
        else:
            hint = ""
        super().__init__(f"there is no model folder{hint}: {folder}")


class TraceError(TracekitError):
    pass


class UnreadableTraceError(TraceError):
    def __init__(self, path: str | Path, error: OSError) -> None:
        self.reason = error.strerror
        super().__init__(f"cannot read {path}: {error.strerror}")


class NotATraceError(TraceError):
    pass


class NotArrowError(NotATraceError):
    def __init__(self, path: str | Path, form: str = "file") -> None:
        super().__init__(f"this is not an Arrow {form}: {path}")


class TraceTruncatedError(TraceError):
    pass


class TraceCorruptError(TraceError):
    pass


class ChecksumError(TraceCorruptError):
    def __init__(self, what: str) -> None:
        super().__init__(f"{what} does not match its checksum")


class DamagedFooterError(TraceCorruptError):
    def __init__(self, path: str | Path) -> None:
        super().__init__(f"the footer of the trace is damaged: {path}")


class SchemaTooNewError(TraceError):
    pass


class OutputError(TracekitError):
    pass


class OutputExistsError(OutputError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"the output exists already, and nothing is overwritten: {path}")


class DaemonError(TracekitError):
    pass


class ProtocolMismatchError(DaemonError):
    pass


class NotMarkedError(DaemonError):
    """`marks` holds what each engine answered, those that confirmed as well."""

    def __init__(self, text: str, marks: Sequence[Any]) -> None:
        super().__init__(text)
        self.marks = list(marks)


class AttachError(TracekitError):
    pass


class NoteError(TracekitError):
    pass


class MetricsError(TracekitError):
    pass


class NotAMetricError(MetricsError):
    def __init__(self, number: int, line: str) -> None:
        super().__init__(f"line {number} is not a metric in the text format of Prometheus: {line[:80]!r}")


class TrainerDumpError(TracekitError):
    pass


class WorkersError(TracekitError):
    pass


class ReplayRefused(TracekitError):
    pass
