"""One record per sequence: tracekit's own names, names that a mapping gives them, and `record --completions`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tracekit.errors import TrainerDumpError, UsageError
from tracekit.trainer.types import COLUMNS, Record, Sample, plain, sample

PROMPT, COMPLETION, ALL = "prompt_ids", "completion_ids", "token_ids"
NAMES = (ALL, PROMPT, COMPLETION, *COLUMNS, "mask", "step")


def is_client_view(record: Record) -> bool:
    """Whether a record is a line of `record --completions` (tracekit.jobs.rollout)."""
    return set(record) >= {"request_id", "index", "prompt_token_ids", "token_ids"}


def read_client_view(records: Iterable[tuple[str, Record]]) -> list[Sample]:
    """Read what a client received: its logprobs are the engine's, as the trainer behind it holds them.

    Raises:
        TrainerDumpError: a line's logprobs are not as many as its tokens.
    """
    return [
        sample(
            where,
            [*record["prompt_token_ids"], *record["token_ids"]],
            num_prompt=len(record["prompt_token_ids"]),
            rollout_logprob=record.get("logprobs"),
        )
        for where, record in records
        if record["token_ids"]
    ]


def check_mapping(mapping: Mapping[str, str]) -> None:
    """Make sure that a mapping gives names that are read.

    Raises:
        UsageError: it does not.
    """
    if unknown := sorted(set(mapping) - set(NAMES)):
        raise UsageError(f"--trainer-map knows {', '.join(NAMES)}, not {', '.join(unknown)}")


def has_ids(record: Record, mapping: Mapping[str, str]) -> bool:
    """Whether a record has token ids under tracekit's names or those of the mapping."""
    has = {name for name in (ALL, PROMPT, COMPLETION) if record.get(mapping.get(name, name)) is not None}
    return ALL in has or has >= {PROMPT, COMPLETION}


def read_rows(records: Iterable[tuple[str, Record]], mapping: Mapping[str, str]) -> list[Sample]:
    """Read records by name.

    Raises:
        TrainerDumpError: a name of the mapping is in no record, or a record has no token ids or values that do not fit.
    """
    records = list(records)
    there = {name for _, record in records for name in record}
    if missing := sorted(set(mapping.values()) - there):
        raise TrainerDumpError(f"no record has {', '.join(missing)}, they have {', '.join(sorted(there))}")
    return [_row(where, {name: record.get(mapping.get(name, name)) for name in NAMES}) for where, record in records]


def _row(where: str, record: dict[str, Any]) -> Sample:
    whole, prompt, completion = (plain(record.pop(name)) for name in (ALL, PROMPT, COMPLETION))
    if prompt is not None and completion is not None:
        whole = [*prompt, *completion]
    elif whole is None:
        raise TrainerDumpError(f"{where}: it has neither {ALL} nor both {PROMPT} and {COMPLETION} (see --trainer-map)")
    elif completion is not None:
        prompt = whole[: max(len(whole) - len(completion), 0)]
        if [*prompt, *completion] != [*whole]:
            raise TrainerDumpError(f"{where}: {ALL} does not end with {COMPLETION}")
    return sample(where, whole, num_prompt=None if prompt is None else len(prompt), **record)
