"""The result of a replay as one plain, versioned value: what reporters take, `replay.arrow` stores, `--json` prints.

It holds codes and numbers, and no sentences: those are made from it (`tracekit.report.words`). Its JSON is described
by `docs/result.schema.json`, which is generated from these classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tracekit.diagnose.data import NONE
from tracekit.diagnose.plain import plain, unplain
from tracekit.diagnose.skipped import Skipped
from tracekit.diagnose.verdict import Verdict
from tracekit.errors import EXIT_DATA_LOST, EXIT_DIVERGED, EXIT_FAILED, EXIT_OK

SCHEMA_VERSION = 2

Outcome = Literal["clean", "diverges", "withheld"]


@dataclass(frozen=True)
class Weights:
    """Where the weights of one weight version were taken from.

    Attributes:
        version: the weight version.
        folder: with its weights.
        source: given by the caller; the folder that the trace names as the engine's model; a checkpoint that a label in
            the trace names (its caller's claim, not compared with the engine's weights); or the weights of an older
            version, from which no fingerprint of the model differs.
        label: of the claim, null without one.
        same_as: the older version, null without one.
        stored: dtype of the folder's weights, null where it does not tell.
        engine: the one engine whose version it is, null where the number stands for the same weights in all.
        received: dtype that the engine cast them to when it loaded them, null where the trace does not tell; what is
            scored is that cast.
    """

    version: int
    folder: str
    source: Literal["given", "trace", "claim", "same"]
    label: str | None = None
    same_as: int | None = None
    stored: str | None = None
    received: str | None = None
    engine: int | None = None

    @property
    def is_cast(self) -> bool:
        """Whether what is stored is wider than what the engine received, which is what was scored."""
        return self.stored in ("float32", "float64") and self.received in ("bfloat16", "float16")


@dataclass(frozen=True)
class Scoring:
    """What the recorded tokens were scored with.

    Attributes:
        model: name of the model's folder.
        dtype: of the body; the head is float32.
        noise_dtype: of the body in the pass that measures what precision does, and the order of its sums.
        device: torch's name.
        packing: how sequences went through the body together: packed into one row, or by length.
        arithmetic: what the body's products were computed in.
        token_multiplier: positions of the trainer's pass without shared prefixes over those that ran, 1 and above.
        num_positions: that ran through the body, in all passes.
        secs: that the replay took.
        peak_bytes: the most memory held, of the device where that is a GPU, else of the process.
        weights: of every version that sampled a scored token, or computed KV that it was sampled over.
        worker_peak_bytes: the same of the worker that held the most; None where the command scored by itself.
    """

    model: str
    dtype: str
    noise_dtype: str
    device: str
    packing: str
    arithmetic: str
    token_multiplier: float
    num_positions: int
    secs: float
    peak_bytes: int
    weights: list[Weights]
    worker_peak_bytes: int | None = None


@dataclass(frozen=True)
class Sample:
    """What the scored rollouts were chosen from, where the time to score them was bounded.

    Attributes:
        budget_secs: the bound.
        num_rollouts: that could have been scored.
        num_tokens: of theirs.
    """

    budget_secs: float
    num_rollouts: int
    num_tokens: int


@dataclass(frozen=True)
class Data:
    """What was there to score.

    Attributes:
        num_rollouts: requests that were scored.
        num_tokens: tokens of theirs.
        num_discarded: sampled tokens that never became output; not scored.
        num_lost_rows: rows that the trace itself knows are missing, at least.
        skipped_requests: requests that were left out.
        sample: what these are a sample of, null where all were scored.
        lost: whether the verdict rests on less than what the engines produced, because rows are missing.
        num_before: tokens of requests that were under way when the recorder was attached, sampled before; not scored.
    """

    num_rollouts: int
    num_tokens: int
    num_discarded: int
    num_lost_rows: int
    skipped_requests: list[Skipped]
    sample: Sample | None
    lost: bool
    num_before: int = 0


@dataclass(frozen=True)
class Result:
    """Everything that a replay found, but for the tokens one by one.

    Attributes:
        schema_version: of this value; a reader refuses a newer one than it knows.
        tracekit_version: that made it.
        outcome: clean, diverges, or withheld: nothing that was judged diverges, and not all could be judged.
        exit_code: 4 divergence found, else 1 the verdict on a part is withheld, else 3 data was lost in the trace,
            else 0.
        scoring: what the tokens were scored with.
        data: what was there to score.
        verdict: which layer disagrees, since which token.
    """

    schema_version: int
    tracekit_version: str
    outcome: Outcome
    exit_code: int
    scoring: Scoring
    data: Data
    verdict: Verdict

    @classmethod
    def of(cls, tracekit_version: str, scoring: Scoring, data: Data, verdict: Verdict) -> Result:
        """Return the result of a verdict, with its outcome and exit code."""
        outcome: Outcome = "diverges" if verdict.layer != NONE else "withheld" if verdict.withheld else "clean"
        if_clean = EXIT_DATA_LOST if data.lost else EXIT_OK
        code = {"diverges": EXIT_DIVERGED, "withheld": EXIT_FAILED, "clean": if_clean}[outcome]
        return cls(SCHEMA_VERSION, tracekit_version, outcome, code, scoring, data, verdict)

    def to_dict(self) -> dict[str, Any]:
        """Return the result in JSON's types; a number that is not finite is None."""
        values: dict[str, Any] = plain(self)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """Return the result that `to_dict` was called on.

        Raises:
            ValueError: it was made by another version of tracekit.
            KeyError: a field is missing.
        """
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"this replay's result is of version {version}, and this tracekit reads {SCHEMA_VERSION}")
        result: Result = unplain(cls, values)
        return result
