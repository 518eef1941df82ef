"""A random Llama with the demo model's tokenizer and vocabulary, for fast tests and overhead benchmarks."""

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tracekit.demo import checkpoint
from tracekit.demo.models import ensure_model
from tracekit.engines.uvtool import Progress, quiet

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def write_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    num_layers: int = 2,
    hidden_size: int = 128,
    num_heads: int = 2,
    num_kv_heads: int = 1,
    tie_embeddings: bool = False,
    logit_std: float = 2.0,
    progress: Progress = quiet,
) -> Path:
    """Write a random Llama with the demo model's tokenizer and vocabulary into ``folder`` and return it.

    The same arguments give the same bytes. It is for overhead measurements and fast tests: its text means nothing.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        seed: of the random weights.
        num_layers: decoder layers.
        hidden_size: a multiple of ``num_heads``; heads of 64 are what every attention backend takes.
        num_heads: attention heads.
        num_kv_heads: key and value heads.
        tie_embeddings: the embedding is the output head too.
        logit_std: about how far logits spread; the larger, the more certain the model.
        progress: is handed one line of text at a time.
    """
    demo = ensure_model("demo", progress)
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(demo / name, folder / name)
    base = json.loads((demo / "config.json").read_text())
    head_dim, intermediate_size = hidden_size // num_heads, 2 * hidden_size
    config = checkpoint.llama_config(
        vocab_size=base["vocab_size"],
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        rope_theta=base["rope_theta"],
        rms_norm_eps=base["rms_norm_eps"],
        max_positions=base["max_position_embeddings"],
        tie_embeddings=tie_embeddings,
        special={key: base[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    checkpoint.write_json(folder / "config.json", config)

    rng = np.random.default_rng(seed)

    def random(rows: int, columns: int, std: float | None = None) -> npt.NDArray[np.uint16]:
        scale = columns**-0.5 if std is None else std
        return checkpoint.to_bf16(rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale))

    ones = checkpoint.to_bf16(np.ones(hidden_size, np.float32))
    # the final norm hands the head a vector of length sqrt(hidden): this spread of the head gives logit_std
    head_std = logit_std * hidden_size**-0.5
    tensors = {"model.embed_tokens.weight": random(base["vocab_size"], hidden_size, head_std)}
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = ones
        tensors[prefix + "self_attn.q_proj.weight"] = random(num_heads * head_dim, hidden_size)
        tensors[prefix + "self_attn.k_proj.weight"] = random(num_kv_heads * head_dim, hidden_size)
        tensors[prefix + "self_attn.v_proj.weight"] = random(num_kv_heads * head_dim, hidden_size)
        tensors[prefix + "self_attn.o_proj.weight"] = random(hidden_size, num_heads * head_dim)
        tensors[prefix + "post_attention_layernorm.weight"] = ones
        tensors[prefix + "mlp.gate_proj.weight"] = random(intermediate_size, hidden_size)
        tensors[prefix + "mlp.up_proj.weight"] = random(intermediate_size, hidden_size)
        tensors[prefix + "mlp.down_proj.weight"] = random(hidden_size, intermediate_size)
    tensors["model.norm.weight"] = ones
    if not tie_embeddings:
        tensors["lm_head.weight"] = random(base["vocab_size"], hidden_size, head_std)
    checkpoint.write_safetensors(folder / "model.safetensors", tensors)
    return folder
