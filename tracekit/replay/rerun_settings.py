"""The recorded engine's settings, as the arguments that make an engine like it, and what must come out equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# vLLM's argument: where its resolved value stands in the recorded settings
_ARGUMENTS = {
    "dtype": "model_config.dtype",
    "max_model_len": "model_config.max_model_len",
    "quantization": "model_config.quantization",
    "enforce_eager": "model_config.enforce_eager",
    "logprobs_mode": "model_config.logprobs_mode",
    "disable_sliding_window": "model_config.disable_sliding_window",
    "hf_overrides": "model_config.hf_overrides",
    "seed": "model_config.seed",
    "block_size": "cache_config.block_size",
    "kv_cache_dtype": "cache_config.cache_dtype",
    "enable_prefix_caching": "cache_config.enable_prefix_caching",
    "prefix_caching_hash_algo": "cache_config.prefix_caching_hash_algo",
    "max_num_batched_tokens": "scheduler_config.max_num_batched_tokens",
    "max_num_seqs": "scheduler_config.max_num_seqs",
    "enable_chunked_prefill": "scheduler_config.enable_chunked_prefill",
    "long_prefill_token_threshold": "scheduler_config.long_prefill_token_threshold",
    "disable_hybrid_kv_cache_manager": "scheduler_config.disable_hybrid_kv_cache_manager",
}
_MUST_AGREE = ("compilation_config.mode", "compilation_config.custom_ops", "attention_config.backend")

# of the model, whatever else its config holds
_OF_MODEL = (
    *("architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_parameters", "sliding_window"),
    *("tie_word_embeddings", "final_logit_softcapping", "attn_logit_softcapping", "query_pre_attn_scalar"),
)

# variables of the recorded process that decide on its numbers; others are not taken over: a trace may be a stranger's
_ENVIRON = (
    *("VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_SGL_KERNEL", "VLLM_CPU_MOE_PREPACK", "VLLM_ATTENTION_BACKEND"),
    *("VLLM_FLASH_ATTN_VERSION", "VLLM_BATCH_INVARIANT", "VLLM_USE_FLASHINFER_SAMPLER"),
)

# what of a worker's facts must be the same for its bits to be
_OF_WORKER = (
    *("worker", "model_runner", "model", "attention", "kv_cache_dtype", "cudagraph_mode", "sampler", "top_k_top_p"),
    *("head", "parameters", "torch", "device"),
)


def engine_arguments(config: Mapping[str, Any], folder: str, room: int) -> dict[str, Any]:
    """Return arguments of vLLM's `EngineArgs` for an engine like the recorded one.

    Args:
        config: the column `engines.config`, parsed.
        folder: with the weights that the first step ran on.
        room: tokens that its largest step computes, where that is more than the recorded engine could.
    """
    found = {name: _at(config.get("vllm", {}), path) for name, path in _ARGUMENTS.items()}
    arguments = {name: value for name, value in found.items() if value not in (None, {}) and value != "None"}
    if "dtype" in arguments:
        arguments["dtype"] = str(arguments["dtype"]).removeprefix("torch.")
    if config.get("num_gpu_blocks"):
        arguments["num_gpu_blocks_override"] = config["num_gpu_blocks"]
    arguments["max_num_batched_tokens"] = max(arguments.get("max_num_batched_tokens", 0), room)
    return {**arguments, "model": folder, "skip_tokenizer_init": True, "async_scheduling": False}


def expected_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the engine of a re-run must resolve, by dotted name."""
    vllm = config.get("vllm", {})
    paths = {*_ARGUMENTS.values(), *_MUST_AGREE} - {_ARGUMENTS["max_num_batched_tokens"]}
    expected = {f"vllm.{path}": _at(vllm, path) for path in sorted(paths) if _at(vllm, path) is not None}
    of_model = config.get("hf_config", {})
    return expected | {f"hf_config.{name}": of_model[name] for name in _OF_MODEL if name in of_model}


def environ_of(kind: str, config: Mapping[str, Any], worker: Mapping[str, Any]) -> dict[str, str]:
    """Return variables for the process of the re-run of an engine of this generation."""
    recorded = config.get("environment", {})
    taken = {name: str(recorded[name]) for name in _ENVIRON if name in recorded}
    threads = (worker.get("torch") or {}).get("num_threads")
    if threads and (worker.get("device") or {}).get("type") == "cpu":
        taken["OMP_NUM_THREADS"] = str(threads)
        if kind != "v0":  # V1 would run on as many threads as there are cores
            taken["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return taken


def unlike(there: Mapping[str, Any], here: Mapping[str, Any], versions: tuple[str, str]) -> list[str]:
    """Name what makes two engines' last bits differ, though both are set alike.

    Args:
        there: what the recorded worker told of itself.
        here: what the re-run's did.
        versions: of vLLM, there and here.
    """
    found = [] if versions[0] == versions[1] else [f"vLLM {versions[0]} recorded, {versions[1]} here"]
    for name in _OF_WORKER:
        if name in there and name in here and (told := _difference(there[name], here[name])):
            found.append(f"{name}: {told}")
    return found


def other_weights(there: Iterable[Mapping[str, Any]], here: Mapping[str, Any], folders: Mapping[int, str]) -> list[str]:
    """Name the tensors of each weight version that are not what the recorded engine had.

    Args:
        there: rows of the table `fingerprints` of one engine.
        here: tensors and hashes of each folder, as the re-run's engine loaded it.
        folders: of each weight version.
    """
    found: dict[int, list[str]] = {}
    hashes = {folder: dict(tensors) for folder, tensors in here.items()}
    for row in there:
        own = hashes.get(folders.get(row["weight_version"], ""), {})
        if own.get(row["tensor"]) is not None and row["hash"] not in (None, own[row["tensor"]]):
            found.setdefault(row["weight_version"], []).append(row["tensor"])
    return [
        f"weight version {version}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''} "
        "recorded with other values than the weights given"
        for version, names in sorted(found.items())
    ]


def _difference(there: Any, here: Any) -> str:
    """Say how a fact differs; what only one of two versions of vLLM tells does not count."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = [name for name in there if name in here and there[name] != here[name]]
        return ", ".join(f"{name} {there[name]} recorded, {here[name]} here" for name in names)
    if there == here:
        return ""
    return f"{there} recorded, {here} here"


def _at(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
