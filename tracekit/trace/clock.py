"""One axis of time for engines of several machines: their monotonic clocks, lined up by the wall clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SAME_BOOT_NS = 60 * 10**9  # a clock is set by less than that, and a machine is not started again so soon


def wall_offsets(engines: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Return by engine what makes a time of its monotonic clock one of the wall clock, in nanoseconds.

    Engines of one machine read one monotonic clock, so they get one offset, whatever was done to the wall clock between
    their starts: the order of what data-parallel ranks did is then exact. Between machines it is as good as their wall
    clocks.

    Args:
        engines: rows of the table; one that did not arrive has no offset.
    """
    found: dict[int, int] = {}
    of_host: dict[str, list[int]] = {}
    for row in engines:
        if not row.get("wall_ns"):
            continue
        own = row["wall_ns"] - row["mono_ns"]
        known = of_host.setdefault(row.get("host") or str(row["engine"]), [])
        shared = next((other for other in known if abs(other - own) < SAME_BOOT_NS), None)
        if shared is None:
            known.append(own)
        found[row["engine"]] = own if shared is None else shared
    return found
