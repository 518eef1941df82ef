"""What a trace says beside its tokens, as plain values: what detectors read and no logprob can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tracekit.diagnose.skipped import Skipped

# severities of doctor and lint that stand beside a verdict
GRAVE = ("breaks replay", "breaks parity")
Version = tuple[int, int]  # engine, weight version


@dataclass(frozen=True)
class Noted:
    """What doctor or lint found in the same trace.

    Attributes:
        source: which of the two.
        id: of the check or the rule.
        severity: in the words of its source.
        engine: its number.
        count: how often it holds.
        what: what was found, as its source says it.
        fix: what to do, as its source says it.
        request: of the first place, None where it has none.
        engine_step: the same.
    """

    source: Literal["doctor", "lint"]
    id: str
    severity: str
    engine: int
    count: int
    what: str
    fix: str
    request: int | None = None
    engine_step: int | None = None


@dataclass(frozen=True)
class WeightChange:
    """One row of the table `weights` that changed the model's own weights.

    Attributes:
        engine: its number.
        version: that starts here.
        engine_step: first step that can run on it.
        method: how it arrived.
        num_changed: tensors that changed; None where that is not known.
    """

    engine: int
    version: int
    engine_step: int
    method: str
    num_changed: int | None


@dataclass(frozen=True)
class Update:
    """What an update of the stored weights became in the engine's dtype.

    Attributes:
        version: that it leads to.
        moved: tensors that differ from the version before, as they are stored.
        arrived: of these, tensors that differ once they are cast to the engine's dtype.
    """

    version: int
    moved: int
    arrived: int


@dataclass(frozen=True)
class Facts:
    """Everything of that kind.

    Attributes:
        noted: findings of doctor and lint.
        settings: by engine, what it was configured with, by the names of vLLM's engine arguments.
        changes: of the model's weights, in order of (engine, version).
        fingerprints: by engine and weight version, hash by "rank tensor"; None where the tensor cannot be read.
        checkpoints: by what a verdict calls it, of every model folder that is known, hash by "rank tensor" as an engine
            would have it; tensors whose layout is not known are left out.
        scored: which of these each engine's version is scored with.
        skipped: requests that were left out of the replay.
        updates: between folders that hold wider weights than the engine received.
        vocab_size: rows of the engine's head, None where the trace does not tell.
        tokenizer_size: ids that the tokenizer of the scored folder has, None where it has none that can be read.
        trainer_config: whether lint compared with a folder that was named as the trainer's.
    """

    noted: Sequence[Noted] = ()
    settings: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    changes: Sequence[WeightChange] = ()
    fingerprints: Mapping[Version, Mapping[str, int | None]] = field(default_factory=dict)
    checkpoints: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    scored: Mapping[Version, str] = field(default_factory=dict)
    skipped: Sequence[Skipped] = ()
    updates: Sequence[Update] = ()
    vocab_size: int | None = None
    tokenizer_size: int | None = None
    trainer_config: bool = False
