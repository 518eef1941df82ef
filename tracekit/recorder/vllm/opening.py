"""Opening the recording of one engine: the same for all generations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tracekit.errors import UsageError
from tracekit.recorder import settings
from tracekit.recorder.guard import say_off, say_once
from tracekit.recorder.pace import Pace
from tracekit.recorder.redact import redaction
from tracekit.recorder.session import Session
from tracekit.recorder.settings import Options, logprobs_complaint
from tracekit.recorder.vllm.describe import Described, engine_row
from tracekit.recorder.vllm.events import TableRow
from tracekit.recorder.vllm.recording import PLACE, Recording
from tracekit.recorder.vllm.rows import Rows
from tracekit.rpc.address import socket_of
from tracekit.rpc.identity import new_token
from tracekit.rpc.idle import Marker

T = TypeVar("T", bound=Recording)


def recording_of(owner: Any) -> Any:
    """Return the recording that hangs on an object, or None."""
    return getattr(owner, PLACE, None)


def open_recording(
    options: Options | None,
    owners: Sequence[Any],
    make: Callable[[Session], T],
    rows: Callable[[], Rows[Any]],
    described: Described,
) -> T | None:
    """Open the recording of one engine and hang it on what the hooks will see.

    Threads and sockets begin with the first rows that are sent, not here.

    Args:
        options: how; None: not at all.
        owners: the engine's objects, of which the first tells whether it is recorded already.
        make: makes the generation's recording of a session.
        rows: makes its encoder.
        described: what the engine is.

    Returns:
        None where no daemon is named, the engine is recorded already, or it cannot be redacted as was asked.
    """
    from tracekit.recorder.commands import Commands
    from tracekit.recorder.stream import Stream

    if options is None or recording_of(owners[0]) is not None:
        return None
    if complaint := logprobs_complaint():
        say_once(complaint)
    try:
        hashed = redaction(options.key_file())
    except UsageError as error:
        say_off(f"prompts and tokens cannot be redacted: {error}")
        return None
    options = options._replace(redacted=None if hashed is None else hashed.name)
    lossless, size = options.waits(), settings.window_bytes()
    stream = Stream(
        options.address, new_token(), access=options.access, max_bytes=size, lossless=lossless, redaction=hashed
    )
    encoder = rows()
    encoder.is_short = stream.is_short
    pace = Pace(stream, options.stall_secs()) if lossless else None
    session = Session(encoder, stream, Marker(socket_of(options.address), stream.engine_id), pace=pace)
    recording = make(session)
    recording.stream, recording.options = stream, options
    Commands(stream, session, recording.label)
    recording.hang_on(*owners)
    session.end_with(owners[0], recording.owner_gone)
    session.last_look = lambda: _unseen(encoder.num_unseen(recording.has))
    session.append(TableRow("engines", engine_row(stream.engine_id, described, options)))
    return recording


def _unseen(count: int) -> str:
    return f"the end of {count} requests was not seen" if count else ""
