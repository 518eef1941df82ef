"""The sharp lens on V0: an engine of the shared recording repeats its tokens to the bit, prefix hits included."""

from pathlib import Path

import numpy as np
import pytest

from tracekit.replay.runner import replay
from tracekit.trace.reader import Trace

pytestmark = pytest.mark.engine

ENGINE = 1  # of those that share a process: its weights stay


def test_v0_repeats_its_rollouts_to_the_bit(v0_recorded: tuple[Path, Trace], tiny_model: Path) -> None:
    _, trace = v0_recorded
    found = replay(trace.only(ENGINE), tiny_model, engine="v0", dtype="float32")
    parts = found.result.verdict.parts
    assert parts is not None and [part.name for part in parts.parts] == ["state", "batch", "decoding", "kernels"]
    (engine,) = parts.engines
    assert engine.is_same and engine.stopped == {} and engine.num_steps == trace.only(ENGINE).rows("steps")
    assert trace.only(ENGINE).rows("cache")
    state = found.tokens.column("part_state").to_numpy()
    assert np.all(state == 0.0) and state.size == found.result.data.num_tokens
    assert parts.residual_max == 0.0 and parts.parts[-1].max_abs < 1e-3
