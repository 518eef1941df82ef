"""What `tracekit lint` says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tracekit.plural import plural
from tracekit.report.nothing import nothing


def to_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for the terminal.

    Args:
        facts: `rules`, `breaks_parity`, `complete`, `notes`, `lacks`, `not_looked_at` and `fired`, as `lint --json`
            prints them.
    """
    for one in facts["fired"]:
        yield f"{one['severity'].upper()}  {one['id']}"
        yield f"  {one['where']}: {one['detail']}"
        yield f"  why  {one['why']}"
        yield f"  fix  {one['fix']}"
        yield f"  see  {one['reference']}"
        yield ""
    if facts["not_looked_at"]:
        yield f"no rule looks at: {', '.join(facts['not_looked_at'])}"
    yield from (f"note: {note}" for note in facts["notes"])
    if not facts["complete"]:
        yield "data was lost in this trace: what is missing could not be judged"
    if facts["lacks"]:
        yield nothing(facts["lacks"])
    hold, breaks = len(facts["fired"]), facts["breaks_parity"]
    yield (
        f"{plural(facts['rules'], 'rule')}, {hold} {'holds' if hold == 1 else 'hold'}, "
        f"{breaks} {'breaks' if breaks == 1 else 'break'} parity"
    )
