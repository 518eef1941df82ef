"""Model runner 2 of 0.32 for real: raw and processed logprobs of every token, unseen by the clients."""

import json
import math
from pathlib import Path

import pytest
import torch

from helpers.engine import JOBS, run_cli
from helpers.tiny_model import write_tiny_model
from tracekit.trace.reader import open_trace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.engine,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def test_both_logprobs_from_model_runner_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace_path, view = tmp_path / "trace.arrow", tmp_path / "view.json"
    (tmp_path / "tiny").mkdir()
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    monkeypatch.setenv("TRACEKIT_STRICT", "1")
    job = ("python", JOBS / "client_view.py", write_tiny_model(tmp_path / "tiny"), view)
    done = run_cli("record", "--engine", "latest", "--logprobs", "both", "-o", trace_path, "--", *job)
    assert done.returncode == 0, done.stderr[-4000:]
    trace = open_trace(trace_path)
    names = {r["request"]: r for r in trace.table("requests").to_pylist()}
    tokens = trace.table("tokens").to_pylist()
    assert tokens and all(t["raw_logprob"] == t["rollout_logprob"] for t in tokens)
    assert all(t["processed_logprob"] is not None and math.isfinite(t["processed_logprob"]) for t in tokens)
    assert sum(t["processed_logprob"] != t["raw_logprob"] for t in tokens) > len(tokens) / 2
    for name, by_index in json.loads(view.read_text()).items():
        for index, client in by_index.items():
            own = [t for t in tokens if names[t["request"]]["external_id"] == name]
            own = [t for t in own if str(names[t["request"]]["index"]) == index]
            told = [float(t["rollout_logprob"]).hex() for t in own][: len(client["token_ids"])]
            assert not client["logprobs"] or told == client["logprobs"], name
