"""What a row of the corpus is: how a recording is made on a real engine, and what its replay should say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracekit import cache

NONE, SEMANTIC, PATH, OBJECTIVE = "none", "semantic", "inference path", "objective"
TUNE, REPORT, SECOND, SHORT = "tune", "report", "second", "short"
RECIPE = "1"  # raised when the same rows would be recorded in another way
PROBE_RECIPE = 2  # the same of rows with probed states


@dataclass(frozen=True)
class Fault:
    """A function of `inside.faults`, run in the engine's process.

    It is switched on before output token `since` of the last `Ask`; 0: before the first request; -1: by a `Do`.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    since: int = 0


@dataclass(frozen=True)
class Do:
    """Something that a job does to its engine: load a folder's weights, reset the cache, open another recording."""

    what: str
    argument: str = ""


@dataclass(frozen=True)
class Ask:
    """Requests that are added together, and run to their end."""

    num: int = 10
    tokens: int = 20
    sampling: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = "plain"
    """plain | shared:N | long:N | spread:N, with N tokens; see `inside.prompts`."""
    during: tuple[tuple[int, Do], ...] = ()
    """What is done before output token k of these requests."""
    lora: str = ""
    """none | half | all: which of them name the adapter."""


@dataclass(frozen=True)
class Truth:
    """What a replay should say.

    Attributes:
        layer: of mismatch.
        causes: codes of which any is right, of a composite one of each `a|b`; empty where only the layer is asked for.
        first: output index of the first token that the fault reaches, None where there is none.
        module: in which the fault is, as the engine names it, or any of `a|b`; empty where no single one is.
        refused: a replay can judge a part at most: it has to withhold the rest, or to refuse.
    """

    layer: str = NONE
    causes: tuple[str, ...] = ()
    first: int | None = None
    module: str = ""
    refused: bool = False


@dataclass(frozen=True)
class Case:
    """One recording with a known answer."""

    name: str
    kind: str
    """The class under which it is counted."""
    group: str
    """The engine it runs on, a key of `groups.GROUPS`."""
    truth: Truth = Truth()
    steps: tuple[Ask | Do, ...] = (Ask(),)
    faults: tuple[Fault, ...] = ()
    engine_weights: str = "base"
    """A variant of the model (see `variants`) that the engine has when its recording opens."""
    weights: Mapping[int, str] = field(default_factory=lambda: {0: "base"})
    """The trainer's folders by weight version, as variants."""
    mode: str = "processed"
    probe: bool = False
    """Whether states at module boundaries are kept of the first requests, in which a module can be found."""
    expect: str = "processed"
    size: str = ""
    source: str = ""
    """The public report that it is an instance of."""
    why: str = ""
    """Why its verdict misses, where that is known."""
    use: str = REPORT

    @property
    def seed(self) -> int:
        """Of sampling and of the choice of prompts: another for each case and each use."""
        return int(cache.short_hash("seed", self.use, self.name), 16) % 1_000_003

    @property
    def key(self) -> str:
        """Changes when the recording would be another one."""
        row = dataclasses.asdict(self)
        for later in ("truth", "kind", "expect", "size", "source", "weights", "why"):
            del row[later]
        if self.probe:
            row["probe"] = PROBE_RECIPE
        else:
            del row["probe"]
        return cache.short_hash(RECIPE, json.dumps(row, sort_keys=True))


def folder() -> Path:
    """Where recordings are kept."""
    return cache.cache_dir() / "corpus"


def trace_of(case: Case) -> Path:
    return folder() / case.name / "trace.arrow"


def probes_of(case: Case) -> Path | None:
    return folder() / case.name / "probes" if case.probe else None


def is_made(case: Case) -> bool:
    found = cache.read_marker(folder() / case.name)
    return found is not None and found["key"] == case.key
