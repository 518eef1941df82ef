"""JSON in the columns of a trace, which anybody may have written."""

from __future__ import annotations

import json
from typing import Any

from tracekit.errors import TraceCorruptError


def json_object(text: str | None, what: str) -> dict[str, Any]:
    """Return the object that a column holds as JSON; nothing, and null, are an empty one.

    Args:
        text: the column's value.
        what: it is, for the error.

    Raises:
        TraceCorruptError: it is something else.
    """
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        found = text
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise TraceCorruptError(f"{what} are not a JSON object: {str(text)[:80]!r}")
    return found
