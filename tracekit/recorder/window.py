"""What a recorder has produced and the daemon has not yet confirmed: numbered, counted, bounded."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from tracekit.rpc import messages
from tracekit.rpc.frames import frame

ITEM_BYTES = 512  # what a batch costs beside its payload
MAX_REASON = 1000  # characters
MAX_REASONS = 64  # of losses in one batch, told apart; further ones are told together


@dataclass
class _Item:
    batch: messages.Batch
    payload: bytes
    rows: dict[str, int]

    def num_pieces(self) -> int:
        """Return in how many messages it is sent."""
        return max(1, -(-len(self.payload) // messages.MAX_PIECE_BYTES))

    def piece(self, number: int) -> bytes:
        """Return one of them."""
        if self.num_pieces() == 1:
            return frame(self.batch, self.payload)
        self.batch.piece, self.batch.pieces = number, self.num_pieces()
        start = number * messages.MAX_PIECE_BYTES
        return frame(self.batch, self.payload[start : start + messages.MAX_PIECE_BYTES])


class Window:
    """The un-acked batches of one engine, oldest first; its caller locks.

    Sequence numbers start at 1. Each batch, and each loss, takes one. Losses ride on the next batch that is kept, and
    every batch carries the cumulative counters up to and including itself, so that for each prefix of a stream
    produced = stored + lost holds by table.

    Args:
        engine_id: 32 hex digits.
        max_bytes: un-acked bytes to keep; a batch that would pass it is lost.
    """

    def __init__(self, engine_id: str, max_bytes: int) -> None:
        self.engine_id = engine_id
        self.max_bytes = max_bytes
        self.seq = 0
        self.acked_seq = 0
        self.produced: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self._acked_produced: Mapping[str, int] = {}
        self._items: deque[_Item] = deque()
        self._bytes = 0
        self._sent = 0  # of _items, on the present connection
        self._pieces = 0  # of the one behind those
        self._suspect = 0  # the oldest batch when the daemon last refused something
        self._losses: dict[str, messages.Loss] = {}  # by reason, all newer than the last item

    def __len__(self) -> int:
        return len(self._items)

    def fits(self, size: int) -> bool:
        """Whether a payload of `size` bytes can be kept."""
        return self._bytes + size + ITEM_BYTES <= self.max_bytes

    def share(self) -> float:
        """Return how much of the window is in use, 0 to 1."""
        return self._bytes / self.max_bytes

    def add(self, payload: bytes, rows: Mapping[str, int]) -> None:
        """Keep a packed batch until it is acked; `rows` is its rows by table."""
        self.produced.update(rows)
        self._append(messages.Batch(), dict(rows), payload)

    def lose(self, rows: Mapping[str, int], reason: str) -> None:
        """Count rows that will never be sent."""
        self.seq += 1
        self.produced.update(rows)
        self.lost.update(rows)
        reason = reason[:MAX_REASON]
        if reason not in self._losses and len(self._losses) >= MAX_REASONS:
            reason = "several reasons"
        loss = self._losses.setdefault(reason, messages.Loss(from_seq=self.seq, reason=reason))
        loss.to_seq = self.seq
        for table, count in rows.items():
            loss.rows[table] += count

    def beat(self) -> bool:
        """Keep an empty batch if there are losses to tell and nothing else to tell them with."""
        if self._items or not self._losses:
            return False
        self._append(messages.Batch(), {})
        return True

    def answer(self, result: messages.CommandResult) -> None:
        """Keep a batch without rows that tells how a command went; it is confirmed after those before it."""
        self._append(messages.Batch(results=[result]), {})

    def finish(self) -> None:
        """Keep the batch that says that nothing follows."""
        self._append(messages.Batch(last=True), {})

    def rewind(self) -> None:
        """Begin again with the oldest batch: the connection is a new one."""
        self._sent = self._pieces = 0

    def next_unsent(self) -> bytes | None:
        """Return the next message for the present connection, or None when all were handed out."""
        if self._sent == len(self._items):
            return None
        item = self._items[self._sent]
        message = item.piece(self._pieces)
        self._pieces += 1
        if self._pieces == item.num_pieces():
            self._sent, self._pieces = self._sent + 1, 0
        return message

    def first_seq(self) -> int:
        """Return the number of the oldest batch, 0 if there is none."""
        return self._items[0].batch.seq if self._items else 0

    def ack(self, durable_seq: int) -> None:
        """Forget the batches up to `durable_seq`: the daemon has them on its disk."""
        while self._items and self._items[0].batch.seq <= durable_seq:
            item = self._items.popleft()
            self._bytes -= len(item.payload) + ITEM_BYTES
            if self._sent:
                self._sent -= 1
            else:
                self._pieces = 0
            self.acked_seq = item.batch.seq
            self._acked_produced = item.batch.totals.produced

    def refused(self, details: str) -> bool:
        """Note that the daemon refused something; return False where sending again cannot help.

        A batch that was damaged on the way passes the second time; one that is refused twice becomes a loss.

        Args:
            details: what the daemon said.
        """
        first = self.first_seq()
        before, self._suspect = self._suspect, first
        return first != before or (bool(first) and self.reject_first(f"refused by the daemon: {details}"))

    def reject_first(self, reason: str) -> bool:
        """Turn the oldest batch, which the daemon refuses, into a loss; return False if it holds no rows already."""
        item = self._items[0]
        if not item.rows:
            return False
        self._bytes -= len(item.payload)
        item.payload = b""
        item.batch.piece = item.batch.pieces = 0
        reason, seq = reason[:MAX_REASON], item.batch.seq
        item.batch.losses.add(from_seq=seq, to_seq=seq, reason=reason, rows=item.rows)
        self.lost.update(item.rows)
        for other in self._items:
            for table, count in item.rows.items():
                other.batch.totals.lost[table] += count
            for result in other.batch.results:
                result.error = result.error or f"its rows may be lost, a batch before it was {reason}"
        item.rows = {}
        return True

    def abandon(self, reason: str) -> None:
        """Turn everything that is not acked into losses."""
        while self._items:
            rows = self._items.popleft().rows
            self.produced.subtract(rows)  # `lose` counts them again
            self.lose(rows, reason)
        self._bytes = self._sent = self._pieces = 0

    def undelivered(self) -> dict[str, int]:
        """Return the rows by table that wait for an ack."""
        rows: Counter[str] = Counter()
        for item in self._items:
            rows.update(item.rows)
        return dict(+rows)

    def unknown_to_daemon(self) -> dict[str, int]:
        """Return the rows by table that the daemon has neither confirmed nor been told the loss of."""
        rows = Counter(self.produced)
        rows.subtract(self._acked_produced)
        return dict(+rows)

    def _append(self, batch: messages.Batch, rows: dict[str, int], payload: bytes = b"") -> None:
        self.seq += 1
        batch.engine_id = self.engine_id
        batch.seq = self.seq
        batch.losses.extend(self._losses.values())
        batch.totals.CopyFrom(messages.Counters(produced=self.produced, lost=self.lost))
        self._losses.clear()
        self._items.append(_Item(batch, payload, rows))
        self._bytes += len(payload) + ITEM_BYTES
