"""The sampling parameters of one recorded request, read from the trace and made ready for the sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracekit.errors import ReplayRefused

GREEDY_BELOW = 1e-5  # vLLM samples greedily below this temperature


@dataclass(frozen=True)
class Params:
    """What moves logprobs among vLLM's sampling parameters; the defaults move nothing."""

    temperature: float = 1.0
    """Divisor of the logits; 1 for a greedy request, as vLLM's processed logprobs of such a request have it."""
    top_p: float = 1.0
    top_k: int = 0
    """Tokens kept; 0 keeps all."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    """Empty allows all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token ids of each word that must not be completed."""
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    """Every id that ends a completion, barred until min_tokens are there."""
    greedy: bool = False
    """Whether the most likely token was taken, whatever the values above say."""

    @property
    def truncates(self) -> bool:
        """Whether min-p, top-k or top-p may drop tokens."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0

    @property
    def penalizes(self) -> bool:
        """Whether a penalty moves the logits of tokens that were there before."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0

    @property
    def reorders(self) -> bool:
        """Whether the most likely token may be another one than that of the model's own logits."""
        return self.penalizes or self.masks or bool(self.logit_bias)

    @property
    def masks(self) -> bool:
        """Whether a token may be barred."""
        return bool(self.allowed_token_ids or self.bad_words or self.stop_token_ids)

    @property
    def named_ids(self) -> tuple[int, ...]:
        """Every token id that is named here, with repetitions."""
        biased = tuple(token for token, _ in self.logit_bias)
        return self.allowed_token_ids + self.stop_token_ids + biased + tuple(t for word in self.bad_words for t in word)


def untestable(sampling: Mapping[str, Any]) -> str | None:
    """Return the parameter for which processed logprobs cannot be recomputed from what was recorded; None for none."""
    if _get(sampling, "bad_words") and _get(sampling, "bad_words_token_ids") is None:
        return "bad_words"
    if _get(sampling, "min_tokens") and _get(sampling, "all_stop_token_ids") is None:
        return "min_tokens"
    return next((name for name in _FOREIGN if _get(sampling, name) not in (None, False, [], {})), None)


def looks_back(sampling: Mapping[str, Any]) -> str | None:
    """Return the parameter that tells a completion's tokens from those before it; None for none."""
    return next((name for name in _OF_OUTPUT if _get(sampling, name)), None)


def parse_params(sampling: Mapping[str, Any]) -> Params:
    """Read recorded sampling parameters (vLLM's names, its defaults for what is missing).

    Raises:
        ReplayRefused: a parameter is malformed, or moves logprobs in a way that the trace does not tell.
    """
    parameter = untestable(sampling)
    if parameter:
        why = _INCOMPLETE.get(parameter) or _FOREIGN[parameter]
        raise ReplayRefused(f"processed logprobs cannot be recomputed: {parameter} {why}")
    try:
        return _parse(sampling)
    except (TypeError, ValueError, AttributeError) as error:
        raise ReplayRefused(f"the recorded sampling parameters cannot be read: {error}") from error


_OF_OUTPUT = ("frequency_penalty", "presence_penalty", "min_tokens", "bad_words")
_INCOMPLETE = {
    "bad_words": "was recorded as text without its token ids",
    "min_tokens": "was recorded without the ids of all stop tokens",
}
_FOREIGN = {
    "structured_outputs": "masks the logits with a grammar that the trace does not hold",
    "guided_decoding": "masks the logits with a grammar that the trace does not hold",
    "logits_processors": "changes the logits with the caller's own code",
    "thinking_token_budget": "forces tokens in a way that the trace does not tell",
    "watermarking": "changes the logits in a way that the trace does not tell",
}


def _get(sampling: Mapping[str, Any], name: str) -> Any:
    """Value of a parameter, also under the private spelling that vLLM's own struct uses."""
    value = sampling.get(name)
    return sampling.get(f"_{name}") if value is None else value


def _number(sampling: Mapping[str, Any], name: str, default: float) -> float:
    value = _get(sampling, name)
    return default if value is None else float(value)


def _parse(sampling: Mapping[str, Any]) -> Params:
    temperature = _number(sampling, "temperature", 1.0)
    greedy = temperature < GREEDY_BELOW
    min_tokens = int(_number(sampling, "min_tokens", 0))
    bias = _get(sampling, "logit_bias") or {}
    return Params(
        temperature=1.0 if greedy else temperature,
        top_p=1.0 if greedy else min(_number(sampling, "top_p", 1.0), 1.0),
        top_k=0 if greedy else max(int(_number(sampling, "top_k", 0)), 0),
        min_p=0.0 if greedy else _number(sampling, "min_p", 0.0),
        repetition_penalty=_number(sampling, "repetition_penalty", 1.0),
        frequency_penalty=_number(sampling, "frequency_penalty", 0.0),
        presence_penalty=_number(sampling, "presence_penalty", 0.0),
        logit_bias=tuple((int(token), float(value)) for token, value in bias.items()),
        allowed_token_ids=tuple(int(token) for token in _get(sampling, "allowed_token_ids") or ()),
        bad_words=tuple(tuple(int(t) for t in word) for word in _get(sampling, "bad_words_token_ids") or () if word),
        min_tokens=min_tokens,
        stop_token_ids=tuple(int(t) for t in _get(sampling, "all_stop_token_ids") or ()) if min_tokens else (),
        greedy=greedy,
    )
