"""One allowance of bytes for everything that was received and is not yet on the disk, over all streams."""

from __future__ import annotations

import asyncio
from collections import deque


class Budget:
    """Bytes that may be taken; who finds none left waits, in the order of asking. Used on the event loop only.

    Each stream asks for one message at a time, so that waiting in order is a fair share too.

    Args:
        num_bytes: to be had in all.
    """

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, num_bytes: int) -> None:
        """Return once these bytes are ours."""
        if not self._waiting and num_bytes <= self._left:
            self._left -= num_bytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((num_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(num_bytes)  # it was our turn in the moment that we were cancelled
            raise

    def give(self, num_bytes: int) -> None:
        """Give bytes back."""
        self._left += num_bytes
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._left):
            num_bytes, turn = self._waiting.popleft()
            if not turn.done():
                self._left -= num_bytes
                turn.set_result(None)
