"""Keeps the unix socket where engines look for it: its folder may be deleted while the daemon runs."""

from __future__ import annotations

import asyncio

from tracekit.errors import DaemonError
from tracekitd.address import Claim
from tracekitd.listen import Listener
from tracekitd.log import say

LOOK_SECS = 1.0


class Keeper:
    """Looks at the socket, and has it made anew where it is gone.

    Args:
        claim: to its path.
        listener: of the same.

    Attributes:
        reachable: whether the socket is there, as of the last look.
    """

    def __init__(self, claim: Claim, listener: Listener) -> None:
        self._claim, self._listener = claim, listener
        self.reachable = True
        self._said = ""

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECS)
            if self._listener.is_there():
                continue
            try:
                self._claim.renew()
                await self._listener.listen_again()
            except DaemonError as error:
                self.reachable = False
                self._tell(f"the socket was deleted, and no engine can connect to it: {error}")
            else:
                self.reachable = True
                self._tell(f"the socket was deleted, and was made anew: {self._listener.address}")
                self._said = ""

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            say(text)
