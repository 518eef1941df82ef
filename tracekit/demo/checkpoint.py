"""Write a model folder that every supported vLLM and transformers 4 and 5 load: bf16 safetensors, config, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


_VALUES_AT_ONCE = 1 << 20  # while they are rounded


def to_bf16(values: Array) -> Array:
    """Round float32 values to bfloat16, ties to even; returns the bits as u2 in the same shape. No NaN may be there."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4").reshape(-1)
    rounded = np.empty(bits.shape, "<u2")
    for first in range(0, len(bits), _VALUES_AT_ONCE):
        some = bits[first : first + _VALUES_AT_ONCE]
        rounded[first : first + len(some)] = (some + 0x7FFF + ((some >> 16) & 1)) >> 16
    return rounded.reshape(np.shape(values))


def write_safetensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write bf16 tensors, given as u2 bits, in the safetensors format."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [offset, offset + bits.nbytes]}
        offset += bits.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in tensors.values():
            bits.tofile(file)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON with an indent of 2 and a line end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def llama_config(
    *,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    rope_theta: float,
    rms_norm_eps: float,
    max_positions: int,
    tie_embeddings: bool,
    special: Mapping[str, int],
) -> dict[str, Any]:
    """Return config.json of a Llama.

    The rope and dtype keys are those of transformers 4, which 5 still reads; 4 does not know those of 5.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": hidden_size // num_heads,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": max_positions,
        "mlp_bias": False,
        "num_attention_heads": num_heads,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": num_kv_heads,
        "rms_norm_eps": rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": rope_theta,
        "tie_word_embeddings": tie_embeddings,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": vocab_size,
        **special,
    }


def byte_level_tokenizer(tokens: list[str], merges: list[str], special: list[int]) -> dict[str, Any]:
    """Return tokenizer.json of a byte-level BPE of the GPT-2 family that splits numbers into digits, as SmolLM2's."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(index, tokens[index], special=True) for index in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def sentencepiece_tokenizer(
    tokens: list[str], merges: list[list[str]], *, bos: int, special: list[int], whole: list[int], unk: str
) -> dict[str, Any]:
    """Return tokenizer.json of a BPE that SentencePiece trained, with bytes for what it does not know, as Gemma's.

    Args:
        tokens: all of them.
        merges: pairs, the first applied first.
        bos: id of the token that begins every text.
        special: ids of tokens that decoding leaves out.
        whole: ids of tokens that are never split, such as runs of spaces.
        unk: the token for what is unknown.
    """
    kinds = dict.fromkeys(special, True) | dict.fromkeys(whole, False)
    begin = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(index, tokens[index], special=kinds[index]) for index in sorted(kinds)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, *({"Sequence": {"id": name, "type_id": 0}} for name in "AB")],
            "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unk,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def _added(index: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **flags, "special": special}


def tokenizer_config(*, bos: str, eos: str, unk: str, pad: str, chat_template: str, max_length: int) -> dict[str, Any]:
    """Return tokenizer_config.json of a plain fast tokenizer: text in, the same text out.

    The class is named because transformers 5 would otherwise choose Llama's own for a Llama, which loses spaces.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "bos_token": bos,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "model_max_length": max_length,
        "pad_token": pad,
        "unk_token": unk,
    }
