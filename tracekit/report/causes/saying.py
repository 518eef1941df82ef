"""What a cause is said with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tracekit.diagnose.explanation import Explanation
from tracekit.diagnose.verdict import Verdict


@dataclass(frozen=True)
class Saying:
    """The words of one cause.

    Attributes:
        sentence: what is wrong, one sentence with a full stop.
        change: what to do about it: the exact setting where there is one.
        noun: names it within a sentence about other causes, without an article.
        proof: how it is proved where no likelihood is compared.
    """

    sentence: Callable[[Explanation, Verdict], str]
    change: Callable[[Explanation, Verdict], str]
    noun: str
    proof: str = "proved without numerics"


def always(text: str) -> Callable[[Explanation, Verdict], str]:
    """Return words that no number changes."""
    return lambda explanation, verdict: text
