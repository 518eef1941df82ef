"""What the tests of the wire and the daemon share: tables of every kind, a real daemon, a client without manners."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from helpers.forked import Forked
from tracekit.errors import DaemonError
from tracekit.recorder.commands import Commands
from tracekit.recorder.session import Session
from tracekit.recorder.stream import Stream
from tracekit.recorder.vllm.recording import Recording
from tracekit.recorder.vllm.rows import Rows
from tracekit.rpc import messages
from tracekit.rpc.client import wait_ready
from tracekit.rpc.columns import ALL_NULL, LISTS, WIRE_TABLES, count_rows, pack, parse
from tracekit.rpc.identity import id_of, new_token
from tracekit.rpc.methods import RECORDER, SERVICES
from tracekit.tables import SCHEMA_VERSION
from tracekit.trace.reader import open_trace

LIMITS = {"u1": 2**8, "u4": 2**32, "u8": 2**64}
FLOATS = np.array([0.0, -0.0, -np.inf, np.inf, np.nan, -1e-45, np.float32(-0.1), -3.4e38], dtype="f4")
READY_SECS = 60
TEXTS = ("", "a", "é\0漢", "x" * 50)
# where tracekit.tables says JSON
JSON_TEXTS = ("{}", '{"a": "é漢"}', '{"temperature":1.0}')
JSON_COLUMNS = {"config", "sampling_params", "labels", "arguments", "answer"}


def column_values(kind: str, rows: int, seed: int, texts=TEXTS):
    """Values of a column kind, with the extremes of its type among them."""
    rng = np.random.default_rng(seed)
    base, nullable = kind.rstrip("?"), kind.endswith("?")
    nulls = rng.random(rows) < 0.3 if nullable else np.zeros(rows, dtype=bool)
    if base == "str":
        texts = [texts[i] for i in rng.integers(0, len(texts), rows)]
        return [None if null else text for text, null in zip(texts, nulls, strict=True)]
    if base == "list<u4>":
        return [rng.integers(0, 2**32, n, dtype="u4") for n in rng.integers(0, 5, rows)]
    if base == "list<f4>":
        return [rng.choice(FLOATS, n) for n in rng.integers(0, 5, rows)]
    if base == "f4":
        array = rng.choice(FLOATS, rows)
    elif base == "i8":
        array = rng.integers(-(2**63), 2**63, rows, dtype="i8", endpoint=False)
    else:
        array = rng.integers(0, LIMITS[base], rows, dtype=base, endpoint=False)
    return np.ma.MaskedArray(array, mask=nulls) if nulls.any() else array


ENGINE_TABLES = [name for name in WIRE_TABLES if name != "annotations"]  # which a trainer sends


def all_tables(rows: int, seed: int = 0, num_requests: int | None = None, names=ENGINE_TABLES):
    """Random rows of every table that an engine sends, or of those of other names."""
    tables = {
        name: {
            column: column_values(kind, rows, seed + i, JSON_TEXTS if column in JSON_COLUMNS else TEXTS)
            for i, (column, kind) in enumerate(WIRE_TABLES[name].items())
        }
        for name in names
    }
    for columns in tables.values() if num_requests else ():
        if "request" in columns:
            columns["request"] = columns["request"] % np.uint32(num_requests)
    return tables


def numbered_tokens(start: int, rows: int):
    """Tokens whose ids count up from `start`, so that a lost or doubled one shows."""
    zeros = np.zeros(rows, "u4")
    ids = np.arange(start, start + rows, dtype="u4")
    columns = {name: zeros for name in WIRE_TABLES["tokens"]}
    columns |= {"position": ids, "token_id": ids, "flags": np.ones(rows, "u1"), "rollout_logprob": -ids.astype("f4")}
    return {"tokens": columns}


def engine_row():
    """The row of `engines` about this process, empty but for where it runs."""
    known = {"pid": np.array([os.getpid()], "u4"), "host": [socket.gethostname()], "config": ["{}"]}
    columns = {}
    for name, kind in WIRE_TABLES["engines"].items():
        is_text = kind.startswith("str")
        columns[name] = known.get(name, [""] if is_text else np.zeros(1, kind.rstrip("?")))
    return {"engines": columns}


def assert_same(left, right):
    """Compare two numpy tables bit for bit."""
    assert left.keys() == right.keys()
    for name in left:
        assert rows_of_tables(left, name) == rows_of_tables(right, name)


def rows_of_tables(tables, name: str) -> list[tuple]:
    """The rows of one numpy table as comparable tuples: floats as their bits, nulls as None."""
    columns = []
    for column in WIRE_TABLES[name]:
        values = tables[name][column]
        if isinstance(values, list):
            columns.append([v if v is None or isinstance(v, str) else tuple(_items(v)) for v in values])
            continue
        mask, data = np.ma.getmaskarray(values), np.ma.getdata(values)
        data = data.view("u4") if data.dtype == np.float32 else data
        columns.append([None if m else int(v) for v, m in zip(data, mask, strict=True)])
    return list(zip(*columns, strict=True))


def _items(values) -> list[int]:
    """What is in a list, floats as their bits."""
    array = np.asarray(values)
    return (array.astype("f4").view("u4") if array.dtype.kind == "f" else array).tolist()


def rows_of_trace(path, name: str, engine: int = 0) -> list[tuple]:
    """The same of a trace's table, for one engine."""
    table = open_trace(path).table(name)
    columns = []
    for column, kind in WIRE_TABLES[name].items():
        values = table.column(column).to_pylist()
        if kind.startswith("f4"):
            values = [None if v is None else int(np.float32(v).view("u4")) for v in values]
        if kind == "list<f4>":
            values = [np.array(v, "f4").view("u4").tolist() for v in values]
        columns.append([tuple(v) if isinstance(v, list) else v for v in values])
    engines = table.column("engine").to_pylist()
    return [row for row, number in zip(zip(*columns, strict=True), engines, strict=True) if number == engine]


def sort_key(row: tuple) -> tuple:
    """Sorts rows that have nulls."""
    return tuple((value is not None, value if value is not None else 0) for value in row)


def assert_conserved(path, produced: dict[str, int]) -> Counter:
    """Make sure that for every table produced = stored + lost in the trace; return what was lost."""
    trace = open_trace(path)
    lost: Counter = Counter()
    for loss in trace.losses():
        rows = loss["rows"]
        lost.update(json.loads(rows) if isinstance(rows, str) else rows)
    for name in WIRE_TABLES:
        assert produced.get(name, 0) == trace.table(name).num_rows + lost[name], name
    return lost


class DaemonProcess:
    """A real tracekitd in `folder`: socket run/d.sock, spool spool/, and out.arrow when it seals."""

    def __init__(self, folder: Path, *, seal: bool = True, grace_secs: float = 20.0) -> None:
        self.address = f"unix:{folder}/run/d.sock"
        self.socket = folder / "run/d.sock"
        self.spool = folder / "spool"
        self.out = folder / "out.arrow"
        self.log = folder / "stderr.txt"
        self.argv = [sys.executable, "-m", "tracekitd", "--listen", self.address, "--spool", str(self.spool)]
        self.argv += ["--grace", str(grace_secs), *(["--seal", str(self.out)] if seal else [])]
        self.process: subprocess.Popen | Forked | None = None
        self.forked = False

    def launch(self) -> None:
        if self.forked:
            self.process = Forked(self.argv, self.log)
            return
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.argv, stderr=log)

    def start(self) -> "DaemonProcess":
        self.launch()
        for _ in range(READY_SECS):
            try:
                wait_ready(self.address, 1)
                return self
            except DaemonError:
                assert self.process.poll() is None, self.stderr()
        raise AssertionError(f"the daemon does not answer: {self.stderr()}")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_secs: float = 60) -> int:
        self.process.terminate()
        return self.process.wait(timeout_secs)

    def stderr(self) -> str:
        return self.log.read_text()

    def end(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()


class LabelledEngine:
    """What a recorder has in an engine, as far as commands need it: on weight version 3, in step 7."""

    def __init__(self, address: str, engine_id: str) -> None:
        self.stream = Stream(address, engine_id)
        self.session = Session(Rows(), self.stream)
        self._recording = Recording(self.session)
        self._recording.weight_version, self._recording.engine_step = 3, 7
        self.labels: list[tuple[str, str | None]] = []
        Commands(self.stream, self.session, self.label)
        self.stream.put(numbered_tokens(0, 10))

    def label(self, label: str, checkpoint: str | None) -> tuple[int, int]:
        if label == "bad":
            raise ValueError("no such thing")
        self.labels.append((label, checkpoint))
        return self._recording.label(label, checkpoint)


class EngineId(str):
    """An engine's id, and the token that proves it."""

    token: str


def engine_id() -> EngineId:
    """A new one."""
    token = new_token()
    made = EngineId(id_of(token))
    made.token = token
    return made


@dataclass
class Sent:
    """One message as a client without manners may make it."""

    batch: messages.Batch
    payload: bytes = b""
    crc: int | None = None  # instead of the right one

    def to_bytes(self) -> bytes:
        head = self.batch.SerializeToString()
        crc = zlib.crc32(self.payload, zlib.crc32(head)) if self.crc is None else self.crc
        return messages.Frame(crc=crc, batch=head, payload=self.payload).SerializeToString()


def hello(engine_id: str, protocol: int = messages.PROTOCOL, schema: int = SCHEMA_VERSION) -> Sent:
    token = getattr(engine_id, "token", "")
    said = messages.Hello(protocol=protocol, schema=schema, recorder_version="test", token=token)
    return Sent(messages.Batch(engine_id=engine_id, hello=said))


def batch(engine_id: str, seq: int, tables, produced: dict[str, int] | None = None, **fields) -> Sent:
    """A well-formed batch; `produced` is its rows unless said otherwise."""
    totals = messages.Counters(produced=count_rows(tables) if produced is None else produced)
    return Sent(messages.Batch(engine_id=engine_id, seq=seq, totals=totals, **fields), pack(tables))


def unpack(payload: bytes):
    """The tables of a payload as they were packed: what the daemon never does, it hands the buffers to Arrow."""
    return {
        name: {column: _values(WIRE_TABLES[name][column], table.rows, part) for column, part in table.columns.items()}
        for name, table in parse(payload).items()
    }


def _values(kind, rows, part):
    base = kind.rstrip("?")
    valid = np.frombuffer(part.valid, "u1").astype(bool) if part.valid else np.full(rows, part.nulls != ALL_NULL)
    if base == "str" or base in LISTS:
        unit, lengths = 1 if base == "str" else 4, np.frombuffer(part.lengths, "<u4")
        ends = np.cumsum([0, *(lengths if len(lengths) else [0] * rows)]) * unit
        cut = [bytes(part.data[start:end]) for start, end in itertools.pairwise(ends)]
        if base == "str":
            return [text.decode() if ok else None for text, ok in zip(cut, valid, strict=True)]
        return [np.frombuffer(item, f"<{LISTS[base]}") for item in cut]
    data = np.frombuffer(part.data, f"<{base}") if part.data else np.zeros(rows, f"<{base}")
    return data if valid.all() else np.ma.MaskedArray(data, mask=~valid)


def record(address: str, sent: list) -> tuple[list[int], grpc.StatusCode, str]:
    """Send messages (or raw bytes) on one stream; return the acks and how the daemon ended it."""
    options = [("grpc.max_send_message_length", 256 << 20), ("grpc.use_local_subchannel_pool", 1)]
    acks: list[int] = []
    with grpc.insecure_channel(address, options=options) as channel:
        stub = SERVICES[RECORDER]["Record"].on(channel)
        call = stub(iter([part if isinstance(part, bytes) else part.to_bytes() for part in sent]))
        try:
            acks.extend(ack.durable_seq for ack in call)
        except grpc.RpcError:
            pass
        return acks, call.code(), call.details()
