"""Attaching without an engine: the folder of orders, and the switch between two steps."""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace as Made
from typing import Any

import pytest

from tracekit.cli.main import main
from tracekit.errors import AttachError
from tracekit.jobs import attaching
from tracekit.recorder import desk
from tracekit.recorder.place import Order, Place, engines, send, state_of
from tracekit.recorder.settings import Options
from tracekit.recorder.vllm import held, hooks
from tracekit.recorder.vllm.boundary import before_next
from tracekit.recorder.vllm.switch import Switch
from tracekit.rpc.credentials import Access

OPTIONS = Options("unix:/nowhere/d.sock", Access(), "client", 0.5, "/states", True, 100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "attach"


def test_an_order_arrives_once_as_it_was_given(folder: Path) -> None:
    place = Place(folder)
    place.tell({"pid": 7})
    ((name, state),) = engines(folder)
    assert state == {"pid": 7} and place.order() is None
    send(folder, name, Order("a", "start", OPTIONS))
    assert place.order() == Order("a", "start", OPTIONS) and place.order() is None
    send(folder, name, Order("b", "stop"))
    assert place.order() == Order("b", "stop")
    assert folder.stat().st_mode & 0o777 == 0o700
    place.leave()
    assert list(folder.iterdir()) == [] and engines(folder) == []


@pytest.mark.parametrize(
    "facts",
    [
        "{",
        "[]",
        json.dumps({"id": "a", "action": "explode"}),
        json.dumps({"id": "a", "action": "start"}),
        json.dumps({"id": 1, "action": "stop"}),
        json.dumps({"id": "a", "action": "start", "options": {**OPTIONS._asdict(), "access": {}, "sample": 7}}),
        json.dumps({"id": "a", "action": "start", "options": {**OPTIONS._asdict(), "access": {"x": 1}}}),
        json.dumps({"id": "a", "action": "start", "options": {**OPTIONS._asdict(), "access": {}, "probe": 7}}),
        json.dumps({"id": "a", "action": "start", "options": {**OPTIONS._asdict(), "access": {}, "lossless": "x"}}),
        json.dumps({"id": "a", "action": "start", "options": {**OPTIONS._asdict(), "access": {}, "max_stall_ms": -1}}),
        "x" * 70_000,
    ],
)
def test_what_is_no_order_is_not_followed(folder: Path, facts: str) -> None:
    place = Place(folder)
    (folder / f"{place.name}.order").write_text(facts)
    assert place.order() is None


def test_a_folder_or_a_file_that_others_could_write_to_is_refused(folder: Path, tmp_path: Path) -> None:
    place = Place(folder)
    (tmp_path / "theirs").write_text(json.dumps({"id": "a", "action": "stop"}))
    (folder / f"{place.name}.order").symlink_to(tmp_path / "theirs")
    assert place.order() is None
    folder.chmod(0o770)
    send(folder, place.name, Order("a", "stop"))
    assert place.order() is None
    for use in (lambda: Place(folder), lambda: engines(folder)):
        with pytest.raises(AttachError, match="mode 0700"):
            use()


def _live_and_die(folder: Path, said: Any) -> None:
    place = Place(folder)
    place.tell({"pid": os.getpid()})
    said.set()
    os._exit(9)


def test_what_a_killed_engine_left_is_taken_away(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    said = context.Event()
    process = context.Process(target=_live_and_die, args=(folder, said))
    process.start()
    process.join(60)
    assert said.is_set() and len(list(folder.iterdir())) == 2
    assert engines(folder) == [] and list(folder.iterdir()) == []


class Engine:
    """A scheduler whose steps go through a boundary."""

    def __init__(self) -> None:
        self.recording: Any = None
        self.requests = {"a": 1}
        self.began: list[Options] = []
        self.off = 0

    def schedule(self) -> str:
        return "step"

    def about(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "host": "here", "kind": "v9"}

    def is_gone(self) -> bool:
        return False

    def is_idle(self) -> bool:
        return not self.requests

    def refuses(self, options: Options) -> str:
        return "not so" if options.probe == "/refused" else ""

    def at_boundary(self, turn: Callable[[], None]) -> None:
        before_next(Engine, "schedule", self, turn)

    def begin(self, options: Options) -> Any:
        self.began.append(options)
        stream = Made(
            address=options.address, engine_id="9f", gave_up=lambda: "", totals=lambda: Made(produced={}, lost={})
        )
        self.recording = Made(
            stream=stream,
            options=options,
            since_step=5,
            engine_step=5,
            stopping=False,
            over=False,
            closed=0,
            trouble="",
        )
        self.recording.stop = lambda: self.recording.__dict__.update(stopping=True, over=True)
        self.recording.close = lambda _secs: self.recording.__dict__.update(closed=1)
        return self.recording

    def wind_up(self, recording: Any) -> None:
        pass

    def hooks_off(self) -> None:
        self.off += 1


@pytest.fixture
def engine() -> Iterator[Engine]:
    yield Engine()
    hooks.uninstall()


def test_it_starts_and_stops_between_two_steps_and_no_wrap_stays(engine: Engine) -> None:
    original = vars(Engine)["schedule"]
    switch = Switch(engine, None)
    assert switch.tend()["state"] == "dormant"
    assert switch.told(Order("a", "start", OPTIONS)) == ""
    assert switch.tend()["state"] == "starting" and engine.began == []
    assert engine.schedule() == "step" and engine.began == [OPTIONS]
    assert vars(Engine)["schedule"] is original
    state = switch.tend()
    assert (state["state"], state["daemon"], state["since_step"]) == ("recording", OPTIONS.address, 5)
    assert "already" in switch.told(Order("b", "start", OPTIONS))
    assert Switch(engine, None).told(Order("b", "start", OPTIONS._replace(probe="/refused"))) == "not so"
    assert switch.told(Order("c", "stop")) == "" and switch.tend()["state"] == "stopping"
    assert engine.schedule() == "step"
    assert switch.tend()["state"] == "dormant" and engine.recording.closed and engine.off == 1
    assert vars(Engine)["schedule"] is original
    assert switch.told(Order("d", "stop")) == "it is not recorded"


def test_an_idle_engine_stops_at_once_and_one_that_never_stepped_forgets_its_start(engine: Engine) -> None:
    switch = Switch(engine, None)
    switch.told(Order("a", "start", OPTIONS._replace(probe=None)))
    engine.requests = {}
    assert switch.told(Order("b", "stop")) == ""
    assert engine.schedule() == "step" and engine.began == []
    switch.told(Order("c", "start", OPTIONS._replace(probe=None)))
    engine.schedule()
    assert switch.told(Order("d", "stop")) == "" and switch.tend()["state"] == "dormant"


def test_what_cannot_be_begun_is_said_and_the_engine_steps_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRACEKIT_STRICT", raising=False)
    monkeypatch.setattr("tracekit.recorder.guard._told", set())
    monkeypatch.setattr(Engine, "begin", lambda self, options: 1 / 0)
    switch = Switch(engine, None)
    switch.told(Order("a", "start", OPTIONS))
    assert engine.schedule() == "step"
    state = switch.tend()
    assert state["state"] == "dormant" and "division" in state["failed"] and "division" in capsys.readouterr().err


def test_below_somebody_elses_wrap_a_step_runs_once(engine: Engine) -> None:
    switch = Switch(engine, None)
    switch.told(Order("a", "start", OPTIONS))
    ours, calls = Engine.schedule, []
    original = vars(Engine)["schedule"]

    def theirs(self: Any) -> str:
        calls.append(1)
        return ours(self)

    Engine.schedule = theirs  # type: ignore[method-assign]
    try:
        assert engine.schedule() == "step" and calls == [1] and engine.began == [OPTIONS]
    finally:
        Engine.schedule = original  # type: ignore[method-assign]


def test_the_desk_serves_and_the_command_tells(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACEKIT_ATTACH", str(folder))
    monkeypatch.setattr(desk, "_desk", None)
    monkeypatch.setattr(desk, "LOOK_SECS", 0.02)
    over = threading.Event()
    desk.serve(Switch(engine, None))
    stepping = threading.Thread(target=lambda: [engine.schedule() for _ in iter(lambda: over.wait(0.01), True)])
    stepping.start()
    try:
        while not attaching.find(folder):
            over.wait(0.02)

        def tracekit(*words: str) -> tuple[Any, str, str]:
            with pytest.raises(SystemExit) as done:
                main(["attach", *words])
            return (done.value.code or 0, *capsys.readouterr())

        states = str(folder.parent / "states")
        options = ("--sample", "0.5", "--probe", states, "--lossless", "--max-stall-ms", "100")
        code, out, _ = tracekit("unix:/nowhere/d.sock", "--start", *options)
        assert code == 0 and "recorded to unix:/nowhere/d.sock from step 5 on" in out
        assert engine.began == [OPTIONS._replace(probe=states)]
        code, _, err = tracekit("unix:/nowhere/d.sock", "--start")
        assert code == 1 and "already" in err
        assert tracekit("unix:/elsewhere/d.sock", "--stop")[0] == 1
        code, out, _ = tracekit("--stop", "--only", str(os.getpid()))
        assert code == 0 and out.endswith("dormant\n")
        code, _, err = tracekit("--start")
        assert code == 2 and "address" in err
        assert tracekit("--stop", "--sample", "0.5")[0] == 2
        assert tracekit("unix:/nowhere/d.sock", "--start", "--max-stall-ms", "100")[0] == 2
        assert "does not go with" in tracekit("unix:/a/d.sock", "--start", "--probe", "other", "--redact", "key")[2]
        code, out, _ = tracekit("unix:/nowhere/d.sock", "--start", "--redact", "/keys/one")
        assert code == 0 and engine.began[-1].redact == "/keys/one" and engine.began[-1].redacted is None
    finally:
        over.set()
        stepping.join()
        engine.is_gone = lambda: True  # type: ignore[method-assign]
    while list(folder.glob("*.json")):
        pass
    assert state_of(folder, "nobody") is None


class Owner:
    """What stands for an engine of vLLM."""

    def __init__(self, eager: bool) -> None:
        self.vllm_config = Made(model_config=Made(enforce_eager=eager))


def test_states_are_refused_where_they_cannot_be_or_tell_what_is_redacted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(held, "about", lambda _kind, _config: {})
    for owner, word in ((Owner(True), ""), (Owner(False), "enforce_eager")):
        told = held.Held("v1", owner, lambda: None).refuses(OPTIONS)
        assert word in told and bool(word) == bool(told)
    assert held.Held("v1", owner, lambda: None).refuses(OPTIONS._replace(probe=None)) == ""
    key = tmp_path / "key"
    asked = OPTIONS._replace(redact=str(key))
    assert "cannot be redacted: cannot read" in held.Held("v1", Owner(True), lambda: None).refuses(asked)
    key.write_bytes(bytes(32))
    key.chmod(0o600)
    assert "states tell" in held.Held("v1", Owner(True), lambda: None).refuses(asked)
    assert held.Held("v1", Owner(True), lambda: None).refuses(asked._replace(probe=None)) == ""
    # what the job was started with stands
    monkeypatch.setenv("TRACEKIT_REDACT_KEY_FILE", str(key))
    assert "states tell" in held.Held("v1", Owner(True), lambda: None).refuses(OPTIONS)
    assert OPTIONS._replace(redact="other").key_file() == str(key)


def test_print_env_names_the_two_variables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["attach", "--print-env", "--folder", str(folder)])
    out = capsys.readouterr().out
    assert not done.value.code and out.count("TRACEKIT_ATTACH") == out.count("-py3-none-any.whl") >= 4
