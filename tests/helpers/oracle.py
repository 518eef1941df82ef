"""An oracle: producers whose rows are all different, daemons that are hurt, and a judge that reads only files.

A row is known by its engine and its number. What a daemon confirmed is an obligation: producers write the confirmed
number into a file of their own, and the judge compares these files with the traces, and with nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from helpers.wire import DaemonProcess

ROWS = 20  # of a batch


def produce(address: str, folder: Path, token: str, pause: float) -> None:
    """Send numbered tokens until there is a file `stop`; note what was produced, and how many rows are confirmed."""
    from helpers.wire import numbered_tokens
    from tracekit.recorder.stream import Stream

    stream = Stream(address, token)
    name = stream.engine_id
    note = os.open(folder / f"{name}.acked", os.O_WRONLY | os.O_CREAT, 0o600)
    acked, number = -1, 0
    while not (folder / "stop").exists():
        stream.put(numbered_tokens(number * ROWS, ROWS))
        number += 1
        with stream._cond:
            seq = stream._window.acked_seq
        if seq != acked:
            acked = seq
            os.pwrite(note, b"%-20d" % (acked * ROWS), 0)
        time.sleep(pause)
    totals = stream.close(120.0)
    facts = {"produced": dict(totals.produced), "lost": dict(totals.lost), "undelivered": dict(totals.undelivered)}
    (folder / f"{name}.ended").write_text(json.dumps(facts))


class Judged(Counter):
    """Rows acked, acked and lost, there twice, and trials whose counts do not add up."""

    def __str__(self) -> str:
        return (f"{self['trials']} trials, {self['acked']} acked rows, {self['lost']} of them lost, "
                f"{self['doubled']} doubled, conservation wrong in {self['unbalanced']}")  # fmt: skip

    @property
    def good(self) -> bool:
        return self["trials"] > 0 and not (self["lost"] or self["doubled"] or self["unbalanced"])


def judge(trace_path: Path, folder: Path) -> Judged:
    """Compare what was confirmed with what lies there, and what was produced with what is stored and lost."""
    from tracekit.trace.reader import open_trace

    found = Judged(trials=1)
    trace = open_trace(trace_path)
    ids = {row["engine_id"]: row["engine"] for row in trace.engines()}
    table = trace.table("tokens")
    engines, tokens = table["engine"].to_numpy(), table["token_id"].to_numpy()
    losses = trace.losses()
    for note in sorted(folder.glob("*.acked")):
        number = ids.get(note.stem)
        stored = tokens[engines == number].tolist() if number is not None else []
        acked = int(note.read_bytes() or b"0")
        found["acked"] += acked
        found["lost"] += len(set(range(acked)) - set(stored))
        found["doubled"] += len(stored) - len(set(stored))
        ended = note.with_suffix(".ended")
        if ended.exists():
            produced = json.loads(ended.read_text())["produced"].get("tokens", 0)
            lost = sum(loss["rows"].get("tokens", 0) for loss in losses if loss["engine"] == number)
            found["unbalanced"] += produced != len(stored) + lost
    return found


def trial(folder: Path, rng: random.Random, kills: int, engines: int = 2) -> tuple[Judged, int]:
    """Hurt a daemon `kills` times while engines send, seal, and judge; return the faults done as well."""
    folder.mkdir(mode=0o700)
    notes = folder / "notes"
    notes.mkdir()
    daemon = DaemonProcess(folder)
    daemon.argv += ["--roll-bytes", "60000", "--roll-secs", "0.2"]
    daemon.start()
    program = "import sys; from helpers.oracle import main; main(sys.argv[1:])"
    argv = [sys.executable, "-c", program, daemon.address, str(notes)]
    producers = [subprocess.Popen([*argv, f"{rng.getrandbits(128):032x}", "0.02"]) for _ in range(engines)]
    done = 0
    try:
        while done < kills:
            if rng.random() < 0.8:
                _wait_for_progress(notes)
            time.sleep(rng.uniform(0.0, 0.3))
            if rng.random() < 0.2:
                daemon.signal(signal.SIGSTOP)
                time.sleep(rng.uniform(0.0, 0.1))
                daemon.signal(signal.SIGCONT)
            daemon.kill()
            done += 1
            daemon.start()
        (notes / "stop").touch()
        for producer in producers:
            assert producer.wait(180) == 0
        done += _seal(daemon, rng)
    finally:
        for producer in producers:
            producer.kill()
            producer.wait()
        daemon.end()
    return judge(daemon.out, notes), done


def _wait_for_progress(notes: Path) -> None:
    def confirmed() -> int:
        return sum(int(note.read_bytes() or b"0") for note in notes.glob("*.acked"))

    before, deadline = confirmed(), time.monotonic() + 10.0
    while confirmed() == before and time.monotonic() < deadline:
        time.sleep(0.01)


def _seal(daemon: DaemonProcess, rng: random.Random) -> int:
    """Let the daemon seal, kill it once or twice while it does, and let another one finish."""
    kills = 0
    while True:
        daemon.process.terminate()
        try:
            code = daemon.process.wait(rng.uniform(0.0, 0.4) if kills < 2 else 120)
            assert code in (0, 3), daemon.stderr()
        except subprocess.TimeoutExpired:
            daemon.kill()
            kills += 1
        if daemon.out.exists() and not daemon.spool.exists():
            return kills
        # where the trace was named already, the next one only finishes, and ends by itself
        daemon.argv[daemon.argv.index("--grace") + 1] = "0"
        daemon.process = subprocess.Popen(daemon.argv, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while daemon.process.poll() is None and not daemon.socket.exists() and time.monotonic() < deadline:
            time.sleep(0.01)


def main(argv: list[str]) -> None:
    """Be one producer."""
    address, folder, token, pause = argv
    produce(address, Path(folder), token, float(pause))


def run() -> None:
    """Do many trials, as `make faults` does, and print what came of them; exit status 1 where anything was lost."""
    import tempfile

    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--per-trial", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", flush=True)
    rng, total, faults = random.Random(seed), Judged(), 0
    while faults < given.kills:
        with tempfile.TemporaryDirectory(prefix="tk-") as folder:
            found, done = trial(Path(folder) / "t", rng, min(given.per_trial, given.kills - faults))
        total.update(found)
        faults += done
        print(f"{faults} kills, {total}", flush=True)
    sys.exit(0 if total.good else 1)


if __name__ == "__main__":
    run()
