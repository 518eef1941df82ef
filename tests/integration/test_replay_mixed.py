"""Weights that change within rollouts: the KV of older weights is scored over as the trace tells, and values tell too.

The engine is transformers' own forward with its own cache, under one model and then under another.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.factories import make_cache, make_engine, make_tables, write_trace
from helpers.tiny_models import VOCAB, write_model
from tracekit.errors import ModelError, ReplayRefused
from tracekit.replay.runner import replay
from tracekit.report.text import to_text
from tracekit.tables import PREEMPTED, PREFILL, RESUMED

NUM_REQUESTS, NUM_TOKENS, NUM_PROMPT, CHANGE = 8, 16, 5, 8
POSITIONS = NUM_PROMPT + NUM_TOKENS - 1


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two folders, ids, and the raw logprobs with KV kept and with KV recomputed at the change."""
    root = tmp_path_factory.mktemp("mixed")
    folders = [write_model(root / name, "llama", seed=seed) for name, seed in (("old", 0), ("new", 7))]
    old, new = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in folders)
    ids = torch.from_numpy(np.random.default_rng(3).integers(3, VOCAB, (NUM_REQUESTS, POSITIONS + 1)))
    at = NUM_PROMPT + CHANGE - 1  # the input from which the first token of the new weights is sampled
    with torch.inference_mode():
        first = old(ids[:, :at], use_cache=True)
        rest = {
            "kept": new(ids[:, at:-1], past_key_values=first.past_key_values, use_cache=True).logits,
            "recomputed": new(ids[:, :-1]).logits[:, at:],
        }
    values = {}
    for name, logits in rest.items():
        all_logprobs = torch.cat([first.logits, logits], dim=1).log_softmax(-1)
        own = all_logprobs.gather(2, ids[:, 1:, None])[..., 0]
        values[name] = own[:, NUM_PROMPT - 1 :].numpy()
    return folders, ids.numpy(), values


def tables_of(ids: np.ndarray, values: np.ndarray, how: str) -> dict[str, Any]:
    made = make_tables(
        NUM_REQUESTS,
        NUM_TOKENS,
        prompt_tokens=NUM_PROMPT,
        engine=make_engine(logprobs_mode="raw_logprobs"),
        sampling_params={"temperature": 0.0},  # nobody drew these ids
    )
    made["requests"]["prompt_token_ids"] = [row[:NUM_PROMPT].astype("u4") for row in ids]
    made["tokens"]["token_id"] = ids[:, NUM_PROMPT:].T.ravel().astype("u4")
    made["tokens"]["rollout_logprob"] = np.ma.masked_array(values.T.ravel().astype("f4"), mask=False)
    for table in ("tokens", "steps"):
        made[table]["weight_version"] = (made[table]["engine_step"] >= CHANGE).astype("u4")
    if how == "recomputed":
        scheduled = made["scheduled"]
        back = scheduled["engine_step"] == CHANGE
        scheduled["num_tokens"][back] += scheduled["num_computed"][back]
        scheduled["num_computed"][back] = 0
        scheduled["flags"][back] = RESUMED | PREFILL
        out = {name: column[back].copy() for name, column in scheduled.items()}
        out["num_tokens"][:], out["flags"][:] = 0, PREEMPTED
        made["scheduled"] = {name: np.concatenate([scheduled[name], out[name]]) for name in scheduled}
    return made


@pytest.mark.parametrize(("since", "code"), [(CHANGE, "older weights"), (0, "newer weights")])
def test_rollouts_under_the_weights_of_another_version_than_the_trace_says_are_named(
    tmp_path: Path, engine: Any, since: int, code: str
) -> None:
    """Half of the rollouts ran on the old weights throughout, or on the new ones before the trace says so."""
    folders, ids, values = engine
    values, other = values["kept"].copy(), folders[since == 0]
    model = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32).eval()
    with torch.inference_mode():
        logprobs = model(torch.from_numpy(ids[:, :-1])).logits.log_softmax(-1)
    alone = logprobs.gather(2, torch.from_numpy(ids[:, 1:, None]))[..., 0][:, NUM_PROMPT - 1 :].numpy()
    values[::2] = alone[::2]
    write_trace(tmp_path / "t.arrow", [tables_of(ids, values, "kept")])
    found = replay(tmp_path / "t.arrow", folders[0], weights={1: folders[1]}, expect="raw", dtype="float32").result
    verdict = found.verdict
    assert verdict.layer == "inference path" and verdict.cause == code
    cause = verdict.causes[0]
    assert cause.rollouts == list(range(0, NUM_REQUESTS, 2)) and cause.margin > 100 and cause.share > 0.5
    assert f"version {int(since > 0)} of engine 0" in cause.names  # later tokens lie over KV of these, too
    assert cause.since is not None and cause.since.output_index == since
    assert "sampled what is called" in to_text(found)


def judged(path: Path, folders: list[Path], tables: dict[str, Any]) -> Any:
    write_trace(path, [tables])
    return replay(path, folders[0], weights={1: folders[1]}, expect="raw", dtype="float32").result.verdict


@pytest.mark.parametrize(("how", "other"), [("kept", "recomputed"), ("recomputed", "kept")])
def test_what_the_trace_tells_of_the_kv_is_what_is_scored_and_wins(
    tmp_path: Path, engine: Any, how: str, other: str
) -> None:
    folders, ids, values = engine
    verdict = judged(tmp_path / "t.arrow", folders, tables_of(ids, values[how], how))
    assert verdict.layer == "none" and verdict.before.d_abs_max < 1e-5
    (kv,) = verdict.kv
    assert (kv.name, kv.num_rollouts, kv.num_recorded_better) == (other, NUM_REQUESTS, NUM_REQUESTS)
    assert kv.median_nats > 5 and kv.d_abs_mean > 100 * kv.d_abs_mean_recorded
    assert not any("kv" in finding.code for finding in verdict.findings)


def test_values_that_tell_another_history_than_the_trace_are_a_finding(tmp_path: Path, engine: Any) -> None:
    folders, ids, values = engine
    verdict = judged(tmp_path / "t.arrow", folders, tables_of(ids, values["recomputed"], "kept"))
    assert verdict.layer == "inference path"
    assert [f.numbers["count"] for f in verdict.findings if f.code == "values say kv recomputed"] == [NUM_REQUESTS]


def test_a_block_in_which_two_versions_meet_is_refused_by_name(tmp_path: Path, engine: Any) -> None:
    folders, ids, values = engine
    tables = tables_of(ids, values["kept"], "kept")
    scheduled = tables["scheduled"]
    hit = (scheduled["request"] == 2) & (scheduled["engine_step"] == 0)
    scheduled["num_computed"][hit], scheduled["num_tokens"][hit] = 4, NUM_PROMPT - 4
    tables["cache"] = make_cache((0, 2, 4, [(0, 0), (0, 1)]))
    write_trace(tmp_path / "t.arrow", [tables])
    found = replay(tmp_path / "t.arrow", folders[0], weights={1: folders[1]}, expect="raw", dtype="float32").result
    assert [(s.why, s.count) for s in found.data.skipped_requests] == [("mixed kv", 1)]
    assert found.data.num_rollouts == NUM_REQUESTS - 1 and found.verdict.layer == "none"
    assert json.dumps(found.to_dict())


def test_weights_of_another_architecture_are_refused_before_anything_is_scored(tmp_path: Path, engine: Any) -> None:
    folders, ids, values = engine
    write_trace(tmp_path / "t.arrow", [tables_of(ids, values["kept"], "kept")])
    other = shutil.copytree(folders[1], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelError, match="weight version 1 has num_hidden_layers 3 and that for 0 2"):
        replay(tmp_path / "t.arrow", folders[0], weights={1: other}, expect="raw", dtype="float32")


def test_where_no_block_is_known_nothing_can_be_scored(tmp_path: Path, engine: Any) -> None:
    folders, ids, values = engine
    tables = tables_of(ids, values["kept"], "kept")
    tables["scheduled"]["num_computed"][tables["scheduled"]["engine_step"] == 0] = 2
    tables["scheduled"]["num_tokens"][tables["scheduled"]["engine_step"] == 0] -= 2
    write_trace(tmp_path / "t.arrow", [tables])
    with pytest.raises(ReplayRefused, match="where one ends and the other begins the trace does not tell"):
        replay(tmp_path / "t.arrow", folders[0], weights={1: folders[1]}, expect="raw", dtype="float32")
