"""Make recordings: one engine process a group, one tracekitd and one trace a case; what is there is not made again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from corpus.case import TUNE, Ask, Case, Do, folder, is_made
from corpus.groups import GROUPS
from corpus.models import model_of
from corpus.variants import ensure_adapter, ensure_variant
from tracekit import cache
from tracekit.engines.env import ensure
from tracekit.jobs.sidecar import Sidecar

TESTS = Path(__file__).parents[1]


def make(cases: Iterable[Case]) -> None:
    """Record what is not there yet."""
    missing = [case for case in cases if not is_made(case)]
    for group in dict.fromkeys(case.group for case in missing):
        of_group = [case for case in missing if case.group == group]
        _make_group(group, sorted(of_group, key=_order))


def _order(case: Case) -> tuple[bool, str, str]:
    """Those for tuning first; then one set of weights after the other; then by chance, so that a part is a sample."""
    return case.use != TUNE, "" if case.engine_weights == "base" else case.engine_weights, case.key


def variants_of(case: Case) -> set[str]:
    """Names of all weights that a case needs."""
    names = {"base", case.engine_weights, *case.weights.values()}
    for step in case.steps:
        inside = [do for _, do in step.during] if isinstance(step, Ask) else [step]
        names |= {do.argument for do in inside if isinstance(do, Do) and do.what in ("load", "reopen") and do.argument}
    return names


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _environ(group: str) -> tuple[Path, dict[str, str]]:
    env = ensure(GROUPS[group].engine, _say)
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), str(TESTS.parent / "daemon")])
    settled = {
        "PYTHONPATH": path,
        "TORCHDYNAMO_DISABLE": "1",
        "TRACEKIT_STRICT": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if GROUPS[group].engine != "v0":  # which knows no such word
        settled["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return env.python, {**os.environ, **env.environ, **settled}


def _make_group(group: str, cases: Sequence[Case]) -> None:
    model = model_of(GROUPS[group].model)
    python, environ = _environ(group)
    variants = {name: str(ensure_variant(name, model)) for case in cases for name in variants_of(case)}
    adapter = str(ensure_adapter(model)) if "lora" in group else ""
    back, out = os.pipe()
    argv = [
        "nice",
        "-n",
        "3",
        str(python),
        str(TESTS / "corpus" / "inside" / "drive.py"),
        GROUPS[group].engine,
        str(model),
    ]
    argv += [json.dumps(dict(GROUPS[group].args)), str(out)]
    log = folder() / f"{group}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        process = subprocess.Popen(
            argv, env=environ, stdin=subprocess.PIPE, stdout=file, stderr=file, pass_fds=(out,), text=True
        )
    os.close(out)
    assert process.stdin is not None
    with os.fdopen(back) as answers:
        try:
            for case in cases:
                began = time.monotonic()
                target = folder() / case.name
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir()
                with Sidecar(target / "trace.arrow") as sidecar:
                    order = {"case": case.name, "daemon": sidecar.address, "folder": str(target)}
                    order |= {"variants": variants, "adapter": adapter}
                    process.stdin.write(json.dumps(order) + "\n")
                    process.stdin.flush()
                    answer = answers.readline().strip()
                if not answer:
                    raise RuntimeError(f"the engine ended, see {log}")
                if answer == "done":
                    cache.write_marker(target, {"key": case.key, "secs": time.monotonic() - began})
                _say(f"{case.name}: {answer}, {time.monotonic() - began:.1f} s")
        finally:
            process.stdin.close()
            process.wait(120)
