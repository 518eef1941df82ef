"""A trainer's model folder beside what an engine computed with: what differs in what changes numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracekit.audit.lint.defaults import FILE
from tracekit.audit.lint.model_config import CONFIG
from tracekit.errors import UsageError


@dataclass(frozen=True)
class Trainer:
    """The two files of a model folder that say what a model computes and how it is sampled."""

    folder: str
    config: Mapping[str, Any]
    generation: Mapping[str, Any]  # empty where there is none


def read_trainer(folder: Path) -> Trainer:
    """Read a model folder as `save_pretrained` writes it.

    Raises:
        UsageError: there is no such folder, or no config.json in it, or a file is not a JSON object.
    """
    if not folder.is_dir():
        raise UsageError(f"the trainer's model is a folder with a {CONFIG}: {folder}")
    if not (folder / CONFIG).is_file():
        raise UsageError(f"there is no {CONFIG} in the trainer's model folder: {folder}")
    generation = _object(folder / FILE) if (folder / FILE).is_file() else {}
    return Trainer(str(folder), _object(folder / CONFIG), generation)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UsageError(f"this file of the trainer's model folder is not JSON: {path}") from error
    if not isinstance(found, dict):
        raise UsageError(f"this file of the trainer's model folder is not an object: {path}")
    return found
