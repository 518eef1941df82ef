"""All rules over all subjects."""

from collections.abc import Iterable

from tracekit.audit.lint import numerics, scheduling, semantic, weights
from tracekit.audit.lint.types import SEVERITIES, Fired, Rule, Subject

__all__ = ["RULES", "lint"]

RULES: tuple[Rule, ...] = (*semantic.RULES, *weights.RULES, *scheduling.RULES, *numerics.RULES)


def lint(subjects: Iterable[Subject]) -> list[Fired]:
    """Return the rules that hold, the gravest first."""
    found = []
    for subject in subjects:
        for rule in RULES:
            detail = rule.check(subject)
            if detail is not None:
                found.append(Fired(rule, subject.name, detail))
    return sorted(found, key=lambda fired: SEVERITIES.index(fired.rule.severity))
