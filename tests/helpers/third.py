"""A run that is scored once and judged with one trainer's dump after the other."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tracekit.diagnose.data import Run
from tracekit.diagnose.verdict import Verdict, judge
from tracekit.replay.reading import read_rollouts
from tracekit.replay.rollouts import Rollout
from tracekit.replay.runner import replay
from tracekit.replay.third import ended_by_client, trainer_view
from tracekit.trace.reader import Trace, open_trace
from tracekit.trainer.load import read_dump


@dataclass
class Scored:
    """What stays the same where only the trainer's dump changes; leaks are not scored."""

    trace: Trace
    model: Path
    run: Run
    rollouts: list[Rollout]
    how: dict[str, Any]

    def verdict(self, dump: Path) -> Verdict:
        ended = ended_by_client(self.trace)
        view = trainer_view(self.rollouts, read_dump(dump), self.trace.table("topk"), self.model, ended)
        return judge(replace(self.run, view=view), **self.how).verdict


def score(path: Path, model: Path, **options: Any) -> Scored:
    """Replay a trace in float32 and keep the run."""
    runs: list[tuple[Run, dict[str, Any]]] = []

    def keep(run: Run, **how: Any) -> Any:
        runs.append((run, how))
        return judge(run, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracekit.replay.runner.judge", keep)
        replay(path, model, dtype="float32", **options)
    trace = open_trace(path)
    return Scored(trace, model, runs[-1][0], read_rollouts(trace).rollouts, runs[0][1])
