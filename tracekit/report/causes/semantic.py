"""The words of causes on the semantic layer."""

from __future__ import annotations

from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.verdict import Verdict
from tracekit.plural import plural
from tracekit.report.causes.saying import Saying, always
from tracekit.report.causes.values import VALUE_WORDS
from tracekit.scores import PROCESSED, RAW

_REMEDY = {
    RAW: "record with logprobs_mode=processed_logprobs, or let the trainer compare raw logprobs",
    PROCESSED: "let the trainer apply the recorded temperature and truncation, or record with raw_logprobs",
}
_OTHER_REMEDY = "give the trainer the sampling parameters that the engine really applied"


def _other_reading(found: Explanation, verdict: Verdict) -> str:
    closest, expected = found.names
    return f"The engine recorded {closest} logprobs and the trainer expects {expected} ones."


def _hidden_mask(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    if not found.names:
        return (
            f"Of {plural(int(numbers['num_tokens']), 'value')} beyond noise all are larger than their replay: the "
            f"engine divides by less. A share of {numbers['missing_mass']:.1%} is missing, of ids that form no ranges."
        )
    return (
        f"The engine bars token ids that no request names ({', '.join(found.names)}): a share of "
        f"{numbers['missing_mass']:.1%} is missing from what it divides by, and of these ids, "
        f"{numbers['expected']:.0f} tokens should have been drawn and none was."
    )


def _hidden_bias(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    return (
        f"The engine adds {numbers['by']:+.2f} to the logits of token ids {found.names[0]}, which no request asks for: "
        f"{numbers['drawn']:.0f} of {plural(int(numbers['num_tokens']), 'token')} were drawn from them."
    )


def _drawn_otherwise(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    return (
        f"The values agree with the replay, but the tokens were not drawn from that distribution (z = "
        f"{numbers['z']:+.1f} over {plural(int(numbers['num_tokens']), 'token')}): they look drawn at temperature "
        f"{numbers['fitted']:.2f} ({numbers['low']:.2f} to {numbers['high']:.2f}) where "
        f"{numbers['scored_temperature']:.2f} was scored."
    )


SEMANTIC_WORDS: dict[Code, Saying] = {
    **VALUE_WORDS,
    "hidden mask": Saying(
        _hidden_mask,
        always("let the trainer leave the same ids out, or name them in the request (allowed_token_ids)"),
        "a hidden mask",
    ),
    "hidden bias": Saying(
        _hidden_bias,
        always("let the trainer add the same bias, or name it in the request (logit_bias)"),
        "a hidden bias",
    ),
    "other reading": Saying(
        _other_reading, lambda found, verdict: _REMEDY.get(found.names[0], _OTHER_REMEDY), "another reading"
    ),
    "drawn otherwise": Saying(
        _drawn_otherwise,
        always("record processed_logprobs, and let the trainer apply what the sampler really does"),
        "another distribution of samples",
    ),
}
