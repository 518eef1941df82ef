"""Opening a recording: once per engine, hung on what the hooks see, and described in the trace's first row."""

import gc
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tracekit.recorder import stream as stream_module
from tracekit.recorder.settings import options, probe_folder
from tracekit.recorder.vllm.describe import Described
from tracekit.recorder.vllm.opening import open_recording, recording_of
from tracekit.recorder.vllm.recording import Recording
from tracekit.recorder.vllm.rows import Rows
from tracekit.recorder.vllm.v1.recording import open_for


class Made(SimpleNamespace):
    """An object of the engine's, which can be referred to weakly."""


class Line:
    """In place of the stream to a daemon."""

    opened: ClassVar[list[Any]] = []

    def __init__(self, address: str, engine_id: str, redaction: Any = None, **_: Any) -> None:
        self.address, self.engine_id, self.redaction = address, engine_id, redaction
        self.on_command: Any = None
        self.tables: dict[str, Any] = {}
        self.closed = threading.Event()
        self.opened.append(self)

    def put(self, tables: dict[str, Any], kept: Any = None) -> None:
        self.tables |= tables

    def lose(self, rows: dict[str, int], reason: str) -> None:
        raise AssertionError((rows, reason))

    def last_seq(self) -> int:
        return 1

    def num_lost(self, table: str) -> int:
        return 0

    def is_short(self) -> bool:
        return False

    def close(self, timeout_secs: float, whole: bool = True) -> None:
        self.closed.set()


CONFIG = Made(
    model_config=Made(hf_config={"vocab_size": 7}, model="/m"), parallel_config=Made(data_parallel_rank=1), secret=1
)


@pytest.fixture(autouse=True)
def line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "Stream", Line)
    monkeypatch.setattr(Line, "opened", [])
    monkeypatch.setenv("TRACEKIT_DAEMON", "unix:/nowhere/d.sock")
    monkeypatch.setattr("tracekit.recorder.guard._told", set())


def opened(*owners: Any) -> Recording | None:
    return open_recording(options(), owners, Recording, Rows, Described("v9", CONFIG, "raw_logprobs", {"blocks": 5}))


def test_it_hangs_on_every_owner_and_describes_the_engine() -> None:
    owners = Made(), Made()
    recording = opened(*owners)
    assert recording is not None and all(recording_of(owner) is recording for owner in owners)
    (line,) = Line.opened
    assert line.address == "unix:/nowhere/d.sock" and line.on_command is not None  # commands are taken
    recording.close()
    engines = line.tables["engines"]
    assert engines["engine_id"] == [line.engine_id] and engines["kind"] == ["v9"] and engines["rank"].tolist() == [1]
    assert engines["logprobs_mode"] == ["raw_logprobs"] and '"blocks":5' in engines["config"][0]


def test_an_engine_that_its_owner_lets_go_of_is_freed_and_its_recording_ends() -> None:
    engine, executor = Made(), Made()
    recording = opened(engine, executor)
    assert recording is not None
    executor.collective_rpc = lambda _: []
    recording.meet([], executor, lambda executor: executor.collective_rpc("fingerprint"))
    recording.changed("load_weights", 0)
    alive = [weakref.ref(owner) for owner in (engine, executor)]
    del engine, executor
    gc.collect()
    assert [ref() for ref in alive] == [None, None] and recording.owners() == []
    (line,) = Line.opened
    assert line.closed.wait(30)
    assert line.tables["weights"]["method"] == ["load_weights"]  # what no forward followed
    recording.close()


def test_a_request_that_is_gone_unseen_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Made()
    recording = opened(engine)
    assert recording is not None and recording.session.last_look() == ""
    with monkeypatch.context() as patch:
        patch.setattr(Rows, "num_unseen", lambda _rows, has: 0 if has("a") else 1)
        patch.setattr(Recording, "has", lambda _recording, request_id: request_id != "a")
        assert recording.session.last_look() == "the end of 1 requests was not seen"
    recording.close()


def test_an_engine_is_recorded_once() -> None:
    owner = Made()
    recording = opened(owner)
    assert opened(owner) is None and recording_of(owner) is recording and len(Line.opened) == 1
    assert recording is not None
    recording.close()


def test_an_engine_that_does_not_generate_is_left_alone_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    scheduler = Made(vllm_config=Made(model_config=Made(runner_type="pooling")))
    assert open_for(scheduler, options()) is None and not Line.opened
    told = "an engine that does not generate is not recorded; recording is off, the engine is untouched"
    assert capsys.readouterr().err == f"tracekit: {told}\n"


def test_without_a_daemon_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEKIT_DAEMON")
    assert opened(owner := Made()) is None and recording_of(owner) is None and not Line.opened


def test_a_wrong_option_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRACEKIT_LOGPROBS", "all")
    for _ in range(2):
        recording = opened(Made())
        assert recording is not None
        recording.close()
    assert capsys.readouterr().err.count("the logprobs option is one of") == 1


def test_a_key_to_redact_with_is_named_in_the_trace_and_one_that_others_can_read_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    monkeypatch.setenv("TRACEKIT_REDACT_KEY_FILE", str(key))
    assert opened(owner := Made()) is None and recording_of(owner) is None and not Line.opened
    key.write_bytes(b"k" * 32)
    key.chmod(0o640)
    assert opened(Made()) is None and not Line.opened
    told = capsys.readouterr().err
    assert "cannot be redacted: cannot read" in told and "cannot be redacted: others can read" in told
    assert told.count("the engine is untouched") == 2
    key.chmod(0o600)
    monkeypatch.setenv("TRACEKIT_PROBE", str(tmp_path))
    recording = opened(Made())
    assert recording is not None and probe_folder() is None
    recording.close()
    (line,) = Line.opened
    assert f'"redacted":"{line.redaction.name}"' in line.tables["engines"]["config"][0]
