"""The servers that bench/ingest.py compares tracekitd with: `packed` and `jsonl`, see there."""

import asyncio
import json
import os
import sys
import time

import grpc
import numpy as np
import pyarrow as pa
import zstandard
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tracekit.rpc import messages
from tracekit.rpc.methods import RECORDER
from tracekit.tables import TABLES
from tracekit.trace.batch import to_record_batch

COMMIT_SECS = 0.2
SENT = ("requests", "tokens", "steps", "scheduled")  # what a decoding engine sends all the time


def _classes():
    """One message per batch, one per table, a repeated field per column: numbers are packed, as proto3 does."""
    kind = descriptor_pb2.FieldDescriptorProto
    types = {"u1": kind.TYPE_UINT32, "u4": kind.TYPE_UINT32, "u8": kind.TYPE_UINT64, "i8": kind.TYPE_INT64}
    types |= {"f4": kind.TYPE_FLOAT, "str": kind.TYPE_STRING, "list<u4>": kind.TYPE_UINT32}
    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")
    whole = file.message_type.add(name="Packed")
    for number, table in enumerate(SENT, 1):
        made = file.message_type.add(name=table.title())
        whole.field.add(name=table, number=number, label=1, type=kind.TYPE_MESSAGE, type_name=f".bench.{table.title()}")
        for index, (column, base) in enumerate(TABLES[table].items(), 1):
            made.field.add(name=column, number=index, label=3, type=types[base.rstrip("?")])
            made.field.add(name=f"of_{column}", number=100 + index, label=3, type=kind.TYPE_UINT32)  # lengths, or nulls
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bench.Packed"))


Packed = _classes()


def packed_message(tables):
    """A batch as packed protobuf fields."""
    made = Packed()
    for table in SENT:
        columns = tables[table]
        into = getattr(made, table)
        for column, values in columns.items():
            base, field = TABLES[table][column].rstrip("?"), getattr(into, column)
            if base == "list<u4>":
                for value in values:
                    field.extend(value.tolist())
                getattr(into, f"of_{column}").extend([len(value) for value in values])
            elif isinstance(values, np.ma.MaskedArray):
                getattr(into, f"of_{column}").extend(np.ma.getmaskarray(values).astype(int).tolist())
                field.extend(values.compressed().tolist())
            elif isinstance(values, list):
                field.extend([value if value is not None else ("" if base == "str" else 0) for value in values])
            else:
                field.extend(values.tolist())
    return made.SerializeToString()


def unpacked(data):
    """The tables of such a message as numpy has them."""
    made = Packed.FromString(data)
    tables = {}
    for table in SENT:
        found = getattr(made, table)
        columns = {}
        for column, kind in TABLES[table].items():
            if column == "engine":
                continue
            base, values, extra = kind.rstrip("?"), getattr(found, column), getattr(found, f"of_{column}")
            if base == "list<u4>":
                columns[column] = (
                    np.split(np.array(values, "u4"), np.cumsum(np.array(extra, int))[:-1]) if extra else []
                )
            elif base == "str":
                columns[column] = list(values)
            elif extra:
                mask = np.array(extra, bool)
                full = np.zeros(len(mask), base)
                full[~mask] = np.array(values, base)
                columns[column] = np.ma.MaskedArray(full, mask=mask)
            else:
                columns[column] = np.array(values, base)
        if len(next(iter(columns.values()))):
            tables[table] = columns
    return tables


class ArrowFile:
    """Arrow with zstd-1, a record batch per batch, as tracekitd does."""

    def __init__(self, path):
        self.file = open(path, "wb", buffering=0)
        self.writer = None

    def write(self, tables):
        batch = to_record_batch(tables, 0)
        if self.writer is None:
            options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1))
            self.writer = pa.ipc.new_stream(self.file, batch.schema, options=options)
        self.writer.write_batch(batch)


class JsonFile:
    """A JSON line per request and table where rows have one, else per row, with zstd-3."""

    def __init__(self, path):
        self.file = open(path, "wb")
        self.out = zstandard.ZstdCompressor(level=3).stream_writer(self.file)

    def write(self, tables):
        for name, columns in tables.items():
            plain = {key: _plain(values) for key, values in columns.items()}
            for row in zip(*plain.values(), strict=True):
                line = {"table": name, **dict(zip(plain, row, strict=True))}
                self.out.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self.out.flush(zstandard.FLUSH_BLOCK)
        self.file.flush()


def _plain(values):
    if hasattr(values, "tolist"):
        return values.tolist()
    return [_plain(value) for value in values] if isinstance(values, list) else values


async def serve(kind, address, path):
    out = {"packed": ArrowFile, "jsonl": JsonFile}[kind](path)

    async def record(requests, _context):
        number, synced = 0, time.monotonic()
        async for data in requests:
            if data:
                out.write(unpacked(data))
                number += 1
            if time.monotonic() - synced > COMMIT_SECS:
                await asyncio.to_thread(os.fdatasync, out.file.fileno())
                synced = time.monotonic()
        await asyncio.to_thread(os.fdatasync, out.file.fileno())
        yield messages.Ack(durable_seq=number)

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
    handler = grpc.stream_stream_rpc_method_handler(record, None, messages.Ack.SerializeToString)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(RECORDER, {"Record": handler})])
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
