"""What a rule looks at, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracekit.audit.lint.defaults import Defaults
from tracekit.audit.lint.temperature import GREEDY_BELOW, raised
from tracekit.audit.lint.trainer import Trainer
from tracekit.audit.rows import EngineRows
from tracekit.plural import plural

BREAKS = "breaks parity"
RISK = "risk"
NOTE = "note"
SEVERITIES = (BREAKS, RISK, NOTE)


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters that some requests share."""

    params: Mapping[str, Any]  # vLLM's names; what is missing has vLLM's default
    requests: tuple[int, ...] = ()  # their numbers; empty before a run
    defaults: Defaults = field(default_factory=Defaults)  # what was filled in where they do not name it

    def get(self, name: str, default: float) -> float:
        """Return a number; `default` where it is missing or null."""
        value = self.params.get(name)
        return default if value is None else float(value)

    @property
    def temperature(self) -> float:
        """The temperature that the engine samples with."""
        value = self.get("temperature", 1.0)
        return value if self.requests else raised(value)  # a record has what the engine made of it

    def say(self, name: str, value: float) -> str:
        """Return a parameter with its value, and who is behind it where that is known."""
        source = self.defaults.source(name, value)
        return f"{name} {value:g}" + (f" ({source})" if source else "")

    @property
    def greedy(self) -> bool:
        """Whether vLLM samples greedily."""
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True)
class Subject:
    """One engine, as recorded or as it would be started."""

    name: str  # "engine 0", or the file of engine arguments
    version: tuple[int, ...]  # of vLLM, as far as it is numeric; empty where unknown
    settings: Mapping[str, Any]  # resolved, by the names of vLLM's engine arguments; missing = not known
    sampling: Sequence[Sampling] = ()
    update: Mapping[str, Any] | None = None  # planned weight updates: mode, clear_cache; only before a run
    rows: EngineRows | None = None  # what was recorded; None before a run
    defaults: Defaults = field(default_factory=Defaults)  # what the engine fills in
    trainer: Trainer | None = None  # None: nobody named its folder

    def __getitem__(self, name: str) -> Any:
        return self.settings.get(name)

    @property
    def logprobs_mode(self) -> str:
        """What the engine reports; empty where that is not known."""
        return str(self["logprobs_mode"] or "")

    @property
    def is_raw(self) -> bool:
        """Whether the engine reports raw logprobs."""
        return self.logprobs_mode == "raw_logprobs"

    @property
    def is_v0(self) -> bool:
        """Whether it was recorded from a V0 engine."""
        return self.rows is not None and self.rows.about.get("kind") == "v0"

    @property
    def hf_config(self) -> Mapping[str, Any]:
        """The model's configuration as the engine resolved it; empty where that is not known."""
        found = self.rows.config.get("hf_config") if self.rows is not None else None
        if not isinstance(found, dict):
            return {}
        # V0 does not know what transformers 5 calls so, and goes by what its own transformers filled in
        return {name: value for name, value in found.items() if name != "rope_parameters" or not self.is_v0}

    @property
    def num_requests(self) -> int:
        """Requests that were recorded; 0 before a run."""
        return sum(len(group.requests) for group in self.sampling)

    @property
    def updates_weights(self) -> bool:
        """Whether weights changed while it was recorded, or are planned to."""
        if self.rows is not None:
            return self.rows.num_updates > 0
        return self.update is not None or self["weight_transfer_config"] is not None


@dataclass(frozen=True)
class Rule:
    """A setting that is known to move logprobs."""

    id: str
    severity: str
    why: str  # one sentence
    fix: str  # the exact engine argument, or what to do instead
    reference: str
    check: Callable[[Subject], str | None]  # what is there in this subject; None where the rule does not hold


@dataclass(frozen=True)
class Fired:
    """A rule that holds for a subject."""

    rule: Rule
    subject: str
    detail: str

    def to_dict(self) -> dict[str, str]:
        """Return it as JSON types."""
        rule = self.rule
        return {
            "id": rule.id,
            "severity": rule.severity,
            "where": self.subject,
            "detail": self.detail,
            "why": rule.why,
            "fix": rule.fix,
            "reference": rule.reference,
        }


def some(subject: Subject, say: Callable[[Sampling], str]) -> str | None:
    """Say what sampling parameters show, with the share of requests that have it; None where none has.

    Args:
        say: What one group of requests shows; empty where it shows nothing.
    """
    texts: dict[str, int] = {}
    for group in subject.sampling:
        if text := say(group):
            texts[text] = texts.get(text, 0) + len(group.requests)
    if not texts:
        return None
    shown = "; ".join(list(texts)[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")
    total = subject.num_requests
    return f"{sum(texts.values()):,} of {plural(total, 'request')}: {shown}" if total else shown
