"""The hooks on stand-ins for vLLM's classes: whatever way they are called, the engine gets what it would have got."""

import functools
import signal
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from tracekit.recorder import guard
from tracekit.recorder.vllm import hooks
from tracekit.recorder.vllm.events import Finished, Step, TableRow
from tracekit.recorder.vllm.v1 import attach as v1
from tracekit.recorder.vllm.v1 import weights as v1_weights
from tracekit.recorder.vllm.v1.recording import V1Recording


class Made(SimpleNamespace):
    """An object of the engine's, which can be referred to weakly."""


class Session:
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.lost: list[Any] = []

    def append(self, event: Any) -> None:
        self.events.append(event)

    def lose(self, event: Any, reason: str) -> None:
        self.lost.append((event, reason))

    def hurry(self) -> None:
        self.events.append("hurry")

    def wait(self) -> None:
        pass

    def close(self, timeout_secs: float, whole: bool = True) -> None:
        pass


@pytest.fixture
def scheduler() -> Any:
    class Scheduler:
        model_executor = Made(collective_rpc=lambda method: [{"error": f"no {method}"}])
        kv_cache_manager = Made(block_pool=Made(get_num_free_blocks=lambda: 5))
        waiting = ()
        requests: ClassVar[dict[str, Any]] = {"a": None}

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
    made._tracekit_recording = V1Recording(made, Session())  # type: ignore[arg-type]
    return made


SAMPLED = Made(sampled_token_ids=[[1]], req_id_to_index={"a": 0}, logprobs=None, prompt_logprobs_dict={})


def test_calls_with_keywords_are_recorded_like_any_other(scheduler: Any) -> None:
    output = scheduler.schedule(throttle=True)
    assert output.throttle
    assert scheduler.update_from_output(scheduler_output=output, model_runner_output=SAMPLED) == {0: "outputs"}
    assert scheduler.finish_requests(request_ids="a", finished_status="FINISHED_ABORTED") == [("a", 0)]
    assert scheduler.collective_rpc(method="load", timeout=3) == ["load"]
    scheduler.schedule()
    events = scheduler._tracekit_recording.session.events
    assert [type(event) for event in events] == [Step, Finished, TableRow]
    assert len(events[0]) == len(Step._fields) and events[0].moves == () and events[0].at.num_free_blocks == 5
    assert events[1][:2] == (["a"], "abort")
    assert events[2].table == "weights" and events[2].row["method"] == "load"


def test_a_step_that_another_schedule_made_is_counted_as_lost(scheduler: Any) -> None:
    output = Made(total_num_scheduled_tokens=4)
    assert scheduler.update_from_output(output, SAMPLED) == {0: "outputs"}
    session = scheduler._tracekit_recording.session
    assert not session.events and isinstance(session.lost[0][0], Step)
    recording = scheduler._tracekit_recording
    assert recording.has("a") and not recording.has("gone unseen")
    recording.hang_on(scheduler)
    scheduler.requests = {"b": None}  # a class of somebody's has a dict of its own
    assert recording.has("b") and not recording.has("a")
    recording.over = True  # it looks no more
    assert recording.has("gone unseen")


def test_a_step_or_an_abort_that_leaves_no_request_hurries_the_session(scheduler: Any) -> None:
    session = scheduler._tracekit_recording.session
    scheduler.update_from_output(scheduler.schedule(), SAMPLED)
    assert "hurry" not in session.events
    scheduler._tracekit_recording.requests = {}
    scheduler.update_from_output(scheduler.schedule(), SAMPLED)
    assert session.events.pop() == "hurry" and isinstance(session.events[-1], Step)
    scheduler.finish_requests("a", "FINISHED_ABORTED")
    assert session.events.pop() == "hurry" and isinstance(session.events[-1], Finished)


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


class Owner:
    """What may be wrapped; each method says its name."""

    def call(self) -> list[str]:
        return ["call"]

    @property
    def width(self) -> int:
        return 3


def says(name: str) -> Any:
    return lambda original, self: [name, *original(self)]


@pytest.fixture
def owner() -> Iterator[type]:
    yield type("Owner", (), {name: vars(Owner)[name] for name in ("call", "width")})
    hooks.uninstall()


def test_hooks_of_several_purposes_go_around_one_method_once_each(owner: Any) -> None:
    for _ in range(2):
        hooks.wrap(owner, "call", says("inner"))
        hooks.wrap(owner, "call", says("outer"), "another purpose")
    assert owner().call() == ["outer", "inner", "call"]


def test_what_was_installed_is_taken_out_and_the_originals_are_the_same_objects(owner: Any) -> None:
    hooks.wrap(owner, "call", says("inner"))
    hooks.wrap(owner, "call", says("outer"), "another purpose")
    hooks.wrap(owner, "width", lambda original, self: original(self) + 1)
    hooks.add(owner, "added", lambda self: "ours")
    assert owner().width == 4 and owner().added() == "ours"
    before = dict(vars(owner))
    taken = hooks.uninstall()
    assert vars(owner)["call"] is Owner.call and vars(owner)["width"] is vars(Owner)["width"]
    assert not hasattr(owner, "added") and owner().call() == ["call"]
    assert hooks.uninstall() == []
    hooks.reinstall(taken)
    hooks.reinstall(taken)
    assert owner().call() == ["outer", "inner", "call"] and owner().width == 4 and owner().added() == "ours"
    assert vars(owner).keys() == before.keys()
    hooks.uninstall()
    assert vars(owner)["call"] is Owner.call


class TimeIsUp(Exception):
    pass


class Trainer:
    def on_alarm(self, hint: str, _number: int, _frame: Any) -> None:
        raise TimeIsUp(hint)


def test_what_a_signal_handler_of_the_job_raises_while_a_hook_runs_is_the_jobs(
    owner: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRACEKIT_STRICT", raising=False)
    monkeypatch.setattr("tracekit.recorder.guard._told", set())
    monkeypatch.setattr("tracekit.recorder.guard._failures", {})

    def hook(_owner: Any, _result: Any) -> None:
        signal.raise_signal(signal.SIGUSR1)
        raise ValueError("ours")

    hooks.after(owner, "call", hook)
    before = signal.signal(signal.SIGUSR1, functools.partial(Trainer().on_alarm, "late"))
    try:
        with pytest.raises(TimeIsUp):
            owner().call()
        signal.signal(signal.SIGUSR1, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            owner().call()
        signal.signal(signal.SIGUSR1, lambda *_: None)
        assert owner().call() == ["call"]
        assert owner().call() == ["call"]
    finally:
        signal.signal(signal.SIGUSR1, before)
    # each time something is missing in the trace
    missing = "the hook hook failed ({}): what it would have recorded is missing"
    assert guard.failures() == [missing.format(kind) for kind in ("TimeIsUp", "KeyboardInterrupt", "ValueError")]
    assert capsys.readouterr().err.count("the hook hook failed") == 1


def test_a_module_s_function_is_restored_too(owner: Any) -> None:
    module = ModuleType("module")
    module.cut = original = lambda logits: logits  # type: ignore[attr-defined]
    hooks.wrap(module, "cut", lambda original, logits: original(logits) + 1)
    assert module.cut(1) == 2
    hooks.uninstall()
    assert module.cut is original


def test_below_somebody_else_s_wrap_ours_does_nothing_and_says_so(
    owner: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracekit.recorder.guard._told", set())
    seen: list[Any] = []
    hooks.wrap(owner, "call", says("inner"))
    hooks.after(owner, "call", lambda *_: seen.append("after"))  # the same purpose: not a second time
    ours = owner.call

    @functools.wraps(ours)
    def theirs(self: Any) -> list[str]:
        return ["theirs", *ours(self)]

    owner.call = theirs
    hooks.wrap(owner, "call", says("outer"), "another purpose")
    assert owner().call() == ["outer", "theirs", "inner", "call"]
    taken = hooks.uninstall()
    assert owner.call is theirs and owner().call() == ["theirs", "call"]
    assert capsys.readouterr().err.count("Owner.call was wrapped by others too") == 1
    hooks.reinstall(taken)
    assert owner().call() == ["outer", "theirs", "inner", "call"]
    hooks.uninstall()
    owner.call = ours  # they take theirs out at last
    hooks.uninstall()
    assert owner.call is Owner.call and seen == []


def test_a_hook_that_calls_after_is_switched_off_below_others(owner: Any) -> None:
    seen: list[Any] = []
    hooks.after(owner, "call", lambda _self, result: seen.append(result))
    ours = owner.call
    owner.call = lambda self: ours(self)
    owner().call()
    hooks.uninstall()
    owner().call()
    assert seen == [["call"]]


def test_a_hook_below_a_wrap_that_forgets_our_mark_stays_off_when_it_is_put_in_again(owner: Any) -> None:
    hooks.wrap(owner, "call", says("ours"))
    ours = owner.call
    owner.call = lambda self: ["theirs", *ours(self)]
    hooks.reinstall(hooks.uninstall())
    hooks.wrap(owner, "call", says("ours"))
    assert owner().call() == ["ours", "theirs", "call"]


def test_a_step_is_not_recorded_once_the_hooks_are_out(scheduler: Any) -> None:
    schedule, update = type(scheduler).schedule, type(scheduler).update_from_output
    scheduler.update_from_output(scheduler.schedule(), SAMPLED)
    hooks.uninstall()
    for call in ("schedule", "update_from_output"):
        assert not hasattr(getattr(type(scheduler), call), "_tracekit")
    output = schedule(scheduler)  # somebody kept our wraps
    events = list(scheduler._tracekit_recording.session.events)
    assert update(scheduler, output, SAMPLED) == {0: "outputs"}
    assert scheduler._tracekit_recording.session.events == events and len(events) == 1
