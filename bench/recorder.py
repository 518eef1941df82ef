"""Engine throughput with and without the recorder, interleaved in one engine process; and what a step costs.

python bench/recorder.py [--engine v0|v1|latest]... [--logprobs client|engine|both]... [--model DIR|demo|tiny]
                         [--rounds 7] [--seqs 16] [--tokens 64] [--json]

The hooks are put in and taken out of the same running engine, round by round, so that both sides share the machine's
mood; the figure to read is the median of the paired ratios, beside its spread. Each engine runs once for each option;
with `engine` the client asks for no logprobs, so that the ratio holds what forcing them costs.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from tracekit.demo.model import ensure_demo_model
from tracekit.engines.env import ensure
from tracekit.jobs.sidecar import Sidecar
from tracekit.trace.reader import open_trace

JOB = Path(__file__).parent / "jobs" / "throughput.py"
OPTIONS = {"client": "0", "engine": "none", "both": "0"}  # what the client asks for beside each


@click.command()
@click.option("--engine", "engines", multiple=True, default=["v1"], show_default=True)
@click.option("--logprobs", "options", multiple=True, default=["client"], type=click.Choice(list(OPTIONS)))
@click.option("--model", default="demo", show_default=True, help="A folder, demo, or tiny (random, 2 layers).")
@click.option("--rounds", default=7, show_default=True)
@click.option("--seqs", default=16, show_default=True, help="Sequences in the batch.")
@click.option("--tokens", default=64, show_default=True, help="Tokens per sequence in a round.")
@click.option("--json", "as_json", is_flag=True)
def main(
    engines: tuple[str, ...], options: tuple[str, ...], model: str, rounds: int, seqs: int, tokens: int, as_json: bool
) -> None:
    with tempfile.TemporaryDirectory(prefix="tracekit-bench-") as name:
        path = ensure_demo_model() if model == "demo" else Path(model)
        if model == "tiny":
            sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
            from helpers.tiny_model import write_tiny_model

            path = write_tiny_model(Path(name) / "tiny")
        for engine in engines:
            for option in options:
                summary = {"model": model, **measure(Path(name), path, engine, option, rounds, seqs, tokens)}
                if as_json:
                    click.echo(json.dumps(summary))
                else:
                    click.echo("".join(f"{key:26} {value}\n" for key, value in summary.items()))


def measure(
    folder: Path, model: Path, engine: str, option: str, rounds: int, seqs: int, tokens: int
) -> dict[str, object]:
    """Run one engine with one option and return the figures."""
    env = ensure(engine, lambda text: click.echo(text, err=True))
    out, trace_path = folder / "out.json", folder / f"{engine}-{option}.arrow"
    argv = [str(env.python), str(JOB), str(model), str(rounds), str(seqs), str(tokens), OPTIONS[option], str(out)]
    with Sidecar(trace_path) as sidecar:
        more = {"TORCHDYNAMO_DISABLE": "1", "TRACEKIT_LOGPROBS": option}
        environ = sidecar.environ({**os.environ, **env.environ, **more})
        done = subprocess.run(argv, env=environ, capture_output=True, text=True)
        sidecar.stop()
    if done.returncode:
        raise click.ClickException(f"the engine's process failed:\n{done.stderr[-3000:]}")
    result = json.loads(out.read_text())
    trace = open_trace(trace_path)
    ratios = sorted(off / on for off, on in result["pairs"])
    per_sec = result["tokens_per_round"] / statistics.median(off for off, _ in result["pairs"])
    return {
        "engine": f"{engine} (vLLM {env.vllm_version}, {env.variant})",
        "logprobs": option,
        "sequences": seqs,
        "rounds": rounds,
        "hooks": len(result["hooks"]),
        "tokens_per_sec_without": round(per_sec, 1),
        "throughput_ratio_median": round(statistics.median(ratios), 4),
        "throughput_ratio_spread": [round(ratios[0], 4), round(ratios[-1], 4)],
        "hook_us_per_step_median": round(statistics.median(result["hook_us"]), 1),
        "hook_us_per_step_spread": [round(result["hook_us"][0], 1), round(result["hook_us"][-1], 1)],
        "rss_mib": round(result["rss_mib"]),
        "rss_growth_mib": round(result["rss_growth_mib"], 1),  # from the first round's end to the last's
        "tokens_recorded": trace.table("tokens").num_rows,
        "complete": trace.complete,
    }


if __name__ == "__main__":
    main()
