"""A replay as JSON: its result, as `docs/result.schema.json` describes it."""

from __future__ import annotations

import json

from tracekit.diagnose.result import Result


def to_json(result: Result) -> str:
    """Return the result as JSON; what is not a finite number is null."""
    return json.dumps(result.to_dict(), indent=2, allow_nan=False)
