"""Turn the GGUF file of a Llama into a Hugging Face folder, with numpy alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracekit.demo import checkpoint
from tracekit.demo.gguf import GgufFile

if TYPE_CHECKING:
    from tracekit.demo.checkpoint import Array

# GGUF's names of a layer's tensors -> Hugging Face's
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def convert(source: GgufFile, folder: Path) -> None:
    """Write the Llama in `source` as a Hugging Face folder: weights in bf16, config, tokenizer."""
    meta = source.metadata
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    tensors = {}
    for name in source.names():
        values = source.read(name)
        part = name.split(".")[-2]
        if name.startswith("blk.") and part in heads:
            values = split_rotary(values, heads[part])
        tensors[hugging_face_name(name)] = checkpoint.to_bf16(values)
    checkpoint.write_safetensors(folder / "model.safetensors", tensors)
    write_config(meta, folder, tie_embeddings="lm_head.weight" not in tensors)
    write_tokenizer(meta, folder)


def hugging_face_name(name: str) -> str:
    """Translate a tensor's name: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{suffix}"


def split_rotary(values: Array, num_heads: int) -> Array:
    """Undo GGUF's order of rotary rows: it pairs neighbours (0, 1), Hugging Face pairs halves (0, head_dim / 2).

    Args:
        values: [num_heads * head_dim, hidden].
        num_heads: heads of this projection.
    """
    rows, hidden = values.shape
    pairs = values.reshape(num_heads, rows // num_heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def write_config(meta: dict[str, Any], folder: Path, *, tie_embeddings: bool) -> None:
    """Write config.json and generation_config.json from the metadata of a GGUF file."""
    import numpy as np

    special = {
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
    }
    config = checkpoint.llama_config(
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_layers=meta["llama.block_count"],
        num_heads=meta["llama.attention.head_count"],
        num_kv_heads=meta["llama.attention.head_count_kv"],
        rope_theta=meta["llama.rope.freq_base"],
        # the shortest number that is this float32: 1e-05, not 9.999999747378752e-06
        rms_norm_eps=float(str(np.float32(meta["llama.attention.layer_norm_rms_epsilon"]))),
        max_positions=meta["llama.context_length"],
        tie_embeddings=tie_embeddings,
        special=special,
    )
    checkpoint.write_json(folder / "config.json", config)
    # no temperature or top-p here: vLLM would take them as defaults behind the caller's back
    checkpoint.write_json(folder / "generation_config.json", special)


def write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json from the metadata of a GGUF file."""
    tokens = meta["tokenizer.ggml.tokens"]
    control = [index for index, kind in enumerate(meta["tokenizer.ggml.token_type"]) if kind == 3]
    tokenizer = checkpoint.byte_level_tokenizer(tokens, meta["tokenizer.ggml.merges"], control)
    checkpoint.write_json(folder / "tokenizer.json", tokenizer)
    config = checkpoint.tokenizer_config(
        bos=tokens[meta["tokenizer.ggml.bos_token_id"]],
        eos=tokens[meta["tokenizer.ggml.eos_token_id"]],
        unk=tokens[meta["tokenizer.ggml.unknown_token_id"]],
        pad=tokens[meta["tokenizer.ggml.padding_token_id"]],
        chat_template=meta["tokenizer.chat_template"],
        max_length=meta["llama.context_length"],
    )
    checkpoint.write_json(folder / "tokenizer_config.json", config)
