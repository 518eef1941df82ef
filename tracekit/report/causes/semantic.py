"""The words of causes on the semantic layer."""

from __future__ import annotations

from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.verdict import Verdict
from tracekit.report.causes.saying import Saying
from tracekit.scores import PROCESSED, RAW

_REMEDY = {
    RAW: "record with logprobs_mode=processed_logprobs, or let the trainer compare raw logprobs",
    PROCESSED: "let the trainer apply the recorded temperature and truncation, or record with raw_logprobs",
}
_OTHER_REMEDY = "give the trainer the sampling parameters that the engine really applied"


def _other_reading(found: Explanation, verdict: Verdict) -> str:
    closest, expected = found.names
    return f"The engine recorded {closest} logprobs and the trainer expects {expected} ones."


SEMANTIC_WORDS: dict[Code, Saying] = {
    "other reading": Saying(
        _other_reading, lambda found, verdict: _REMEDY.get(found.names[0], _OTHER_REMEDY), "another reading"
    ),
}
