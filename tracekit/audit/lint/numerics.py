"""Precision and kernels: the same input in other arithmetic than the trainer's."""

from __future__ import annotations

from typing import Any

from tracekit.audit.lint.types import NOTE, RISK, Rule, Subject
from tracekit.plural import plural

FP32_HEAD_SINCE = (0, 26)
CASCADE_GONE = (0, 32)  # 0.18.1 has it, 0.32.0 does not; nobody looked at those between
CASCADE_REQUESTS = 8  # in a step, below which it is never used


def _head(subject: Subject) -> str | None:
    head = subject["head"] or {}
    dtype = str(head.get("computed_in") or head.get("dtype") or short(subject["dtype"]))
    if dtype in ("", "float32") or subject["quantization"] == "bf16_last_layer_fp32":
        return None
    overrides = subject["hf_overrides"]
    asked = short(overrides.get("head_dtype")) if isinstance(overrides, dict) else ""
    too_old = bool(subject.version) and subject.version < FP32_HEAD_SINCE
    if asked == "float32" and not too_old:
        return None
    ignored = " (head_dtype is ignored before vLLM 0.26)" if asked else ""
    return f"lm_head in {dtype}{ignored}"


def short(dtype: Any) -> str:
    """`torch.bfloat16` → `bfloat16`; what the engine has yet to find out is empty."""
    text = str(dtype or "").removeprefix("torch.")
    return "" if text == "auto" else text


def _compiled(subject: Subject) -> str | None:
    if subject["enforce_eager"] is not False:
        return None
    if subject.is_v0:
        return "CUDA graphs"
    mode, graphs = subject["compilation_mode"], subject["cudagraph_mode"]
    if mode in ("NONE", 0) and graphs in ("NONE", None):
        return None
    return f"compilation mode {mode}, CUDA graphs {graphs}" if subject.rows is not None else "enforce_eager is false"


def _kv(subject: Subject) -> str | None:
    dtype = short(subject["kv_cache_dtype"])
    return None if dtype in ("", "float16", "bfloat16", "float32") else f"kv_cache_dtype {dtype}"


def _cascade(subject: Subject) -> str | None:
    if subject["disable_cascade_attn"] is not False or subject["device"] == "cpu":
        return None
    # V0 never had it
    if subject.is_v0 or (subject.version and subject.version >= CASCADE_GONE):
        return None
    if subject.rows is not None:
        sizes = subject.rows["steps"]["num_requests"]
        if sizes.max(initial=0) < CASCADE_REQUESTS:
            return None
        return f"disable_cascade_attn is false, and steps had up to {plural(int(sizes.max()), 'request')}"
    return "disable_cascade_attn is false"


def _drafts(subject: Subject) -> str | None:
    if not subject["speculative_config"]:
        return None
    if subject.rows is None or subject.is_v0:  # drafts of V0 are not recorded
        return "speculative_config is set"
    drafted = int(subject.rows["scheduled"]["num_draft"].sum())
    return f"speculative_config is set, drafted tokens: {drafted}" if drafted else None


def _quantization(subject: Subject) -> str | None:
    method = subject["quantization"]
    return f"quantization {method}" if method not in (None, "bf16_last_layer_fp32") else None


def _parallel(subject: Subject) -> str | None:
    size = subject["tensor_parallel_size"]
    return f"tensor_parallel_size {size}" if isinstance(size, int) and size > 1 else None


RULES = (
    Rule(
        "one-sided-fp32-head",
        NOTE,
        "A trainer with an fp32 lm_head beside an engine without one disagrees more than two that both round.",
        'hf_overrides={"head_dtype": "float32"} (vLLM 0.26 and later), in the trainer as well',
        "https://github.com/ServiceNow/Fast-LLM/issues/525",
        _head,
    ),
    Rule(
        "quantized-kv-cache",
        RISK,
        "Keys and values are rounded as the trainer never rounds them, and the error grows with the context.",
        'kv_cache_dtype="auto"',
        "https://github.com/NVIDIA-NeMo/RL/pull/1212",
        _kv,
    ),
    Rule(
        "quantized-weights",
        RISK,
        "The engine samples from other weights than the trainer scores with.",
        "quantization=None",
        "https://github.com/NVIDIA-NeMo/RL/pull/1212",
        _quantization,
    ),
    Rule(
        "float16",
        NOTE,
        "A float16 engine beside a bfloat16 trainer rounds differently in every layer; both in float16 agree better.",
        "dtype as the trainer's",
        "https://arxiv.org/abs/2510.26788",
        lambda s: "dtype float16" if short(s["dtype"]) == "float16" else None,
    ),
    Rule(
        "cascade-attention",
        RISK,
        "Cascade attention takes another path for shared prefixes in large batches, and moved long texts on A100.",
        "disable_cascade_attn=True",
        "https://github.com/vllm-project/vllm/issues/22103",
        _cascade,
    ),
    Rule(
        "speculative-decoding",
        RISK,
        "Accepted drafts come from another code path, with logprobs and logits processors of its own.",
        "speculative_config=None",
        "https://github.com/vllm-project/vllm/pull/38711",
        _drafts,
    ),
    Rule(
        "compiled",
        NOTE,
        "Compiled and captured kernels fuse and reorder arithmetic that the trainer does in steps.",
        "enforce_eager=True, to see whether the difference goes away",
        "NeMo-RL, tools/model_diagnostics, vllm_precision_compilation_test",
        _compiled,
    ),
    Rule(
        "tensor-parallel",
        NOTE,
        "All-reduce adds partial sums in an order that depends on the number of ranks.",
        "tensor_parallel_size as the trainer's, or 1",
        "https://arxiv.org/abs/2511.17826",
        _parallel,
    ),
    Rule(
        "mixture-of-experts",
        NOTE,
        "A router that is off by rounding picks other experts, and such tokens differ far more than noise.",
        "enable_return_routed_experts=True, and replay the routing in the trainer",
        "https://arxiv.org/abs/2510.11370",
        lambda s: "routed experts are not returned" if s["is_moe"] and not s["enable_return_routed_experts"] else None,
    ),
)
