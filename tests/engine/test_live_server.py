"""One `vllm serve`: its counters against the trace while it runs, and labels for its weights while it generates."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.engine import run_cli
from helpers.serving import Server, serve
from tracekit.client import Client
from tracekit.engines.env import EngineEnv
from tracekit.rpc.client import ControlClient, Mark
from tracekit.tables import PREEMPTED
from tracekit.trace.annotated import read_annotations
from tracekit.trace.reader import Trace, open_trace

pytestmark = pytest.mark.engine

BASE = list(range(100, 164))  # four blocks that requests share
LONG = {"max_tokens": 150, "temperature": 1.0, "seed": 3, "logprobs": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(v1_env: EngineEnv, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with so few KV blocks that six long requests do not fit."""
    blocks = ("--block-size", "16", "--num-gpu-blocks-override", "44")
    with serve(v1_env, tiny_model, tmp_path_factory.mktemp("s"), *blocks) as server:
        yield server


def tokens_of(answer: dict[str, Any]) -> tuple[str, list[float]]:
    (choice,) = answer["choices"]
    return choice["text"], choice["logprobs"]["token_logprobs"]


def doctor(server: Server, source: str) -> tuple[int, dict[str, Any]]:
    done = run_cli("doctor", server.daemon.spool, "--live", source, "--daemon", server.daemon.address, "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def mark_while(server: Server, busy: threading.Event) -> list[tuple[str, Mark, int, int]]:
    """Label the weights again and again; each with the time before and after the call, of the monotonic clock."""
    marks = []
    with ControlClient(server.daemon.address, 60) as client:
        while busy.is_set():
            label, begin_ns = f"step-{len(marks)}", time.monotonic_ns()
            (mark,) = client.mark_weights(label, f"/checkpoints/{label}")
            marks.append((label, mark, begin_ns, time.monotonic_ns()))
    return marks


def test_labels_while_it_generates(server: Server) -> None:
    # each has blocks of its own, so that both are computed alike
    unmarked = tokens_of(server.ask(BASE, cache_salt="a", **LONG))
    server.call_workers("reload_weights")
    busy = threading.Event()
    busy.set()
    with ThreadPoolExecutor(1) as pool:
        marking = pool.submit(mark_while, server, busy)
        marked = [tokens_of(server.ask(BASE, cache_salt=salt, **LONG)) for salt in "bcd"]
        busy.clear()
        marks = marking.result()
    assert marked == [unmarked] * 3
    # what was confirmed is on the disk
    rows = [row for row in open_trace(server.daemon.spool).table("weights").to_pylist() if row["label"] is not None]
    stored = {row["label"]: row for row in rows}
    assert len(stored) == len(rows) == len(marks) >= 3
    steps = open_trace(server.daemon.spool).table("steps").to_pylist()
    for label, mark, begin_ns, end_ns in marks:
        row = stored[label]
        assert (row["method"], row["checkpoint"], row["arguments"]) == ("mark", f"/checkpoints/{label}", "{}")
        assert (row["weight_version"], row["engine_step"]) == (mark.weight_version, mark.engine_step)
        assert row["weight_version"] == 1 and begin_ns <= row["begin_ns"] <= end_ns
        # the step counter of that moment, give or take the one that is being scheduled
        assert all(s["engine_step"] < row["engine_step"] for s in steps if s["time_ns"] < begin_ns)
        assert all(s["engine_step"] >= row["engine_step"] for s in steps if s["time_ns"] > end_ns)
    assert len({mark.engine_step for _, mark, *_ in marks}) > 1


def test_the_engine_counts_what_the_trace_holds(server: Server) -> None:
    text, _ = tokens_of(server.ask(BASE, **LONG))
    server.ask([*BASE, 7], n=2, max_tokens=8, temperature=1.0, seed=1)
    stopped = server.ask(BASE, **{**LONG, "stop": text[100:106]})
    assert stopped["choices"][0]["finish_reason"] == "stop"
    server.hang_up_after(4, [*BASE, 4], max_tokens=150, ignore_eos=True)
    with ThreadPoolExecutor(6) as pool:
        prompts = [[100 + 9 * i + j for j in range(120)] for i in range(6)]
        asked = [pool.submit(server.ask, prompt, max_tokens=100, ignore_eos=True) for prompt in prompts]
        code, facts = doctor(server, server.metrics_url)
        assert code == 0, facts  # while tokens come
        for answer in asked:
            answer.result()
    code, facts = doctor(server, server.metrics_url)
    assert code == 0, facts
    assert facts["sound"] and facts["live"]["being_written"]
    (engine,) = facts["live"]["engines"]
    compared = {c["name"]: c for c in engine["compared"]}
    assert {c["state"] for c in compared.values()} == {"agrees"}
    assert set(compared) >= {"generation tokens", "prompt tokens", "cached prompt tokens", "preemptions"}
    trace = open_trace(server.daemon.spool)
    assert compared["preemptions"]["before"] > 0 < compared["cached prompt tokens"]["before"]
    assert any(row["flags"] & PREEMPTED for row in trace.table("scheduled").to_pylist())
    # bounds are apart by the tokens of the two requests that the client ended, and by nothing else
    assert compared["generation tokens"]["high"] - compared["generation tokens"]["low"] == aborted_tokens(trace, 2)
    assert compared["finished: length"]["low"] == compared["finished: length"]["high"]


def aborted_tokens(trace: Trace, num_aborted: int) -> int:
    aborted = [row for row in trace.table("finishes").to_pylist() if row["reason"] == "abort"]
    assert len(aborted) == num_aborted
    return sum(row["num_output_tokens"] for row in aborted)


def test_a_wrong_count_is_found(server: Server, tmp_path: Path) -> None:
    wrong = tmp_path / "metrics.txt"
    lines = server.metrics().splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.startswith("vllm:prompt_tokens_total{"))
    name, value = lines[at].rsplit(" ", 1)
    lines[at] = f"{name} {float(value) + 1}"
    wrong.write_text("\n".join(lines))
    code, facts = doctor(server, str(wrong))
    (engine,) = facts["live"]["engines"]
    assert code == 1 and [c["name"] for c in engine["compared"] if c["state"] == "violated"] == ["prompt tokens"]


def test_a_trainer_annotates_by_the_ids_of_the_answers(server: Server) -> None:
    one = server.ask([*BASE, 9], max_tokens=4, temperature=0.0, logprobs=0)
    many = server.ask([[*BASE, 10], [*BASE, 11]], n=2, max_tokens=4, temperature=1.0, seed=1, logprobs=0)
    with Client(server.daemon.address) as trainer:
        trainer.annotate(one["id"], reward=0, old_logprob=one["choices"][0]["logprobs"]["token_logprobs"])
        for prompt in range(2):
            for index in range(2):
                name = many["id"] if prompt == 0 else f"{many['id']}-1"
                old = many["choices"][2 * prompt + index]["logprobs"]["token_logprobs"]
                trainer.annotate(name, index=index, reward=1 + 2 * prompt + index, old_logprob=old)
    with ControlClient(server.daemon.address) as control:
        control.flush()
    trace = open_trace(server.daemon.spool)
    found = read_annotations(trace)
    assert len(found.of_request) == 5 and not found.unknown and not found.num_ambiguous
    tokens = trace.table("tokens")
    for (_, request), said in found.of_request.items():
        own = np.asarray(tokens.column("rollout_logprob"))[np.asarray(tokens.column("request")) == request]
        assert said["old_logprobs"] == own.tolist(), said["reward"]
