"""Engines that start dormant and are attached to in the middle of their lives, against what their clients received."""

import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.engine import JOBS, engine_environ, wait_for
from helpers.wire import DaemonProcess
from tracekit.audit.doctor.examine import examine
from tracekit.engines.env import ensure
from tracekit.jobs import attaching
from tracekit.jobs.recorder_wheel import recorder_wheel
from tracekit.recorder.settings import Options
from tracekit.rpc.credentials import Access
from tracekit.tables import ACCEPTED
from tracekit.trace.reader import Trace, open_trace

pytestmark = pytest.mark.engine

PROMPT = 40
FIRST, SECOND = 0, 1  # engines of the trace: one for each time that it was attached to


class Running:
    """A job, a daemon and an attach folder; the job stands still where it says so."""

    def __init__(self, folder: Path, short: Path, name: str, model: Path, *more: str) -> None:
        self.folder, self.attach = folder, folder / "attach"
        self.daemon = DaemonProcess(short).start()
        (folder / "job").mkdir()
        env = ensure(name, lambda _text: None)
        environ = engine_environ(env, TRACEKIT_ATTACH=str(self.attach), PYTHONDONTWRITEBYTECODE="")
        # the recorder is nowhere but in the wheel: what is installed there is not found
        environ["PYTHONPATH"] = str(recorder_wheel())
        self.log = folder / "log.txt"
        argv = [env.python, "-P", JOBS / "attached.py", model, folder / "job", *more]
        with open(self.log, "wb") as log:
            self.job = subprocess.Popen(list(map(str, argv)), env=environ, stdout=log, stderr=log)

    def at(self, name: str) -> None:
        place = self.folder / "job" / f"at-{name}"
        wait_for(lambda: place.exists() or self.job.poll() is not None, name)
        assert place.exists(), self.log.read_text()[-4000:]

    def go(self, name: str) -> None:
        (self.folder / "job" / f"go-{name}").touch()

    def tell(self, action: str, timeout_secs: float = 2.5, **options: Any) -> dict[str, Any]:
        engines = wait_for(lambda: attaching.find(self.attach), "an engine that takes orders")
        told = Options(self.daemon.address, Access(), **options) if action == "start" else None
        (state,) = attaching.tell(self.attach, engines, action, told, timeout_secs)
        assert state["answered"] and not state["error"], state
        return state

    def end(self) -> Trace:
        assert self.job.wait(300) == 0, self.log.read_text()[-4000:]
        assert self.daemon.stop() == 0, self.daemon.stderr()
        return open_trace(self.daemon.out)


@pytest.fixture(scope="module", params=["v0", "v1", "latest"])
def attached(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp(f"attach-{request.param}")
    short = tmp_path_factory.mktemp("d")
    running = Running(folder, short, request.param, tiny_model)
    states = {}
    try:
        running.at("start")
        states["dormant"] = running.tell("look")
        states["starting"] = running.tell("start")
        running.go("start")
        running.at("stop")
        states["recording"] = wait_for(lambda: (s := running.tell("look"))["produced"].get("tokens") and s, "rows")
        states["stopping"] = running.tell("stop")
        running.go("stop")
        running.at("rest")
        states["stopped"] = wait_for(lambda: (s := running.tell("look"))["state"] == "dormant" and s, "the end")
        running.go("rest")
        running.at("again")
        running.tell("start", logprobs="both")
        running.go("again")
        running.at("idle")
        states["idle"] = running.tell("stop")  # workers are to be told, which takes a step
        running.go("idle")
        running.at("end")
        wait_for(lambda: running.tell("look")["state"] == "dormant", "the end")
        running.go("end")
        running.at("over")
        running.go("over")
        trace = running.end()
        yield request.param, trace, json.loads((folder / "job" / "view.json").read_text()), states, running
    finally:
        running.job.kill()
        running.daemon.end()


def rows(trace: Trace, table: str, engine: int) -> list[dict[str, Any]]:
    return [row for row in trace.table(table).to_pylist() if row["engine"] == engine]


def test_it_says_what_it_does(attached: Any) -> None:
    name, _, _, states, running = attached
    assert [state["state"] for state in states.values()] == [
        "dormant", "starting", "recording", "stopping", "dormant", "stopping",
    ]  # fmt: skip
    recording = states["recording"]
    assert recording["daemon"] == running.daemon.address and recording["kind"] == ("v0" if name == "v0" else "v1")
    assert recording["since_step"] > 0 and recording["engine_step"] == recording["since_step"] + 18
    assert recording["produced"]["tokens"] > 0 and recording["lost"] == {}
    assert attaching.find(running.attach) == [] and list(running.attach.iterdir()) == []


def test_the_hooks_are_there_only_while_it_is_recorded(attached: Any) -> None:
    _, _, view, _, _ = attached
    hooked = view["hooked"]
    assert hooked["start"] == hooked["again"] == hooked["over"] == [] and "schedule" in hooked["stop"]
    assert hooked["idle"]


def test_tokens_are_those_that_the_client_got_meanwhile_at_their_positions(attached: Any) -> None:
    _, trace, view, _, _ = attached
    seen = view["seen"]
    first = min(token["step"] for token in seen["within"]) - 8  # the first step that was recorded
    for engine, steps in (
        (FIRST, range(first, first + 18)),
        (SECOND, range(seen["unasked"][0]["step"], seen["last"][0]["step"])),
    ):
        names = {row["request"]: row["external_id"] for row in rows(trace, "requests", engine)}
        before = {row["request"]: row["token_ids"] for row in rows(trace, "joined", engine)}
        found: dict[str, list[Any]] = {name: [] for name in names.values()}
        for token in rows(trace, "tokens", engine):
            assert token["flags"] == ACCEPTED and token["weight_version"] == 1
            if names[token["request"]] == "unasked":
                continue
            found[names[token["request"]]].append(
                (token["position"], token["token_id"], float(np.float32(token["rollout_logprob"])).hex())
            )
        expected = {
            name: [
                (PROMPT + at, token["token_id"], token["logprob"])
                for at, token in enumerate(tokens)
                if token["step"] in steps
            ]
            for name, tokens in seen.items()
            if name != "unasked"
        }
        assert {name: tokens for name, tokens in found.items() if tokens} == {
            name: tokens for name, tokens in expected.items() if tokens
        }
        for number, token_ids in before.items():
            earlier = [token["token_id"] for token in seen[names[number]] if token["step"] < steps.start]
            assert token_ids == earlier


def test_the_trace_says_where_it_was_attached_and_detached(attached: Any) -> None:
    name, trace, _, states, _ = attached
    since = states["recording"]["since_step"]
    control = rows(trace, "control", FIRST)
    assert [(row["name"], row["engine_step"]) for row in control] == [("attach", since), ("detach", since + 18)]
    assert json.loads(control[0]["answer"]) == {"joined": 4}
    joined = rows(trace, "joined", FIRST)
    assert len(joined) == 4 and all(row["engine_step"] == since for row in joined)
    # the last of them had not been scheduled; of the others the last token has no KV yet
    assert [row["num_computed"] for row in joined] == [45, 45, 45, 0]
    assert [len(row["token_ids"]) for row in joined] == [6, 6, 6, 0]
    steps = [row["engine_step"] for row in rows(trace, "steps", FIRST)]
    assert steps == list(range(since, since + 18))
    if name == "latest":
        assert since == 11  # 0.32 counts: 4 + 6 steps ran before


def test_what_came_before_is_unknown_and_not_of_version_0(attached: Any) -> None:
    _, trace, _, _, _ = attached
    for engine in (FIRST, SECOND):
        (weights,) = rows(trace, "weights", engine)
        assert (weights["weight_version"], weights["method"], weights["num_changed"]) == (1, "attach", None)
        assert {row["weight_version"] for row in rows(trace, "fingerprints", engine)} == {1}
        assert {row["weight_version"] for row in rows(trace, "steps", engine)} == {1}
        assert len(rows(trace, "workers", engine)) == 1
    within = {row["external_id"]: row["request"] for row in rows(trace, "requests", FIRST)}["within"]
    hits = [row for row in rows(trace, "cache", FIRST) if row["request"] == within]
    assert hits and all(row["min_weight_version"] is None for row in hits)


def test_doctor_and_the_counters_find_nothing_lost(attached: Any) -> None:
    _, trace, _, _, _ = attached
    assert trace.complete and not trace.all_losses()
    prompts = {row["external_id"]: row["prompt_token_ids"] for row in trace.table("requests").to_pylist()}
    view = [
        {
            "request_id": name,
            "index": 0,
            "prompt_token_ids": prompts[name],
            "token_ids": [token["token_id"] for token in tokens],
            "logprobs": [float.fromhex(token["logprob"]) for token in tokens],
        }
        for name, tokens in attached[2]["seen"].items()
        if name in prompts and name != "unasked"
    ]
    outside = {**view[0], "request_id": "before"}  # it ended before the recorder was there
    report = examine(trace, [*view, outside])
    assert report.violations == [] and report.excused == []
    assert report.not_compared == ["1 completion of requests that were not recorded"]
    view[0]["token_ids"][10] += 1
    assert examine(trace, view).violations


def test_logprobs_that_nobody_asked_for_begin_with_the_recording(attached: Any) -> None:
    name, trace, view, _, _ = attached
    tokens = rows(trace, "tokens", SECOND)
    assert len(tokens) == 12 + 9 and all(row["raw_logprob"] is not None for row in tokens)
    assert all(row["processed_logprob"] is not None and row["rollout_logprob"] is not None for row in tokens)
    reported = "processed_logprob" if name == "v0" else "raw_logprob"
    assert all(row[reported] == row["rollout_logprob"] for row in tokens)
    assert all(row["raw_logprob"] is None for row in rows(trace, "tokens", FIRST))
    assert all(token["logprob"] is None for token in view["seen"]["unasked"])


def test_the_wheel_holds_no_more_than_the_recorder(attached: Any) -> None:
    assert attached[2]["recorder"].startswith(str(recorder_wheel()))
    names = zipfile.ZipFile(recorder_wheel()).namelist()
    assert not [name for name in names if name.startswith(("tracekit/replay", "tracekit/cli", "tracekitd"))]
