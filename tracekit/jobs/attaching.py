"""Tell engines that run to start or stop being recorded, through the attach folder, and wait for what they say."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tracekit.recorder import place
from tracekit.recorder.settings import Options

WAIT_SECS = 0.1
BUSY = ("starting", "stopping")  # until the engine's next step


def find(folder: Path, pids: Sequence[int] = (), address: str | None = None) -> list[place.Seen]:
    """Return the engines that live, of these process ids and sending to this daemon, where any is named.

    Raises:
        AttachError: the folder is not ours alone.
    """
    found = place.engines(folder)
    if pids:
        found = [seen for seen in found if seen.state.get("pid") in pids]
    return [seen for seen in found if address in (None, seen.state.get("daemon"))]


def tell(
    folder: Path, engines: Sequence[place.Seen], action: str, options: Options | None, timeout_secs: float
) -> list[dict[str, Any]]:
    """Give engines an order; return what each says then, with `answered` and whether it still waits for a step.

    Args:
        folder: the attach folder.
        engines: who is told.
        action: `start`, `stop` or `look`.
        options: of a start.
        timeout_secs: how long they may take to answer, and then to come to a step.

    Raises:
        AttachError: an order cannot be written.
    """
    order = place.Order(uuid.uuid4().hex, action, options)
    for seen in engines:
        place.send(folder, seen.name, order)
    deadline = time.monotonic() + timeout_secs
    while True:
        states = [place.state_of(folder, seen.name) or {**seen.state, "state": "gone"} for seen in engines]
        answered = [state.get("order") == order.id for state in states]
        done = [
            (a and (action == "look" or state.get("state") not in BUSY)) or state.get("state") == "gone"
            for a, state in zip(answered, states, strict=True)
        ]
        if all(done) or time.monotonic() >= deadline:
            return [{**state, "answered": a} for state, a in zip(states, answered, strict=True)]
        time.sleep(WAIT_SECS)
