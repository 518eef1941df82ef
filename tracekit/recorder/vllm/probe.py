"""States at module boundaries of the first few requests of a worker, whatever generation runs it.

A step's rows stand one request behind the other; which, and from which position on, is what a generation tells. Each
step's states of a probed request are a file of their own, `PID-NUMBER/POSITION.safetensors`, so that a crash takes at
most the last; padding stands behind the last request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracekit.recorder.vllm.taps import HEAD, tap

MAX_REQUESTS = 4  # at first
MORE_REQUESTS = 2  # after each update of the weights
MOST_REQUESTS = 16
MAX_POSITIONS = 192  # of a request, from its first
MAX_LOGITS = 48  # rows of logits of a request

PURPOSE = "probe"  # of the wraps
PLACE = "_tracekit_probing"  # on a worker or a model runner, its `Probing`
COMPILED = "nothing is probed: a compiled model has no module boundaries, start vLLM with enforce_eager"

Part = tuple[int, int]
"""First position of a request that a step computes, and how many."""


class Probing:
    """What one worker has of its probed requests.

    Args:
        model: vLLM's.
        folder: that the states are written into.
        is_recorded: tells of a request's id whether its rows are recorded: the states of others are of no use.

    Attributes:
        hooks: what is on the model for it, and comes off with it.
    """

    def __init__(self, model: Any, folder: Path, is_recorded: Callable[[str], bool] = lambda _: True) -> None:
        self._folder = folder
        self._is_recorded = is_recorded
        self._next: dict[str, int] = {}  # position that comes next, of those being probed
        self._num_prompt: dict[str, int] = {}
        self._logits: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._parts: Mapping[str, Part] = {}
        self._order: Callable[[], Sequence[str]] = tuple
        self._states: dict[str, dict[str, Any]] = {}
        self._open = False
        self._left = MAX_REQUESTS
        self._num_probed = 0
        self.hooks = tap(model, self._keep, lambda: self._open)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be kept."""
        return not (self._left or self._next)

    def rearm(self) -> None:
        """Probe some more requests: the weights have changed."""
        self._left = max(self._left, min(MORE_REQUESTS, MOST_REQUESTS - self._num_probed))

    def stop(self) -> None:
        """Keep no more, and take the taps off the model."""
        self._left, self._next, self._open, self._num_probed = 0, {}, False, MOST_REQUESTS
        for hook in self.hooks:
            hook.remove()

    def admit(self, lengths: Mapping[str, int]) -> None:
        """Probe requests that begin in this step, from their first positions on; where they are too many, some of them.

        Args:
            lengths: of their prompts, in the order of their rows: those that are chosen are spread over it.
        """
        names = [name for name in lengths if self._is_recorded(name)]
        chosen = min(self._left, len(names))
        for number in range(chosen):
            name = names[number * len(names) // chosen]
            self._left -= 1
            self._num_probed += 1
            self._names[name] = f"{os.getpid()}-{self._num_probed}"
            self._next[name], self._logits[name], self._num_prompt[name] = 0, 0, lengths[name]

    def forget(self, names: Iterable[str]) -> None:
        """Probe some requests no longer: they have ended."""
        for name in names:
            self._next.pop(name, None)

    def begin(self, parts: Mapping[str, Part], order: Callable[[], Sequence[str]]) -> None:
        """Look at what a step will run.

        Args:
            parts: of every request in the step.
            order: gives their names in the order of their rows, once the forward has begun.
        """
        for name, (position, _) in parts.items():
            if self._next.get(name, position) != position:
                del self._next[name]  # it was preempted, or a draft was refused: its rows would not go on
        self._parts, self._order, self._states = parts, order, {}
        self._open = any(name in self._next for name in parts)

    def head(self, hidden: Any, logits: Any, rows: Sequence[int] | None = None) -> None:
        """Keep what the sampler got: hidden states and logits, a row each.

        Args:
            hidden: [R, H]
            logits: [R, V]
            rows: of the R, which one is whose last in the step, by their order; None where each request has one.
        """
        if not self._open or (rows is None and len(logits) != len(self._parts)):
            return
        for number, name in enumerate(self._order()):
            row = number if rows is None else rows[number]
            position, num = self._parts[name]
            if name in self._next and row >= 0 and position + num >= self._num_prompt[name]:
                if f"{HEAD}.output" not in self._states.get(name, {}) and self._logits[name] < MAX_LOGITS:
                    self._logits[name] += 1
                    self._put(name, f"{HEAD}.input", hidden[row : row + 1])
                    self._put(name, f"{HEAD}.output", logits[row : row + 1])

    def end(self) -> None:
        """Write what a step gave."""
        if not self._open:
            return
        self._open = False
        from safetensors.torch import save_file

        states, self._states = self._states, {}
        for name, own in states.items():
            folder = self._folder / self._names[name]
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            about = {"request_id": name, "pid": str(os.getpid())}
            save_file(own, folder / f"{self._next[name]:06d}.safetensors", about)
            self._next[name] += self._parts[name][1]
            if self._next[name] >= MAX_POSITIONS:
                del self._next[name]

    def _keep(self, key: str, tensor: Any) -> None:
        start = 0
        for name in self._order():
            num = self._parts[name][1]
            if name in self._next:
                self._put(name, key, tensor[start : start + num])
            start += num

    def _put(self, name: str, key: str, rows: Any) -> None:
        self._states.setdefault(name, {})[key] = rows.detach().to("cpu", copy=True).contiguous()


def leave(owner: Any) -> None:
    """Probe a worker or a model runner no longer; nothing is done where it is not probed."""
    probing = vars(owner).pop(PLACE, None)
    if probing is not None:
        probing.stop()


def on_step_done(owner: Any, _result: Any, *_args: Any, **_kwargs: Any) -> None:
    """Write what a step gave, behind the method of a worker or a model runner that ends it."""
    probing = getattr(owner, PLACE, None)
    if probing is not None:
        probing.end()
