"""Random weights that `write_tiny_model` does not write: a mixture of experts, and LoRA adapters for the tiny model."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from helpers.tiny_model import write_tiny_model
from tracekit.demo.checkpoint import to_bf16, write_json, write_safetensors

HIDDEN, HEAD_DIM, NUM_HEADS, NUM_LAYERS = 128, 64, 2, 2  # as write_tiny_model's
NUM_EXPERTS, EXPERT_SIZE = 8, 64


def write_tiny_moe(folder: Path, seed: int = 0) -> Path:
    """Write a random Qwen3-MoE, two of eight experts a token, with the demo model's tokenizer."""
    write_tiny_model(folder)
    base = json.loads((folder / "config.json").read_text())
    config = {
        **{key: base[key] for key in ("vocab_size", "max_position_embeddings", "rms_norm_eps")},
        **{key: base[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "torch_dtype": "bfloat16",
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "moe_intermediate_size": EXPERT_SIZE,
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "head_dim": HEAD_DIM,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": 1,
        "num_hidden_layers": NUM_LAYERS,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        # transformers 4 reads the first, 5 the second
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    write_json(folder / "config.json", config)
    rng = np.random.default_rng(seed)

    def random(rows: int, columns: int, std: float | None = None) -> Any:
        scale = columns**-0.5 if std is None else std
        return to_bf16(rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale))

    ones, head_std = to_bf16(np.ones(HIDDEN, np.float32)), 2 * HIDDEN**-0.5
    tensors = {"model.embed_tokens.weight": random(base["vocab_size"], HIDDEN, head_std)}
    for layer in range(NUM_LAYERS):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = ones
        tensors[prefix + "post_attention_layernorm.weight"] = ones
        for name, rows in (("q", NUM_HEADS * HEAD_DIM), ("k", HEAD_DIM), ("v", HEAD_DIM)):
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = random(rows, HIDDEN)
        tensors[prefix + "self_attn.o_proj.weight"] = random(HIDDEN, NUM_HEADS * HEAD_DIM)
        tensors[prefix + "self_attn.q_norm.weight"] = tensors[prefix + "self_attn.k_norm.weight"] = ones[:HEAD_DIM]
        tensors[prefix + "mlp.gate.weight"] = random(NUM_EXPERTS, HIDDEN)
        for expert in range(NUM_EXPERTS):
            mlp = f"{prefix}mlp.experts.{expert}."
            tensors[mlp + "gate_proj.weight"] = random(EXPERT_SIZE, HIDDEN)
            tensors[mlp + "up_proj.weight"] = random(EXPERT_SIZE, HIDDEN)
            tensors[mlp + "down_proj.weight"] = random(HIDDEN, EXPERT_SIZE)
    tensors["model.norm.weight"] = ones
    tensors["lm_head.weight"] = random(base["vocab_size"], HIDDEN, head_std)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def write_adapter(folder: Path, seed: int, rank: int = 8) -> Path:
    """Write a random LoRA adapter of the tiny model in PEFT's format; it moves logits by about as much as they spread.

    Args:
        folder: made if it is not there; what was there is replaced.
        seed: of the random weights.
        rank: of the two factors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(NUM_LAYERS):
        for name, rows in (("q_proj", NUM_HEADS * HEAD_DIM), ("v_proj", HEAD_DIM), ("o_proj", HIDDEN)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_"
            for part, shape in (("A", (rank, HIDDEN)), ("B", (rows, rank))):
                values = rng.standard_normal(shape, dtype=np.float32) * np.float32(shape[1] ** -0.5)
                tensors[f"{prefix}{part}.weight"] = to_bf16(values)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj", "o_proj"],
    }
    write_json(folder / "adapter_config.json", config)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder
