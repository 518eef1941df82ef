"""The subject of a file of engine arguments: what the engine would resolve them to, before a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracekit.audit.lint.defaults import defaults_of, read_generation_config
from tracekit.audit.lint.types import Sampling, Subject
from tracekit.errors import UsageError

VERSIONS = {"v1": (0, 18, 1), "latest": (0, 32, 0)}

# what both versions resolve to where nothing is said (vllm/config/{model,cache,scheduler}.py), on a GPU
DEFAULTS: Mapping[str, Any] = {
    "logprobs_mode": "raw_logprobs",
    "enable_prefix_caching": True,
    "async_scheduling": True,
    "disable_cascade_attn": True,
    "enforce_eager": False,
    "generation_config": "auto",
    "kv_cache_dtype": "auto",
    "dtype": "auto",
    "tensor_parallel_size": 1,
    "enable_return_routed_experts": False,
    "device": "cuda",
}
KNOWN = {
    *DEFAULTS,
    "hf_config_path",
    "hf_overrides",
    "kv_transfer_config",
    "load_format",
    "logits_processors",
    "model",
    "override_generation_config",
    "quantization",
    "speculative_config",
    "weight_transfer_config",
}
SECTIONS = ("engine", "sampling", "weight_update")
_OBJECTS = ("hf_overrides", "override_generation_config")
_NUMERIC = (
    *("temperature", "top_p", "top_k", "min_p", "min_tokens"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def read_arguments(path: Path) -> dict[str, Any]:
    """Read a JSON or TOML file of engine arguments.

    Raises:
        UsageError: there is no such file, or it is neither, or does not hold an object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"the engine arguments cannot be read ({error.strerror}): {path}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the engine arguments are not UTF-8 text: {path}") from error
    if path.suffix not in (".json", ".toml"):
        raise UsageError(f"engine arguments come as .json or .toml: {path}")
    if path.suffix == ".json":
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UsageError(f"this is not JSON: {path}: {error}") from error
    else:
        found = _toml(text, path)
    if not isinstance(found, dict):
        raise UsageError(f"engine arguments are one object of names and values: {path}")
    return found


def subject_of(arguments: Mapping[str, Any], engine: str, name: str) -> tuple[Subject, list[str]]:
    """Return what is to be judged, and the names of arguments that no rule looks at.

    Args:
        arguments: Engine arguments at the top or in a section `engine`; sections `sampling` (one object of
            sampling parameters or several) and `weight_update` (`mode`, `clear_cache`) may stand beside them.
        engine: `v1` or `latest`: whose defaults fill in what is not said.

    Raises:
        UsageError: a section is not what it should be.
    """
    plain = {key: value for key, value in arguments.items() if key not in SECTIONS}
    given = _names({**plain, **_section(arguments, "engine", {})})
    settings = {**DEFAULTS, **given}
    if settings["device"] == "cpu":
        settings["async_scheduling"] = False  # forced off there
    elif settings["async_scheduling"] is None:
        settings["async_scheduling"] = True
    sampling = arguments.get("sampling", [])
    groups = sampling if isinstance(sampling, list) else [sampling]
    if not all(isinstance(group, dict) for group in groups):
        raise UsageError("the section 'sampling' is an object of sampling parameters, or a list of them")
    for argument in _OBJECTS:
        if not isinstance(settings.get(argument), dict | None):
            raise UsageError(f"{argument} is an object of names and values")
    update = _section(arguments, "weight_update", None)
    model = settings.get("hf_config_path") or settings.get("model")
    file = read_generation_config(model, settings["generation_config"])
    subject = Subject(
        name,
        VERSIONS[engine],
        settings,
        [Sampling(_numbers(_names(group))) for group in groups],
        None if update is None else _names(update),
        defaults=defaults_of(settings, VERSIONS[engine], file),
    )
    return subject, sorted(set(given) - KNOWN)


def _section(arguments: Mapping[str, Any], name: str, default: Any) -> Any:
    found = arguments.get(name, default)
    if found is not default and not isinstance(found, dict):
        raise UsageError(f"the section {name!r} is an object of names and values")
    return found


def _names(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Names as Python has them: `--no-enable-prefix-caching: true` → `enable_prefix_caching: False`."""
    found = {}
    for key, value in arguments.items():
        name = key.lstrip("-").replace("-", "_")
        if isinstance(value, str):
            value = _objects(_WORDS.get(value.lower(), value))
        if name.startswith("no_") and isinstance(value, bool):
            name, value = name.removeprefix("no_"), not value
        found[name] = value
    return found


def _objects(value: Any) -> Any:
    """Objects may be JSON text, as on vLLM's command line."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise UsageError(f"this is not JSON: {value}") from error
    return value


def _numbers(sampling: dict[str, Any]) -> dict[str, Any]:
    for name in _NUMERIC:
        value = sampling.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value != value):
            raise UsageError(f"the sampling parameter {name} is a number, not {value!r}")
    return sampling


def _toml(text: str, path: Path) -> Any:
    if sys.version_info < (3, 11):
        raise UsageError(f"TOML needs Python 3.11 or later, give JSON: {path}")
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"this is not TOML: {path}: {error}") from error
