"""What a token costs the daemon, beside what it would cost to take packed protobuf messages or to write JSON lines.

Three servers of the same kind (gRPC, asyncio, one stream) take the same tables in batches of the same size, each over a
unix socket and in a process of its own, and sync what they wrote: tracekitd as it is; one whose messages are packed
protobuf fields, stored as Arrow with zstd-1; one that writes those as JSON lines with zstd-3. Rounds alternate, medians
count. CPU is that of the server's process alone: read the ratios, this machine is shared.

    python bench/ingest.py [--sizes 256 1024 8192] [--rounds 3] [--engines 1] [--json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import synthetic
from jobs.ingest_baselines import packed_message

from tracekit.recorder.window import Window
from tracekit.rpc import messages
from tracekit.rpc.client import wait_ready
from tracekit.rpc.columns import count_rows, pack
from tracekit.rpc.frames import frame
from tracekit.rpc.identity import id_of, new_token
from tracekit.rpc.methods import RECORDER, SERVICES
from tracekit.tables import SCHEMA_VERSION

BASELINES = Path(__file__).parent / "jobs" / "ingest_baselines.py"
TOKENS = {256: 150_000, 1024: 300_000, 8192: 800_000}
KINDS = ("tracekitd", "packed", "jsonl")


class Server:
    """One of the three, started; its socket, and its CPU so far."""

    def __init__(self, kind, folder):
        self.address = f"unix:{folder}/run/d.sock"
        (folder / "run").mkdir(mode=0o700)
        if kind == "tracekitd":
            argv = ["-m", "tracekitd", "--listen", self.address, "--spool", str(folder / "spool"), "--grace", "0"]
        else:
            argv = [str(BASELINES), kind, self.address, str(folder / "out")]
        self.process = subprocess.Popen([sys.executable, *argv], stderr=subprocess.DEVNULL)
        if kind == "tracekitd":
            wait_ready(self.address, 60)
        with grpc.insecure_channel(self.address) as channel:
            grpc.channel_ready_future(channel).result(60)

    def cpu(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.kill()
        self.process.wait()


def frames_of(batches, token):
    """What a recorder sends: a hello, then its window."""
    window = Window(id_of(token), 1 << 40)
    said = messages.Hello(protocol=messages.PROTOCOL, schema=SCHEMA_VERSION, recorder_version="bench", token=token)
    yield frame(messages.Batch(engine_id=window.engine_id, hello=said))
    for tables in batches:
        window.add(pack(tables), count_rows(tables))
        yield window.next_unsent()


def send(address, sent):
    """Send messages on one stream and wait until all are confirmed: the server ends the call then."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        acks = [ack.durable_seq for ack in SERVICES[RECORDER]["Record"].on(channel)(iter(sent))]
    assert acks[-1] == len(sent) - 1, acks[-1:]


def one_run(kind, batches, engines):
    """CPU of the server and wall seconds, both per token in microseconds."""
    with tempfile.TemporaryDirectory(prefix="tk-") as folder:
        if kind == "tracekitd":
            streams = [list(frames_of(batches, new_token())) for _ in range(engines)]
        else:
            streams = [[b"", *map(packed_message, batches)]] * engines
        server = Server(kind, Path(folder))
        warm = list(frames_of(batches[:2], new_token())) if kind == "tracekitd" else streams[0][:3]
        try:
            send(server.address, warm)
            cpu, wall = server.cpu(), time.monotonic()
            with ThreadPoolExecutor(engines) as pool:
                list(pool.map(lambda sent: send(server.address, sent), streams))
            wall, cpu = time.monotonic() - wall, server.cpu() - cpu
        finally:
            server.stop()
    tokens = engines * sum(len(tables["tokens"]["request"]) for tables in batches)
    return {"cpu_us": cpu / tokens * 1e6, "tokens_per_second": tokens / wall}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", type=int, default=1, help="streams at once; each sends all")
    parser.add_argument("--only", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results = {}
    for size in given.sizes:
        batches = synthetic.capture(TOKENS.get(size, 200_000) // given.engines, batch_tokens=size)
        runs = {kind: [] for kind in given.only}
        for number in range(given.rounds):
            print(f"{size} tokens a batch, round {number + 1}", file=sys.stderr)
            for kind in given.only:
                runs[kind].append(one_run(kind, batches, given.engines))
        results[size] = {
            kind: {key: statistics.median(run[key] for run in made) for key in made[0]} for kind, made in runs.items()
        }
    print(json.dumps(results, indent=2) if given.json else as_text(results))


def as_text(results):
    lines = [f"{'batch':>7} {'':10}{'CPU us a token':>15}{'tokens a second':>17}{'times tracekitd CPU':>21}"]
    for size, kinds in results.items():
        for kind, found in kinds.items():
            ratio = found["cpu_us"] / kinds[next(iter(kinds))]["cpu_us"]
            lines.append(
                f"{size:>7} {kind:10}{found['cpu_us']:>15.2f}{found['tokens_per_second']:>17,.0f}{ratio:>21.1f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
