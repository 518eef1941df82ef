"""A replay as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from tracekit.diagnose.plain import plain

__all__ = ["to_json"]


def to_json(facts: Mapping[str, Any]) -> str:
    """Return the facts of a replay (``ReplayResult.to_dict``) as JSON; what is not a finite number is null."""
    return json.dumps(plain(dict(facts)), indent=2, allow_nan=False)
