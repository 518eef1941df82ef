"""The attach folder: every engine that runs says there what it is, and looks there for what it is to do.

Of each engine three files: NAME.json, what it is and does, replaced as a whole; NAME.lock, locked for as long as its
process lives; NAME.order, what it is told. The folder is of mode 0700 and of one user: whoever can write into it
decides where prompts go.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from tracekit.errors import AttachError
from tracekit.recorder.settings import LOGPROBS, Options
from tracekit.rpc.credentials import Access

MAX_BYTES = 64 << 10
ACTIONS = ("start", "stop", "look")


class Order(NamedTuple):
    """What an engine is told.

    Example:
        Order("9f…", "start", Options("unix:/run/user/1000/tracekit/d.sock", Access()))
    """

    id: str
    action: str  # one of `ACTIONS`
    options: Options | None = None  # of a start


class Seen(NamedTuple):
    """An engine process that is alive, and what it says of itself."""

    name: str
    state: dict[str, Any]


class Place:
    """The engine's end; belongs to the thread that takes orders.

    Args:
        folder: the attach folder; made where it is missing.

    Raises:
        AttachError: it is not ours alone, or cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = uuid.uuid4().hex[:12]
        self._seen: tuple[int, int] | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check(folder)
            self._fd = os.open(
                _path(folder, self.name, "lock"), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AttachError(f"the attach folder cannot be used ({error.strerror}): {folder}") from None
        # a forked child would keep the lock after we are gone
        os.register_at_fork(after_in_child=self._close)

    def tell(self, state: dict[str, Any]) -> None:
        """Say what the engine is and does.

        Raises:
            OSError: it cannot be written.
        """
        _write(_path(self._folder, self.name, "json"), state)

    def order(self) -> Order | None:
        """Return a new order, once; None where there is none, or nothing that could be one."""
        path = _path(self._folder, self.name, "order")
        try:
            found = os.lstat(path)
            stamp = (found.st_ino, found.st_mtime_ns)
            if stamp == self._seen:
                return None
            self._seen = stamp
            _check(self._folder)
            return _order(_read(path))
        except (OSError, ValueError, TypeError, KeyError, AttachError):
            return None

    def leave(self) -> None:
        """Take away what was said."""
        _remove(self._folder, self.name)
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def engines(folder: Path) -> list[Seen]:
    """Return the engines of a folder whose processes live, by host and pid; what dead ones left is taken away.

    Raises:
        AttachError: the folder is not ours alone.
    """
    if not folder.exists():
        return []
    _check(folder)
    found = []
    for path in folder.glob("*.json"):
        name = path.name.removesuffix(".json")
        if not _is_held(_path(folder, name, "lock")):
            _remove(folder, name)
            continue
        state = state_of(folder, name)
        if state is not None:
            found.append(Seen(name, state))
    return sorted(found, key=lambda seen: (str(seen.state.get("host")), seen.state.get("pid", 0), seen.name))


def state_of(folder: Path, name: str) -> dict[str, Any] | None:
    """Return what an engine says of itself; None where it has gone or says nothing that can be read."""
    try:
        return _read(_path(folder, name, "json"))
    except (OSError, ValueError):
        return None


def send(folder: Path, name: str, order: Order) -> None:
    """Leave an order for an engine, in place of the one before.

    Raises:
        AttachError: it cannot be written.
    """
    options = order.options
    facts: dict[str, Any] = {"id": order.id, "action": order.action}
    if options is not None:
        facts["options"] = {**options._asdict(), "access": options.access._asdict()}
    try:
        _write(_path(folder, name, "order"), facts)
    except OSError as error:
        raise AttachError(f"the order cannot be written ({error.strerror}): {folder}") from None


def _order(facts: dict[str, Any]) -> Order:
    """Read an order, trusting nothing in it.

    Raises:
        ValueError: it is none.
    """
    action, told = facts["action"], facts.get("options")
    if action not in ACTIONS or not isinstance(facts["id"], str) or (action == "start") != isinstance(told, dict):
        raise ValueError("not an order")
    if told is None:
        return Order(facts["id"], action)
    access = Access(**told["access"])
    options = Options(**{**told, "access": access})
    if not _are_options(options):
        raise ValueError("not options")
    return Order(facts["id"], action, options)


def _are_options(options: Options) -> bool:
    texts = (options.address, *(text for text in (*options.access, options.probe, options.redact) if text is not None))
    stall = options.max_stall_ms
    return (
        all(isinstance(text, str) for text in texts)
        and options.logprobs in LOGPROBS
        and 0 < float(options.sample) <= 1
        and options.lossless in (None, True, False)
        and (stall is None or (isinstance(stall, int) and stall >= 0))
    )


def _check(folder: Path) -> None:
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise AttachError(f"the attach folder must be a folder of yours with mode 0700: {folder}")


def _path(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}.{kind}"


def _remove(folder: Path, name: str) -> None:
    for kind in ("json", "order", "lock"):
        try:
            _path(folder, name, kind).unlink()
        except OSError:
            continue


def _is_held(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _read(path: Path) -> dict[str, Any]:
    """Return a small file of ours: not a link to somebody's, not a pipe that never ends."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES or found.st_uid not in (os.geteuid(), 0):
            raise ValueError("not a file of ours")
        facts = json.loads(file.read(MAX_BYTES))
    if not isinstance(facts, dict):
        raise ValueError("not an object")
    return facts


def _write(path: Path, facts: dict[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(json.dumps(facts).encode())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
