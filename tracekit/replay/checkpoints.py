"""What a model folder holds, told without loading it: the dtype of its weights, and what tells it from another."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tracekit.errors import ModelError, ReplayRefused

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_NO_UPDATE_CHANGES = ("model_type", "num_hidden_layers", "num_key_value_heads", "head_dim")
_SAMPLE = 1 << 16
_SAMPLES = 64


def stored_dtype(folder: Path) -> str | None:
    """Return the dtype that most weights of a folder are stored in; None where no safetensors file tells.

    The header of such a file is JSON behind eight bytes of length (huggingface/safetensors, "Format").

    Raises:
        ModelError: most are integers or eight-bit floats, and config.json does not say how they are scaled:
            transformers would take them for the weights themselves.
    """
    counted: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        for tensor in header(path)[1].values():
            first, end = tensor.get("data_offsets", (0, 0))
            counted[str(tensor.get("dtype"))] += end - first
    if not counted:
        return None
    (name, _), *_ = counted.most_common(1)
    if name not in TORCH_NAMES and "quantization_config" not in _config(folder):
        raise ModelError(
            f"most weights are stored as {name}, and config.json has no quantization_config that tells their scales: "
            f"{folder}"
        )
    return TORCH_NAMES.get(name)


def architecture(folder: Path) -> dict[str, Any]:
    """Return what config.json says of the kind of model and the shape of its KV; nothing of what it does not say."""
    config = _config(folder)
    if isinstance(text := config.get("text_config"), dict):
        config = text
    found = {name: config[name] for name in _NO_UPDATE_CHANGES if config.get(name) is not None}
    if "model_type" in found:  # of a multimodal model's text part alone
        found["model_type"] = str(found["model_type"]).removesuffix("_text")
    return found


def _config(folder: Path) -> dict[str, Any]:
    """Return config.json; nothing where it cannot be read, of which loading it will say what is wrong."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (ValueError, OSError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def content_digest(folder: Path) -> str:
    """Return what stands for a folder's files, 32 hex digits: names, sizes, times, and samples of what is in.

    Weights that were written in place have another time; a copy of the folder is taken for another one.
    """
    return _digest((path for path in folder.iterdir() if path.is_file()), written=True)


def weights_digest(folder: Path) -> str | None:
    """Return what stands for a folder's weights, whenever they were written, 32 hex digits; None where it has none."""
    paths = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return _digest(paths, written=False) if paths else None


def _digest(paths: Iterable[Path], *, written: bool) -> str:
    hashed = blake2b(digest_size=16)
    for path in sorted(paths):
        stat = path.stat()
        when = f"{stat.st_mtime_ns}\0" if written else ""
        hashed.update(f"{path.name}\0{stat.st_size}\0{when}".encode())
        for part in _samples(path, stat.st_size):
            hashed.update(part)
    return hashed.hexdigest()


def refuse_changed(before: Mapping[Path, str | None]) -> None:
    """Make sure that folders hold the weights that they held, or none: loads of others were not of the same model.

    Args:
        before: `weights_digest` of each folder, from before it was loaded.

    Raises:
        ReplayRefused: one does not.
    """
    for folder, digest in before.items():
        if weights_digest(folder) not in (digest, None):
            raise ReplayRefused(
                f"the weights changed while they were scored, so the passes are not of the same ones (replay a copy): "
                f"{folder}"
            )


def _samples(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        if size <= _SAMPLE * _SAMPLES:
            yield file.read()
            return
        for i in range(_SAMPLES):
            file.seek(i * (size - _SAMPLE) // (_SAMPLES - 1))
            yield file.read(_SAMPLE)


def header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return where the data of a safetensors file begin, and what it says of each tensor; nothing of a damaged one."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            tensors = json.loads(file.read(length))
            size = os.fstat(file.fileno()).st_size
        tensors.pop("__metadata__", None)
        if any(8 + length + tensor["data_offsets"][1] > size for tensor in tensors.values()):
            return 0, {}  # it was cut off
    except (ValueError, OSError, MemoryError, OverflowError, LookupError, TypeError, AttributeError):
        return 0, {}  # loading it will say what is wrong
    return 8 + length, tensors
