"""Tiny random causal LMs of several architectures, written as model folders."""

from pathlib import Path

import torch
from transformers import (
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

VOCAB = 160
_SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    head_dim=8,
    initializer_range=0.3,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def configs() -> dict[str, PreTrainedConfig]:
    """Architectures that differ in what they do after the body."""
    return {
        "llama": LlamaConfig(**_SHAPE, tie_word_embeddings=False),
        "llama-tied": LlamaConfig(**_SHAPE, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**_SHAPE, tie_word_embeddings=False),
        "qwen3-tied": Qwen3Config(**_SHAPE, tie_word_embeddings=True),
        "qwen3-moe": Qwen3MoeConfig(**_SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
        "gemma2-softcap": Gemma2Config(
            **_SHAPE, final_logit_softcapping=2.0, sliding_window=8, query_pre_attn_scalar=8
        ),
        "gemma3-tied": Gemma3TextConfig(
            **_SHAPE, final_logit_softcapping=3.0, sliding_window=8, query_pre_attn_scalar=8
        ),
        "cohere-scaled": CohereConfig(**_SHAPE, logit_scale=0.25),
        "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3),
        "opt": OPTConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            max_position_embeddings=256,
            init_std=0.3,
        ),
    }


def architectures() -> dict[str, PreTrainedConfig]:
    """Those of `configs`, and more that differ in their bodies: biases, windows, sinks, experts, no attention."""
    from transformers import (
        GptOssConfig,
        JambaConfig,
        MambaConfig,
        MistralConfig,
        MixtralConfig,
        Phi3Config,
        PhiConfig,
        Qwen2Config,
        Qwen3NextConfig,
    )

    plain = {key: value for key, value in _SHAPE.items() if key != "head_dim"}
    mixed = ["sliding_attention", "full_attention"]
    return {
        **configs(),
        "qwen2-sliding": Qwen2Config(**plain, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "mistral-sliding": MistralConfig(**_SHAPE, sliding_window=8),
        "gemma3-mixed": Gemma3TextConfig(**_SHAPE, sliding_window=8, query_pre_attn_scalar=8, layer_types=mixed),
        "phi": PhiConfig(**plain, partial_rotary_factor=0.5),
        "mixtral": MixtralConfig(**_SHAPE, num_local_experts=4, num_experts_per_tok=2),
        "gpt-oss-sinks": GptOssConfig(
            **_SHAPE, num_local_experts=4, num_experts_per_tok=2, sliding_window=8, layer_types=mixed
        ),
        "longrope": Phi3Config(
            **plain,
            original_max_position_embeddings=32,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 1.0,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
            },
        ),
        "mamba": MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
        "jamba": JambaConfig(
            **plain, attn_layer_period=2, attn_layer_offset=1, num_experts=1, mamba_d_state=4, use_mamba_kernels=False
        ),
        "qwen3-next": Qwen3NextConfig(
            **_SHAPE,
            layer_types=["linear_attention", "full_attention"],
            num_experts=0,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
    }


def write_model(folder: Path, name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random model; its logits have a spread of order one, so that no test compares noise with noise."""
    torch.manual_seed(seed)
    config = architectures()[name]
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).to(dtype)
    model.save_pretrained(folder)
    return folder
