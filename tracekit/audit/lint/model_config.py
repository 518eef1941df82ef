"""Two configurations of a model side by side: one that an engine resolved, one as a file has it.

A resolved one has every default of its class, a file only what somebody said, and each version of transformers writes
other names: a key that only one of them has means a difference only where its neutral value is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CONFIG = "config.json"

# keys whose absence has a meaning for every model
NEUTRAL: Mapping[str, Any] = {
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "embedding_multiplier": 1.0,
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "mlp_bias": False,
    "residual_multiplier": 1.0,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": None,
}
# whose absence means its neutral value in every model but these, whose class has another default
_ABSENT_IS_NEUTRAL = ("rope_scaling",)
_OWN_ROPE = ("gpt_oss",)
# they change no number, or say what the engine was told elsewhere
IGNORED = frozenset(
    {
        *("architectures", "auto_map", "transformers_version", "tokenizer_class", "task_specific_params"),
        *("torch_dtype", "dtype", "use_bfloat16", "tf_legacy_loss", "torchscript", "gradient_checkpointing"),
        *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "initializer_range"),
        *("attention_dropout", "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"),
        *("embd_pdrop", "resid_pdrop", "attn_pdrop", "router_aux_loss_coef", "output_router_logits"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
        *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "pretraining_tp"),
        *("chunk_size_feed_forward", "pruned_heads", "is_decoder", "is_encoder_decoder", "head_dtype"),
        # what older versions of transformers keep for generation
        *("do_sample", "early_stopping", "max_length", "min_length", "num_beams", "num_beam_groups", "length_penalty"),
        *("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "diversity_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences", "bad_words_ids"),
        *("suppress_tokens", "begin_suppress_tokens", "remove_invalid_values", "output_scores"),
    }
)


def differences(engine: Mapping[str, Any], trainer: Mapping[str, Any]) -> list[str]:
    """Say what differs: what both name, and what only one names where its absence has one meaning for every model."""
    one, other = plain(engine), plain(trainer)
    if not {engine.get("model_type"), trainer.get("model_type")} & {*_OWN_ROPE}:
        for name in _ABSENT_IS_NEUTRAL:
            if one.get(name) is not None or other.get(name) is not None:
                one, other = {name: None, **one}, {name: None, **other}
    if _rows(other) > _rows(one):
        other.pop("vocab_size")  # padded: a rule of its own
    return list(_differences(one, other, ""))


def _rows(config: Mapping[str, Any]) -> int:
    size = config.get("vocab_size")
    return size if isinstance(size, int) else 0


def unsaid(engine: Mapping[str, Any], trainer: Mapping[str, Any]) -> list[str]:
    """Say what changes numbers on one side, while the other does not name it."""
    one, other = plain(engine), plain(trainer)
    said = " ".join(differences(engine, trainer))
    found = []
    for name, neutral in NEUTRAL.items():
        if (name in one) != (name in other) and f"{name} " not in said:
            value = one.get(name, other.get(name))
            if value is not None and value != neutral:
                found.append(f"{name} {value} {'in the engine' if name in one else 'in the folder'} only")
    return found


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the same names for the same things, whichever transformers wrote it."""
    text = config.get("text_config")
    found = {**config, **(text if isinstance(text, Mapping) else {})}
    found.pop("text_config", None)
    rope = found.pop("rope_parameters", None)  # transformers 5 has theta and scaling in one
    if isinstance(rope, Mapping):
        local = rope.get("sliding_attention")
        if isinstance(local, Mapping):
            found["rope_local_base_freq"] = local.get("rope_theta")
        rope = rope.get("full_attention", rope)
        found["rope_theta"] = rope.get("rope_theta", found.get("rope_theta"))
        found["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    if "rope_scaling" in found:
        found["rope_scaling"] = _scaling(found["rope_scaling"])
    if found.get("rope_scaling") is None:
        found.pop("max_position_embeddings", None)  # how long a text may be, and nothing else
    if found.get("use_sliding_window") is False:
        found["sliding_window"] = None
        found.pop("max_window_layers", None)
    return {name: value for name, value in found.items() if name not in IGNORED and not name.startswith("_")}


def _scaling(scaling: Any) -> Any:
    if not isinstance(scaling, Mapping):
        return scaling
    named = {name: value for name, value in scaling.items() if name != "type"}
    named.setdefault("rope_type", scaling.get("type"))
    return None if named["rope_type"] in (None, "default") else named


def _differences(engine: Mapping[str, Any], trainer: Mapping[str, Any], within: str) -> Iterator[str]:
    for name in sorted(set(engine) & set(trainer)):
        one, other = engine[name], trainer[name]
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{within}{name}.")
        elif one != other and (None not in (one, other) or name in NEUTRAL):  # a null is mostly computed from the rest
            yield f"{within}{name} {one} in the engine, {other} in the folder"
