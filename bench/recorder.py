"""Engine throughput with and without the recorder, interleaved in one engine process; and what a step costs.

python bench/recorder.py [--engine v0|v1|latest]... [--logprobs client|engine|both]... [--model DIR|demo|tiny]
                         [--rounds 7] [--seqs 16] [--tokens 64] [--runs 1] [--before CHECKOUT] [--json]

The hooks are put in and taken out of the same running engine, round by round, so that both sides share the machine's
mood; the figure to read is the median of the paired ratios, beside its spread. Each engine runs once for each option;
with `engine` the client asks for no logprobs, so that the ratio holds what forcing them costs. With --before, an older
checkout's recorder and job are measured in turn with this one's, in engine processes of their own, and the ratio of the
two costs is printed.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from tracekit.cli.models import model_folder
from tracekit.engines.env import ensure
from tracekit.jobs.sidecar import Sidecar
from tracekit.trace.reader import open_trace

HERE = Path(__file__).resolve().parents[1]
OPTIONS = {"client": "0", "engine": "none", "both": "0"}  # what the client asks for beside each


@click.command()
@click.option("--engine", "engines", multiple=True, default=["v1"], show_default=True)
@click.option("--logprobs", "options", multiple=True, default=["client"], type=click.Choice(list(OPTIONS)))
@click.option("--model", default="demo", show_default=True, help="A folder, demo, or tiny (random, 2 layers).")
@click.option("--rounds", default=7, show_default=True)
@click.option("--seqs", default=16, show_default=True, help="Sequences in the batch.")
@click.option("--tokens", default=64, show_default=True, help="Tokens per sequence in a round.")
@click.option("--runs", default=1, show_default=True, help="Engine processes per figure.")
@click.option("--before", type=click.Path(path_type=Path, file_okay=False), help="A checkout to compare with.")
@click.option("--json", "as_json", is_flag=True)
def main(
    engines: tuple[str, ...],
    options: tuple[str, ...],
    model: str,
    rounds: int,
    seqs: int,
    tokens: int,
    runs: int,
    before: Path | None,
    as_json: bool,
) -> None:
    checkouts = {"before": before.resolve(), "after": HERE} if before else {"": HERE}
    with tempfile.TemporaryDirectory(prefix="tracekit-bench-") as name:
        if model == "tiny":
            sys.path.insert(0, str(HERE / "tests"))
            from helpers.tiny_model import write_tiny_model

            path = write_tiny_model(Path(name) / "tiny")
        else:
            path = model_folder(model)
        for engine in engines:
            for option in options:
                results: dict[str, list[dict[str, Any]]] = {label: [] for label in checkouts}
                for _ in range(runs):
                    for label, checkout in checkouts.items():
                        with tempfile.TemporaryDirectory(dir=name) as folder:
                            job = [str(path), str(rounds), str(seqs), str(tokens)]
                            results[label].append(run(Path(folder), checkout, engine, option, job))
                figures = {label: summary(found) for label, found in results.items()}
                for label, found in figures.items():
                    tell({"code": label} if label else {}, engine, option, seqs, model, found, as_json)
                if before:
                    cost = [figures[label]["hook_us_per_step_median"] for label in ("after", "before")]
                    speed = [figures[label]["throughput_ratio_median"] for label in ("after", "before")]
                    found = {"hook_us_ratio": round(cost[0] / cost[1], 3), "speed_ratio": round(speed[0] / speed[1], 4)}
                    tell({"code": "after / before"}, engine, option, seqs, model, found, as_json)


def tell(
    code: dict[str, str], engine: str, option: str, seqs: int, model: str, found: dict[str, Any], as_json: bool
) -> None:
    figures = {**code, "model": model, "option": engine, "logprobs": option, "sequences": seqs, **found}
    click.echo(json.dumps(figures) if as_json else "".join(f"{key:26} {value}\n" for key, value in figures.items()))


def run(folder: Path, checkout: Path, engine: str, option: str, job: list[str]) -> dict[str, Any]:
    """Run one engine process with one option; return what it measured."""
    env = ensure(engine, lambda text: click.echo(text, err=True))
    out, trace_path = folder / "out.json", folder / "trace.arrow"
    argv = [str(env.python), str(checkout / "bench/jobs/throughput.py"), *job, OPTIONS[option], str(out)]
    with Sidecar(trace_path) as sidecar:
        paths = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])
        more = {"TORCHDYNAMO_DISABLE": "1", "TRACEKIT_LOGPROBS": option, "PYTHONPATH": paths}
        more["TRACEKIT_ATTACH"] = str(folder / "attach")
        environ = sidecar.environ({**os.environ, **env.environ, **more})
        done = subprocess.run(argv, env=environ, capture_output=True, text=True)
        sidecar.stop()
    if done.returncode:
        raise click.ClickException(f"the engine's process failed:\n{done.stderr[-3000:]}")
    trace = open_trace(trace_path)
    more_facts = {
        "engine": f"{engine} (vLLM {env.vllm_version}, {env.variant})",
        "tokens_recorded": trace.table("tokens").num_rows,
        "complete": trace.complete,
    }
    return {**json.loads(out.read_text()), **more_facts}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of several engine processes."""
    pairs = [pair for result in results for pair in result["pairs"]]
    hook_us = sorted(us for result in results for us in result["hook_us"])
    calls = sorted(us for result in results for us in result["call_us"])
    ratios = sorted(off / on for off, on in pairs)
    dormant = sorted(off / on for result in results for off, on in result.get("dormant_pairs", ()))
    per_sec = results[0]["tokens_per_round"] / statistics.median(off for off, _ in pairs)
    return {
        "engine": results[0]["engine"],
        "pairs": len(pairs),
        "hooks": len(results[0]["hooks"]),
        "tokens_per_sec_without": round(per_sec, 1),
        "throughput_ratio_median": round(statistics.median(ratios), 4),
        "throughput_ratio_spread": [round(ratios[0], 4), round(ratios[-1], 4)],
        "dormant_ratio_median": round(statistics.median(dormant), 4) if dormant else None,  # stopped, against without
        "dormant_ratio_spread": [round(dormant[0], 4), round(dormant[-1], 4)] if dormant else None,
        "hook_us_per_step_median": round(statistics.median(hook_us), 1),
        "hook_us_per_step_spread": [round(hook_us[0], 1), round(hook_us[-1], 1)],
        "hook_us_per_call_p99": round(calls[len(calls) * 99 // 100], 1),
        "rss_mib": round(max(result["rss_mib"] for result in results)),
        "rss_growth_mib": round(max(r["rss_growth_mib"] for r in results), 1),  # first round's end to the last's
        "tokens_recorded": [result["tokens_recorded"] for result in results],
        "complete": all(result["complete"] for result in results),
    }


if __name__ == "__main__":
    main()
