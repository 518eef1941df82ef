"""What the daemon counts while it works; `tracekitd.metrics` shows it."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field

from tracekit.plain import one_line
from tracekitd.intake import Received

MAX_REASONS = 50  # of losses, told apart: a reason is what a recorder says
OTHER = "other"


@dataclass
class Stats:
    """Since the daemon began. Written on the event loop, read by anybody."""

    messages: int = 0
    bytes: int = 0  # of messages
    duplicates: int = 0  # sent again after a reconnect
    batches: int = 0
    rows: Counter[str] = field(default_factory=Counter)  # by table
    lost: Counter[tuple[str, str]] = field(default_factory=Counter)  # rows by table and reason
    refused: Counter[str] = field(default_factory=Counter)  # streams by status
    queued_bytes: int = 0  # received, not yet on the disk
    commits: int = 0
    commit_secs: float = 0.0  # from the first batch of a commit to its being on the disk
    _begun: deque[float] = field(default_factory=deque)  # of the commits under way, the oldest first

    def received(self, received: Received) -> None:
        """Count a batch that is taken."""
        self.batches += 1
        self.rows.update(received.meta.rows)
        for loss in received.losses:
            known = {reason for _, reason in self.lost}
            reason = one_line(loss.reason)
            reason = reason if reason in known or len(known) < MAX_REASONS else OTHER
            self.lost.update({(table, reason): count for table, count in loss.rows.items()})

    def begun(self) -> None:
        """Note that a commit has its first batch."""
        self._begun.append(time.monotonic())

    def durable(self) -> None:
        """Note that the oldest commit is on the disk."""
        self.commits += 1
        self.commit_secs += time.monotonic() - self._begun.popleft()

    def lag_secs(self) -> float:
        """Return how long the oldest batch that is not on the disk has been here."""
        now = time.monotonic()
        return now - min(tuple(self._begun), default=now)
