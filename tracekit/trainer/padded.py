"""TRL and verl: a batch of padded tensors, saved with torch.save, and the texts that both log.

TRL: the dict that GRPOTrainer._generate_and_score_completions returns: `prompt_ids` padded on the left with
`prompt_mask`, `completion_ids` padded on the right with `completion_mask`, `old_per_token_logps`,
`sampling_per_token_logps` (the engine's), `advantages`. Source: huggingface/trl, trl/trainer/grpo_trainer.py. verl: the
tensors of a DataProto: `prompts` padded on the left, `responses` on the right, `attention_mask` over both,
`response_mask`, `old_log_probs`, `rollout_log_probs`, `advantages`. Source: verl-project/verl,
verl/trainer/ppo/ray_trainer.py and verl/trainer/ppo/rollout_corr_helper.py.

Texts: TRL's completions_N.parquet (`prompt`, `completion`, `advantage`, `step`; grpo_trainer.py, log) and verl's
rollout_data_dir/N.jsonl (`input`, `output`, `score`, `step`; ray_trainer.py, _dump_generations), decoded without
special tokens: no ids and no logprobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tracekit.errors import TrainerDumpError
from tracekit.trainer.types import Record, Sample, Text, plain, sample

_TRL = {
    "old_logprob": "old_per_token_logps",
    "rollout_logprob": "sampling_per_token_logps",
    "current_logprob": "per_token_logps",
    "entropy": "entropies",
    "advantage": "advantages",
}
_VERL = {
    "old_logprob": "old_log_probs",
    "rollout_logprob": "rollout_log_probs",
    "current_logprob": "log_probs",
    "entropy": "entropys",
    "advantage": "advantages",
}


def is_trl(record: Record) -> bool:
    """Whether a record is a batch of TRL's."""
    return set(record) >= {"prompt_ids", "completion_ids", "completion_mask"} and _rank(record["completion_ids"]) == 2


def read_trl(records: Iterable[tuple[str, Record]]) -> list[Sample]:
    """Read batches of TRL's.

    Raises:
        TrainerDumpError: a tensor is of another shape.
    """
    found: list[Sample] = []
    for where, batch in records:
        prompts, completions = _array(where, batch, "prompt_ids"), _array(where, batch, "completion_ids")
        prompt_mask = _array(where, batch, "prompt_mask", prompts.shape).astype(bool)
        # what TRL masks within a completion is padding, or a truncated completion as a whole
        valid = _array(where, batch, "completion_mask", completions.shape).astype(bool)
        ended = _lengths(valid, batch.get("completion_lengths"))
        has_tools = batch.get("tool_mask") is not None
        trained = valid & _array(where, batch, "tool_mask", valid.shape).astype(bool) if has_tools else valid
        found += _rows(where, batch, _TRL, prompts, prompt_mask, completions, ended, trained)
    return found


def is_verl(record: Record) -> bool:
    """Whether a record is a batch of verl's."""
    return set(record) >= {"prompts", "responses", "attention_mask"} and _rank(record["responses"]) == 2


def read_verl(records: Iterable[tuple[str, Record]]) -> list[Sample]:
    """Read batches of verl's.

    Raises:
        TrainerDumpError: a tensor is of another shape.
    """
    found: list[Sample] = []
    for where, batch in records:
        prompts, responses = _array(where, batch, "prompts"), _array(where, batch, "responses")
        split = prompts.shape[1]
        both = (len(prompts), split + responses.shape[1])
        attention = _array(where, batch, "attention_mask", both).astype(bool)
        valid = attention[:, split:]
        has_mask = "response_mask" in batch
        trained = _array(where, batch, "response_mask", responses.shape).astype(bool) if has_mask else valid
        found += _rows(where, batch, _VERL, prompts, attention[:, :split], responses, valid.sum(axis=1), trained)
    return found


def is_text(record: Record) -> bool:
    """Whether a record has the texts that TRL or verl log."""
    texts = [record.get(a) for a in ("prompt", "input")], [record.get(b) for b in ("completion", "output")]
    return all(any(isinstance(value, str) for value in side) for side in texts) and "token_ids" not in record


def read_texts(records: Iterable[tuple[str, Record]]) -> list[Text]:
    """Read texts."""
    return [
        Text(
            where,
            str(record.get("prompt", record.get("input"))),
            str(record.get("completion", record.get("output"))),
            float("nan") if record.get("advantage") is None else float(record["advantage"]),
            None if record.get("step") is None else int(record["step"]),
        )
        for where, record in records
    ]


def _rows(
    where: str, batch: Record, names: Mapping[str, str], prompts: Any, prompt_mask: Any, completions: Any, ended: Any,
    trained: Any,
) -> list[Sample]:  # fmt: skip
    columns = {
        ours: np.asarray(plain(batch[name]), float) for ours, name in names.items() if batch.get(name) is not None
    }
    for name, values in columns.items():
        if values.shape not in (completions.shape, completions.shape[:1]):
            raise TrainerDumpError(f"{where}: {name} is of shape {values.shape} for completions of {completions.shape}")
    found = []
    for i in range(len(completions)):
        prompt, length = prompts[i][prompt_mask[i]], int(ended[i])
        if not length:
            continue
        own = {name: v[i] if v.ndim == 1 else v[i][:length] for name, v in columns.items()}
        ids = np.concatenate([prompt, completions[i][:length]])
        one = sample(f"{where}/{i}", ids, num_prompt=prompt.size, mask=trained[i][:length], **own)
        pads = prompts[i][~prompt_mask[i]].astype(np.int64)
        found.append(replace(one, before=pads, is_padding=True))
    return found


def _lengths(valid: Any, given: Any) -> Any:
    """Tokens of each completion: as given, or up to the last one that counts."""
    if given is not None:
        return np.asarray(plain(given), dtype=np.int64)
    places = np.arange(1, valid.shape[1] + 1)
    return (valid * places).max(axis=1) if valid.size else valid.sum(axis=1)


def _array(where: str, batch: Record, name: str, shape: tuple[int, ...] | None = None) -> Any:
    try:
        found = np.asarray(plain(batch[name])) if name in batch else None
    except ValueError:  # rows of different lengths
        found = None
    if found is None or found.ndim != 2:
        raise TrainerDumpError(f"{where}: {name} is not a tensor of two dimensions")
    if shape not in (None, found.shape):
        raise TrainerDumpError(f"{where}: {name} is of shape {found.shape}, and not of {shape}")
    return found


def _rank(value: Any) -> int:
    rank, value = 0, plain(value)
    while isinstance(value, list) and value:
        rank, value = rank + 1, value[0]
    return rank
