"""What the number means: logprobs of another distribution than the one that was sampled."""

from __future__ import annotations

from collections.abc import Iterable

from tracekit.audit.lint.defaults import NEUTRAL, changes
from tracekit.audit.lint.types import BREAKS, NOTE, RISK, Rule, Sampling, Subject, some

PROCESSED = 'logprobs_mode="processed_logprobs"'
_MASKS = ("logit_bias", "allowed_token_ids", "bad_words")


def temperature(group: Sampling) -> str:
    """Say which temperature is not 1; empty for greedy requests."""
    value = group.temperature
    return "" if group.greedy or value == 1.0 else group.say("temperature", value)


def truncation(group: Sampling) -> str:
    """Say what truncates; empty for greedy requests."""
    return "" if group.greedy else _named(group, ("top_p", "top_k", "min_p"))


def penalties(group: Sampling) -> str:
    """Say which penalties are set."""
    return _named(group, ("repetition_penalty", "presence_penalty", "frequency_penalty"))


def _named(group: Sampling, names: Iterable[str]) -> str:
    values = {name: group.get(name, NEUTRAL[name]) for name in names}
    return ", ".join(group.say(name, value) for name, value in values.items() if changes(name, value))


def masks(group: Sampling) -> str:
    """Say what keeps tokens from being sampled."""
    parts = [name for name in _MASKS if group.params.get(name)]
    # it bars the tokens that end a rollout; where a record says that none does, it bars nothing
    if group.get("min_tokens", 0) > 0 and group.params.get("all_stop_token_ids") != []:
        parts.append(f"min_tokens {group.get('min_tokens', 0):g}")
    return ", ".join(parts)


def _grammar(group: Sampling) -> str:
    # V0 calls it guided_decoding
    return ", ".join(name for name in ("structured_outputs", "guided_decoding") if group.params.get(name))


def asks_of_prompts(group: Sampling) -> bool:
    """Whether a request asks for the logprobs of its prompt."""
    return group.params.get("prompt_logprobs") is not None


def _raw_prompts(subject: Subject) -> str | None:
    if subject.is_v0:
        return None
    shown = (temperature, truncation, penalties, masks)
    return some(subject, lambda g: ", ".join(filter(None, (say(g) for say in shown))) if asks_of_prompts(g) else "")


def _processed_prompts(subject: Subject) -> str | None:
    if not subject.is_v0:
        return None
    shown = (temperature, truncation)
    return some(subject, lambda g: ", ".join(filter(None, (say(g) for say in shown))) if asks_of_prompts(g) else "")


def _not_asked(subject: Subject) -> str | None:
    return some(subject, lambda g: "logprobs is null" if g.params.get("logprobs") is None else "")


def _processors(subject: Subject) -> str | None:
    return f"logits_processors {subject['logits_processors']}" if subject["logits_processors"] else None


RULES = (
    Rule(
        "raw-logprobs-with-temperature",
        BREAKS,
        "Raw logprobs are taken before the temperature, so they are not those of the distribution that was sampled.",
        PROCESSED,
        "https://github.com/huggingface/trl/issues/4159",
        lambda s: some(s, temperature) if s.is_raw else None,
    ),
    Rule(
        "raw-logprobs-with-truncation",
        BREAKS,
        "Raw logprobs are taken before top-p, top-k and min-p, which renormalise over the tokens they keep.",
        PROCESSED,
        "https://github.com/huggingface/trl/issues/7269",
        lambda s: some(s, truncation) if s.is_raw else None,
    ),
    Rule(
        "raw-logprobs-with-penalties",
        BREAKS,
        "Raw logprobs are taken before penalties, which move every token seen so far.",
        PROCESSED,
        "https://github.com/NVIDIA-NeMo/RL/issues/3497",
        lambda s: some(s, penalties) if s.is_raw else None,
    ),
    Rule(
        "raw-logprobs-with-masks",
        BREAKS,
        "Raw logprobs are taken before tokens are barred or biased, so they give mass to what could not be sampled.",
        PROCESSED,
        "https://github.com/vllm-project/vllm/issues/13175",
        lambda s: some(s, masks) if s.is_raw else None,
    ),
    Rule(
        "raw-logprobs-with-processors",
        BREAKS,
        "Raw logprobs are taken before the engine's own logits processors.",
        PROCESSED,
        "https://github.com/vllm-project/vllm/issues/42259",
        lambda s: _processors(s) if s.is_raw else None,
    ),
    Rule(
        "logits-not-logprobs",
        BREAKS,
        "The numbers are logits, which a trainer cannot compare with log-probabilities.",
        PROCESSED,
        "https://github.com/vllm-project/vllm/issues/42259",
        lambda s: f"logprobs_mode is {s.logprobs_mode}" if s.logprobs_mode.endswith("_logits") else None,
    ),
    Rule(
        "logprobs-not-asked",
        RISK,
        "Without the sampled token's logprob a trainer has no behaviour policy; some frameworks put 0.0 in its place.",
        "SamplingParams(logprobs=0)",
        "OpenRLHF, openrlhf/utils/agent.py: a missing logprob becomes 0.0",
        _not_asked,
    ),
    Rule(
        "trainer-temperature",
        NOTE,
        "Processed logprobs are those after the temperature: the trainer has to divide its logits by the same one.",
        "divide the trainer's logits by the temperature before log-softmax",
        "https://github.com/NVIDIA-NeMo/RL/pull/935",
        lambda s: some(s, temperature) if not s.is_raw else None,
    ),
    Rule(
        "truncated-support",
        RISK,
        "Processed logprobs are normalised over the kept tokens: a trainer without the same mask is off by its mass.",
        "top_p=1, top_k=-1, min_p=0, or apply the same truncation in the trainer",
        "https://github.com/huggingface/trl/issues/7269",
        lambda s: some(s, truncation) if not s.is_raw else None,
    ),
    Rule(
        "penalties-in-the-trainer",
        RISK,
        "Penalties are part of what was sampled, and the mean ratio hides it when the trainer leaves them out.",
        "repetition_penalty=1, presence_penalty=0, frequency_penalty=0, or apply them in the trainer",
        "https://github.com/NVIDIA-NeMo/RL/issues/3497",
        lambda s: some(s, penalties) if not s.is_raw else None,
    ),
    Rule(
        "masks-in-the-trainer",
        RISK,
        "Barred and biased tokens are part of what was sampled; a trainer without the mask gives them mass.",
        "apply the same masks in the trainer",
        "https://github.com/vllm-project/vllm/issues/13175",
        lambda s: some(s, masks) if not s.is_raw else None,
    ),
    Rule(
        "processors-in-the-trainer",
        RISK,
        "The job's own logits processors are part of what was sampled, and the trainer knows nothing of them.",
        "logits_processors=[], or apply the same in the trainer",
        "https://github.com/vllm-project/vllm/issues/42259",
        lambda s: _processors(s) if not s.is_raw else None,
    ),
    Rule(
        "raw-prompt-logprobs",
        RISK,
        "Prompt logprobs are taken before temperature, penalties and truncation whatever logprobs_mode says: a trainer "
        "that takes them for those of sampled tokens is off by all of it.",
        "temperature=1, top_p=1, top_k=-1 in the request that only scores, or take them for what they are, raw",
        "https://github.com/vllm-project/vllm/pull/37082",
        _raw_prompts,
    ),
    Rule(
        "processed-prompt-logprobs",
        RISK,
        "V0 divides prompt logprobs by the temperature and truncates them: a prompt token that is cut off has -inf.",
        "temperature=1, top_p=1, top_k=-1, min_p=0 in the request that scores",
        "vLLM 0.8.5, model_executor/sampling_metadata.py, SamplingTensors.from_sampling_metadata",
        _processed_prompts,
    ),
    Rule(
        "structured-outputs",
        RISK,
        "A grammar's mask is in raw logprobs as well as in processed ones, and the trainer knows nothing of it.",
        "apply the grammar's mask in the trainer, or leave these tokens out of the loss",
        "vLLM 0.18.1, v1/worker/gpu_model_runner.py, apply_grammar_bitmask",
        lambda s: some(s, _grammar),
    ),
)
