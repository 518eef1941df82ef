"""What a trace tells of the circumstances of each token: batch, prefix-cache hit, prefill, preemptions."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from helpers.factories import make_cache, make_tables, write_trace
from tracekit.diagnose.data import Strata
from tracekit.replay.reading import read_rollouts
from tracekit.replay.strata import strata_of
from tracekit.tables import PREEMPTED, PREFILL, RESUMED
from tracekit.trace.reader import open_trace


def strata(path: Path, tables: dict) -> Strata:
    write_trace(path, [tables])
    trace = open_trace(path)
    return strata_of(trace, read_rollouts(trace).rollouts)


def test_each_token_has_those_of_its_request_and_step(tmp_path: Path) -> None:
    made = make_tables(3, 6, prompt_tokens=5)
    made["steps"]["num_requests"] = np.arange(10, 16, dtype="u4")
    scheduled = made["scheduled"]
    hit = (scheduled["request"] == 1) & (scheduled["engine_step"] == 0)
    scheduled["num_computed"][hit], scheduled["num_tokens"][hit] = 4, 1
    # request 2 is thrown out in step 3 and back in step 4, where it finds two blocks of its own
    back = (scheduled["request"] == 2) & (scheduled["engine_step"] == 4)
    scheduled["num_computed"][back], scheduled["num_tokens"][back] = 4, 5
    scheduled["flags"][back] = RESUMED | PREFILL
    out = {name: column[back].copy() for name, column in scheduled.items()}
    out["engine_step"][:], out["num_tokens"][:], out["flags"][:] = 3, 0, PREEMPTED
    made["scheduled"] = {name: np.concatenate([scheduled[name], out[name]]) for name in scheduled}
    made["cache"] = make_cache((0, 1, 4, [(2, 3), (1, 1)]), (4, 2, 4, [(5, 5), (5, 5)]))
    found = strata(tmp_path / "t.arrow", made)
    first, second, third = slice(0, 6), slice(6, 12), slice(12, 18)
    assert found.batch_size[first].tolist() == list(range(10, 16))
    assert found.num_cached[first].tolist() == [0] * 6 and found.oldest_found[first].tolist() == [-1] * 6
    assert found.num_cached[second].tolist() == [4] * 6
    assert found.oldest_found[second].tolist() == [1] * 6 and found.newest_found[second].tolist() == [3] * 6
    assert found.num_cached[third].tolist() == [0] * 4 + [4] * 2
    assert found.oldest_found[third].tolist() == [-1] * 4 + [5] * 2
    assert found.num_preempted[third].tolist() == [0] * 4 + [1] * 2 and not found.num_preempted[first].any()
    assert found.prefill[third].tolist() == [1, 0, 0, 0, 1, 0]


def test_a_block_of_unknown_origin_makes_the_age_of_the_hit_unknown(tmp_path: Path) -> None:
    made = make_tables(1, 2, prompt_tokens=5)
    made["scheduled"]["num_computed"][0], made["scheduled"]["num_tokens"][0] = 4, 1
    made["cache"] = make_cache((0, 0, 4, [(2, 3), (1, 1)]))
    for name in ("min_weight_version", "max_weight_version"):
        made["cache"][name] = np.ma.masked_array(made["cache"][name], mask=[True, False])
    found = strata(tmp_path / "t.arrow", made)
    assert found.num_cached.tolist() == [4, 4]
    assert found.oldest_found.tolist() == found.newest_found.tolist() == [-1, -1]


def test_numbers_of_any_size_are_told_apart(tmp_path: Path) -> None:
    made = make_tables(1, 2, prompt_tokens=5)
    write_trace(tmp_path / "t.arrow", [made])
    trace = open_trace(tmp_path / "t.arrow")
    (one,) = read_rollouts(trace).rollouts
    whose = [(200, 0), (1, 0), (0, 1 << 24), (0, 1 << 31)]

    def table(name: str) -> pa.Table:
        parts = []
        for number, (engine, request) in enumerate(whose):
            part = trace.table(name)
            changes = {"engine": engine, "request": request, "num_computed": number}
            for column in changes.keys() & set(part.schema.names):
                at = part.schema.get_field_index(column)
                part = part.set_column(at, part.schema.field(at), pa.array([changes[column]] * len(part), "u4"))
            parts.append(part)
        return pa.concat_tables(parts)

    rollouts = [replace(one, sequence=replace(one.sequence, engine=e, request=r)) for e, r in reversed(whose)]
    found = strata_of(SimpleNamespace(table=table), rollouts)
    assert found.num_cached.tolist() == [3, 3, 2, 2, 1, 1, 0, 0]
    assert found.prefill.tolist() == [1, 0] * 4 and not found.num_preempted.any()


def test_a_trace_without_steps_tells_nothing(tmp_path: Path) -> None:
    made = make_tables(2, 3)
    del made["steps"], made["scheduled"]
    found = strata(tmp_path / "t.arrow", made)
    for name in ("num_cached", "oldest_found", "newest_found", "batch_size", "prefill"):
        assert (getattr(found, name) == -1).all(), name
    assert not found.num_preempted.any()


def test_drafts_chunks_and_adapters_are_told(tmp_path: Path) -> None:
    made = make_tables(3, 4, prompt_tokens=5)
    scheduled = made["scheduled"]
    scheduled["num_draft"][(scheduled["request"] == 0) & (scheduled["engine_step"] == 2)] = 3
    more = (scheduled["request"] == 1) & (scheduled["engine_step"] == 1)
    scheduled["flags"][more] = PREFILL
    # request 2, which is there in the first two steps alone, has an adapter
    made["requests"]["lora_id"] = np.ma.masked_array(np.array([0, 0, 7], "u4"), mask=[True, True, False])
    keep = (scheduled["request"] != 2) | (scheduled["engine_step"] < 2)
    made["scheduled"] = {name: column[keep] for name, column in scheduled.items()}
    found = strata(tmp_path / "t.arrow", made)
    assert found.num_drafts[:4].tolist() == [0, 0, 3, 0]
    assert found.num_chunks[:8].tolist() == [1, 1, 1, 1, 1, 2, 2, 2]
    assert (found.adapters[:4] > 0).tolist() == [True, True, False, False]
