"""What recorded values may turn out to be: one row each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, TRAINER, Run
from tracekit.scores import PROCESSED, RAW


@dataclass(frozen=True)
class Reading:
    """One way to read recorded values: as these logprobs of that pass.

    Attributes:
        name: what a verdict calls it.
        scores: the pass, by its name in `Run.scores`; a run without that pass does not test the reading.
        lens: "raw" or "processed", which logprobs of the pass.
    """

    name: str
    scores: str
    lens: str = PROCESSED


READINGS = (
    Reading(RAW, TRAINER, RAW),
    Reading(PROCESSED, TRAINER),
    Reading("processed without temperature", "sampling.no_temperature"),
    Reading("processed with temperature twice", "sampling.temperature_twice"),
    Reading("processed without truncation", "sampling.no_truncation"),
    Reading("processed without penalties", "sampling.no_penalties"),
)


def predicted(run: Run, name: str) -> F8:
    """Return what a reading that was scored predicts, [N] nats."""
    (reading,) = (reading for reading in READINGS if reading.name == name)
    values: F8 = np.asarray(run.scores[reading.scores].logprob(reading.lens))
    return values
