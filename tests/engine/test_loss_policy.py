"""A real engine whose daemon is stopped for a while: whole requests are shed, or the engine waits; to the row, both."""

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.engine import engine_environ, job, then, tokens_of, wait_for
from helpers.traced import OneEngine, completions
from helpers.wire import DaemonProcess
from tracekit.audit.doctor.examine import examine
from tracekit.engines.env import EngineEnv
from tracekit.tables import SHED
from tracekit.trace.reader import open_trace

pytestmark = pytest.mark.engine

REQUESTS, TOKENS = 14 * 8, 64


def stands_still(look: Callable[[], object], secs: float = 8) -> None:
    """Wait until a look has shown the same for so long."""
    said, since = look(), time.monotonic()
    while time.monotonic() - since < secs:
        if (now := look()) != said:
            said, since = now, time.monotonic()
        time.sleep(0.1)


def test_a_stopped_daemon_sheds_requests_or_stalls_the_engine(
    v1_env: EngineEnv, tiny_model: Path, short_path: Path, tmp_path: Path
) -> None:
    daemon = DaemonProcess(short_path)
    folders = {policy: tmp_path / policy for policy in ("drop", "lossless")}
    for folder in folders.values():
        folder.mkdir()
    command = job("waves.py", tiny_model, folders["drop"], "drop")
    command += then("waves.py", tiny_model, folders["lossless"], "lossless")
    log = tmp_path / "log.txt"
    process = None
    try:
        environ = engine_environ(v1_env, TRACEKIT_DAEMON=daemon.start().address, TRACEKIT_WINDOW_BYTES="65536")
        with open(log, "wb") as file:
            process = subprocess.Popen(command, env=environ, stdout=file, stderr=file)

        def reached(policy: str, name: str) -> None:
            wait_for(lambda: (folders[policy] / name).exists() or process.poll() is not None, f"{policy}/{name}")
            assert process.poll() is None, log.read_text()[-4000:]

        reached("drop", "half")
        daemon.signal(signal.SIGSTOP)
        (folders["drop"] / "go").touch()
        reached("drop", "late")
        daemon.signal(signal.SIGCONT)
        stands_still(lambda: open_trace(daemon.spool).rows("tokens"), 3)  # what is kept is delivered
        (folders["drop"] / "on").touch()
        reached("lossless", "half")
        daemon.signal(signal.SIGSTOP)
        (folders["lossless"] / "go").touch()
        stands_still((folders["lossless"] / "wave").read_text)
        assert not (folders["lossless"] / "tokens.json").exists()  # it waits
        daemon.signal(signal.SIGCONT)
        assert process.wait(300) == 0, log.read_text()[-4000:]
        assert daemon.stop() == 3
    finally:
        if process is not None and process.poll() is None:
            process.kill()
        daemon.end()
    sampled = tokens_of(folders["drop"])
    assert tokens_of(folders["lossless"]) == sampled and len(sampled) == REQUESTS  # nothing that it samples changes
    whole = open_trace(daemon.out)
    dropped, kept = (OneEngine(whole, number) for number in (0, 1))

    assert not kept.all_losses() and kept.rows("tokens") == REQUESTS * TOKENS and kept.rows("shed") == 0
    assert {tuple(c["token_ids"]) for c in completions(kept).values()} == {tuple(ids) for ids in sampled}
    stalls = kept.table("stalls").to_pylist()
    assert sum(row["end_ns"] - row["begin_ns"] for row in stalls) > 1e9 and not any(r["gave_up"] for r in stalls)

    lost: Counter[str] = Counter()
    for loss in dropped.all_losses():
        lost.update(loss.rows)
    assert SHED in {loss.reason for loss in dropped.all_losses()} and dropped.rows("stalls") == 0
    twin = {"tokens": REQUESTS * TOKENS, "topk": REQUESTS * TOKENS, "requests": REQUESTS, "finishes": REQUESTS}
    twin |= {name: kept.rows(name) for name in ("steps", "scheduled")}
    assert {name: dropped.rows(name) + lost[name] for name in twin} == twin
    shed = dropped.table("shed").to_pylist()
    assert 8 <= len(shed) < REQUESTS - 8 and {row["request"] for row in shed}.isdisjoint(
        dropped.table("tokens").column("request").to_pylist()
    )
    # those of the first wave and of the last have no hole
    found = list(completions(dropped).values())
    assert sum(len(c["token_ids"]) == TOKENS for c in found) >= 16
    assert examine(whole).exit_code == 3
