"""All rules over all subjects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tracekit.audit.lint import numerics, outside, scheduling, semantic, tokenizer, weights
from tracekit.audit.lint.types import BREAKS, SEVERITIES, Fired, Rule, Subject

RULES: tuple[Rule, ...] = (
    *semantic.RULES,
    *outside.RULES,
    *tokenizer.RULES,
    *weights.RULES,
    *scheduling.RULES,
    *numerics.RULES,
)


def lint(subjects: Iterable[Subject]) -> list[Fired]:
    """Return the rules that hold, the gravest first."""
    found = []
    for subject in subjects:
        for rule in RULES:
            detail = rule.check(subject)
            if detail is not None:
                found.append(Fired(rule, subject.name, detail))
    return sorted(found, key=lambda fired: SEVERITIES.index(fired.rule.severity))


def to_facts(
    path: str,
    fired: Sequence[Fired],
    *,
    unread: Sequence[str] = (),
    complete: bool = True,
    notes: Sequence[str] = (),
    lacks: str | None = None,
) -> dict[str, Any]:
    """Return what `lint` found as JSON types.

    Args:
        path: of the trace, or of the file of engine arguments.
        fired: the rules that hold.
        unread: settings of the file that no rule looks at.
        complete: whether nothing was lost in the trace.
        notes: on engines of the trace that never said goodbye, and lost nothing by it.
        lacks: what the trace does not have, see `trace.lacking`.
    """
    return {
        "path": path,
        "rules": len(RULES),
        "breaks_parity": sum(one.rule.severity == BREAKS for one in fired),
        "complete": complete,
        "notes": list(notes),
        "lacks": lacks,
        "not_looked_at": list(unread),
        "fired": [one.to_dict() for one in fired],
    }
