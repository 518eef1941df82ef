"""What a trace says beside its tokens, as the plain values that detectors read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import TYPE_CHECKING

from tracekit.audit.doctor.examine import examine
from tracekit.audit.lint.from_trace import subjects_of
from tracekit.audit.lint.model_config import CONFIG
from tracekit.audit.lint.run import lint
from tracekit.audit.lint.tokenizer import read_tokenizer
from tracekit.audit.lint.trainer import read_trainer
from tracekit.audit.lint.types import Subject
from tracekit.audit.rows import EngineRows, read_engines
from tracekit.diagnose.facts import Facts, Noted, Version, WeightChange
from tracekit.replay.fingerprints import Wanted, of_folder

if TYPE_CHECKING:
    from tracekit.trace.reader import Trace


def read_facts(trace: Trace, model: Path | None = None, trainer_config: str | Path | None = None) -> Facts:
    """Return the facts of a trace; which requests a replay leaves out is for it to add.

    Args:
        trace: with its tables.
        model: folder of the weights that are scored.
        trainer_config: the trainer's model folder, to be compared with what the engine ran; in
            place of `model`.

    Raises:
        TraceCorruptError: a batch is not what was written.
        UsageError: that folder is none.
    """
    given = None if trainer_config is None else read_trainer(Path(trainer_config))
    scored = read_trainer(model) if model and (model / CONFIG).is_file() else None
    engines = list(read_engines(trace))
    subjects = subjects_of(trace, given or scored, engines)
    return Facts(
        noted=(*_doctor(trace, engines), *_lint(subjects)),
        settings={subject.rows.engine: dict(subject.settings) for subject in subjects if subject.rows is not None},
        changes=_changes(trace),
        fingerprints=_fingerprints(trace),
        tokenizer_size=_tokenizer_size(model),
        trainer_config=given is not None,
    )


def _tokenizer_size(model: Path | None) -> int | None:
    tokenizer = None if model is None else read_tokenizer(model)
    return max(tokenizer.ids.values()) + 1 if tokenizer and tokenizer.ids else None


def _doctor(trace: Trace, engines: Seq[EngineRows]) -> Iterator[Noted]:
    for found in examine(trace, engines=engines).violations:
        first = found.examples[0] if found.examples else None
        yield Noted(
            "doctor",
            found.check.id,
            found.check.severity,
            found.engine,
            found.count,
            first.text if first else found.check.why,
            found.check.what_to_do,
            first.request if first else None,
            first.engine_step if first else None,
        )


def _lint(subjects: Seq[Subject]) -> Iterator[Noted]:
    engines = {subject.name: subject.rows.engine for subject in subjects if subject.rows is not None}
    for fired in lint(subjects):
        rule = fired.rule
        yield Noted("lint", rule.id, rule.severity, engines[fired.subject], 1, fired.detail, rule.fix)


def _changes(trace: Trace) -> list[WeightChange]:
    rows = [row for row in trace.table("weights").to_pylist() if row["label"] is None and row["lora"] is None]
    changes = [
        WeightChange(row["engine"], row["weight_version"], row["engine_step"], row["method"], row["num_changed"])
        for row in rows
    ]
    return sorted(changes, key=lambda change: (change.engine, change.version))


def _fingerprints(trace: Trace) -> dict[Version, dict[str, int | None]]:
    found: dict[Version, dict[str, int | None]] = {}
    for row in trace.table("fingerprints").to_pylist():
        found.setdefault((row["engine"], row["weight_version"]), {})[f"{row['rank']} {row['tensor']}"] = row["hash"]
    return found


def of_checkpoints(trace: Trace, folders: Mapping[str, Path]) -> dict[str, dict[str, int]]:
    """Return the fingerprints of model folders as an engine of the trace would have them.

    Args:
        trace: with the fingerprints of its engines, which say of what, and in which dtype.
        folders: by name.
    """
    wanted: dict[str, Wanted] = {}
    for row in trace.table("fingerprints").to_pylist():
        if row["hash"] is not None:
            wanted[f"{row['rank']} {row['tensor']}"] = Wanted(row["tensor"], row["dtype"], tuple(row["shape"]))
    found = {}
    for name, folder in folders.items():
        own = of_folder(folder, set(wanted.values()))
        found[name] = {key: own[one] for key, one in wanted.items() if one in own}
    return found
