"""Engine throughput with and without the recorder, interleaved in one engine process; and what a step costs.

python bench/recorder.py [--engine v1] [--model DIR|demo|tiny] [--rounds 7] [--seqs 16] [--tokens 64] [--json]

The hooks are put in and taken out of the same running engine, round by round, so that both sides share the machine's
mood; the figure to read is the median of the paired ratios, beside its spread.
"""

import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import click

from tracekit.cli.sidecar import Sidecar
from tracekit.engines.env import ensure
from tracekit.engines.model import ensure_demo_model, write_tiny_model
from tracekit.trace.reader import open_trace

JOB = Path(__file__).parent / "jobs" / "throughput.py"


@click.command()
@click.option("--engine", default="v1", show_default=True)
@click.option("--model", default="demo", show_default=True, help="A folder, demo, or tiny (random, 2 layers).")
@click.option("--rounds", default=7, show_default=True)
@click.option("--seqs", default=16, show_default=True, help="Sequences in the batch.")
@click.option("--tokens", default=64, show_default=True, help="Tokens per sequence in a round.")
@click.option("--json", "as_json", is_flag=True)
def main(engine: str, model: str, rounds: int, seqs: int, tokens: int, as_json: bool) -> None:
    env = ensure(engine, lambda text: click.echo(text, err=True))
    with tempfile.TemporaryDirectory(prefix="tracekit-bench-") as name:
        folder = Path(name)
        path = ensure_demo_model() if model == "demo" else Path(model)
        if model == "tiny":
            path = write_tiny_model(folder / "tiny")
        out, trace_path = folder / "out.json", folder / "trace.arrow"
        argv = [str(env.python), str(JOB), str(path), str(rounds), str(seqs), str(tokens), str(out)]
        with Sidecar(trace_path) as sidecar:
            environ = sidecar.environ({**os.environ, **env.environ, "TORCHDYNAMO_DISABLE": "1"})
            subprocess.run(argv, env=environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            sidecar.stop()
        result = json.loads(out.read_text())
        trace = open_trace(trace_path)
        recorded = trace.table("tokens").num_rows
        complete = trace.complete
    ratios = sorted(off / on for off, on in result["pairs"])
    per_sec = result["tokens_per_round"] / statistics.median(off for off, _ in result["pairs"])
    summary = {
        "engine": f"{engine} (vLLM {env.vllm_version}, {env.variant})",
        "model": model,
        "sequences": seqs,
        "rounds": rounds,
        "tokens_per_sec_without": round(per_sec, 1),
        "throughput_ratio_median": round(statistics.median(ratios), 4),
        "throughput_ratio_spread": [round(ratios[0], 4), round(ratios[-1], 4)],
        "hook_us_per_step_median": round(result["hook_us_median"], 1),
        "hook_us_per_step_mean": round(result["hook_us_mean"], 1),
        "tokens_recorded": recorded,
        "complete": complete,
    }
    if as_json:
        click.echo(json.dumps(summary))
        return
    for key, value in summary.items():
        click.echo(f"{key:26} {value}")


if __name__ == "__main__":
    main()
