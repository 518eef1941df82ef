"""Where the caller of a recorded engine said that its weights are stored: a claim, which nothing here can check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracekit.objects.address import is_url


@dataclass(frozen=True)
class Claim:
    """What a label says of one weight version.

    Example:
        Claim("step-120", "/checkpoints/step-120")
    """

    label: str
    checkpoint: str

    @property
    def is_here(self) -> bool:
        """Whether the folder is on this machine, or in an object store."""
        # a trace may come from a stranger, who does not say which server is sent our requests
        return (is_url(self.checkpoint) and "?" not in self.checkpoint) or Path(self.checkpoint).is_dir()


def find_claims(rows: Iterable[Mapping[str, Any]], sampled: Iterable[tuple[int, int]]) -> dict[int, Claim]:
    """Return for each weight version the claim that all engines agree on; the last label of a version counts.

    Args:
        rows: the table `weights`.
        sampled: the (engine, weight version) pairs whose weights are looked for; a version is an engine's own, so
            one on which two of these engines differ has no claim.
    """
    last: dict[tuple[int, int], Claim] = {}
    for row in rows:
        if row["checkpoint"] and row["lora"] is None:
            last[row["engine"], row["weight_version"]] = _claim(row)
    by_version: dict[int, set[str | None]] = {}
    found: dict[int, Claim] = {}
    for engine, version in sorted(sampled):
        claim = last.get((engine, version))
        by_version.setdefault(version, set()).add(claim.checkpoint if claim else None)
        if claim:
            found[version] = claim
    return {version: claim for version, claim in found.items() if len(by_version[version]) == 1}


def _claim(row: Mapping[str, Any]) -> Claim:
    return Claim(str(row["label"] or ""), str(row["checkpoint"]))
