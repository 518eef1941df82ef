"""Options of the form KEY=VALUE."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tracekit.errors import UsageError


def parse_pairs(options: Iterable[str]) -> dict[str, Any]:
    """Parse `key=value` options; a value that is JSON is taken as such, anything else is text.

    Raises:
        UsageError: an option has no key or no equals sign.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise UsageError(f"this should be KEY=VALUE: {option!r}")
        try:
            parsed[key.replace("-", "_")] = json.loads({"True": "true", "False": "false"}.get(value, value))
        except ValueError:
            parsed[key.replace("-", "_")] = value
    return parsed
