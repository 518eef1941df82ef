"""Redaction: what spells text leaves as keyed hashes, what a trace is for still works, and what cannot is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.factories import (
    make_engine,
    make_prompt_logprobs,
    make_prompt_topk,
    make_tables,
    make_topk,
    write_trace,
)
from helpers.wire import all_tables
from tracekit.audit.doctor.examine import examine
from tracekit.audit.rows import read_engines
from tracekit.errors import ReplayRefused, UsageError
from tracekit.recorder.redact import NOWHERE, Redaction, _siphash, redaction
from tracekit.recorder.stream import Stream
from tracekit.replay.pairs import pair_traces
from tracekit.replay.reading import read_rollouts
from tracekit.tables import TABLES
from tracekit.trace.reader import Trace, open_trace

SPOKEN = "tell nobody of Rosebud"
SAMPLING = {
    "temperature": 0.7,
    "n": 1,
    "max_tokens": 16,
    "logprobs": 2,
    "prompt_logprobs": 2,
    "stop": [SPOKEN],
    "stop_token_ids": [77, 78],
    "eos_token_id": 77,
    "logit_bias": {"79": -1.5},
    "bad_words_token_ids": [[80, 81]],
    "structured_outputs": {"json": {"properties": {SPOKEN: {"enum": [SPOKEN]}}}},
    "extra_args": {"ids": [82], SPOKEN: {"x": SPOKEN}},
}
REDACTION = Redaction(b"k" * 32)


def everything(redaction: Redaction = REDACTION) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables of a small recording, and the same as they are sent."""
    tables = make_tables(sampling_params=SAMPLING)
    config = json.dumps({"hf_config": {"vocab_size": 64}, "recorder": {"redacted": redaction.name}})
    tables["engines"] = make_engine(config=config)
    tables["requests"]["labels"] = [json.dumps({"group": 3, "note": SPOKEN}) for _ in tables["requests"]["labels"]]
    tables["topk"] = make_topk(tables, 2)
    tables["prompt_logprobs"] = make_prompt_logprobs(tables)
    tables["prompt_topk"] = make_prompt_topk(tables["prompt_logprobs"], 2)
    return tables, redaction.redact(tables)


def written(path: Path, redaction: Redaction = REDACTION) -> Trace:
    write_trace(path, [everything(redaction)[1]])
    return open_trace(path)


def test_ids_are_hashed_by_the_published_function() -> None:
    """The ninth vector of SipHash-2-4's reference implementation: key 00…0f, message 00…07."""
    key = tuple(int.from_bytes(bytes(range(begin, begin + 8)), "little") for begin in (0, 8))
    message = np.array([int.from_bytes(bytes(range(8)), "little")], np.uint64)
    assert _siphash(key, message).tolist() == [int.from_bytes(bytes.fromhex("6224939a79f5f593"), "little")]


def test_equal_ids_are_equal_at_one_position_under_one_key_and_nowhere_else() -> None:
    ids, positions = np.arange(1000), np.arange(1000)
    once = REDACTION.ids(ids, positions)
    assert np.array_equal(once, Redaction(b"k" * 32).ids(ids, positions))
    for others in (REDACTION.ids(ids, positions + 1), Redaction(b"l" * 32).ids(ids, positions), ids):
        assert (once == others).mean() < 0.01
    assert len(set(once.tolist())) == 1000 and len({int(REDACTION.ids([5], [p])[0]) for p in range(1000)}) == 1000


def test_nothing_that_spells_text_is_left() -> None:
    plain, sent = everything()
    text = json.dumps(sent, default=lambda value: np.ma.asarray(value).tolist())
    assert SPOKEN not in text and "Rosebud" not in text
    (params,) = {*sent["requests"]["sampling_params"]}
    kept = json.loads(params)
    assert {name: kept[name] for name in ("temperature", "n", "max_tokens")} == {
        name: SAMPLING[name] for name in ("temperature", "n", "max_tokens")
    }
    numbers = {int(word) for word in "".join(c if c.isdigit() else " " for c in params).split()}
    assert not numbers & set(range(77, 83))
    # ids that mean the same are the same
    assert kept["eos_token_id"] == kept["stop_token_ids"][0] == int(REDACTION.ids([77], [NOWHERE])[0])
    assert json.loads(sent["requests"]["labels"][0])["group"] == 3
    for name in ("tokens", "topk", "prompt_logprobs", "prompt_topk"):
        same = np.asarray(sent[name]["token_id"]) == np.asarray(plain[name]["token_id"])
        assert same.mean() < 0.01, name
        others = [column for column in plain[name] if column != "token_id"]
        assert all(np.array_equal(sent[name][column], plain[name][column]) for column in others)


def test_every_table_is_as_long_as_before_and_no_table_with_ids_is_forgotten() -> None:
    plain = {**all_tables(40, num_requests=40), "annotations": all_tables(9, names=("annotations",))["annotations"]}
    for name in ("sampling_params", "labels"):
        plain["requests"][name] = ["{}"] * 40
    plain["joined"]["request"] = plain["requests"]["request"]
    sent = REDACTION.redact(plain)
    for name, columns in sent.items():
        for column, values in columns.items():
            assert len(values) == len(plain[name][column])
            spells = "token_id" in column or (name, column) in {("cache", "hash"), ("requests", "cache_salt")}
            spells = spells or (name, column) in {("requests", "prompt_token_ids")}
            if spells:
                assert str(values) != str(plain[name][column]), f"{name}.{column}"
    assert {name for name, columns in TABLES.items() if any("token_id" in column for column in columns)} <= sent.keys()


def test_tokens_of_a_request_that_was_under_way_go_on_where_its_prompt_ends() -> None:
    tables = make_tables(num_requests=1)
    tables["joined"] = {"request": [0], "engine_step": [0], "num_computed": [5], "token_ids": [[7, 8]]}
    sent, length = REDACTION.redact(tables), len(tables["requests"]["prompt_token_ids"][0])
    assert sent["joined"]["token_ids"][0].tolist() == REDACTION.ids([7, 8], [length, length + 1]).tolist()


def test_hashes_of_blocks_are_hashed_too_and_unknown_ones_stay_unknown() -> None:
    cache = {"request": np.arange(3), "hash": np.ma.MaskedArray(np.array([9, 9, 0], np.uint64), mask=[0, 0, 1])}
    hashes = REDACTION.redact({"cache": cache})["cache"]["hash"]
    assert hashes[0] == hashes[1] != 9 and hashes.mask.tolist() == [False, False, True]


def test_a_trace_says_so_and_doctor_takes_hashes_for_what_they_are(tmp_path: Path) -> None:
    trace = written(tmp_path / "t.arrow")
    assert f"engine 0: prompts and tokens are hashes by the key {REDACTION.name}" in trace.notes()
    report = examine(trace, engines=list(read_engines(trace)))
    assert report.violations == [] and report.exit_code == 0


def test_a_replay_is_refused_and_two_recordings_are_compared_under_one_key_only(tmp_path: Path) -> None:
    one, other = written(tmp_path / "1.arrow"), written(tmp_path / "2.arrow")
    with pytest.raises(UsageError, match="a replay needs the ids of tokens, and this trace was redacted"):
        read_rollouts(one)
    paired = pair_traces(one, other)
    assert len(paired.pairs) == 3 and all(pair.lengths == (8, 8) and pair.token_ids.size == 8 for pair in paired.pairs)
    with pytest.raises(ReplayRefused, match="not redacted by one key"):
        pair_traces(one, written(tmp_path / "3.arrow", Redaction(b"m" * 32)))


def test_a_key_is_its_owners_alone_and_not_short(tmp_path: Path) -> None:
    key = tmp_path / "key"
    with pytest.raises(UsageError, match="cannot read"):
        redaction(key)
    key.write_bytes(b"k" * 32)
    key.chmod(0o644)
    with pytest.raises(UsageError, match="others can read this secret"):
        redaction(key)
    key.chmod(0o600)
    assert redaction(key).name == REDACTION.name
    key.write_bytes(b"k" * 31)
    with pytest.raises(UsageError, match="at least 32 bytes"):
        redaction(key)


def test_rows_that_cannot_be_redacted_are_lost_and_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "_begin", lambda _: None)
    stream = Stream("unix:/nowhere/d.sock", "token", redaction=REDACTION)
    tables = make_tables()
    tables["requests"]["labels"] = ["no JSON"] * 3
    stream.put(tables)
    totals = stream.totals()
    assert totals.lost["tokens"] == totals.produced["tokens"] == len(tables["tokens"]["request"])
    assert not totals.undelivered and len(stream._window) == 0
