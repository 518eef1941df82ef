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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import numpy as np

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


@contextmanager
def recording(folder: Path, rng: random.Random, engines: int, *options: str) -> Iterator[tuple[DaemonProcess, Path]]:
    """Run a daemon and engines that send to it; afterwards they end, and the folder has what they note."""
    folder.mkdir(mode=0o700)
    notes = folder / "notes"
    notes.mkdir()
    daemon = DaemonProcess(folder)
    daemon.argv += options
    daemon.start()
    program = "import sys; from helpers.oracle import main; main(sys.argv[1:])"
    argv = [sys.executable, "-c", program, daemon.address, str(notes)]
    producers = [subprocess.Popen([*argv, f"{rng.getrandbits(128):032x}", "0.02"]) for _ in range(engines)]
    try:
        yield daemon, notes
        (notes / "stop").touch()
        for producer in producers:
            assert producer.wait(180) == 0
    except BaseException:
        daemon.end()
        raise
    finally:
        for producer in producers:
            producer.kill()
            producer.wait()


def trial(folder: Path, rng: random.Random, kills: int, engines: int = 2) -> tuple[Judged, int]:
    """Hurt a daemon `kills` times while engines send, seal, and judge; return the faults done as well."""
    done = 0
    with recording(folder, rng, engines, "--roll-bytes", "60000", "--roll-secs", "0.2") as (daemon, notes):
        daemon.forked = True  # whoever comes after the first
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
    try:
        done += _seal(daemon, rng)
    finally:
        daemon.end()
    return judge(daemon.out, notes), done


def soak(folder: Path, rng: random.Random, seconds: float, engines: int = 4) -> Judged:
    """Let engines send for a long time; print what the daemon grows by, then judge as after any trial."""
    seen = []
    with recording(folder, rng, engines, "--roll-bytes", "4000000", "--roll-secs", "20") as (daemon, notes):
        begin = time.monotonic()
        while (now := time.monotonic() - begin) < seconds:
            proc = Path(f"/proc/{daemon.process.pid}")
            pages = int((proc / "statm").read_text().split()[1])
            seen.append((now, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(list((proc / "fd").iterdir()))))
            if len(seen) % 12 == 2:
                # the first fifth, in which buffers and pools get their sizes, is no growth
                times, memory, files = zip(*seen[len(seen) // 5 :], strict=True)
                slope = float(np.polyfit(times, memory, 1)[0]) * 3600
                acked = sum(int(note.read_bytes() or b"0") for note in notes.glob("*.acked"))
                print(f"{now:.0f} s, {acked} rows acked, {memory[-1]:.1f} MB, {slope:+.1f} MB an hour, "
                      f"{min(files)} to {max(files)} descriptors", flush=True)  # fmt: skip
            time.sleep(5)
    assert daemon.stop(600) in (0, 3), daemon.stderr()
    return judge(daemon.out, notes)


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
            assert code in (0, 3), f"exit status {code}: {daemon.stderr()}"
        except subprocess.TimeoutExpired:
            daemon.kill()
            kills += 1
        if daemon.out.exists() and not daemon.spool.exists():
            return kills
        # the socket of one that was killed still lies there: a daemon that does not listen yet is not asked to end
        daemon.socket.unlink(missing_ok=True)
        # where the trace was named already, the next one only finishes, and ends by itself
        daemon.argv[daemon.argv.index("--grace") + 1] = "0"
        daemon.launch()
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
    parser.add_argument("--at-once", type=int, default=3 * (os.cpu_count() or 1), help="trials; each mostly waits")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="kill nothing, and see what the daemon grows by")
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", flush=True)
    rng, total, faults = random.Random(seed), Judged(), 0
    if given.soak is not None:
        with tempfile.TemporaryDirectory(prefix="tk-") as folder:
            total = soak(Path(folder) / "t", rng, given.soak)
        print(total)
        sys.exit(0 if total.good else 1)

    def one(number: int) -> tuple[Judged, int]:
        with tempfile.TemporaryDirectory(prefix="tk-") as folder:
            return trial(Path(folder) / "t", random.Random(f"{seed} {number}"), min(given.per_trial, given.kills))

    with ThreadPoolExecutor(given.at_once) as pool:
        trials = [pool.submit(one, number) for number in range(-(-given.kills // given.per_trial))]
        try:
            for ended in as_completed(trials):
                found, done = ended.result()
                total.update(found)
                faults += done
                print(f"{faults} kills, {total}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)  # one that failed ends the rest, too
    sys.exit(0 if total.good else 1)


if __name__ == "__main__":
    run()
