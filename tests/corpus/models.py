"""The models that the corpus runs: real ones, and a small random one for what must be quick."""

from __future__ import annotations

from pathlib import Path

from helpers.tiny_model import write_tiny_model
from tracekit import cache
from tracekit.demo.models import MODELS, ensure_model

TINY = "tiny"


def model_of(name: str) -> Path:
    """Return the folder of a model of `MODELS`, or of the random one of four layers, made first if it is not there."""
    if name in MODELS:
        return ensure_model(name)
    folder = cache.cache_dir() / "corpus" / "models" / "tiny-4"
    if cache.read_marker(folder) is None:
        cache.remove_folder(folder)
        write_tiny_model(folder, num_layers=4)
        cache.write_marker(folder, {"layers": 4})
    return folder
