"""The words of all causes, by code."""

from __future__ import annotations

from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.verdict import Verdict
from tracekit.report.causes.module import MODULE_WORDS
from tracekit.report.causes.path import PATH_WORDS
from tracekit.report.causes.saying import Saying
from tracekit.report.causes.semantic import SEMANTIC_WORDS
from tracekit.report.causes.state import STATE_WORDS
from tracekit.report.causes.trainer import TRAINER_WORDS

SAYINGS: dict[Code, Saying] = {**SEMANTIC_WORDS, **PATH_WORDS, **STATE_WORDS, **MODULE_WORDS, **TRAINER_WORDS}


def sentence(found: Explanation, verdict: Verdict) -> str:
    """Say what is wrong."""
    return SAYINGS[found.code].sentence(found, verdict)


def change(found: Explanation, verdict: Verdict) -> str:
    """Say what to do about it."""
    return SAYINGS[found.code].change(found, verdict)


def proof(found: Explanation) -> str:
    """Say how sure it is, what it explains, and what it cannot be told from."""
    parts = []
    if found.margin == found.margin:
        parts.append(f"{found.margin:,.0f} nats ahead of the next")
    else:
        parts.append(SAYINGS[found.code].proof)
    if found.share == found.share:
        parts.append(f"explains {found.share:.0%} of what is beyond a perfect replay")
    if found.cited:
        parts.append("as found by " + ", ".join(found.cited))
    if found.alternatives:
        parts.append("not told apart from " + " and ".join(SAYINGS[code].noun for code in found.alternatives))
    return ", ".join(parts)
