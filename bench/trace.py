"""Bytes per token and rows per second of the trace writer, against JSON lines with zstd-3, in one call.

    python bench/trace.py [--trace FILE] [--tokens N] [--runs N] [--json]

The three writers take turns on the same batches of about 16k tokens in the same process; medians of CPU time, because
machines are shared. JSONL holds the same tables, one line per request (tokens, scheduled) or row, as logs usually do.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import synthetic
import zstandard

from tracekit.tables import TABLES
from tracekit.trace.batch import BatchMeta, rows_of, to_record_batch
from tracekit.trace.reader import open_trace
from tracekit.trace.seal import SEALED_LEVEL, seal
from tracekit.trace.spool import SpoolWriter

BATCH_TOKENS = 16_384


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", help="any trace: measure on its rows instead of made-up ones")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="size of the made-up capture")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.trace:
        source, batches = f"capture {options.trace}", batches_of(open_trace(options.trace))
    else:
        source, batches = "SYNTHETIC (Zipf-like text, made-up logits)", synthetic.capture(options.tokens)
    num_tokens = sum(len(batch["tokens"]["request"]) for batch in batches)
    runs = []
    for run in range(options.runs):
        print(f"run {run + 1} of {options.runs}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            runs.append(one_run(Path(folder), batches, num_tokens))
            if run == 0:
                shares = sealed_shares(Path(folder) / "sealed.arrow", num_tokens)
    result = {
        "source": source,
        "tokens": num_tokens,
        "batches": len(batches),
        "runs": options.runs,
        "bytes_per_token": {name: round(runs[0]["bytes"][name] / num_tokens, 3) for name in runs[0]["bytes"]},
        "rows_per_cpu_second": median(run["rows_per_second"] for run in runs),
        "times_smaller_than_jsonl": round(runs[0]["bytes"]["jsonl"] / runs[0]["bytes"]["sealed"], 2),
        "times_faster_than_jsonl": median(run["ratio"] for run in runs),
        "sealed_bytes_per_token_by_column": shares,
    }
    print(json.dumps(result, indent=2) if options.json else as_text(result))


def one_run(folder, batches, num_tokens):
    produced, num_rows = Counter(), 0
    for tables in batches:
        produced.update({name: len(next(iter(columns.values()))) for name, columns in tables.items()})
    num_rows = sum(produced.values())

    start = time.process_time()
    with SpoolWriter(folder / "spool") as writer:
        for seq, tables in enumerate(batches, 1):
            meta = BatchMeta(0, "0" * 32, seq, dict(produced), {}, seq == len(batches))
            writer.append(to_record_batch(tables, 0), meta)
    hot = time.process_time()
    report = seal(folder / "spool", folder / "sealed.arrow")
    sealed = time.process_time()
    json_bytes = write_jsonl(folder / "rows.jsonl.zst", batches)
    jsonl = time.process_time()

    assert report.rows["tokens"] == num_tokens
    spent = {"hot": hot - start, "seal": sealed - hot, "hot+seal": sealed - start, "jsonl": jsonl - sealed}
    hot_bytes = sum(path.stat().st_size for path in (folder / "spool").iterdir())
    return {
        "bytes": {"hot": hot_bytes, "sealed": report.bytes, "jsonl": json_bytes},
        "rows_per_second": {name: num_rows / seconds for name, seconds in spent.items()},
        "ratio": {name: spent["jsonl"] / seconds for name, seconds in spent.items() if name != "jsonl"},
    }


def write_jsonl(path, batches):
    with open(path, "wb") as file, zstandard.ZstdCompressor(level=3).stream_writer(file) as out:
        for tables in batches:
            for name, columns in tables.items():
                for line in json_rows(name, columns):
                    out.write(json.dumps({"table": name, **line}, separators=(",", ":")).encode() + b"\n")
    return path.stat().st_size


def json_rows(name, columns):
    plain = {key: values.tolist() if hasattr(values, "tolist") else values for key, values in columns.items()}
    if name not in ("tokens", "scheduled"):
        plain = {key: [v.tolist() if hasattr(v, "tolist") else v for v in values] for key, values in plain.items()}
        return (dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True))
    order = np.argsort(columns["request"], kind="stable")
    requests = np.asarray(columns["request"])[order]
    cuts = np.flatnonzero(np.diff(requests)) + 1
    grouped = {
        key: [part.tolist() for part in np.split(np.asarray(columns[key])[order], cuts)]
        for key in columns
        if key != "request"
    }
    numbers = [int(requests[cut]) for cut in (0, *cuts)] if len(requests) else []
    return ({"request": number, **{key: grouped[key][n] for key in grouped}} for n, number in enumerate(numbers))


def batches_of(trace):
    """Cut a trace (of its first engine) back into the step-major batches that a recorder sends."""
    tables = {}
    for name, columns in TABLES.items():
        table = trace.table(name)
        table = table.filter(pa.compute.equal(table["engine"], min(trace.tallies)))
        if table.num_rows and name not in ("losses",):
            tables[name] = {key: numpy_form(table[key], kind) for key, kind in columns.items() if key != "engine"}
    tokens = tables["tokens"]
    steps = np.sort(np.asarray(tokens["engine_step"]))
    edges = [*np.unique(steps[::BATCH_TOKENS]).tolist(), int(steps[-1]) + 1]
    first_step = dict(zip(*(np.asarray(tokens[key])[::-1].tolist() for key in ("request", "engine_step")), strict=True))
    batches = []
    for low, high in itertools.pairwise(edges):
        batch = {}
        for name, columns in tables.items():
            if "engine_step" in columns:
                when = np.asarray(columns["engine_step"])
            elif "request" in columns:
                when = np.array([first_step.get(int(number), edges[0]) for number in columns["request"]])
            else:
                when = np.full(len(next(iter(columns.values()))), edges[0])
            rows = np.flatnonzero((when >= low) & (when < high))
            rows = rows[np.argsort(when[rows], kind="stable")]
            if len(rows):
                batch[name] = {
                    key: [values[row] for row in rows] if isinstance(values, list) else values[rows]
                    for key, values in columns.items()
                }
        batches.append(batch)
    return batches


def numpy_form(column, kind):
    if kind.startswith(("str", "list")):
        return column.to_pylist()
    if not column.null_count:
        return column.to_numpy()
    mask = column.is_null().to_numpy()
    return np.ma.masked_array(column.fill_null(0).to_numpy(), mask=mask)


def sealed_shares(path, num_tokens):
    """Bytes a token of each column of the sealed file, compressed as it is there; those below 0.005 are left out."""
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", SEALED_LEVEL))
    sizes = Counter()
    for batch in open_trace(path).batches():
        for name in TABLES:
            rows = rows_of(batch, name)
            for index, field in enumerate(rows.type):
                for values, sign in ((rows.field(index), 1), (rows.field(index).slice(0, 0), -1)):
                    sink = pa.BufferOutputStream()
                    with pa.ipc.new_stream(sink, pa.schema([field]), options=options) as writer:
                        writer.write_batch(pa.RecordBatch.from_arrays([values], schema=pa.schema([field])))
                    sizes[f"{name}.{field.name}"] += sign * sink.getvalue().size
    return {name: round(size / num_tokens, 3) for name, size in sizes.most_common() if size / num_tokens >= 0.005}


def median(dicts):
    listed = list(dicts)
    return {name: round(statistics.median(item[name] for item in listed), 2) for name in listed[0]}


def as_text(result):
    size, speed, ratio = (result[key] for key in ("bytes_per_token", "rows_per_cpu_second", "times_faster_than_jsonl"))
    return "\n".join(
        [
            f"{result['source']}: {result['tokens']:,} tokens in {result['batches']} batches, {result['runs']} runs",
            f"{'':10}{'bytes per token':>15}{'rows per CPU second':>20}{'times JSONL':>14}",
            f"{'hot':10}{size['hot']:>15.2f}{speed['hot']:>20,.0f}{ratio['hot']:>14.1f}",
            f"{'seal':10}{size['sealed']:>15.2f}{speed['seal']:>20,.0f}{ratio['seal']:>14.1f}",
            f"{'hot+seal':10}{'':>15}{speed['hot+seal']:>20,.0f}{ratio['hot+seal']:>14.1f}",
            f"{'JSONL':10}{size['jsonl']:>15.2f}{speed['jsonl']:>20,.0f}{1:>14.1f}",
            f"sealed is {result['times_smaller_than_jsonl']} times smaller than JSONL with zstd-3",
            "sealed, bytes per token by column:",
            *(f"  {name:32}{share:>8.3f}" for name, share in result["sealed_bytes_per_token_by_column"].items()),
        ]
    )


if __name__ == "__main__":
    main()
