"""Opening the recording of one engine: the same for all generations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tracekit.recorder import settings
from tracekit.recorder.guard import say_once
from tracekit.recorder.pace import Pace
from tracekit.recorder.session import Session
from tracekit.recorder.settings import access, daemon_address, logprobs_complaint
from tracekit.recorder.vllm.describe import Described, engine_row
from tracekit.recorder.vllm.events import TableRow
from tracekit.recorder.vllm.recording import Recording
from tracekit.recorder.vllm.rows import Rows
from tracekit.rpc.address import socket_of
from tracekit.rpc.identity import new_token
from tracekit.rpc.idle import Marker

T = TypeVar("T", bound=Recording)

PLACE = "_tracekit_recording"  # where a recording hangs on what the hooks see


def recording_of(owner: Any) -> Any:
    """Return the recording that hangs on an object, or None."""
    return getattr(owner, PLACE, None)


def open_recording(
    owners: Sequence[Any], make: Callable[[Session], T], rows: Callable[[], Rows[Any]], described: Described
) -> T | None:
    """Open the recording of one engine and hang it on what the hooks will see.

    Threads and sockets begin with the first rows that are sent, not here.

    Args:
        owners: the engine's objects, of which the first tells whether it is recorded already.
        make: makes the generation's recording of a session.
        rows: makes its encoder.
        described: what the engine is.

    Returns:
        None where no daemon is named, or the engine is recorded already.
    """
    from tracekit.recorder.commands import Commands
    from tracekit.recorder.stream import Stream

    address = daemon_address()
    if address is None or recording_of(owners[0]) is not None:
        return None
    if complaint := logprobs_complaint():
        say_once(complaint)
    lossless, size = settings.is_lossless(), settings.window_bytes()
    stream = Stream(address, new_token(), access=access(), max_bytes=size, lossless=lossless)
    encoder = rows()
    encoder.is_short = stream.is_short
    pace = Pace(stream, settings.max_stall_secs()) if lossless else None
    session = Session(encoder, stream, Marker(socket_of(address), stream.engine_id), pace=pace)
    recording = make(session)
    Commands(stream, session, recording.label)
    for owner in owners:
        setattr(owner, PLACE, recording)
    session.append(TableRow("engines", engine_row(stream.engine_id, described)))
    return recording
