"""Turn the GGUF file of a Gemma 3 text model into a Hugging Face folder, with numpy alone.

What llama.cpp's converter did to the weights is undone: it adds 1 to each norm's weight. It leaves rotary rows alone,
as Gemma pairs halves. It does not write three facts that every Gemma 3 has: the base of the rotary angles of
sliding-window layers, that every sixth layer sees everything, and the activation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tracekit.demo import checkpoint
from tracekit.demo.gguf import GgufFile

LOCAL_ROPE_THETA = 10_000.0
LAYERS_PER_GLOBAL = 6
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of tokens
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else "
    "message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

# GGUF's names of a layer's tensors -> Hugging Face's
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
TOP_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def convert(source: GgufFile, folder: Path) -> None:
    """Write the Gemma 3 in `source` as a Hugging Face folder: weights in bf16, config, tokenizer."""
    tensors = {}
    for name in source.names():
        values = source.read(name)
        if name.endswith("norm.weight"):
            values -= 1
        tensors[hugging_face_name(name)] = checkpoint.to_bf16(values)
    checkpoint.write_safetensors(folder / "model.safetensors", tensors)
    write_config(source.metadata, folder)
    write_tokenizer(source.metadata, folder)


def hugging_face_name(name: str) -> str:
    """Translate a tensor's name: `blk.3.ffn_norm.weight` is `model.layers.3.pre_feedforward_layernorm.weight`."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{suffix}"


def write_config(meta: dict[str, Any], folder: Path) -> None:
    """Write config.json and generation_config.json; the keys are those of transformers 4, which 5 still reads."""
    import numpy as np

    special = {
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
    }
    num_layers, head_dim = meta["gemma3.block_count"], meta["gemma3.attention.key_length"]
    config = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": meta["gemma3.embedding_length"],
        "intermediate_size": meta["gemma3.feed_forward_length"],
        "layer_types": [
            "sliding_attention" if (layer + 1) % LAYERS_PER_GLOBAL else "full_attention" for layer in range(num_layers)
        ],
        "max_position_embeddings": meta["gemma3.context_length"],
        "num_attention_heads": meta["gemma3.attention.head_count"],
        "num_hidden_layers": num_layers,
        "num_key_value_heads": meta["gemma3.attention.head_count_kv"],
        "query_pre_attn_scalar": head_dim,
        # the shortest number that is this float32: 1e-06, not 9.999999974752427e-07
        "rms_norm_eps": float(str(np.float32(meta["gemma3.attention.layer_norm_rms_epsilon"]))),
        "rope_local_base_freq": LOCAL_ROPE_THETA,
        "rope_scaling": None,
        "rope_theta": meta["gemma3.rope.freq_base"],
        "sliding_window": meta["gemma3.attention.sliding_window"],
        "sliding_window_pattern": LAYERS_PER_GLOBAL,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        **special,
    }
    checkpoint.write_json(folder / "config.json", config)
    # no temperature or top-p here: vLLM would take them as defaults behind the caller's back
    checkpoint.write_json(folder / "generation_config.json", special)


def write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json from the metadata of a GGUF file."""
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    bos = meta["tokenizer.ggml.bos_token_id"]
    tokenizer = checkpoint.sentencepiece_tokenizer(
        tokens,
        merges_of(tokens, kinds),
        bos=bos,
        special=[index for index, kind in enumerate(kinds) if kind == CONTROL],
        whole=[index for index, kind in enumerate(kinds) if kind == USER_DEFINED],
        unk=tokens[meta["tokenizer.ggml.unknown_token_id"]],
    )
    checkpoint.write_json(folder / "tokenizer.json", tokenizer)
    config = checkpoint.tokenizer_config(
        bos=tokens[bos],
        eos=tokens[meta["tokenizer.ggml.eos_token_id"]],
        unk=tokens[meta["tokenizer.ggml.unknown_token_id"]],
        pad=tokens[meta["tokenizer.ggml.padding_token_id"]],
        chat_template=CHAT_TEMPLATE,
        max_length=meta["gemma3.context_length"],
    )
    checkpoint.write_json(folder / "tokenizer_config.json", config)


def merges_of(tokens: list[str], kinds: list[int]) -> list[list[str]]:
    """Return the merges of a BPE that has no list of them: all ways to make a token of two, in the order of the ids.

    A token's score in the file is minus its rank among the normal ones, so that the order of ids is that of scores.
    """
    ids = {token: index for index, token in enumerate(tokens) if kinds[index] == NORMAL}
    merges = []
    for token in ids:
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(ids[left], ids[right], left, right) for left, right in halves if left in ids and right in ids]
        merges += [[left, right] for _, _, left, right in sorted(known)]
    return merges
