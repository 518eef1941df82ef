"""slime, vime and miles: what `--save-debug-train-data` and `--save-debug-rollout-data` write with torch.save.

Train data is {"rollout_id", "rank", "rollout_data"}; rollout_data has one entry per sequence: `tokens` of all of it,
`response_lengths`, and lists over the response (`loss_masks`, `log_probs`, `rollout_log_probs`, `advantages`,
`entropy`). Rollout data is {"rollout_id", "samples"}, each sample the dict of slime's Sample: `tokens`,
`response_length`, `loss_mask`, `rollout_log_probs`, `weight_versions` (one per call of the engine, the last one counts
here where they are the same). Source: THUDM/slime, slime/utils/train_dump_utils.py, slime/utils/types.py (Sample) and
slime/ray/rollout.py (_save_debug_rollout_data); radixark/miles and vllm-project/vime keep the same keys.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from tracekit.errors import TrainerDumpError
from tracekit.trainer.types import F8, Record, Sample, plain, sample

_TRAIN = {
    "old_logprob": "log_probs",
    "rollout_logprob": "rollout_log_probs",
    "advantage": "advantages",
    "entropy": "entropy",
}


def is_slime(record: Record) -> bool:
    """Whether a record is one of the two."""
    inner = record.get("rollout_data")
    return (isinstance(inner, dict) and "tokens" in inner) or (
        isinstance(record.get("samples"), list) and "rollout_id" in record
    )


def read_slime(records: Iterable[tuple[str, Record]]) -> list[Sample]:
    """Read both kinds; a sequence that is in both is one, with the values of both.

    Raises:
        TrainerDumpError: a list has another number of sequences or tokens than the others.
    """
    trained: list[Sample] = []
    sampled: dict[tuple[int | None, bytes], list[Sample]] = defaultdict(list)
    for where, record in records:
        if "rollout_data" in record:
            trained += _train(where, record["rollout_data"], record.get("rollout_id"))
        else:
            for i, one in enumerate(record["samples"]):
                read = _rollout(f"{where}/{i}", one, record.get("rollout_id"))
                sampled[read.step, read.token_ids.tobytes()].append(read)
    found = [_with_rollout(one, sampled.get((one.step, one.token_ids.tobytes()), [])) for one in trained]
    return found + [one for left in sampled.values() for one in left]


def _with_rollout(one: Sample, fitting: list[Sample]) -> Sample:
    """Take the rollout data's entry of a trained sequence out of those of its ids, and what it tells beside."""
    own = [s for s in fitting if _same(s.rollout_logprob, one.rollout_logprob)] or list(fitting)
    if not own:
        return one
    first = own[0]
    fitting[:] = [s for s in fitting if s is not first]
    told = np.isfinite(one.version).any() or not all(_same(s.version, first.version) for s in own)
    return one if told else replace(one, version=first.version)


def _same(values: F8, others: F8) -> bool:
    return np.array_equal(values.astype(np.float32), others.astype(np.float32), equal_nan=True)


def _train(where: str, data: Record, step: Any) -> list[Sample]:
    data = {name: plain(values) for name, values in data.items()}
    tokens, lengths = data["tokens"], data["response_lengths"]
    for name, values in data.items():
        if name in (*_TRAIN.values(), "loss_masks", "response_lengths") and values and len(values) != len(tokens):
            raise TrainerDumpError(f"{where}: {name} has {len(values)} entries for {len(tokens)} sequences")
    found = []
    for i, ids in enumerate(tokens):
        size, response = len(ids), int(lengths[i])
        columns = {ours: data[theirs][i] for ours, theirs in _TRAIN.items() if data.get(theirs)}
        masks = data.get("loss_masks")
        before = [token for earlier in _packed_before(data, i) for token in plain(tokens[earlier])]
        found.append(
            sample(
                f"{where}/{i}",
                ids,
                num_prompt=size - response,
                mask=masks[i] if masks else None,
                step=step,
                before=before,
                version=_version(_entry(data.get("weight_versions"), i)),
                **columns,
            )
        )
    return found


def _packed_before(data: Record, i: int) -> list[int]:
    """Sequences before one in its micro-batch, which goes through Megatron as one row."""
    for batch in data.get("micro_batch_indices") or []:
        if i in batch:
            batch = plain(batch)
            return list(batch[: batch.index(i)])
    return []


def _rollout(where: str, one: Record, step: Any) -> Sample:
    return sample(
        where,
        one["tokens"],
        num_prompt=len(one["tokens"]) - int(one["response_length"]),
        mask=one.get("loss_mask"),
        step=step,
        rollout_logprob=one.get("rollout_log_probs"),
        version=_version(one.get("weight_versions")),
    )


def _entry(values: Any, i: int) -> Any:
    return values[i] if values else None


def _version(labels: Any) -> int | None:
    """The version of a sequence, where all calls name the same."""
    labels = plain(labels)
    named = {str(label) for label in (labels if isinstance(labels, list) else [labels]) if label is not None}
    text = named.pop() if len(named) == 1 else ""
    return int(text) if text.isdecimal() else None
