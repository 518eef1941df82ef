"""What trainers said of rollouts names rollouts that are there, and holds numbers that can be of them.

The values themselves are a trainer's claim: nothing here compares them with the engine's, which is what a replay does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tracekit.audit.findings import MAX_EXAMPLES, MISLEADS, Check, Finding, Violation
from tracekit.audit.rows import EngineRows
from tracekit.plural import plural
from tracekit.trace.annotated import Annotations, read_annotations
from tracekit.trace.reader import Trace

Said = list[tuple[int, dict[str, Any]]]  # of one engine: a request, and a row of the table `annotations`
Find = Callable[[EngineRows, Said], Iterator[Violation]]

_LISTS = ("advantages", "old_logprobs")  # one value for each token of the completion
_VALUES = ("train_step", "group", "reward", *_LISTS)


def _not_finite(_rows: EngineRows, said: Said) -> Iterator[Violation]:
    for request, row in said:
        for name in ("reward", *_LISTS):
            values = np.array([] if row[name] is None else row[name], dtype=np.float32)
            if num := int((~np.isfinite(values)).sum()):
                yield Violation(f"{name}: {plural(num, 'value')} of {values.size} not finite", request)


def _too_long(rows: EngineRows, said: Said) -> Iterator[Violation]:
    done = rows["finishes"]
    length_of = dict(zip(done["request"].tolist(), done["num_output_tokens"].tolist(), strict=True))
    for request, row in said:
        for name in _LISTS:
            num, length = len(row[name]), length_of.get(request)
            if length is not None and num > max(length, name == "advantages"):
                yield Violation(f"{name}: {plural(num, 'value')}, and the completion has {length} tokens", request)


def _strangers(rows: EngineRows, said: Said) -> Iterator[Violation]:
    """Rows with this engine's id whose request it never had; each is given with request -1."""
    for request, row in said if not rows.is_part and not rows["shed"]["request"].size else ():
        if request < 0:
            yield Violation(f"no request of this engine is called {row['request_id']} (completion {row['index']})")


CHECKS: tuple[Check[Find], ...] = (
    Check(
        "annotation-finite",
        MISLEADS,
        "Rewards, advantages and logprobs of a trainer are finite, else what is compared with them is not a number.",
        "Look for the step of the trainer that made them; replay leaves such values out and counts them.",
        _not_finite,
    ),
    Check(
        "annotation-length",
        MISLEADS,
        "A trainer has at most one value for each token that the engine sampled, else they are of other tokens.",
        "Compare the trainer's ids with the recorded ones: replay names the first token that differs.",
        _too_long,
        frozenset({"finishes"}),
    ),
    Check(
        "annotation-rollout",
        MISLEADS,
        "A rollout that a trainer says this engine made is one of its requests, else it is compared with nothing.",
        "Annotate with the id that the caller of the engine has, or with the engine's own.",
        _strangers,
        frozenset({"requests"}),
    ),
)


def check(trace: Trace, engines: Sequence[EngineRows]) -> tuple[list[Finding], list[str]]:
    """Return what the annotations of a trace contradict, by the engine of their rollouts, and what is to be said.

    Args:
        trace: of any trainers.
        engines: its engines.

    Raises:
        TraceCorruptError: a batch is not what was written.
    """
    if not trace.rows("annotations"):
        return [], []
    found = read_annotations(trace)
    of_engine: dict[int, Said] = defaultdict(list)
    for (engine, request), row in found.rows:
        of_engine[engine].append((request, row))
    numbers = {rows.about.get("engine_id"): rows.engine for rows in engines}
    for row in found.unknown.values():
        if row["engine_id"] in numbers and not trace.live:
            of_engine[numbers[row["engine_id"]]].append((-1, row))
    findings = []
    for rows in engines:
        for one in CHECKS:
            said = of_engine[rows.engine]
            known = said if one.find is _strangers else [pair for pair in said if pair[0] >= 0]
            if broken := list(one.find(rows, known)):
                findings.append(Finding(one, rows.engine, len(broken), broken[:MAX_EXAMPLES]))
    return findings, list(_notes(found))


def _notes(found: Annotations) -> Iterator[str]:
    if found.unknown:
        yield f"{plural(len(found.unknown), 'annotated rollout')} not in this trace"
    if found.num_ambiguous:
        yield f"{plural(found.num_ambiguous, 'annotated rollout')} may be several requests of this trace, and is none"
    differ = len({key for key, name in _said_otherwise(found)})
    if differ:
        yield f"of {plural(differ, 'rollout')} several trainers say different things: what was said last is taken"


def _said_otherwise(found: Annotations) -> Iterator[tuple[Any, str]]:
    last: dict[Any, dict[int, Any]] = defaultdict(dict)
    for key, row in found.rows:
        for name in _VALUES:
            if row[name] is not None and row[name] != []:
                last[key, name][row["engine"]] = row[name]
    for (key, name), by_trainer in last.items():
        first, *others = by_trainer.values()
        if any(other != first for other in others):
            yield key, name
