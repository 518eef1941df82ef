"""The words of causes that say what the recorded values are: of another token, in another unit, of other settings."""

from __future__ import annotations

from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.verdict import Verdict
from tracekit.plural import plural
from tracekit.report.causes.saying import Saying, always

_NAMES: dict[Code, tuple[str, str]] = {
    "other temperature": ("temperature", "another temperature"),
    "other top_p": ("top-p", "another top-p"),
    "other top_k": ("top-k", "another top-k"),
    "other min_p": ("min-p", "another min-p"),
    "other repetition_penalty": ("a repetition penalty", "another repetition penalty"),
    "other frequency_penalty": ("a frequency penalty", "another frequency penalty"),
    "other presence_penalty": ("a presence penalty", "another presence penalty"),
}


def _fitted(found: Explanation, verdict: Verdict) -> str:
    numbers, (name, _) = found.numbers, _NAMES[found.code]
    value, recorded = (_value(found.code, numbers[key]) for key in ("fitted", "recorded"))
    interval = f" ({numbers['low']:.4g} to {numbers['high']:.4g})" if numbers["low"] < numbers["high"] else ""
    when = f" from engine step {numbers['since_step']:.0f} on" if "since_step" in numbers else ""
    when += f" before engine step {numbers['until_step']:.0f}" if "until_step" in numbers else ""
    return (
        f"The values are those of {name} of {value}{interval}{when}, where {recorded} is on record: mean |d| "
        f"{numbers['d_abs_after']:.2g} in place of {numbers['d_abs_before']:.2g} nats."
    )


def _value(code: Code, value: float) -> str:
    return "no limit" if code == "other top_k" and not value else f"{value:.4g}"


def _shifted(found: Explanation, verdict: Verdict) -> str:
    lens, which = found.names
    by = "one" if abs(found.numbers["by"]) == 1 else "two"
    return f"Each recorded value is the {lens} logprob of the {which} token: values and tokens are shifted by {by}."


def _other_row(found: Explanation, verdict: Verdict) -> str:
    lens, which = found.names
    return f"Each recorded value is the {lens} logprob of the {which} request of the same engine step."


def _other_unit(found: Explanation, verdict: Verdict) -> str:
    lens, unit = found.names
    meant = {"bits": "logarithms to base 2", "decimal digits": "logarithms to base 10", "no sign": "of the other sign"}
    return f"The recorded values are {lens} logprobs, but {meant.get(unit, unit)}, not nats."


def _offset(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    side = "the engine" if numbers["offset"] < 0 else "the trainer"
    return (
        f"Every value is off by the same {numbers['offset']:+.4f} nats ({numbers['low']:+.4f} to "
        f"{numbers['high']:+.4f}): {numbers['missing_mass']:.1%} of the mass is missing from what {side} divides by."
    )


def _rounded(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    return (
        f"All {plural(int(numbers['num_tokens']), 'recorded value')} were rounded to {found.names[0]} after they were "
        f"computed, which moves them by up to {numbers['largest']:.2g} nats."
    )


def _rounded_sampling(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    return (
        f"The sampler rounds its parameters to bfloat16 ({', '.join(found.names)}): with rounded ones mean |d| is "
        f"{numbers['d_abs_after']:.2g} in place of {numbers['d_abs_before']:.2g} nats."
    )


def _beyond(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    return (
        f"{plural(int(numbers['count']), 'sampled token has an id', 'sampled tokens have ids')} that the tokenizer of "
        f"{numbers['size']:,.0f} does not have ({', '.join(found.names[:3])}): the engine draws from the padding of "
        "its head."
    )


def _padded(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    return (
        f"The trainer's head has {numbers['trainer']:,.0f} rows and the engine's {numbers['engine']:,.0f}: the same "
        f"model, padded, and {numbers['missing_mass']:.2%} of the trainer's mass lies on the padding."
    )


def _first(found: Explanation, verdict: Verdict) -> str:
    return (
        f"The recorded values are the {found.names[0]} logprobs of each position's most likely token, also for "
        f"{plural(int(found.numbers['count']), 'token')} of which another was sampled."
    )


def _sentinels(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    return (
        f"{plural(int(numbers['count']), 'recorded value is', 'recorded values are')} no logprob but what stands for a "
        f"missing one ({', '.join(found.names[:3])}), the first at position {numbers['position']:.0f} of request "
        f"{numbers['request']:.0f}."
    )


_JOIN = always("join values and tokens by request and position, not by order")
VALUE_WORDS: dict[Code, Saying] = {
    **{
        code: Saying(_fitted, always("give the engine's sampler and the trainer the same sampling parameters"), noun)
        for code, (_, noun) in _NAMES.items()
    },
    "ids beyond the tokenizer": Saying(
        _beyond,
        always("mask the rows beyond the tokenizer on both sides, or cut them off the head"),
        "ids beyond the tokenizer",
    ),
    "padded head": Saying(
        _padded, always("let the trainer leave the rows of the padding out of its softmax"), "a padded head"
    ),
    "rounded logprobs": Saying(
        _rounded, always("carry logprobs in float32 from the sampler to the loss"), "rounded logprobs"
    ),
    "rounded sampling values": Saying(
        _rounded_sampling,
        always("keep sampling parameters in float32 on both sides, or choose values that bfloat16 holds"),
        "rounded sampling values",
    ),
    "shifted by one": Saying(_shifted, _JOIN, "a shift by one"),
    "values of another row": Saying(_other_row, _JOIN, "another request's values"),
    "another unit": Saying(_other_unit, always("convert them to nats"), "another unit"),
    "constant offset": Saying(
        _offset,
        always("let both sides divide by the sum over the same tokens: look for a mask or padded rows of the head"),
        "a constant offset",
    ),
    "most likely token's value": Saying(
        _first, always("look up the sampled token's own id among the logprobs"), "the most likely token's value"
    ),
    "sentinel values": Saying(
        _sentinels, always("mask these tokens out of the loss, or record logprobs for all of them"), "sentinel values"
    ),
}
