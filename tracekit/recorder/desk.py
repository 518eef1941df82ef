"""The thread of a process that takes orders: it looks into the attach folder every second, and into nothing else.

It is there from the first engine on, recorded or dormant, and never on an engine's way: an order is carried out at the
engine's next step, by the engine's own thread (`tracekit.recorder.vllm.switch`).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Protocol

from tracekit.errors import AttachError
from tracekit.recorder.guard import say_once
from tracekit.recorder.place import Order, Place, engines
from tracekit.recorder.settings import attach_folder

LOOK_SECS = 1.0


class Customer(Protocol):
    """The part of `tracekit.recorder.vllm.switch.Switch` that is needed here; called on this thread only."""

    def is_gone(self) -> bool:
        """Whether the engine has been let go of."""

    def told(self, order: Order) -> str:
        """Take an order; return why it cannot be carried out, or nothing."""

    def tend(self) -> dict[str, Any]:
        """Do what is not the engine's to wait for; return what the engine is and does."""

    def numbers(self) -> dict[str, Any]:
        """Return what changes all the time."""


class Desk:
    """Serves the engines of one process.

    Args:
        folder: the attach folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counters: list[_Counter] = []
        self._waiting: list[Customer] = []
        self._wake = threading.Event()
        self._pid = os.getpid()
        threading.Thread(target=self._run, name="tracekit-attach", daemon=True).start()

    def serve(self, customer: Customer) -> None:
        """Take orders for an engine from now on."""
        self._waiting.append(customer)
        self._wake.set()

    def is_ours(self) -> bool:
        """Whether it is this process's: a forked child has no thread."""
        return self._pid == os.getpid()

    def _run(self) -> None:
        swept = False
        while True:
            try:
                while self._waiting:
                    self._counters.append(_Counter(self._waiting[0], Place(self._folder)))
                    self._waiting.pop(0)
                self._counters = [counter for counter in self._counters if counter.look()]
                if not swept and self._counters:
                    engines(self._folder)  # takes away what dead ones left
                    swept = True
            except AttachError as error:
                say_once(f"this engine cannot be attached to later: {error}")
                self._waiting.clear()
            except Exception as error:
                say_once(f"orders could not be taken: {type(error).__name__}: {error}", "orders")
            self._wake.wait(LOOK_SECS)
            self._wake.clear()


class _Counter:
    """One engine, and its place in the folder."""

    def __init__(self, customer: Customer, place: Place) -> None:
        self._customer = customer
        self._place = place
        self._answer: dict[str, Any] = {"order": None, "error": ""}
        self._told: dict[str, Any] = {}

    def look(self) -> bool:
        """Do what is to be done; False where the engine has gone."""
        if self._customer.is_gone():
            self._place.leave()
            return False
        order = self._place.order()
        if order is not None:
            self._answer = {"order": order.id, "error": self._customer.told(order)}
        state = {**self._customer.tend(), **self._answer}
        if order is not None or state != self._told:
            self._told = state
            self._place.tell({**state, **self._customer.numbers()})
        return True


_desk: Desk | None = None


def serve(customer: Customer) -> None:
    """Take orders for an engine of this process, unless the attach folder is switched off; waits for nothing."""
    global _desk
    folder = attach_folder()
    if folder is None:
        return
    if _desk is None or not _desk.is_ours():
        _desk = Desk(folder)
    _desk.serve(customer)
