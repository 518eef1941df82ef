"""The client's own view of its completions against the engine's, bit for bit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tracekit.audit.doctor.client_checks import (
    CHECKS,
    DUPLICATE,
    INCOMPLETE,
    INDEX,
    ORDER,
    UNKNOWN,
    VALUE,
)
from tracekit.audit.doctor.lines import broken_value, out_of_order
from tracekit.audit.doctor.pairs import Completion, Pair
from tracekit.audit.doctor.stops import tokenizer_path
from tracekit.audit.findings import MAX_EXAMPLES, Check, Finding, Violation
from tracekit.audit.rows import EngineRows
from tracekit.plural import plural

Known = Mapping[str, Mapping[int, Sequence[Pair]]]  # name -> which of the n -> requests; a caller may use a name twice
Told = tuple[Check[Any], int, Violation]  # with the engine


@dataclass(frozen=True)
class ClientView:
    """What a client's file says of the trace."""

    findings: list[Finding]
    not_compared: list[str]  # what nobody can tell from this file and this trace, a sentence each


def client_view(engines: Sequence[EngineRows], view: Sequence[Completion]) -> ClientView:
    """Find each completion in the trace, and compare prompt, token ids, float32 logprobs and finish reason.

    Args:
        engines: all engines of the trace: a completion does not say which of them made it.
        view: what the clients received, at least with the keys of `cli.sources.completions`.
    """
    known, first = _by_name(engines), next((rows.engine for rows in engines), 0)
    told: list[Told] = []
    taken: dict[tuple[int, int], int] = {}  # request -> the line that is it
    lines = []
    partial, num_outside = any(rows.is_part for rows in engines), 0
    for at, seen in enumerate(view):
        if text := broken_value(seen):
            told.append((VALUE, first, Violation(f"line {at + 1}: {text}")))
            continue
        if partial and str(seen["request_id"]) not in known:
            num_outside += 1
            continue
        lines.append(seen)
        told += _line(at, seen, known, taken, first)
    told += [(ORDER, first, Violation(f"line {at + 1}: {text}")) for at, text in out_of_order(view)]
    told += _left_out(lines, known)
    wrong: dict[tuple[str, int], tuple[Check[Any], list[Violation]]] = {}
    for check, engine, violation in told:
        wrong.setdefault((check.id, engine), (check, []))[1].append(violation)
    findings = [Finding(check, engine, len(all_), all_[:MAX_EXAMPLES]) for (_, engine), (check, all_) in wrong.items()]
    outside = [f"{plural(num_outside, 'completion')} of requests that were not recorded"] if num_outside else []
    return ClientView(findings, outside + _not_compared(lines, known))


def _by_name(engines: Iterable[EngineRows]) -> Known:
    known: dict[str, dict[int, list[Pair]]] = defaultdict(lambda: defaultdict(list))
    for rows in engines:
        names, indexes = (rows.requests.column(name).to_pylist() for name in ("external_id", "index"))
        for row, (name, index) in enumerate(zip(names, indexes, strict=True)):
            known[name][index].append(Pair({}, rows, row))
    return {name: dict(of_name) for name, of_name in known.items()}


def _pairs(seen: Completion, of: Iterable[Pair]) -> list[Pair]:
    return [replace(pair, seen=pair.part_of(seen)) for pair in of]


def _line(at: int, seen: Completion, known: Known, taken: dict[tuple[int, int], int], first: int) -> Iterator[Told]:
    of_name = known.get(str(seen["request_id"]), {})
    pairs = _pairs(seen, of_name.get(seen["index"], ()))
    problems = [_first_problem(pair) for pair in pairs]
    fits = [pair for pair, problem in zip(pairs, problems, strict=True) if problem is None]
    name = f"completion {seen['index']} of request {seen['request_id']!r}"
    for pair in fits:
        if pair.key not in taken:
            taken[pair.key] = at
            return
    if fits:
        text = f"line {at + 1}: {name} is in line {taken[fits[0].key] + 1} already"
        yield DUPLICATE, fits[0].rows.engine, Violation(text, fits[0].number)
        return
    for index, others in of_name.items():
        for pair in _pairs(seen, others) if index != seen["index"] else ():
            if seen["token_ids"] and _first_problem(pair) is None:
                yield INDEX, pair.rows.engine, Violation(f"{name}: it is completion {index} in the trace", pair.number)
                return
    if not pairs:
        there = f"the trace has {_numbers(of_name)} of this request" if of_name else str(UNKNOWN.find(pairs))
        yield (INDEX if of_name else UNKNOWN), first, Violation(f"{name}: {there}")
        return
    check, text = next(problem for problem in problems if problem)
    yield check, pairs[0].rows.engine, Violation(f"{name}: {text}", pairs[0].number)


def _first_problem(pair: Pair) -> tuple[Check[Any], str] | None:
    for check in CHECKS:
        if text := check.find(pair):
            return check, text
    return None


def _left_out(lines: Sequence[Completion], known: Known) -> Iterator[Told]:
    seen: dict[str, set[int]] = defaultdict(set)
    for line in lines:
        seen[str(line["request_id"])].add(line["index"])
    for name, indexes in seen.items():
        of_name = known.get(name, {})
        for index, (pair, *_) in of_name.items() if indexes & set(of_name) else ():
            # one that never finished may have reached nobody, and V0 keeps the worse of best_of to itself
            if index not in indexes and pair.reason not in (None, "abort") and pair.sampling.get("best_of") is None:
                text = f"completion {index} of request {name!r}: the client has {_numbers(indexes)} only"
                yield INCOMPLETE, pair.rows.engine, Violation(text, pair.number)


def _numbers(indexes: Iterable[int]) -> str:
    numbers = sorted(indexes)
    return f"completion{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def _not_compared(lines: Sequence[Completion], known: Known) -> list[str]:
    found = []
    without = sum("logprobs" not in line for line in lines)
    if without:
        found.append(f"the logprobs of {plural(without, 'completion')}, which the file does not have")
    unproven: dict[str, int] = defaultdict(int)
    for line in lines:
        for pair in _pairs(line, known.get(str(line["request_id"]), {}).get(line["index"], ())):
            if pair.hangs_on_stops and pair.stops is None:
                unproven[str(tokenizer_path(pair.rows))] += 1
    for path, count in unproven.items():
        whose = plural(count, "completion")
        found.append(f"where a stop string ended {whose}, which takes the engine's tokenizer: {path}")
    return found
