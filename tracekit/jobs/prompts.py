"""Read a prompts file: JSON lines, each with one prompt and, if wanted, its own sampling parameters.

Standard library only. One line is, for example::

    {"prompt": "What is 2+2?", "temperature": 0.7, "max_tokens": 32}
    {"messages": [{"role": "user", "content": "What is 2+2?"}], "n": 4, "seed": 1}
    {"prompt_token_ids": [1, 9690, 198]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tracekit.errors import UsageError

PROMPT_KEYS = ("prompt", "messages", "prompt_token_ids")


def is_int(value: Any) -> bool:
    """Say whether it is an integer; JSON's true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Say whether it is a finite number."""
    return is_int(value) or (isinstance(value, float) and math.isfinite(value))


def is_ids(value: Any) -> bool:
    """Say whether it is a list of token ids, which may be empty."""
    return isinstance(value, list) and all(is_int(item) and 0 <= item < 1 << 32 for item in value)


def is_texts(value: Any) -> bool:
    """Say whether it is a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_bias(value: Any) -> bool:
    """Say whether it is an object of token id to number."""
    return isinstance(value, dict) and all(key.isdecimal() and is_number(bias) for key, bias in value.items())


# field of vLLM's SamplingParams -> (what it must be, in words; the test of it)
SAMPLING: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "allowed_token_ids": ("a list of token ids", lambda value: is_ids(value) and value != []),
    "bad_words": ("a list of strings", is_texts),
    "extra_args": ("an object", lambda value: isinstance(value, dict)),
    "frequency_penalty": ("a number from -2 to 2", lambda value: is_number(value) and -2 <= value <= 2),
    "ignore_eos": ("true or false", lambda value: isinstance(value, bool)),
    "include_stop_str_in_output": ("true or false", lambda value: isinstance(value, bool)),
    "logit_bias": ("an object of token id to number", is_bias),
    "logprobs": ("an integer, -1 or more", lambda value: is_int(value) and value >= -1),
    "max_tokens": ("an integer, 1 or more", lambda value: is_int(value) and value >= 1),
    "min_p": ("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1),
    "min_tokens": ("an integer, 0 or more", lambda value: is_int(value) and value >= 0),
    "n": ("an integer, 1 or more", lambda value: is_int(value) and value >= 1),
    "presence_penalty": ("a number from -2 to 2", lambda value: is_number(value) and -2 <= value <= 2),
    "repetition_penalty": ("a number above 0", lambda value: is_number(value) and value > 0),
    "seed": ("an integer", is_int),
    "stop": ("a string or a list of strings", lambda value: isinstance(value, str) or is_texts(value)),
    "stop_token_ids": ("a list of token ids", is_ids),
    "temperature": ("a number, 0 or more", lambda value: is_number(value) and value >= 0),
    "top_k": ("an integer, -1 or more", lambda value: is_int(value) and value >= -1),
    "top_p": ("a number above 0, at most 1", lambda value: is_number(value) and 0 < value <= 1),
}


def parse_prompts(path: Path) -> list[dict[str, Any]]:
    """Return the requests of a prompts file, in order; blank lines are skipped.

    Returns:
        One dict per request: one of `prompt`, `messages` or `prompt_token_ids` as it was in the file, and
        `sampling`: the sampling fields of its line, a dict that may be empty.

    Raises:
        UsageError: the file cannot be read or is empty, or a line is wrong; the message names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"the prompts file cannot be read ({error.strerror}): {path}") from None
    except UnicodeDecodeError:
        raise UsageError(f"the prompts file is not UTF-8 text: {path}") from None
    requests = []
    # not splitlines(): U+2028 and its like are allowed inside JSON strings
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                requests.append(parse_line(line))
            except UsageError as error:
                raise UsageError(f"{path}, line {number}: {error}") from None
    if not requests:
        raise UsageError(f"the prompts file is empty: {path}")
    return requests


def parse_line(line: str) -> dict[str, Any]:
    """Return the request of one line.

    Raises:
        UsageError: says what is wrong, without the place.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise UsageError("not a JSON object")
    given = [key for key in PROMPT_KEYS if key in fields]
    if len(given) != 1:
        raise UsageError(f"give exactly one of {', '.join(PROMPT_KEYS)}, not {' and '.join(given) or 'none'}")
    prompt = fields.pop(given[0])
    check_prompt(given[0], prompt)
    return {given[0]: prompt, "sampling": check_sampling(fields)}


def check_prompt(key: str, value: Any) -> None:
    """Raise UsageError unless `value` is a prompt of the kind that `key` names."""
    if key == "prompt" and not (isinstance(value, str) and value):
        raise UsageError("prompt must be a string that is not empty")
    if key == "prompt_token_ids" and not (is_ids(value) and value):
        raise UsageError("prompt_token_ids must be a list of token ids that is not empty")
    if key == "messages":
        good = isinstance(value, list) and all(
            isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message
            for message in value
        )
        if not (good and value):
            raise UsageError("messages must be a list of objects with role and content")


def check_sampling(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling fields as given.

    Raises:
        UsageError: a field is unknown or its value is of another kind than vLLM takes.
    """
    for name, value in fields.items():
        if name not in SAMPLING:
            raise UsageError(f"unknown field {name!r} (sampling fields are {', '.join(SAMPLING)})")
        words, test = SAMPLING[name]
        if not test(value):
            raise UsageError(f"{name} must be {words}, not {json.dumps(value)}")
    return dict(fields)
