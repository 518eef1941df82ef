"""The hooks on stand-ins for vLLM's classes: whatever way they are called, the engine gets what it would have got."""

from types import SimpleNamespace as Made
from typing import Any

import pytest

from tracekit.recorder.vllm import hooks
from tracekit.recorder.vllm.v1 import adapter as v1
from tracekit.recorder.vllm.v1 import weights as v1_weights


class Session:
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.lost: list[Any] = []

    def append(self, event: Any) -> None:
        self.events.append(event)

    def lose(self, event: Any, reason: str) -> None:
        self.lost.append((event, reason))

    def close(self, timeout_secs: float) -> None:
        pass


@pytest.fixture
def scheduler() -> Any:
    class Scheduler:
        model_executor = Made(collective_rpc=lambda method: [{"error": f"no {method}"}])
        kv_cache_manager = Made(block_pool=Made(get_num_free_blocks=lambda: 5))
        waiting = ()

        def schedule(self, throttle: bool = False) -> Any:
            return Made(total_num_scheduled_tokens=1, throttle=throttle)

        def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
            return {0: "outputs"}

        def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
            return [("a", 0)]

        def collective_rpc(self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None) -> Any:
            return [method]

    hooks.install(Scheduler, "schedule", v1._schedule)
    hooks.install(Scheduler, "update_from_output", v1._update_from_output)
    hooks.after(Scheduler, "finish_requests", v1._on_finish_requests)
    core = Made(EngineCoreProc=type("EngineCoreProc", (), {}))
    hooks.wrap(Scheduler, "collective_rpc", v1_weights._around(v1._of, core, v1_weights._on_rpc))
    made: Any = Scheduler()
    made._tracekit_recording = v1.Recording(made, Session())  # type: ignore[arg-type]
    return made


SAMPLED = Made(sampled_token_ids=[[1]], req_id_to_index={"a": 0}, logprobs=None)


def test_calls_with_keywords_are_recorded_like_any_other(scheduler: Any) -> None:
    output = scheduler.schedule(throttle=True)
    assert output.throttle
    assert scheduler.update_from_output(scheduler_output=output, model_runner_output=SAMPLED) == {0: "outputs"}
    assert scheduler.finish_requests(request_ids="a", finished_status="FINISHED_ABORTED") == [("a", 0)]
    assert scheduler.collective_rpc(method="load", timeout=3) == ["load"]
    scheduler.schedule()
    events = scheduler._tracekit_recording.session.events
    assert [event[0] for event in events] == ["output", "finished", "weights"]
    assert events[1][1:3] == (["a"], "abort") and events[2][1]["method"] == "load"


def test_a_step_that_another_schedule_made_is_counted_as_lost(scheduler: Any) -> None:
    output = Made(total_num_scheduled_tokens=4)
    assert scheduler.update_from_output(output, SAMPLED) == {0: "outputs"}
    session = scheduler._tracekit_recording.session
    assert not session.events and session.lost[0][0][0] == "output"


@pytest.mark.parametrize("name", ["get_state", "compute_weight_checksums", "execute_dummy_batch", "sleep"])
def test_rpcs_that_only_read_start_no_weight_version(scheduler: Any, name: str) -> None:
    recording = scheduler._tracekit_recording
    scheduler.collective_rpc(name)
    scheduler.schedule()
    assert recording.weight_version == 0
    scheduler.collective_rpc("update_weights")
    scheduler.schedule()
    scheduler.collective_rpc(lambda worker: worker)
    scheduler.schedule()
    assert recording.weight_version == 2


def test_hooks_of_several_purposes_go_around_one_method_once_each() -> None:
    class Owner:
        def call(self) -> list[str]:
            return ["call"]

    def outer(original: Any, self: Any) -> Any:
        return ["outer", *original(self)]

    def inner(original: Any, self: Any) -> Any:
        return ["inner", *original(self)]

    for _ in range(2):
        hooks.wrap(Owner, "call", inner)
        hooks.wrap(Owner, "call", outer, "another purpose")
    assert Owner().call() == ["outer", "inner", "call"]
