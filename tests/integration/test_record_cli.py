"""Bad input to ``tracekit record``: one sentence, the right exit status, nothing written over, no traceback."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from helpers.wire import DaemonProcess
from tracekit.errors import EXIT_DATA_LOST, EXIT_FAILED, EXIT_OK, EXIT_USAGE
from tracekit.rpc import messages


def tracekit(*argv: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tracekit", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def check_refused(done: "subprocess.CompletedProcess[str]", code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    sentence = done.stderr.strip().splitlines()[-1]
    for part in parts:
        assert part in sentence


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n')
    return path


def test_malformed_prompts_name_the_line(tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "t.arrow"
    path.write_text('{"prompt": "a"}\n{"prompt": \n')
    check_refused(tracekit("record", "--prompts", path, "--model", tmp_path, "-o", out), EXIT_USAGE, "line 2")
    path.write_text(json.dumps({"prompt": "a", "temprature": 1}))
    check_refused(tracekit("record", "--prompts", path, "--model", tmp_path, "-o", out), EXIT_USAGE, "temprature")
    check_refused(
        tracekit("record", "--prompts", tmp_path / "none", "--model", tmp_path, "-o", out), EXIT_USAGE, "none"
    )
    assert not out.exists()


def test_unknown_engine(prompts: Path, tmp_path: Path) -> None:
    argv = ("record", "--engine", "v9", "--prompts", prompts, "--model", tmp_path, "-o", tmp_path / "t.arrow")
    check_refused(tracekit(*argv), EXIT_USAGE, "v9", "v1")


def test_unknown_logprobs_option(prompts: Path, tmp_path: Path) -> None:
    argv = ("record", "--logprobs", "raw", "--prompts", prompts, "--model", tmp_path, "-o", tmp_path / "t.arrow")
    check_refused(tracekit(*argv), EXIT_USAGE, "raw", "client, engine, both")


def test_environment_without_vllm(prompts: Path, tmp_path: Path) -> None:
    argv = ("record", "--python", sys.executable, "--prompts", prompts, "--model", tmp_path, "-o", tmp_path / "t.arrow")
    check_refused(tracekit(*argv), EXIT_FAILED, "vLLM is not installed")


def test_missing_model_folder(prompts: Path, tmp_path: Path) -> None:
    argv = ("record", "--prompts", prompts, "--model", tmp_path / "no-model", "-o", tmp_path / "t.arrow")
    check_refused(tracekit(*argv), EXIT_FAILED, "no-model")


def test_existing_output_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "t.arrow"
    out.write_text("precious")
    check_refused(tracekit("record", "-o", out, "--", sys.executable, "-c", "pass"), EXIT_FAILED, "exists")
    assert out.read_text() == "precious"


def test_output_folder_that_is_missing(tmp_path: Path) -> None:
    argv = ("record", "-o", tmp_path / "no" / "t.arrow", "--", sys.executable, "-c", "pass")
    check_refused(tracekit(*argv), EXIT_FAILED, "cannot write")


def test_unreachable_daemon(tmp_path: Path) -> None:
    argv = ("record", "--daemon", f"unix:{tmp_path}/d.sock", "--", sys.executable, "-c", "pass")
    check_refused(tracekit(*argv), EXIT_FAILED, "d.sock")


@pytest.fixture
def daemon_of_the_future(tmp_path: Path) -> Iterator[str]:
    """A server that answers Describe with another protocol version."""

    def describe(request: object, context: grpc.ServicerContext) -> object:
        return messages.DescribeReply(protocol=messages.PROTOCOL + 1, schema=1, version="9.9")

    handler = grpc.unary_unary_rpc_method_handler(
        describe,
        request_deserializer=messages.DescribeRequest.FromString,
        response_serializer=messages.DescribeReply.SerializeToString,
    )
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("tracekit.v1.Control", {"Describe": handler}),)
    )
    address = f"unix:{tmp_path}/f.sock"
    server.add_insecure_port(address)
    server.start()
    yield address
    server.stop(0).wait()


def test_daemon_of_another_protocol_version(daemon_of_the_future: str) -> None:
    argv = ("record", "--daemon", daemon_of_the_future, "--", sys.executable, "-c", "pass")
    check_refused(tracekit(*argv), EXIT_FAILED, str(messages.PROTOCOL + 1))


@pytest.mark.parametrize(
    "argv",
    [
        ("-o", "t.arrow", "--prompts", "p", "--model", "m", "--", "true"),
        ("-o", "t.arrow", "--completions", "c", "--", "true"),
        ("-o", "t.arrow", "--daemon", "unix:d.sock", "--", "true"),
        ("-o", "t.arrow", "--daemon", "unix:d.sock"),
        ("-o", "t.arrow", "--model", "m", "--", "true"),
        ("-o", "t.arrow", "--prompts", "p"),
        ("-o", "t.arrow", "--", "no-such-command-anywhere"),
    ],
)
def test_contradicting_options(argv: tuple[str, ...], tmp_path: Path) -> None:
    absolute = [str(tmp_path / a) if a == "t.arrow" else a for a in argv]
    check_refused(tracekit("record", *absolute), EXIT_USAGE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["temperature=hot", "temprature=1", "logit_bias=3"])
def test_sampling_options_are_checked_like_a_line_of_the_file(field: str, prompts: Path, tmp_path: Path) -> None:
    argv = ("record", "--engine", "v9", "--prompts", prompts, "--model", tmp_path, "-o", tmp_path / "t.arrow")
    check_refused(tracekit(*argv, "--sampling", field), EXIT_USAGE, field.partition("=")[0])


def test_what_is_left_out_is_taken_by_default_and_said(tmp_path: Path) -> None:
    done = tracekit("record", "--model", tmp_path / "none", cwd=tmp_path)
    check_refused(done, EXIT_FAILED, "no model folder")
    said = done.stderr.splitlines()[0]
    assert said == (
        "tracekit: taken by default: --engine v1, --prompts demo, "
        "--sampling temperature=0.7 top_p=0.9 max_tokens=64, -o trace.arrow"
    )
    done = tracekit("record", "--engine", "v9", "--sampling", "max_tokens=8", cwd=tmp_path)
    check_refused(done, EXIT_USAGE, "v9")
    assert "--model demo, --prompts demo, --sampling temperature=0.7 top_p=0.9, --engine-arg" in done.stderr
    assert "by default" not in tracekit("record", "--daemon", f"unix:{tmp_path}/d", "--", "true", cwd=tmp_path).stderr
    assert not list(tmp_path.iterdir())


def test_the_default_output_is_not_written_over(tmp_path: Path) -> None:
    out = tmp_path / "trace.arrow"
    out.write_text("precious")
    for argv in (("--engine", "v1"), ("--", sys.executable, "-c", "pass")):
        done = tracekit("record", *argv, cwd=tmp_path)
        check_refused(done, EXIT_FAILED, "exists", "trace.arrow")
        assert len(done.stderr.splitlines()) == 1  # before anything is made or started
    assert out.read_text() == "precious"


def test_a_command_that_cannot_be_started_leaves_no_trace(tmp_path: Path) -> None:
    script = tmp_path / "job"
    script.write_text("import vllm\n")  # no #! line
    script.chmod(0o700)
    done = tracekit("record", "-o", tmp_path / "t.arrow", "--", script)
    check_refused(done, EXIT_USAGE, "cannot be started", str(script))
    assert list(tmp_path.iterdir()) == [script]
    script.chmod(0o600)
    done = tracekit("record", "-o", tmp_path / "t.arrow", "--", script)
    check_refused(done, EXIT_USAGE, "not an executable file", str(script))
    assert list(tmp_path.iterdir()) == [script]


def test_only_notes_of_this_job_count_as_lost(short_path: Path) -> None:
    with_note = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    left = {"engine_id": "b" * 32, "from_seq": 1, "to_seq": 2, "rows": {"tokens": 5}, "produced": {"tokens": 5}}
    folder = short_path / "run"
    folder.mkdir(mode=0o700)
    old, new = (folder / f"d.sock.undelivered-{name * 32}.json" for name in "ab")
    old.write_text('{"rows": {"tokens": 7}, "reason": "yesterday"}')
    process = DaemonProcess(short_path).start()
    try:
        argv = ("record", "--daemon", process.address, "--", sys.executable, "-c")
        done = tracekit(*argv, "pass")
        assert done.returncode == EXIT_OK and "yesterday" not in done.stderr
        done = tracekit(*argv, with_note, new, json.dumps({**left, "reason": "today"}))
        assert done.returncode == EXIT_DATA_LOST and "5 tokens (today)" in done.stderr
        done = tracekit(*argv, with_note, new, "[half of a no")
        assert done.returncode == EXIT_DATA_LOST and "cannot be read" in done.stderr
    finally:
        process.end()
    assert "Traceback" not in done.stderr and "yesterday" not in done.stderr


def test_the_job_is_told_how_it_is_recorded(tmp_path: Path) -> None:
    names = ("RUN", "LOSSLESS", "MAX_STALL_MS")
    program = f"import os; print([os.environ.get('TRACEKIT_' + name) for name in {names}])"
    options = ("--run", "job-7", "--lossless", "--max-stall-ms", "0")
    for given, told in ((options, ["job-7", "1", "0"]), ((), [None, None, None])):
        done = tracekit("record", *given, "-o", tmp_path / "t.arrow", "--", sys.executable, "-c", program)
        assert str(told) in done.stdout, done.stderr
    check_refused(tracekit("record", "--max-stall-ms", "5", "--", "true"), 2, "--max-stall-ms goes with --lossless")


def test_a_job_without_vllm_is_told_so(tmp_path: Path) -> None:
    done = tracekit("record", "-o", tmp_path / "t.arrow", "--", sys.executable, "-c", "print('hello')")
    assert done.returncode == EXIT_FAILED and done.stdout == "hello\n"
    assert "no engine reported" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_exit_status_of_a_failing_job_is_told_and_ours(tmp_path: Path) -> None:
    done = tracekit("record", "-o", tmp_path / "t.arrow", "--", sys.executable, "-c", "raise SystemExit(7)")
    check_refused(done, 7, "exit status 7 before any engine reported")
    assert not list(tmp_path.iterdir())
