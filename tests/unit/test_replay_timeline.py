"""What a replay keeps of the engines: batches of steps, what became of requests, what the cache gave, what changed."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from helpers.factories import make_cache, make_tables, write_trace
from helpers.replays import replay_of
from helpers.synthetic import Made, make_run
from tracekit.replay.output import Replay, read_replay, write_replay
from tracekit.replay.timeline import DECODE, PREEMPTED, PREFILL, WAITING, timeline_of
from tracekit.tables import PARTIAL, RESUMED
from tracekit.tables import PREEMPTED as OUT
from tracekit.tables import PREFILL as COMPUTES_PROMPT
from tracekit.trace.reader import open_trace


def timeline(path: Path, tables: dict) -> dict[str, pa.Table]:
    write_trace(path, [tables])
    return timeline_of(open_trace(path))


def preempted() -> dict:
    """Three requests of six tokens; request 2 is thrown out in step 3 and back in step 4; request 1 hits the cache."""
    made = make_tables(3, 6, prompt_tokens=5)
    scheduled = made["scheduled"]
    back = (scheduled["request"] == 2) & (scheduled["engine_step"] == 4)
    scheduled["num_computed"][back], scheduled["num_tokens"][back] = 0, 8
    scheduled["flags"][back] = RESUMED | COMPUTES_PROMPT
    chunk = (scheduled["request"] == 0) & (scheduled["engine_step"] == 0)
    scheduled["flags"][chunk] |= PARTIAL
    scheduled["flags"][(scheduled["request"] == 0) & (scheduled["engine_step"] == 1)] |= COMPUTES_PROMPT
    out = (scheduled["request"] == 2) & (scheduled["engine_step"] == 3)
    scheduled["num_tokens"][out], scheduled["flags"][out] = 0, OUT
    made["cache"] = make_cache((0, 1, 4, [(2, 3), (1, 1)]))
    return made


def test_steps_say_what_their_batch_was_made_of(tmp_path: Path) -> None:
    made = preempted()
    steps = timeline(tmp_path / "t.arrow", made)["steps"].to_pydict()
    assert steps["num_prefill"] == [15, 1, 0, 0, 8, 0]
    assert steps["num_decode"] == [0, 2, 3, 2, 2, 3]
    assert steps["num_chunks"] == [1, 0, 0, 0, 0, 0] and steps["num_preempted"] == [0, 0, 0, 1, 0, 0]
    clock = made["engines"]["wall_ns"][0] - made["engines"]["mono_ns"][0]
    assert steps["time_ns"] == (made["steps"]["time_ns"] + clock).tolist()


def test_spans_say_what_became_of_each_request(tmp_path: Path) -> None:
    spans = timeline(tmp_path / "t.arrow", preempted())["spans"].to_pylist()
    assert [s["kind"] for s in spans if s["request"] == 0] == [WAITING, PREFILL, PREFILL, DECODE]
    third = [s for s in spans if s["request"] == 2]
    assert [s["kind"] for s in third] == [WAITING, PREFILL, DECODE, PREEMPTED, PREFILL, DECODE]
    assert [(s["first_step"], s["last_step"], s["num_tokens"]) for s in third[1:]] == [
        (0, 0, 5), (1, 2, 2), (3, 3, 0), (4, 4, 8), (5, 5, 1),
    ]  # fmt: skip
    assert third[3]["end_ns"] == third[4]["begin_ns"]  # out until it is back
    assert all(s["begin_ns"] <= s["end_ns"] for s in spans)


def test_hits_are_those_of_a_request_by_the_versions_that_computed_them(tmp_path: Path) -> None:
    (one, other) = timeline(tmp_path / "t.arrow", preempted())["hits"].to_pylist()
    assert (one["request"], one["min_weight_version"], one["num_blocks"]) == (1, 1, 1)
    assert (other["min_weight_version"], other["max_weight_version"]) == (2, 3)


def test_it_is_kept_in_the_replay(tmp_path: Path) -> None:
    found = timeline(tmp_path / "t.arrow", preempted())
    replayed = replay_of(make_run(Made()))
    write_replay(Replay(replayed.result, replayed.tokens, found), tmp_path / "r.arrow")
    again = read_replay(tmp_path / "r.arrow")
    assert again.timeline == found and again.tokens == replayed.tokens
    assert pa.ipc.open_file(tmp_path / "r.arrow").read_all().num_rows == replayed.tokens.num_rows


def test_a_trace_without_steps_has_an_empty_one(tmp_path: Path) -> None:
    made = make_tables(2, 3)
    del made["steps"], made["scheduled"]
    found = timeline(tmp_path / "t.arrow", made)
    assert all(table.num_rows == 0 for table in found.values())
    assert np.all([table.num_columns > 3 for table in found.values()])
