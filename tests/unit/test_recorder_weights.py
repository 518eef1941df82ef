"""Weight versions on stand-ins for engine and workers: when one starts, what its row says, and what is left alone."""

import json
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tracekit.recorder.vllm import calls, worker
from tracekit.recorder.vllm import recording as weights
from tracekit.recorder.vllm.events import Fingerprints, TableRow
from tracekit.recorder.vllm.v1 import weights as v1_weights
from tracekit.recorder.vllm.v1.rows import V1Rows
from tracekit.recorder.vllm.v1.weights import V1Weights


class Made(SimpleNamespace):
    """An object of the engine's, which can be referred to weakly."""


class Session:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def append(self, event: Any) -> None:
        self.events.append(event)

    def close(self, timeout_secs: float, whole: bool = True) -> None:
        pass

    def rows(self) -> list[dict[str, Any]]:
        return [event.row for event in self.events if isinstance(event, TableRow) and event.table == "weights"]

    def fingerprints(self) -> dict[int, Any]:
        return {event.weight_version: event.tensors for event in self.events if isinstance(event, Fingerprints)}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(8))
        self.packed = nn.Parameter(torch.empty(0))

    def load_weights(self, named: Any) -> None:
        for name, tensor in named:
            getattr(self, name).data.copy_(tensor)


class Worker:
    rank = 3

    def __init__(self) -> None:
        self.model = Model()
        self.model_runner = Made(model=self.model)

    def get_model(self) -> Model:
        return self.model

    def sleep(self, level: int = 1) -> None:
        pass

    def wake_up(self, tags: Any = None) -> None:
        pass


class Core:
    """An engine core with its worker in this process."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.num_rpcs = 0
        self.model_executor = Made(collective_rpc=self._run, driver_worker=Made(worker=self.worker))
        self._tracekit_recording = V1Weights(Session())  # type: ignore[arg-type]

    def _run(self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None) -> Any:
        self.num_rpcs += 1
        run = getattr(self.worker, method) if isinstance(method, str) else lambda *a, **k: method(self.worker, *a, **k)
        return [run(*args, **(kwargs or {}))]

    def add_request(self, request: Any) -> None: ...

    def collective_rpc(self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None) -> Any:
        return self._run(method, timeout, args, kwargs)

    def sleep(self, level: int = 1) -> None:
        self._run("sleep", args=(level,))

    def wake_up(self, tags: Any = None) -> None:
        self._run("wake_up", args=(tags,))

    def add_lora(self, lora_request: Any) -> None: ...

    def remove_lora(self, lora_id: int) -> None: ...

    def set_weight_version(self, weight_version: str) -> None: ...


class CoreProc(Core):
    """The same in a process that vLLM starts."""


@pytest.fixture(scope="module", autouse=True)
def attached() -> Any:
    worker.attach(Worker)
    vllm_core = Made(EngineCore=Core, EngineCoreProc=CoreProc)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "vllm.v1.worker.worker_base", Made(WorkerBase=Worker))
        v1_weights.attach(vllm_core, lambda core: core._tracekit_recording)
        v1_weights.attach(vllm_core, lambda core: core._tracekit_recording)


@pytest.fixture
def core() -> Core:
    return Core()


def recording_of(core: Core) -> tuple[V1Weights, Any]:
    recording = core._tracekit_recording
    return recording, recording.session


def forward(core: Core, num: int = 1) -> None:
    recording = core._tracekit_recording
    for _ in range(num):
        if recording.pending:
            recording.start_versions()
        recording.engine_step += 1


def scale(worker: Worker, factor: float = 2.0) -> None:
    worker.model.norm.data.mul_(factor)


def test_the_workers_and_their_weights_are_there_before_anything_changes(core: Core) -> None:
    _, session = recording_of(core)
    (described,) = [e.row for e in session.events if isinstance(e, TableRow) and e.table == "workers"]
    config = json.loads(described["config"])
    assert described["rank"] == 3 and config["parameters"] == {"num": 2, "num_empty": 1, "packed": False}
    assert config["model_runner_version"] == "v0" and "attention" not in config and "sampler" not in config
    assert session.fingerprints()[0][3, "packed"] == ("float32", (0,), None)
    rows = V1Rows(num_blocks=2)
    for event in session.events:
        rows.add(event)
    tables = rows.take()
    assert tables["fingerprints"]["tensor"] == ["norm", "packed"] and tables["workers"]["rank"].tolist() == [3]
    assert np.ma.getmaskarray(tables["fingerprints"]["hash"]).tolist() == [False, True]
    assert rows.count(session.events[-1]) == {"fingerprints": 2}


def test_all_calls_between_two_forwards_are_one_version_at_the_next(core: Core) -> None:
    _, session = recording_of(core)
    forward(core, 5)
    core.collective_rpc(scale, args=(3.0,))
    core.collective_rpc(method=scale, kwargs={"factor": 1.0})
    forward(core, 2)
    (row,) = session.rows()
    assert (row["weight_version"], row["engine_step"], row["method"], row["num_changed"]) == (1, 5, "scale", 1)
    arguments = json.loads(row["arguments"])
    assert arguments["calls"] == 2 and arguments["first"][0] == {"method": "scale", "args": [3.0], "kwargs": {}}
    assert row["begin_ns"] < row["end_ns"]
    core.collective_rpc(scale, args=(1 / 3,))
    forward(core)
    assert session.rows()[1]["num_changed"] == 1
    assert session.fingerprints()[2] == session.fingerprints()[0] != session.fingerprints()[1]


def test_a_call_that_changed_nothing_readable_is_a_version_whose_change_is_not_known(core: Core) -> None:
    _, session = recording_of(core)
    core.collective_rpc(lambda worker: None)
    forward(core)
    assert session.rows()[0]["num_changed"] is None  # what is packed may have changed
    del core.worker.model.packed
    core.collective_rpc(lambda worker: None)
    core.collective_rpc(lambda worker: None)
    forward(core)
    core.collective_rpc(lambda worker: None)
    forward(core)
    assert [row["num_changed"] for row in session.rows()] == [None, 1, 0]


def test_a_call_that_raises_may_have_changed_weights(core: Core) -> None:
    with pytest.raises(ZeroDivisionError):
        core.collective_rpc(lambda worker: 1 / 0)
    forward(core)
    assert recording_of(core)[0].weight_version == 1


def test_a_load_inside_an_rpc_is_part_of_it_and_one_outside_is_a_change(core: Core) -> None:
    _, session = recording_of(core)
    core.collective_rpc(lambda worker: worker.model.load_weights([("norm", torch.full((8,), 2.0))]))
    forward(core)
    core.worker.model.load_weights([("norm", torch.full((8,), 3.0))])
    forward(core)
    assert [row["method"] for row in session.rows()] == ["<lambda>", "load_weights"]
    assert json.loads(session.rows()[1]["arguments"])["args"] == [[["norm", "torch.float32 [8]"]]]
    Model().load_weights([("norm", torch.ones(8))])  # another model, loaded for the first time
    assert not recording_of(core)[0].pending


def test_a_write_between_two_runs_is_found_by_its_fingerprint(core: Core) -> None:
    recording, session = recording_of(core)
    recording.admitted(Made(lora_request=None), first=True)
    forward(core)
    assert session.rows() == []
    core.worker.model.norm.data.mul_(2)
    recording.admitted(Made(lora_request=None), first=False)
    forward(core)
    assert session.rows() == []
    recording.admitted(Made(lora_request=None), first=True)
    forward(core)
    (row,) = session.rows()
    assert (row["method"], row["num_changed"], row["engine_step"]) == (weights.DIRECT, 1, 2)


def test_an_engine_in_a_process_of_its_own_is_not_polled() -> None:
    core = CoreProc()
    asked = core.num_rpcs
    recording_of(core)[0].admitted(Made(lora_request=None), first=True)
    forward(core)
    assert core.num_rpcs == asked


def test_waking_up_is_a_change_and_sleeping_is_none(core: Core) -> None:
    _, session = recording_of(core)
    core.sleep(level=2)
    forward(core)
    assert session.rows() == []
    assert "asleep" in worker.fingerprint(core.worker)["error"]
    core.wake_up(tags=["kv_cache"])
    assert "asleep" in worker.fingerprint(core.worker)["error"]
    assert not recording_of(core)[0].pending
    core.wake_up(tags=["weights"])
    forward(core)
    assert [row["method"] for row in session.rows()] == ["wake_up"] and 1 in session.fingerprints()


def lora(name: str, number: int, path: str) -> Any:
    return Made(lora_name=name, lora_int_id=number, lora_path=path)


def test_an_adapter_is_a_version_of_its_own_where_its_name_stands_for_something_new(core: Core) -> None:
    recording, session = recording_of(core)
    for request in (lora("a", 1, "/x"), lora("a", 1, "/x"), lora("b", 2, "/y"), lora("a", 1, "/z"), lora("a", 1, "/z")):
        recording.admitted(Made(lora_request=request), first=False)
        forward(core)
    core.add_lora(lora("b", 2, "/y"))
    core.remove_lora(2)
    forward(core)
    recording.admitted(Made(lora_request=lora("b", 2, "/y")), first=False)
    core.collective_rpc(scale)
    forward(core)
    found = [(row["weight_version"], row.get("lora"), row["method"]) for row in session.rows()]
    assert found == [
        *[(1, "a", "request"), (2, "b", "request"), (3, "a", "request"), (4, "b", "add_lora")],
        *[(5, None, "scale"), (6, "b", "request")],
    ]
    assert json.loads(session.rows()[2]["arguments"])["kwargs"] == {"lora_int_id": 1, "lora_path": "/z"}
    assert set(session.fingerprints()) == {0, 5}


def test_labels_go_to_the_version_whose_weights_are_there(core: Core) -> None:
    recording, session = recording_of(core)
    core.set_weight_version(weight_version="zero")
    core.collective_rpc(scale)
    core.set_weight_version("one")
    thread = threading.Thread(target=recording.label, args=("uno", "/ckpt"))
    thread.start()
    thread.join()
    forward(core)
    found = [(row["weight_version"], row["method"], row.get("label"), row.get("checkpoint")) for row in session.rows()]
    assert found == [
        (0, "set_weight_version", "zero", None),
        # before the version's own row, which waits for the forward that starts it
        (1, "set_weight_version", "one", None),
        (1, "mark", "uno", "/ckpt"),
        (1, "scale", None, None),
    ]
    recording.admitted(Made(lora_request=lora("a", 1, "/x")), first=False)
    assert recording.label("still one", None) == (1, 1)  # an adapter is not what is labelled


def test_a_change_without_a_forward_after_it_is_announced_at_the_end(core: Core) -> None:
    recording, session = recording_of(core)
    core.collective_rpc(scale)
    asked = core.num_rpcs
    recording.close()
    assert [row["num_changed"] for row in session.rows()] == [None] and core.num_rpcs == asked


@pytest.mark.parametrize("broken", ["tracekit_describe", "tracekit_fingerprint"])
def test_workers_that_do_not_answer_leave_the_engine_and_the_versions_alone(
    broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tracekit.recorder.guard._told", set())
    run = Core._run

    def fails(self: Core, method: Any, *args: Any, **kwargs: Any) -> Any:
        if method == broken:
            raise RuntimeError("Worker failed with error 'no such method'")
        return run(self, method, *args, **kwargs)

    monkeypatch.setattr(Core, "_run", fails)
    core = Core()
    for _ in range(3):
        core.collective_rpc(scale)
        forward(core)
    _, session = recording_of(core)
    assert [row["num_changed"] for row in session.rows()] == [None] * 3 and not session.fingerprints()
    (line,) = capsys.readouterr().err.splitlines()
    assert "no such method" in line


def test_arguments_are_cut_and_hold_no_tensor() -> None:
    named = [(f"w{i}", torch.ones(3)) for i in range(100)]
    found = calls.brief((named, {"payload": b"x" * 5000, "text": "y" * 5000}, scale))
    assert len(found[0]) == 65 and found[0][0] == ["w0", "torch.float32 [3]"] and found[0][-1] == "… 36 more"
    assert found[1]["payload"] == "5000 bytes" and len(found[1]["text"]) == 400 and found[2] == "scale"
