"""Replays that the real diagnosis made of seeded runs, as files."""

from dataclasses import replace
from pathlib import Path

from helpers.synthetic import Made, make_run
from tracekit.diagnose.data import Run
from tracekit.diagnose.result import Data, Result, Scoring, Weights
from tracekit.diagnose.verdict import judge
from tracekit.replay.output import Replay, token_table, write_replay

SCORING = Scoring(
    "tiny", "bfloat16", "float32", "cpu", "packed", "bfloat16", 2.5, 4096, 61.0, 3 << 30, [Weights(0, "/tiny", "given")]
)


def replay_of(run: Run, **data) -> Replay:
    """Judge a run; keywords replace values of its `Data`."""
    judged = judge(run)
    counts = replace(Data(len(run.rollouts), len(run.token_id), 0, 0, [], None, False), **data)
    result = Result.of("0.1.0", SCORING, counts, judged.verdict)
    return Replay(result, token_table(run, judged.tokens))


def write(path: Path, made: Made | None = None, **data) -> Replay:
    """Write the replay of a made run to `path` and return it."""
    found = replay_of(make_run(made or Made()), **data)
    write_replay(found, path)
    return found
