"""Load a causal LM from a local folder, or say in one sentence why not."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as hf_logging

from tracekit.errors import ModelError, NoModelFolderError, UsageError
from tracekit.plural import plural

# what from_pretrained finds by itself: whole, or in parts with their index (transformers, modeling_utils)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load_model(folder: Path, *, dtype: str, device: torch.device, weights: str | None = None) -> PreTrainedModel:
    """Load the model in a folder, in evaluation mode.

    Args:
        folder: with config.json and weights.
        dtype: that the model computes in.
        device: where it lies.
        weights: dtype that the stored weights are cast to first, as an engine that runs in it received them.

    Raises:
        UsageError: the dtype is unknown.
        ModelError: the folder is missing, holds no model, or its weights are incomplete.
    """
    for name in (dtype, weights or dtype):
        if name not in DTYPES:
            raise UsageError(f"unknown dtype {name!r}: use one of {', '.join(DTYPES)}")
    if not folder.is_dir():
        raise NoModelFolderError(folder)
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        hint = " (it is an adapter: merge it into its base, and save that)" if adapter else ""
        raise ModelError(f"no config.json, so no model that can be loaded{hint}, in {folder}")
    if not any(next(folder.glob(name), None) for name in _WEIGHTS):
        raise ModelError(
            f"the model cannot be loaded, there are no weights that transformers takes ({', '.join(_WEIGHTS)}; "
            f"convert a checkpoint of FSDP, DCP or Megatron first): {folder}"
        )
    # transformers renamed the argument; the config's attribute tells which name this one takes.
    keyword = "dtype" if hasattr(transformers.PretrainedConfig(), "dtype") else "torch_dtype"
    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **{keyword: DTYPES[weights or dtype]},
            )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"the weights are a pickle that may run code, which is not loaded (save them as safetensors): {folder}"
        ) from error
    except Exception as error:  # whatever a stranger's folder makes transformers raise
        raise ModelError(f"the model cannot be loaded ({_first_line(error)}): {folder}") from error
    if other := sorted(map(_shapes, info["mismatched_keys"])):
        raise ModelError(
            f"{plural(len(other), 'weight')} of another shape than config.json says, the first {other[0]}: {folder}"
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"the model lacks {plural(len(missing), 'weight')}, the first {missing[0]}: {folder}")
    loaded: PreTrainedModel = model.eval().to(DTYPES[dtype]).to(device)
    return loaded


def _shapes(found: Any) -> str:
    name, stored, wanted = found
    return f"{name} {'x'.join(map(str, stored))} and not {'x'.join(map(str, wanted))}"


def pick_device(device: str | None) -> torch.device:
    """The device asked for, else CUDA where torch finds it, else the CPU.

    Raises:
        UsageError: the device does not exist here.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"no device {device!r} here: {_first_sentence(error)}") from error
    return chosen


def _first_sentence(error: Exception) -> str:
    return _first_line(error).partition(". ")[0]


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own bars and warnings off the user's terminal."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
