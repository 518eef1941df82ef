"""Every example runs as it stands and is recorded without a change to it."""

import json
from pathlib import Path

import pytest

from helpers.engine import EXAMPLES, run_cli
from helpers.tiny_model import write_tiny_model
from tracekit.audit.doctor.examine import examine
from tracekit.tables import ACCEPTED
from tracekit.trace.reader import Trace, open_trace

pytestmark = pytest.mark.engine


def record(tmp_path: Path, *job: object, options: tuple[object, ...] = ()) -> tuple[Trace, str]:
    trace = tmp_path / "trace.arrow"
    done = run_cli("record", "--engine", "v1", *options, "-o", trace, "--", "python", *job)
    assert done.returncode == 0, done.stderr[-4000:]
    return open_trace(trace), done.stdout


def output_of(trace: Trace, request: int) -> list[int]:
    rows = trace.table("tokens").to_pylist()
    return [r["token_id"] for r in rows if r["request"] == request and r["flags"] & ACCEPTED]


def test_llm_generate(tiny_model: Path, tmp_path: Path) -> None:
    trace, said = record(tmp_path, EXAMPLES / "llm_generate.py", tiny_model)
    requests = trace.table("requests").to_pylist()
    assert len(requests) == 4 and {r["index"] for r in requests} == {0, 1}
    for request in requests:
        assert f"{request['external_id']} {request['index']} {output_of(trace, request['request'])}" in said


def test_async_weight_update(tiny_model: Path, tmp_path: Path) -> None:
    next_model = write_tiny_model(tmp_path / "next", seed=1)
    trace, said = record(tmp_path, EXAMPLES / "async_weight_update.py", tiny_model, next_model)
    (update,) = trace.table("weights").to_pylist()
    assert update["method"] == "reload_weights" and update["weight_version"] == 1
    names = [c["name"] for c in trace.table("control").to_pylist()]
    assert names.index("pause_scheduler") < names.index("resume_scheduler")
    tokens = trace.table("tokens").to_pylist()
    assert {t["weight_version"] for t in tokens} == {0, 1}
    # the version changes at one step, in the middle of rollouts that were running
    assert all((t["engine_step"] >= update["engine_step"]) == (t["weight_version"] == 1) for t in tokens)
    for request in trace.table("requests").to_pylist():
        assert f"{request['external_id']} {output_of(trace, request['request'])}" in said


def test_serve_and_ask(tiny_model: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(b"k" * 32)
    trace, said = record(tmp_path, EXAMPLES / "serve_and_ask.py", tiny_model, options=("--redact", key))
    requests = trace.table("requests").to_pylist()
    assert len(requests) == 2
    assert all(r["external_id"].startswith(("chatcmpl-", "cmpl-")) for r in requests)
    assert json.loads(requests[0]["sampling_params"])["temperature"] == 0.7
    num_tokens = [f["num_output_tokens"] for f in trace.table("finishes").to_pylist()]
    assert sum(num_tokens) == trace.table("tokens").num_rows > 0
    assert said.strip()
    # redacted: the ids are none of the vocabulary, one is the same where it stands for the same, and all else holds
    vocabulary = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    ids = [i for r in requests for i in r["prompt_token_ids"]] + trace.table("tokens").column("token_id").to_pylist()
    assert sum(i < vocabulary for i in ids) <= 1
    assert examine(trace).exit_code == 0 and any("hashes by the key" in note for note in trace.notes())
