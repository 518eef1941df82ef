"""prime-rl: token exports, and the annotations of traces that followed them.

Token export (`trainer.enable_token_export`): one JSON object per sequence in token_exports/step_N/rank_R.jsonl, all
lists over the whole sequence. `trainer_logprobs` are shifted right before, so that the value at i is of token i; the
first crosses the packing boundary and means nothing. Source: PrimeIntellect-ai/prime-rl,
src/prime_rl/trainer/rl/token_export.py, TokenExporter and _export_columns (schema 1).

Annotations: one update of a trace per trained sequence, {"trace_id", "info", "branches": [{"index", "trainer_logprobs",
"entropies", ...}]}, whose lists run over the branch's tokens and have null where nothing is known. Token ids are in the
trace itself: `nodes`, each with `token_ids`, `mask` (sampled), `logprobs` (the engine's, of the sampled ones alone) and
`parent`; a branch is a path from a root to a leaf, in the order of the leaves. Source: src/prime_rl/trainer/rl/
annotations.py (AnnotationWriter), and monitors/file/traces/update.py (make_update, branch_node_paths,
fold_trace_updates).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from typing import Any

from tracekit.errors import TrainerDumpError
from tracekit.trainer.types import Record, Sample, sample

_PACK = ("run_id", "step", "rank", "micro_step")  # sequences that went through the trainer in one row, in their order
EXPORT_KEYS = {"token_ids", "loss_mask", "trainer_logprobs", "inference_logprobs"}


def is_export(record: Record) -> bool:
    """Whether a record is of a token export."""
    return set(record) >= EXPORT_KEYS


def read_export(records: Iterable[tuple[str, Record]]) -> list[Sample]:
    """Read token exports.

    Raises:
        TrainerDumpError: a record's lists are not of one length.
    """
    found = []
    packs: dict[tuple[Any, ...], list[int]] = {}
    for where, record in records:
        length = len(record["token_ids"])
        own = {name: record.get(name) for name in ("trainer_logprobs", "inference_logprobs", "advantages", "entropy")}
        for name, values in {**own, "loss_mask": record["loss_mask"]}.items():
            if values is not None and len(values) != length:
                raise TrainerDumpError(f"{where}: {name} has {len(values)} values for {length} tokens")
        pack = packs.setdefault(tuple(record.get(name) for name in _PACK), [])
        found.append(
            sample(
                where,
                record["token_ids"],
                before=list(pack),
                mask=record["loss_mask"],
                step=record.get("step"),
                old_logprob=_without_first(own["trainer_logprobs"]),
                rollout_logprob=_where(own["inference_logprobs"], record["loss_mask"]),
                advantage=own["advantages"],
                entropy=_without_first(own["entropy"]),
            )
        )
        pack += record["token_ids"]
    return found


def is_annotation(record: Record) -> bool:
    """Whether a record is an update of a trace, or a trace."""
    return ("trace_id" in record and isinstance(record.get("branches"), list)) or bool(_nodes(record))


def read_annotations(records: Iterable[tuple[str, Record]]) -> list[Sample]:
    """Put updates onto the traces that they belong to, the newest of each branch.

    Raises:
        TrainerDumpError: an update has no trace in the dump, or a list is longer than its branch.
    """
    records = list(records)
    traces = {str(record.get("id", record.get("trace_id"))): _nodes(record) for _, record in records if _nodes(record)}
    streams: dict[tuple[str, int], tuple[str, dict[str, Any]]] = {}
    for where, record in records:
        for branch in record.get("branches") or []:
            key = str(record.get("trace_id")), int(branch["index"])
            known = streams[key][1] if key in streams else {}
            streams[key] = where, {**known, **branch, "step": _step(record)}
    return [
        _annotated(where, traces.get(trace, []), trace, number, branch)
        for (trace, number), (where, branch) in streams.items()
        if branch.get("trainer_logprobs")
    ]


def _annotated(where: str, nodes: Seq[Record], trace: str, number: int, streams: Mapping[str, Any]) -> Sample:
    paths = _paths(nodes)
    if number >= len(paths):
        raise TrainerDumpError(
            f"{where}: this annotation has no token ids, and branch {number} of the trace {trace}, which has them, is "
            "not in the dump: give the folder that holds the traces and their annotations"
        )
    ids: list[int] = []
    logprobs: list[float | None] = []
    sampled: list[bool] = []
    for node in (nodes[i] for i in paths[number]):
        own = [bool(m) for m in node.get("mask") or [False] * len(node["token_ids"])]
        values = iter(node.get("logprobs") or [])
        ids += node["token_ids"]
        sampled += own
        logprobs += [next(values, None) if m else None for m in own]
    length = len(streams["trainer_logprobs"])
    if length > len(ids):
        raise TrainerDumpError(f"{where}: {length} values for the {len(ids)} tokens of branch {number}")
    trained = [value is not None for value in streams["trainer_logprobs"]]
    return sample(
        where,
        ids[:length],
        mask=[a and b for a, b in zip(trained, sampled, strict=False)],
        step=streams["step"],
        old_logprob=streams["trainer_logprobs"],
        rollout_logprob=logprobs[:length],
        advantage=streams.get("advantages"),
        entropy=streams.get("entropies"),
    )


def _nodes(record: Record) -> Seq[Record]:
    nodes = record.get("nodes")
    if not isinstance(nodes, list) or not all(isinstance(node, Mapping) and "token_ids" in node for node in nodes):
        return []
    return nodes


def _paths(nodes: Seq[Record]) -> list[list[int]]:
    """Indices of nodes from the root to each leaf."""
    parents = {node.get("parent") for node in nodes}
    found = []
    for leaf in (i for i in range(len(nodes)) if i not in parents):
        path = [leaf]
        while isinstance(parent := nodes[path[-1]].get("parent"), int) and 0 <= parent < path[-1]:
            path.append(parent)
        found.append(path[::-1])
    return found


def _step(record: Record) -> int | None:
    train = (record.get("info") or {}).get("train")
    return train.get("trained_at_step") if isinstance(train, Mapping) else None


def _without_first(values: Any) -> Any:
    return None if values is None else [None, *values[1:]]


def _where(values: Any, mask: Any) -> Any:
    """Values of sampled tokens: those of a prompt are filled with zeros."""
    return None if values is None else [v if m else None for v, m in zip(values, mask, strict=True)]
