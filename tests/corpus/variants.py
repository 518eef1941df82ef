"""Other weights of a model: folders of safetensors in the cache, made from the model's own by a rule and a seed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tracekit import cache

Tensors = dict[str, torch.Tensor]
RECIPE = "1"
EMBEDDING = "model.embed_tokens.weight"


def noise(by: float, seed: int, only: Callable[[str], bool] = lambda name: True) -> Callable[[Tensors], Tensors]:
    """Every number is multiplied by 1 + by · N(0, 1): an update of that relative size."""

    def change(tensors: Tensors) -> Tensors:
        random = torch.Generator().manual_seed(seed)
        changed = {}
        for name in sorted(tensors):
            wide = tensors[name].float()
            step = wide * (1 + by * torch.randn(wide.shape, generator=random))
            changed[name] = step.to(tensors[name].dtype) if only(name) else tensors[name]
        return changed

    return change


def layers(*numbers: int) -> Callable[[str], bool]:
    return lambda name: any(f"layers.{number}." in name for number in numbers)


def but(skipped: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda name: not skipped(name)


def is_norm(name: str) -> bool:
    return "norm" in name


def is_embedding(name: str) -> bool:
    return "embed" in name


def padded(rows: int, seed: int) -> Callable[[Tensors], Tensors]:
    """The embedding, and the head that is tied to it, with so many more rows, as a framework pads it."""

    def change(tensors: Tensors) -> Tensors:
        random = torch.Generator().manual_seed(seed)
        own = tensors[EMBEDDING]
        more = torch.randn(rows, own.shape[1], generator=random) * own.float().std()
        return {**tensors, EMBEDDING: torch.cat([own, more.to(own.dtype)])}

    return change


def swapped(one: int, other: int) -> Callable[[Tensors], Tensors]:
    """Two layers have changed places: a pipeline's stages joined in the wrong order."""

    def change(tensors: Tensors) -> Tensors:
        places = {f".layers.{one}.": f".layers.{other}.", f".layers.{other}.": f".layers.{one}."}

        def source(name: str) -> str:
            return next((name.replace(a, b) for a, b in places.items() if a in name), name)

        return {name: tensors[source(name)] for name in tensors}

    return change


def heads_swapped(layer: int, size: int) -> Callable[[Tensors], Tensors]:
    """The first two query heads of a layer have changed places, but not what reads them."""

    def change(tensors: Tensors) -> Tensors:
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        own = tensors[name]
        return {**tensors, name: torch.cat([own[size : 2 * size], own[:size], own[2 * size :]])}

    return change


def norms_moved(by: float) -> Callable[[Tensors], Tensors]:
    """A constant is added to the weights of all norms, as where one side stores them less 1 and rounds."""
    return lambda tensors: {name: own + by if is_norm(name) else own for name, own in tensors.items()}


def merged(rank: int, size: float, seed: int) -> Callable[[Tensors], Tensors]:
    """An adapter of query and value projections is merged."""

    def change(tensors: Tensors) -> Tensors:
        random = torch.Generator().manual_seed(seed)
        result = dict(tensors)
        for name in sorted(tensors):
            if name.endswith(("q_proj.weight", "v_proj.weight")):
                rows, columns = tensors[name].shape
                update = torch.randn(rows, rank, generator=random) @ torch.randn(rank, columns, generator=random)
                result[name] = (tensors[name].float() + size * update / columns**0.5).to(tensors[name].dtype)
        return result

    return change


# two updates in a row are of one seed each; what is kept of an older version is what a sync forgot
VARIANTS: dict[str, Callable[[Tensors], Tensors]] = {
    "step1": noise(0.03, 11),
    "step1-small": noise(0.01, 12),
    "step1-tiny": noise(0.003, 13),
    "step2": lambda tensors: noise(0.03, 21)(noise(0.03, 11)(tensors)),
    "step1-without-3-17": noise(0.03, 11, but(layers(3, 17))),
    "step1-without-9": noise(0.03, 11, but(layers(9))),
    "step1-without-norms": noise(0.03, 11, but(is_norm)),
    "step1-without-embedding": noise(0.03, 11, but(is_embedding)),
    "step1-without-mlp-12": noise(0.03, 11, but(lambda name: "layers.12.mlp" in name)),
    "step1-without-q-proj": noise(0.03, 11, but(lambda name: "q_proj" in name)),
    "layer-7": noise(0.05, 31, layers(7)),
    "padded": padded(1024, 51),
    "swapped-12-13": swapped(12, 13),
    "heads-10": heads_swapped(10, 64),
    "norms-moved": norms_moved(0.004),
    "merged": merged(4, 0.04, 61),
    "gate-20": noise(0.05, 32, lambda name: "layers.20.mlp.gate_proj" in name),
}


def ensure_variant(name: str, model: Path) -> Path:
    """Return the folder of a variant of a model, made first if it is not there."""
    if name == "base":
        return model
    folder = cache.cache_dir() / "corpus" / "models" / f"{model.name}-{name}-{RECIPE}"
    if cache.read_marker(folder) is None:
        cache.remove_folder(folder)
        folder.mkdir(parents=True)
        for path in model.iterdir():
            if path.suffix in (".json", ".model") and path.name != cache.MARKER:
                shutil.copy(path, folder)
        with torch.inference_mode():
            changed = VARIANTS[name](load_file(model / "model.safetensors"))
        config = json.loads((folder / "config.json").read_text())
        config["vocab_size"] = changed[EMBEDDING].shape[0]
        (folder / "config.json").write_text(json.dumps(config))
        save_file(
            {key: tensor.contiguous() for key, tensor in changed.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )
        cache.write_marker(folder, {"variant": name})
    return folder


def ensure_adapter(model: Path) -> Path:
    """Return a LoRA adapter of rank 4 for the model's query and value projections."""
    folder = cache.cache_dir() / "corpus" / "models" / f"{model.name}-adapter-{RECIPE}"
    if cache.read_marker(folder) is None:
        cache.remove_folder(folder)
        folder.mkdir(parents=True)
        random = torch.Generator().manual_seed(41)
        shapes = {name: tensor.shape for name, tensor in load_file(model / "model.safetensors").items()}
        tensors = {}
        for name, shape in sorted(shapes.items()):
            if name.endswith(("q_proj.weight", "v_proj.weight")):
                stem = f"base_model.model.{name.removesuffix('.weight')}"
                tensors[f"{stem}.lora_A.weight"] = torch.randn(4, shape[1], generator=random) / shape[1] ** 0.5
                tensors[f"{stem}.lora_B.weight"] = torch.randn(shape[0], 4, generator=random) * 0.02
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": 4,
            "lora_alpha": 8,
            "bias": "none",
            "target_modules": ["q_proj", "v_proj"],
            "base_model_name_or_path": str(model),
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        cache.write_marker(folder, {"adapter": 1})
    return folder
