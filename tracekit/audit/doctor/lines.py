"""The client's file in itself: values that are no values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tracekit.audit.doctor.pairs import Completion


def broken_value(seen: Completion) -> str | None:
    """Return what value of a line is missing or of another kind; None where all are there."""
    if not isinstance(seen["request_id"], (str, int)):
        return f"request_id is {seen['request_id']!r}"
    if not _is_id(seen["index"]):
        return f"index is {seen['index']!r}"
    for name in ("prompt_token_ids", "token_ids"):
        if text := _broken_list(name, seen[name], _is_id):
            return text
    if seen.get("logprobs") is not None and (text := _broken_list("logprobs", seen["logprobs"], _is_number)):
        return text
    prompt = seen.get("prompt_logprobs")
    # of the first token there is none
    if prompt is not None and (text := _broken_list("prompt_logprobs", prompt, lambda v: v is None or _is_number(v))):
        return text
    told = seen.get("finish_reason")
    return None if told is None or isinstance(told, str) else f"finish_reason is {told!r}"


def out_of_order(view: Sequence[Completion]) -> Iterator[tuple[int, str]]:
    """Yield each line that stands after one of a later prompt, by the numbers of `record --completions`, and say so.

    Args:
        view: lines; those without the number of their prompt have no order.
    """
    last = (-1, -1)
    for at, seen in enumerate(view):
        number, index = seen.get("request"), seen["index"]
        if not (isinstance(number, int) and _is_id(index)):
            continue
        if (number, index) < last:
            yield at, f"completion {index} of prompt {number} stands after completion {last[1]} of prompt {last[0]}"
        else:
            last = number, index


def _broken_list(name: str, values: Any, is_right: Any) -> str | None:
    if not isinstance(values, list):
        return f"{name} is {values!r:.80}"
    at = next((i for i, value in enumerate(values) if not is_right(value)), None)
    return None if at is None else f"{name}[{at}] is {values[at]!r:.80}"


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
