"""A scorer whose process is killed amid its work, for tests of workers: it must be found by their processes too."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from tracekit.errors import NoModelFolderError
from tracekit.replay.scorers import Load, ScorerLike, torch_loader
from tracekit.replay.units import Model


class Mortal:
    """Scores as the real one does; each process but `spared` is killed before its `after`th unit, `times` in all."""

    def __init__(
        self, scorer: ScorerLike, notes: Path, spared: int, times: int, after: int, secs: float, together: int
    ) -> None:
        self._scorer, self._notes, self._spared = scorer, notes, spared
        self._times, self._after, self._scored = times, after, 0
        self._secs, self._together = secs, together

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def score(self, *args: Any, **kwargs: Any) -> Any:
        if os.getpid() != self._spared:
            (self._notes / f"ran-{os.getpid()}").write_text(f"{torch.get_num_threads()} threads")
            self._scored += 1
            for _ in range(600):  # one worker may begin long before the next
                if len(list(self._notes.glob("ran-*"))) >= self._together:
                    break
                time.sleep(0.1)
            if self._scored > self._after and len(list(self._notes.glob("killed-*"))) < self._times:
                (self._notes / f"killed-{os.getpid()}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self._secs)
        return self._scorer.score(*args, **kwargs)


def mortal(notes: Path, *, times: int, after: int = 1, secs: float = 0.0, together: int = 1) -> Load:
    """Return what loads one that takes so many seconds more, and waits until so many processes have begun.

    The process that calls this is spared.
    """
    spared = os.getpid()

    def load(folder: Path, model: Model) -> Mortal:
        scorer = torch_loader("cpu")(folder, model)
        return Mortal(scorer, notes, spared, times, after, secs, together)

    return load


def refusing() -> Load:
    """Return what loads a real scorer in the process that calls this, and nothing in others."""
    here = os.getpid()

    def load(folder: Path, model: Model) -> ScorerLike:
        if os.getpid() != here:
            raise NoModelFolderError(folder)
        return torch_loader("cpu")(folder, model)

    return load
