"""The trainer's end: annotations go to the daemon as an engine's rows do, labels of weights one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any, SupportsInt

from tracekit.client.annotations import TABLE, Annotation, Annotations, annotation
from tracekit.client.marks import Marks
from tracekit.errors import UsageError
from tracekit.recorder import settings
from tracekit.recorder.guard import say, say_once
from tracekit.recorder.redact import redaction
from tracekit.recorder.session import Claim, Session, Tables
from tracekit.recorder.stream import Stream
from tracekit.rpc.address import socket_of
from tracekit.rpc.credentials import Access
from tracekit.rpc.identity import new_token
from tracekit.rpc.idle import Marker

MAX_ANNOTATIONS = 16_384  # that may wait for the background thread, which looks twenty times a second
MAX_BYTES = 64 << 20  # of those that the daemon has not confirmed
CLOSE_SECS = 5.0


class Client:
    """Annotates rollouts and labels weights, from any thread of a trainer.

    No call waits for the daemon, and none raises for what it is given: what cannot be sent is counted, in the trace too
    where the daemon comes back, and said on stderr. In a forked child nothing is done.

    Args:
        address: of the daemon, `unix:PATH` or `grpcs://HOST:PORT`; None: as `TRACEKIT_DAEMON` or `tracekit.toml` says.
        run: the name of the run, which tells apart requests of several jobs; None: what `TRACEKIT_RUN` says.
        access: token and certificates for `grpcs://`; None: what the environment says, as for the recorder.

    Attributes:
        engine_id: 32 hex digits, of this client; its rows have it in the place of an engine's.
    """

    def __init__(self, address: str | None = None, *, run: str | None = None, access: Access | None = None) -> None:
        self._run = run or settings.run_name()
        self._num_wrong = 0
        self._pid = os.getpid()
        self._session: Session | None = None
        self._marks: Marks | None = None
        self.engine_id = ""
        address = address or settings.daemon_address()
        if address is None:
            say_once("no daemon is named (TRACEKIT_DAEMON): what the trainer says of its rollouts goes nowhere")
            return
        access = settings.access() if access is None else access
        try:
            hashed = redaction(settings.redact_key_file())
        except UsageError as error:
            say_once(f"what the trainer says of its rollouts goes nowhere, its ids cannot be redacted: {error}")
            return
        stream = Stream(address, new_token(), access=access, max_bytes=MAX_BYTES, trainer=True, redaction=hashed)
        self._line = _Line(stream)
        self.engine_id = self._line.stream.engine_id
        marker = Marker(socket_of(address), self.engine_id)
        self._session = Session(Annotations(), self._line, marker, max_events=MAX_ANNOTATIONS)
        self._marks = Marks(address, access)

    @property
    def num_dropped(self) -> int:
        """How many annotations and labels were dropped so far."""
        lost = self._line.stream.num_lost(TABLE) if self._session is not None else 0
        return self._num_wrong + lost + (self._marks.num_failed if self._marks is not None else 0)

    def annotate(
        self,
        request_id: object,
        *,
        index: SupportsInt = 0,
        engine_id: str | None = None,
        train_step: SupportsInt | None = None,
        group: object = None,
        reward: Any = None,
        advantage: Any = None,
        old_logprob: Any = None,
        token_ids: Any = None,
    ) -> None:
        """Say what the trainer knows of one rollout; what was said of it before is added to, or replaced.

        Lists, arrays and CPU tensors are copied at once. Copying a tensor of an accelerator waits for its stream: hand
        over a copy on the CPU where that matters.

        Args:
            request_id: the request's, as its caller has it: the `id` of a server's response, or the one that was given
                to `generate`.
            index: which of the n completions.
            engine_id: of the engine that made it (`ControlClient.list_engines`), where several use the same ids.
            train_step: the trainer's step that uses it.
            group: of the rollouts that it is compared with.
            reward: a number.
            advantage: a number, or one for each token of the completion.
            old_logprob: nats, one for each token of the completion: what the trainer's own forward gives before the
                update.
            token_ids: of prompt and completion, as that forward saw them; without them the recorded ones are taken.
        """
        if os.getpid() != self._pid:
            return
        try:
            said = annotation(
                request_id,
                run=self._run,
                engine_id=engine_id,
                index=index,
                train_step=train_step,
                group=group,
                reward=reward,
                advantage=advantage,
                old_logprob=old_logprob,
                token_ids=token_ids,
            )
            self._send(said)
        except Exception as error:
            self._wrong(error)

    def mark_weights(self, label: str, checkpoint: str | None = None, engines: Iterable[int] = ()) -> None:
        """Label the weights that the engines have now, from a thread of its own; see `ControlClient.mark_weights`.

        Call it between an update and the next one, and give the engines a moment: nobody waits for their answer, and
        one that has been updated again stamps the label on what it has by then. `ControlClient` waits.

        Args:
            label: the caller's name of these weights.
            checkpoint: where they are stored.
            engines: their numbers; none: all that have not ended.
        """
        if os.getpid() != self._pid:
            return
        if self._marks is None or not self._marks.put(label, checkpoint, tuple(engines)):
            self._num_wrong += 1

    def close(self, timeout_secs: float = CLOSE_SECS) -> None:
        """Deliver what is there, within the time; done at the exit of the process too, and safe to call twice."""
        if os.getpid() != self._pid or self._session is None:
            return
        if self._marks is not None:
            self._marks.close(timeout_secs)
        self._session.close(timeout_secs)
        if self.num_dropped:
            say_once(f"{self.num_dropped} annotations or labels of this trainer were dropped", self.engine_id)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, said: Annotation) -> None:
        if self._session is None:
            self._num_wrong += 1
        else:
            self._session.append(said)

    def _wrong(self, error: Exception) -> None:
        if os.environ.get("TRACEKIT_STRICT") == "1":
            raise error
        say_once(f"an annotation is dropped ({error}); so are others like it", f"annotation {type(error).__name__}")
        if self._session is None:
            self._num_wrong += 1
        else:
            self._session.lose(None, f"not an annotation: {type(error).__name__}")


class _Line:
    """The stream, with a word on stderr where it loses annotations."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._told = 0

    def put(self, tables: Tables, kept: Claim | None = None) -> None:
        """Send rows, or keep them."""
        self.stream.put(tables, kept)
        self._tell()

    def lose(self, rows: dict[str, int], reason: str) -> None:
        """Count rows that were lost before."""
        self.stream.lose(rows, reason)
        self._tell()

    def last_seq(self) -> int:
        """Return the number of the last batch or loss."""
        return self.stream.last_seq()

    def close(self, timeout_secs: float, whole: bool = True) -> None:
        """Deliver what is kept, and say goodbye."""
        self.stream.close(timeout_secs, whole)

    def _tell(self) -> None:
        lost = self.stream.num_lost(TABLE)
        if lost >= max(1, 2 * self._told):  # at the first, and each time that they have doubled
            self._told = lost
            say(f"annotations are dropped, {lost} so far, because they cannot be delivered")
