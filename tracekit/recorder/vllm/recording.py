"""Weight versions, shared by all generations: what may have changed, which version that is, what did change.

A version starts with the first forward that is dispatched after a change: everything since the forward before is one
version, and where its fingerprints are taken nothing else can change them any more.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tracekit.recorder.guard import failed, let_pass, never_raise, say_once
from tracekit.recorder.session import Session
from tracekit.recorder.settings import Options
from tracekit.recorder.stream import Stream
from tracekit.recorder.vllm.calls import brief
from tracekit.recorder.vllm.events import Fingerprints, TableRow
from tracekit.recorder.vllm.fingerprint import Tensors, count_changed
from tracekit.recorder.vllm.snapshot import dumps

PLACE = "_tracekit_recording"  # where a recording hangs on what the hooks see
MARK = "mark"  # method of a label that came through the daemon
DIRECT = "direct access"  # method of a change that only the fingerprints tell of
ATTACH, DETACH = "attach", "detach"  # where a recording begins and ends in the middle of its engine's life
BY_REQUEST = "request"  # method of an adapter that came with a request and is loaded when it is scheduled

MAX_CALLS = 16  # of one version, whose arguments are kept


@dataclass(frozen=True)
class Change:
    """A call that may have changed weights."""

    method: str
    begin_ns: int
    end_ns: int
    arguments: Any = None  # see `calls.brief`
    lora: str | None = None


class Recording:
    """What the recordings of all generations share: the session, the engine's step, and its weight version.

    All but `label`, `has` and `owner_gone` is called on the engine's thread. Of the engine it holds nothing: one that
    its owner lets go of is freed, with its weights and its KV cache, and the recording ends.

    Args:
        session: takes the rows.

    Attributes:
        stream: where they go from there.
        options: how the engine is recorded.
        since_step: the first engine step that it may have.
        stopping: it takes no new step.
        over: it takes nothing any more, and waits to be closed.
        trouble: what workers were told to do for it and cannot; empty where nothing is.
    """

    stream: Stream
    options: Options

    def __init__(self, session: Session) -> None:
        self.session = session
        self.engine_step = 0
        self.since_step = 0
        self.stopping = False
        self.over = False
        self.trouble = ""
        self.on_end: Callable[[int], None] = lambda _engine_step: None  # with the step after its last
        self.weight_version = 0
        self.pending = False  # looked at before every forward
        self._changes: list[Change] = []
        self._adapters: dict[str, tuple[int, str]] = {}
        self._poll = False
        self._owners: list[weakref.ref[Any]] = []
        self._read: Callable[[], Iterable[dict[str, Any]]] | None = None
        self._tensors: Tensors | None = None  # of the current version
        self._lock = threading.Lock()  # held where versions start and where they are labelled
        # runs before the session's own: a change with no forward after it is a version too
        atexit.register(self.close)

    def hang_on(self, *owners: Any) -> None:
        """Be found on these objects of the engine, see `opening.recording_of`."""
        for owner in owners:
            setattr(owner, PLACE, self)
            self._owners.append(weakref.ref(owner))

    def owners(self) -> list[Any]:
        """Return the engine's objects that it hangs on, as far as they are there."""
        return [owner for ref in self._owners if (owner := ref()) is not None]

    def begin_at(self, engine_step: int, num_joined: int, told: dict[str, Any]) -> None:
        """Begin in the middle of the engine's life: which weights it has is not known, so they are not version 0.

        Args:
            engine_step: the next to be dispatched.
            num_joined: requests under way.
            told: how it is recorded, for the trace.
        """
        self.engine_step = self.since_step = engine_step
        self.weight_version = 1
        now = time.monotonic_ns()
        self._steer(ATTACH, told, {"joined": num_joined})
        self._announce(method=ATTACH, begin_ns=now, end_ns=now)

    def stop(self) -> None:
        """Take no further step, and end with the output of those that are under way."""
        self.stopping = True
        if not self.num_under_way():
            self.end()

    def end(self) -> None:
        """Let go of the engine; whoever closes it may wait for the daemon, the engine does not."""
        if not self.over:
            self.stopping = self.over = True
            for owner in self.owners():
                if getattr(owner, PLACE, None) is self:
                    delattr(owner, PLACE)
            self._steer(DETACH, {}, None)
            self.on_end(self.engine_step)

    def has(self, _request_id: str) -> bool:
        """Whether the engine has a request, as far as is known; on any thread."""
        return True

    def num_under_way(self) -> int:
        """Return the steps that were dispatched and whose output has not come."""
        return 0

    def _steer(self, name: str, arguments: dict[str, Any], answer: Any) -> None:
        row = {"engine_step": self.engine_step, "time_ns": time.monotonic_ns(), "name": name}
        row |= {"arguments": dumps(arguments), "answer": dumps(answer)}
        self.session.append(TableRow("control", row))

    def close(self, timeout_secs: float = 5.0) -> None:
        """Announce what no forward has followed, and deliver everything; safe to call twice."""
        atexit.unregister(self.close)
        never_raise(self.start_versions)(read=False)
        self.session.close(timeout_secs)

    def owner_gone(self) -> None:
        """Announce what no forward has followed: nobody has the engine any more; on the session's thread."""
        atexit.unregister(self.close)
        never_raise(self.start_versions)(read=False)

    def wait(self) -> None:
        """Let a lossless recorder catch up, between two steps, and record what it took."""
        stall = self.session.wait()
        if stall is not None:
            row = {"engine_step": self.engine_step, **stall._asdict()}
            self.session.append(TableRow("stalls", row))

    def meet(
        self, described: Iterable[dict[str, Any]], asked: Any, read: Callable[[Any], Iterable[dict[str, Any]]]
    ) -> None:
        """Take what the workers tell of themselves, and the fingerprints of their weights: later ones compare to them.

        Args:
            described: the answers of `worker.describe`.
            asked: who asks the workers.
            read: takes it and returns their answers of `worker.fingerprint`; where it raises, or a worker could not, no
                fingerprints are taken any more.
        """
        now = time.monotonic_ns()
        for answer in described:
            if "error" in answer:
                say_once(f"a worker could not be described: {answer['error']}")
            else:
                self.session.append(TableRow("workers", {**answer, "time_ns": now}))
        held = weakref.ref(asked)
        self._read = lambda: read(held())
        self._tensors = self._take()
        if self._tensors is not None:
            self.session.append(Fingerprints(self.weight_version, self._tensors))

    def changed(
        self, method: str, begin_ns: int, args: Any = (), kwargs: Any = None, *, lora: str | None = None
    ) -> None:
        """Note a call, which has just returned, that may have changed weights.

        Args:
            method: its name.
            begin_ns: when it began; what was noted since is a part of it.
            args: its arguments; only a brief text is kept.
            kwargs: its keyword arguments.
            lora: the adapter whose weights changed; None: the model's.
        """
        with self._lock:
            self._changes = [change for change in self._changes if change.begin_ns < begin_ns]
            kept = len(self._changes) < MAX_CALLS
            arguments = {"args": brief(args), "kwargs": brief(kwargs or {})} if kept else None
            self._changes.append(Change(method, begin_ns, time.monotonic_ns(), arguments, lora))
            self.pending = True

    def adapter(self, lora: Any, method: str, begin_ns: int) -> None:
        """Note that an adapter is used or loaded: a change where its name stood for another (id, path), or for none.

        Args:
            lora: vLLM's LoRARequest.
            method: `BY_REQUEST`, or the RPC that loads it, which is always a change.
            begin_ns: when the RPC began.
        """
        name, key = str(lora.lora_name), (int(lora.lora_int_id), str(lora.lora_path))
        if method != BY_REQUEST or self._adapters.get(name) != key:
            self._adapters[name] = key
            self.changed(method, begin_ns, kwargs={"lora_int_id": key[0], "lora_path": key[1]}, lora=name)

    def forget_adapter(self, lora_int_id: int) -> None:
        """Note that an adapter is unloaded: its next use loads it anew."""
        self._adapters = {name: key for name, key in self._adapters.items() if key[0] != lora_int_id}

    def look(self) -> None:
        """Compare fingerprints before the next forward: somebody may have written to the weights without a call."""
        if self._tensors is not None:
            self._poll = self.pending = True

    def label(self, label: str, checkpoint: str | None, method: str = MARK) -> tuple[int, int]:
        """Append the row of a label for the present weights; return its weight version and engine step.

        What has changed since the last forward is labelled before its version is announced. May be called on any
        thread: the row waits for nobody.

        Args:
            label: the caller's name for these weights.
            checkpoint: where they are stored.
            method: how the label arrived.
        """
        now = time.monotonic_ns()
        with self._lock:
            version = self.weight_version + any(change.lora is None for change in self._changes)
            step = self.engine_step
            row = {"weight_version": version, "engine_step": step, "method": method, "arguments": "{}"}
            row |= {"begin_ns": now, "end_ns": now, "label": label, "checkpoint": checkpoint}
            self.session.append(TableRow("weights", row))
        return version, step

    def start_versions(self, *, read: bool = True) -> None:
        """Let all changes since the last forward be one version, and each adapter's another; call it where pending.

        Args:
            read: whether the workers can be asked for fingerprints.
        """
        try:
            with self._lock:
                self._start(read)
        except Exception as error:
            failed("start_versions", error)

    def _start(self, read: bool) -> None:
        changes, self._changes = self._changes, []
        poll, self._poll, self.pending = self._poll, False, False
        by_lora: dict[str | None, list[Change]] = {}
        for change in changes:
            by_lora.setdefault(change.lora, []).append(change)
        model = by_lora.pop(None, [])
        if model or (poll and read):
            tensors = self._take() if read else None
            num_changed = count_changed(self._tensors, tensors)
            if not model and num_changed:
                now = time.monotonic_ns()
                model = [Change(DIRECT, now, now, {})]
            if model:
                self.weight_version += 1
                self._announce(**_told(model), num_changed=num_changed)
                self._tensors = tensors
                if tensors is not None:
                    self.session.append(Fingerprints(self.weight_version, tensors))
        for lora, of_adapter in by_lora.items():
            self.weight_version += 1
            self._announce(**_told(of_adapter), lora=lora)

    def _announce(self, **row: Any) -> None:
        row = {"weight_version": self.weight_version, "engine_step": self.engine_step, "arguments": "{}", **row}
        self.session.append(TableRow("weights", row))

    def _take(self) -> Tensors | None:
        if self._read is None:
            return None
        try:
            return _joined(self._read())
        except Exception as error:
            let_pass(error)
            # the engine is well without it, and asking again would fail again
            self._read = None
            say_once(f"fingerprints of the weights cannot be taken: {type(error).__name__}: {error}")
            return None


def _joined(answers: Iterable[dict[str, Any]]) -> Tensors:
    found: dict[tuple[int, str], Any] = {}
    for answer in answers:
        if "error" in answer:
            raise RuntimeError(answer["error"])
        found |= {(answer["rank"], name): tuple(rest) for name, *rest in answer["tensors"]}
    return found


def _told(changes: list[Change]) -> dict[str, Any]:
    """Columns of the row for all changes of one version."""
    arguments = changes[0].arguments
    if len(changes) > 1:
        first = [{"method": c.method, **c.arguments} for c in changes if c.arguments is not None]
        arguments = {"calls": len(changes), "first": first}
    return {
        "method": "+".join(dict.fromkeys(change.method for change in changes)),
        "arguments": dumps(arguments),
        "begin_ns": min(change.begin_ns for change in changes),
        "end_ns": max(change.end_ns for change in changes),
    }
