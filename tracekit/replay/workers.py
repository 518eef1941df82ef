"""Score units on Ray actors: each holds one model at a time, and the units of one that is lost run again."""

from __future__ import annotations

import os
import re
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tracekit.errors import TracekitError, UsageError, WorkersError
from tracekit.objects.fetch import local_folder
from tracekit.replay.cluster import connected
from tracekit.replay.scorers import OneAtATime, peak_bytes
from tracekit.replay.units import Unit, UnitScores, score_unit

if TYPE_CHECKING:
    from tracekit.replay.running import Mapper, OnTokens, Scored
    from tracekit.replay.scorers import Load

_TRIES = 3  # a unit that ended its worker as often is not the victim of something else
_START_SECS = 120.0  # a cluster that is full lets actors wait for ever


@dataclass(frozen=True)
class Failure:
    """What a worker could not do: a sentence, because errors of ours do not survive being pickled."""

    text: str


class Worker:
    """The actor: it loads what its units need and keeps the last model."""

    def __init__(self, load: Load, where: Mapping[int, str], threads: int) -> None:
        """Prepare.

        Args:
            load: folder and kind of model to scorer.
            where: folder or URL of each weight version; a folder must be on the worker's machine.
            threads: that torch computes with. The last bits of a float32 product depend on them.
        """
        self._load = OneAtATime(load)
        self._where = dict(where)
        self._threads = threads

    def begin(self) -> None:
        """Set torch up; returns when the worker can be given units."""
        import torch

        torch.set_num_threads(self._threads)

    def score(self, unit: Unit) -> tuple[UnitScores, int] | Failure:
        """Score a unit; with the most memory that this worker has held so far, in bytes."""
        try:
            folders = {version: local_folder(self._where[version]) for version in unit.versions}
            scores = score_unit(self._load, folders, unit)
            return scores, peak_bytes(self._load.device)
        except TracekitError as error:
            return Failure(f"{error} (on {socket.gethostname()})")


def check_workers(workers: str) -> None:
    """Make sure, before anything is loaded, that workers can be asked for.

    Raises:
        UsageError: it is neither a number nor the address of a cluster.
        WorkersError: Ray is not installed.
    """
    if not re.fullmatch(r"[1-9]\d*|ray://[^/]+:\d+", workers):
        raise UsageError(f"--workers takes a number or ray://HOST:PORT, not {workers}")
    if find_spec("ray") is None:
        raise WorkersError("--workers needs Ray: pip install ray")


def threads_each(workers: str, threads: int) -> int:
    """Return the threads of each worker: a share of this process's, or, elsewhere or where they were set, as many."""
    if not workers.isdecimal() or "OMP_NUM_THREADS" in os.environ:
        return threads
    return max(threads // int(workers), 1)


def on_ray(
    workers: str,
    load: Load,
    where: Mapping[int, str],
    *,
    threads: int,
    gpus: bool,
    on_loaded: Callable[[], None] = lambda: None,
    on_peak: Callable[[int], None] = lambda num_bytes: None,
) -> Mapper:
    """Return what scores units on Ray actors, in whatever order they are done.

    Args:
        workers: how many on this machine, or `ray://HOST:PORT` for as many as that cluster has room for.
        load: folder and kind of model to scorer; goes to the workers.
        where: folder or URL of each weight version.
        threads: of each worker.
        gpus: whether each needs a GPU of its own.
        on_loaded: told once, when the first worker can begin.
        on_peak: told with each unit the most memory that its worker has held so far, in bytes.

    Raises:
        WorkersError: Ray is not reached or has no room, or a unit ended its worker every time.
    """

    def score(units: Seq[Unit], on_tokens: OnTokens) -> Scored:
        if not units:
            return
        with connected(workers, threads=threads, gpus=gpus) as (start, count):
            pool = _Pool(lambda: start(Worker, load, where, threads), min(count, len(units)), on_loaded)
            for number, (scores, num_bytes) in pool.map(units):
                on_peak(num_bytes)
                on_tokens(units[number], units[number].num_run_tokens)
                yield number, scores

    return score


class _Pool:
    """Actors that are beginning, scoring, or waiting for nothing any more."""

    def __init__(self, start: Callable[[], Any], count: int, on_loaded: Callable[[], None]) -> None:
        self._start, self._count, self._on_loaded = start, count, on_loaded
        self._busy: dict[Any, tuple[Any, int | None]] = {}  # what is awaited -> the actor and its unit
        self._lost: Counter[int | None] = Counter()

    def map(self, units: Seq[Unit]) -> Iterator[tuple[int, tuple[UnitScores, int]]]:
        """Yield the index and the answer of each unit as it is done."""
        import ray

        waiting = deque(range(len(units)))
        num_done, loaded = 0, False
        for _ in range(self._count):
            self._begin()
        while num_done < len(units):
            ready, _ = ray.wait(list(self._busy), timeout=None if loaded else _START_SECS)
            if not ready:
                raise WorkersError(f"no worker began in {_START_SECS:.0f} s: the cluster has no room, or hangs")
            actor, number = self._busy.pop(ready[0])
            try:
                found = ray.get(ready[0])
            except _lost() as error:
                self._lose(number, error)
                if number is not None:
                    waiting.appendleft(number)
                self._begin()
                continue
            if isinstance(found, Failure):
                raise WorkersError(found.text)
            if not loaded:
                loaded = True
                self._on_loaded()
            if waiting:
                following = waiting.popleft()
                self._busy[actor.score.remote(units[following])] = actor, following
            if number is not None:
                num_done += 1
                yield number, found

    def _begin(self) -> None:
        actor = self._start()
        self._busy[actor.begin.remote()] = actor, None

    def _lose(self, number: int | None, error: Exception) -> None:
        self._lost[number] += 1
        if self._lost[number] == _TRIES:
            what = "a worker could not begin" if number is None else "a worker ended while it scored the same unit"
            raise WorkersError(f"{what}, {_TRIES} times: {_reason(error)}") from error


def _lost() -> tuple[type[Exception], ...]:
    """What Ray raises where a worker, its machine, or what lay there is gone."""
    from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError

    return RayActorError, ObjectLostError, OutOfMemoryError


def _reason(error: Exception) -> str:
    """The line of Ray's page that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("The actor is dead because")]
    return (told or lines or [type(error).__name__])[0].partition(" Some common causes")[0]
