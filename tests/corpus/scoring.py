"""Replay recordings; what a replay says is kept until the recording or the code that judges changes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from corpus.case import Case, folder, is_made, probes_of, trace_of
from corpus.groups import GROUPS
from corpus.models import model_of
from corpus.variants import ensure_variant
from tracekit import cache
from tracekit.errors import TracekitError

PACKAGE = Path(__file__).parents[2] / "tracekit"
JUDGES = ("audit", "diagnose", "replay", "scoring", "trace")
BESIDE = ("join.py", "scores.py")
MAX_MODELS = 4  # kept loaded: most cases are scored with the same two


@functools.cache
def code_hash() -> str:
    """Changes with anything that a verdict is made by."""
    digest = hashlib.sha256()
    rooms = sorted(p for room in JUDGES for p in (PACKAGE / room).rglob("*.py"))
    for path in [*rooms, *(PACKAGE / name for name in BESIDE)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Loader:
    """Keeps the models that were loaded last: most of a small replay's time is loading."""

    def __init__(self) -> None:
        from tracekit.replay.scorers import torch_loader

        self._load = torch_loader("cpu")
        self._kept: OrderedDict[Any, Any] = OrderedDict()

    def __call__(self, path: Any, model: Any) -> Any:
        key = (str(path), model)
        if key not in self._kept:
            while len(self._kept) >= MAX_MODELS:
                self._kept.popitem(last=False)
            self._kept[key] = self._load(path, model)
        self._kept.move_to_end(key)
        return self._kept[key]


def kept(cases: Iterable[Case]) -> dict[str, dict[str, Any]]:
    """Return what this code has said before, by name."""
    found = {}
    for case in cases:
        path = _path(case)
        said = json.loads(path.read_text()) if is_made(case) and path.exists() else None
        if said is not None and said["key"] == _key(case):
            found[case.name] = said
    return found


def score(cases: Iterable[Case], say: Any = None) -> dict[str, dict[str, Any]]:
    """Return what replay says of each case that is recorded, by name."""
    load, found = None, {}
    for case in cases:
        if not is_made(case):
            continue
        said = kept([case]).get(case.name)
        if said is None:
            load = load or Loader()
            said = {"key": _key(case), "code": code_hash(), **_replayed(case, load)}
            path = _path(case)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(said))
            os.replace(part, path)
            if say:
                say(f"{case.name}: {said.get('error') or said['layer']}, {said['secs']:.1f} s")
        found[case.name] = said
    return found


def _path(case: Case) -> Path:
    return folder() / "scores" / code_hash() / f"{case.name}.json"


def _key(case: Case) -> str:
    return cache.short_hash(case.key, repr(sorted(case.weights.items())), case.expect)


def _replayed(case: Case, load: Loader) -> dict[str, Any]:
    from tracekit.replay.runner import replay

    group = GROUPS[case.group]
    model = model_of(group.model)
    folders = {version: ensure_variant(name, model) for version, name in case.weights.items()}
    began, cpu = time.monotonic(), time.process_time()
    try:
        result = replay(
            str(trace_of(case)),
            folders.pop(0),
            probes=probes_of(case),
            weights=folders,
            expect=case.expect,
            dtype=group.dtype,
            device="cpu",
            load=load,
        ).result.to_dict()
    except TracekitError as error:
        said = {"error": str(error)}
    except Exception as error:
        said = {"error": f"crash: {type(error).__name__}: {error}"}
    else:
        verdict = result["verdict"]
        said = {
            "layer": verdict["layer"],
            "cause": verdict["cause"],
            "causes": verdict.get("causes", []),
            "since": verdict["since"],
            "withheld": verdict.get("withheld", []),
            "exit_code": result["exit_code"],
            "d_abs_mean": verdict["before"]["d_abs_mean"],
            "scoring": {key: result["scoring"][key] for key in ("device", "arithmetic")},
        }
    return {**said, "secs": time.monotonic() - began, "cpu_secs": time.process_time() - cpu}


def talk(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
