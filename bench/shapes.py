"""Random models of real shapes, for what no model at hand has: weights mean nothing, times and memory do."""

import tempfile
from pathlib import Path

import torch

SHAPES = {
    "qwen2-7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "vocab-262k": {
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}


def make(name: str) -> Path:
    """Write a random Qwen2 of this shape, bfloat16, into a temporary folder."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    folder = Path(tempfile.gettempdir()) / f"tracekit-bench-{name}"
    if not (folder / "config.json").is_file():
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = Qwen2ForCausalLM(Qwen2Config(max_position_embeddings=4096, **SHAPES[name]))
        torch.set_default_dtype(before)
        model.save_pretrained(folder)
        del model
    return folder
