"""``tracekit demo``: the same prompts through V1 twice, both replayed, the story on one screen."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

import tracekit.demo
from tracekit.errors import EXIT_DATA_LOST, EXIT_OK, EngineEnvError

PROMPTS = Path(tracekit.demo.__file__).with_name("prompts.jsonl")
SAMPLING = {"temperature": 0.7, "top_p": 0.9}
ENGINE = {"max_model_len": 1024, "enforce_eager": True, "dtype": "bfloat16"}
# what the article set, one by one, until V1's numbers meant what the trainer took them for
PARITY = {"logprobs_mode": "processed_logprobs", "enable_prefix_caching": False, "async_scheduling": False}
RUNS: dict[str, dict[str, Any]] = {"defaults": {}, "parity": PARITY}


@click.command("demo")
@click.option("--max-tokens", default=64, show_default=True, help="Tokens to sample for each of the 16 prompts.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep the traces and replays here.")
@click.option("--json", "as_json", is_flag=True, help="Print both verdicts as JSON.")
def command(max_tokens: int, keep: Path | None, as_json: bool) -> int:
    """Show on a real engine (vLLM 0.18.1, SmolLM2-135M-Instruct) what breaks a policy ratio, and where it starts.

    Records 16 prompts twice, once with V1's defaults and once with processed logprobs and the parity settings, and
    replays both against a trainer that expects processed logprobs. Builds what it needs on the first run.
    """
    from tracekit.demo.model import ensure_demo_model
    from tracekit.engines import env
    from tracekit.engines.talk import Talk
    from tracekit.trace.output import check_output

    with Talk() as talk:
        found = env.ensure("v1", talk)
        model = ensure_demo_model(talk)
    with tempfile.TemporaryDirectory(prefix="tracekit-demo-") as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in RUNS:
            check_output(folder / f"{name}.arrow")
        facts = {name: _run(name, settings, folder, model, max_tokens) for name, settings in RUNS.items()}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _story(facts, found.vllm_version, max_tokens, keep)
    return EXIT_OK


def _run(name: str, settings: dict[str, Any], folder: Path, model: Path, max_tokens: int) -> dict[str, Any]:
    """Record and replay one setting; returns the replay's facts (``tracekit replay --json``)."""
    trace = folder / f"{name}.arrow"
    argv = ["record", "--engine", "v1", "--model", str(model), "--prompts", str(PROMPTS), "-o", str(trace)]
    for key, value in {**ENGINE, **settings}.items():
        argv += ["--engine-arg", f"{key}={json.dumps(value)}"]
    for key, value in {**SAMPLING, "max_tokens": max_tokens}.items():
        argv += ["--sampling", f"{key}={json.dumps(value)}"]
    begin = time.monotonic()
    _tracekit(argv, folder / f"{name}.record.log", quiet=True)
    click.echo(f"{name}: recorded in {time.monotonic() - begin:.0f} s, replaying", err=True)
    replayed = str(folder / f"{name}.replay.arrow")
    out = _tracekit(["replay", str(trace), "--model", str(model), "-o", replayed, "--json"], None, quiet=False)
    facts: dict[str, Any] = json.loads(out)
    return facts


def _tracekit(argv: list[str], log: Path | None, *, quiet: bool) -> str:
    """Run one tracekit command as a user would; its talk goes to ``log`` or to our stderr.

    Raises:
        EngineEnvError: it failed; the text is its last line.
    """
    # the CPU build of 0.18.1 compiles two small sampler functions for a minute; the numbers are the same without
    environ = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    command_line = [sys.executable, "-m", "tracekit", *argv]
    click.echo(f"$ tracekit {' '.join(_shell(a) for a in argv)}", err=True)
    with open(log, "wb") if log else tempfile.TemporaryFile() as talk:
        done = subprocess.run(command_line, env=environ, stdout=subprocess.PIPE, stderr=talk if quiet else None)
    if done.returncode not in (EXIT_OK, 4):
        said = log.read_text(errors="replace").strip().splitlines() if log else []
        lost = " (rows were lost)" if done.returncode == EXIT_DATA_LOST else ""
        raise EngineEnvError(f"tracekit {argv[0]} ended with {done.returncode}{lost}: {said[-1] if said else ''}")
    return done.stdout.decode()


def _shell(argument: str) -> str:
    for prefix, short in ((f"{Path.cwd()}/", ""), (str(Path.home()), "~")):
        if argument.startswith(prefix):
            return argument.replace(prefix, short, 1)
    return argument


def _story(facts: dict[str, dict[str, Any]], vllm: str, max_tokens: int, keep: Path | None) -> None:
    verdicts = {name: f["verdict"] for name, f in facts.items()}
    before, after = (verdicts[name]["before"] for name in RUNS)
    data = facts["defaults"]["data"]
    rows = [
        ("", "V1 defaults", "parity settings"),
        ("recorded logprobs are", *(v["semantic"]["kind"] for v in verdicts.values())),
        ("layer of mismatch", *(v["layer"] for v in verdicts.values())),
        ("since", *(_since(v) for v in verdicts.values())),
        ("mean ratio", f"{before['ratio_mean']:.3f}", f"{after['ratio_mean']:.3f}"),
        ("mismatch_kl (nats)", f"{before['mismatch_kl']:.4f}", f"{after['mismatch_kl']:.4f}"),
        (f"clip rate (±{before['epsilon']})", f"{before['clip_rate']:.1%}", f"{after['clip_rate']:.1%}"),
        ("bit-equal tokens", f"{before['bit_equal']:.0%}", f"{after['bit_equal']:.0%}"),
    ]
    click.echo(
        f"\nvLLM {vllm}, SmolLM2-135M-Instruct, {data['num_rollouts']} rollouts of {max_tokens} tokens at most, "
        f"T {SAMPLING['temperature']}, top-p {SAMPLING['top_p']}."
        "\nThe trainer (bf16 body, fp32 head) expects processed logprobs; ratio = trainer / engine.\n"
    )
    width = max(len(row[1]) for row in rows)
    for title, *cells in rows:
        click.echo(f"  {title:24}{cells[0]:{width + 3}}{cells[1]}")
    for name, v in verdicts.items():
        click.echo(f"\n{name}: {v['cause']}")
    click.echo(
        f"\nChanged between the two: {', '.join(f'{k}={json.dumps(x)}' for k, x in PARITY.items())}."
        "\nThe first moves these numbers; the others matter once weights change while rollouts run."
    )
    if keep:
        click.echo(f"The traces are in {keep}: try `tracekit info {keep}/defaults.arrow`.")


def _since(verdict: dict[str, Any]) -> str:
    since = verdict["since"]
    if since is None:
        return "-"
    return f"rollout {verdict['since_rollout']}, position {since['position']}"
