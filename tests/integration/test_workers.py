"""`tracekit replay --workers`: Ray actors give what this process gives, to the bit, and may be killed."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from helpers.factories import make_engine, make_tables, write_trace
from helpers.mortal import mortal, refusing
from helpers.tiny_models import VOCAB, write_model
from tracekit.errors import UsageError, WorkersError
from tracekit.replay import workers as workers_module
from tracekit.replay.runner import replay
from tracekit.replay.workers import check_workers, threads_each


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, Path]:
    """A trace of 12 rollouts under two weight versions, and its model."""
    folder = tmp_path_factory.mktemp("workers")
    model = write_model(folder / "tiny", "llama")
    tables = make_tables(12, 16, engine=make_engine(logprobs_mode="raw_logprobs"))
    rng = np.random.default_rng(3)
    tables["requests"]["prompt_token_ids"] = [rng.integers(3, VOCAB, 5).astype("u4") for _ in range(12)]
    tables["tokens"]["token_id"] = rng.integers(3, VOCAB, 12 * 16).astype("u4")
    write_trace(folder / "t.arrow", [tables])
    return folder / "t.arrow", model


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster():
    """A Ray that runs already, as in a program that uses it; workers take part in it and leave it running."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
             object_store_memory=80 << 20)  # fmt: skip
    yield
    assert ray.is_initialized()
    ray.shutdown()


def table(recorded, **options):
    trace, model = recorded
    return replay(trace, model, dtype="float32", device="cpu", max_batch_tokens=64, expect="raw", **options).tokens


def test_two_workers_give_the_numbers_of_none_to_the_bit(recorded, one_thread, cluster, tmp_path):
    assert table(recorded, workers=2, load=mortal(tmp_path, times=0, together=2)).equals(table(recorded))
    # so small a model's bits do not hang on the threads; those of real ones do
    assert [path.read_text() for path in tmp_path.glob("ran-*")] == ["1 threads"] * 2


def test_a_worker_that_is_killed_loses_nothing(recorded, one_thread, cluster, tmp_path, capsys):
    assert table(recorded, workers=2, load=mortal(tmp_path, times=1, together=2)).equals(table(recorded))
    assert len(list(tmp_path.glob("killed-*"))) == 1
    assert capsys.readouterr().out == ""  # which is the verdict's place, whatever Ray has to say


def test_a_unit_that_ends_every_worker_ends_the_replay_with_one_sentence(recorded, one_thread, cluster, tmp_path):
    with pytest.raises(WorkersError, match="a worker ended while it scored the same unit, 3 times: The actor is dead"):
        table(recorded, workers=1, load=mortal(tmp_path, times=99, after=0))
    assert len(list(tmp_path.glob("killed-*"))) == 3


def test_what_a_worker_cannot_do_is_one_sentence(recorded, one_thread, cluster):
    with pytest.raises(WorkersError, match=rf"there is no model folder: {recorded[1]} \(on {socket.gethostname()}\)"):
        table(recorded, workers=1, load=refusing())


def test_more_workers_than_there_is_room_for_are_refused(recorded, one_thread, cluster):
    with pytest.raises(WorkersError, match="there is room for 2 workers of 1 threads"):
        table(recorded, workers=3)


def test_other_workers_are_usage_errors():
    for text in ("0", "-1", "many", "ray://", "http://there:1"):
        with pytest.raises(UsageError, match=r"--workers takes a number or ray://HOST:PORT"):
            check_workers(text)
    check_workers("3"), check_workers("ray://there:10001")


def test_workers_share_the_threads_of_this_process_unless_they_were_set(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_each(*a) for a in (("2", 8), ("3", 8), ("9", 8), ("ray://there:1", 8))] == [4, 2, 1, 8]
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert threads_each("2", 8) == 8


def test_without_ray_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(workers_module, "find_spec", lambda name: None)
    with pytest.raises(WorkersError, match="--workers needs Ray: pip install ray"):
        check_workers("2")


def command(recorded, *options):
    trace, model = recorded
    argv = [sys.executable, "-m", "tracekit", "replay", str(trace), "--model", str(model), "--dtype", "float32"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*argv, "--device", "cpu", *options], capture_output=True, text=True, env=environ)
    return done.returncode, done.stdout, done.stderr


def judged(recorded, *options):
    code, out, err = command(recorded, "--expect", "raw", "--json", *options)
    assert out, err
    facts = json.loads(out)
    of_worker = facts["scoring"].pop("worker_peak_bytes")
    assert of_worker > 50 << 20 if "--workers" in options else of_worker is None  # torch alone takes more
    for name in ("secs", "peak_bytes"):
        del facts["scoring"][name]
    return code, facts, [line for line in err.splitlines() if not line.startswith("replay [")]


def test_the_command_starts_and_ends_a_ray_of_its_own_and_says_nothing_of_it(recorded):
    assert judged(recorded, "--workers", "2") == judged(recorded)


@pytest.mark.long  # a Ray head with ports of its own takes a minute to start on a busy machine
def test_a_cluster_that_runs_elsewhere_scores_to_the_bit(recorded, short_path, monkeypatch):
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        port, client_port, agent_port = (probe.getsockname()[1] for probe in probes)
    for name, value in (("RAY_AUTH_MODE", "token"), ("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)):
        monkeypatch.setenv(name, value)
    options = ["--num-cpus=1", "--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=83886080"]
    argv = [Path(sys.executable).parent / "ray", "start", "--head", "--block", f"--temp-dir={short_path}"]
    argv += [
        f"--port={port}",
        f"--runtime-env-agent-port={agent_port}",
        f"--ray-client-server-port={client_port}",
        *options,
    ]
    head = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", client_port)).close()
                break
            except OSError:
                time.sleep(0.1)
        code, facts, _ = judged(recorded, "--workers", f"ray://127.0.0.1:{client_port}")
        assert (code, facts) == judged(recorded)[:2]
    finally:
        head.terminate()
        head.wait()
    code, out, err = command(recorded, "--workers", f"ray://127.0.0.1:{client_port}")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"tracekit: error: no Ray for --workers ray://127.0.0.1:{client_port}: ")


PROGRAM = """
import sys
from pathlib import Path
from helpers.mortal import mortal, refusing
from tracekit.replay.runner import replay
if __name__ == "__main__":
    load = mortal(Path(sys.argv[3]), times=0, secs=600)
    replay(sys.argv[1], sys.argv[2], dtype="float32", device="cpu", expect="raw", workers=1, load=load)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_and_their_ray_end_with_the_replay(recorded, tmp_path, number):
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, recorded), str(tmp_path)],
                               stderr=subprocess.DEVNULL)  # fmt: skip
    until(lambda: list(tmp_path.glob("ran-*")))
    (ran,) = tmp_path.glob("ran-*")
    pids = [ran.name.removeprefix("ran-"), *children(program.pid)]
    assert len(pids) > 2
    for _ in range(3):  # Python drops an interrupt that comes in a destructor or a callback of Ray's: pressed again
        program.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(30)
            break
    assert program.returncode is not None
    until(lambda: not [pid for pid in pids if is_running(pid)])


def until(told):
    for _ in range(900):
        if told():
            return
        time.sleep(0.1)
    raise AssertionError("it takes too long")


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
