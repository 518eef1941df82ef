"""What an interrupted replay leaves for the next: the scores of whole units, used again only where all is the same."""

from __future__ import annotations

import contextlib
import os
import time
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from tracekit.replay.checkpoints import content_digest
from tracekit.replay.units import Unit, UnitScores
from tracekit.scores import Scores

_GIVEN_UP_SECS = 7 * 24 * 3600.0  # a run that failed for good leaves what it scored, and nobody asks for it again
_NAMES = [field.name for field in fields(Scores)]


class Kept:
    """A folder with one file for each unit that was scored, under a name that stands for all that its scores hang on.

    That is the unit (ids, parameters, stages, batch shape, dtype), the files of its weights, the code of tracekit,
    torch and transformers, and the machine's `arithmetic`. What hangs on anything else has another name, so it is
    never read.
    """

    def __init__(self, folder: Path | None, folders: Mapping[int, Path], arithmetic: str) -> None:
        """Prepare to keep; nothing is written yet.

        Args:
            folder: where; None keeps nothing.
            folders: of each weight version.
            arithmetic: what else decides on the bits: device, threads, how products are made.
        """
        self._folder = folder
        self._folders = dict(folders) if folder else {}
        self._arithmetic = arithmetic
        self._digests: dict[Path, str] = {}

    @property
    def any(self) -> bool:
        """Whether it keeps anything."""
        return self._folder is not None

    def find(self, units: Iterable[Unit]) -> dict[int, UnitScores]:
        """Return the scores that are kept, by the index of the unit."""
        if self._folder is None or not self._folder.is_dir():
            return {}
        found = {}
        for number, unit in enumerate(units):
            # a torn file is as good as none
            with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                found[number] = _read(self._path(unit), unit)
        return found

    def keep(self, unit: Unit, scores: UnitScores) -> None:
        """Write the scores of one unit; where the disk does not take them, the next run scores it again."""
        if self._folder is None:
            return
        path = self._path(unit)
        partial = path.with_suffix(f".{os.getpid()}")
        arrays = {
            f"{i}/{k}/{name}": getattr(scores[job.key][of_pass], name)
            for i, job in enumerate(unit.jobs)
            for k, (of_pass, _) in enumerate(job.readings)
            for name in _NAMES
        }
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, **arrays)
            partial.replace(path)

    def drop(self, units: Iterable[Unit]) -> None:
        """Remove what is kept of these units and what nobody went on with; the folder where nothing else is in it."""
        if self._folder is None or not self._folder.is_dir():
            return
        for unit in units:
            self._path(unit).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if time.time() - path.stat().st_mtime > _GIVEN_UP_SECS:
                    path.unlink()
            self._folder.rmdir()

    def _path(self, unit: Unit) -> Path:
        assert self._folder is not None
        weights = [self._content(self._folders[version]) for version in unit.versions]
        parts = (unit.digest(), *weights, self._arithmetic, code_digest())
        return self._folder / f"{blake2b(chr(0).join(parts).encode(), digest_size=16).hexdigest()}.npz"

    def _content(self, folder: Path) -> str:
        if folder not in self._digests:
            self._digests[folder] = content_digest(folder)
        return self._digests[folder]


@cache
def code_digest() -> str:
    """Return what stands for the code that makes scores, 32 hex digits."""
    hashed = blake2b(digest_size=16)
    root = Path(__file__).parents[1]
    for path in [root / "scores.py", root / "replay" / "units.py", *sorted((root / "scoring").glob("*.py"))]:
        hashed.update(path.read_bytes())
    for package in ("torch", "transformers", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            hashed.update(version(package).encode())
    return hashed.hexdigest()


def _read(path: Path, unit: Unit) -> UnitScores:
    with np.load(path, allow_pickle=False) as stored:
        return {
            job.key: {
                name: Scores(*(stored[f"{i}/{k}/{field}"] for field in _NAMES))
                for k, (name, _) in enumerate(job.readings)
            }
            for i, job in enumerate(unit.jobs)
        }
