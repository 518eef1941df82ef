"""The same sequences in the shape of each framework's dump, laid out as the framework's own code lays them out."""

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch


@dataclass
class Trained:
    """A sequence of one turn that a trainer used; lists are over the completion."""

    prompt: list[int]
    completion: list[int]
    old: list[float]
    rollout: list[float]
    advantage: float = 0.5
    mask: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mask = self.mask or [1] * len(self.completion)

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.completion]


def _lines(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prime_rl(folder: Path, sequences: Sequence[Trained]) -> Path:
    """token_exports/step_3/rank_0.jsonl; the first value of each sequence is that of the packing boundary."""
    rows = []
    for i, s in enumerate(sequences):
        before = [0.0] * len(s.prompt)
        rows.append(
            {
                "schema_version": 1, "step": 3, "rank": 0, "micro_step": 0, "micro_sequence_idx": i, "run_id": None,
                "token_ids": s.ids, "position_ids": list(range(len(s.ids))),
                "loss_mask": [False] * len(s.prompt) + [bool(m) for m in s.mask],
                "advantages": [s.advantage] * len(s.ids),
                "inference_logprobs": before + s.rollout,
                "trainer_logprobs": [-13.0] + [-1.0] * (len(s.prompt) - 1) + s.old,
                "entropy": [9.0] * len(s.prompt) + [1.5] * len(s.completion),
            }
        )  # fmt: skip
    step = folder / "token_exports" / "step_3"
    _lines(step / "rank_0.jsonl", rows)
    (step / "STABLE").touch()
    return folder / "token_exports"


def prime_rl_annotations(folder: Path, sequences: Sequence[Trained]) -> Path:
    """traces/step_3/train: the traces, and updates of them under annotations/."""
    traces, updates = [], []
    for i, s in enumerate(sequences):
        nodes = [
            {"parent": None, "token_ids": s.prompt, "mask": [False] * len(s.prompt), "logprobs": []},
            {"parent": 0, "token_ids": s.completion, "mask": [True] * len(s.completion), "logprobs": s.rollout},
        ]
        traces.append({"id": f"trace-{i}", "nodes": nodes, "info": {}})
        stream = [None] * len(s.prompt) + [v if m else None for v, m in zip(s.old, s.mask, strict=True)]
        entropies = [None] * len(s.prompt) + [1.5] * len(s.completion)
        advantages = [None] * len(s.prompt) + [s.advantage] * len(s.completion)
        by = {"index": 0, "trainer_logprobs": stream, "entropies": entropies}
        updates.append(
            {"version": 1, "trace_id": f"trace-{i}", "info": {}, "branches": [{"index": 0, "advantages": advantages}]}
        )
        updates.append(
            {"version": 1, "trace_id": f"trace-{i}", "info": {"train": {"trained_at_step": 3}}, "branches": [by]}
        )
    _lines(folder / "train" / "traces.jsonl", traces)
    _lines(folder / "train" / "annotations" / "trainer.jsonl", updates)
    return folder / "train"


def slime(folder: Path, sequences: Sequence[Trained]) -> Path:
    """--save-debug-train-data, and the rollout data beside it."""
    data = {
        "tokens": [torch.tensor(s.ids) for s in sequences],
        "total_lengths": [len(s.ids) for s in sequences],
        "response_lengths": [len(s.completion) for s in sequences],
        "loss_masks": [torch.tensor(s.mask, dtype=torch.int32) for s in sequences],
        "log_probs": [torch.tensor(s.old) for s in sequences],
        "rollout_log_probs": [torch.tensor(s.rollout) for s in sequences],
        "advantages": [torch.full((len(s.completion),), s.advantage) for s in sequences],
        "entropy": [torch.full((len(s.completion),), 1.5) for s in sequences],
        "sample_indices": list(range(len(sequences))),
        "micro_batch_indices": [[i] for i in range(len(sequences))],
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"rollout_id": 3, "rank": 0, "rollout_data": data}, folder / "train_3_0.pt")
    samples = [
        {
            "tokens": s.ids, "response_length": len(s.completion), "loss_mask": s.mask, "rollout_log_probs": s.rollout,
            "weight_versions": ["0"], "status": "completed", "reward": 1.0, "metadata": {}, "prompt": "p",
        }
        for s in sequences
    ]  # fmt: skip
    torch.save({"rollout_id": 3, "samples": samples}, folder / "rollout_3.pt")
    return folder


def _padded(rows: Sequence[Sequence[Any]], *, left: bool, fill: Any, dtype: Any) -> torch.Tensor:
    width = max(map(len, rows))
    out = [[fill] * (width - len(r)) + list(r) if left else list(r) + [fill] * (width - len(r)) for r in rows]
    return torch.tensor(out, dtype=dtype)


def trl(folder: Path, sequences: Sequence[Trained]) -> Path:
    """What GRPOTrainer._generate_and_score_completions returns, with torch.save."""
    folder.mkdir(parents=True, exist_ok=True)
    ints = {"dtype": torch.int64}
    batch = {
        "prompt_ids": _padded([s.prompt for s in sequences], left=True, fill=0, **ints),
        "prompt_mask": _padded([[1] * len(s.prompt) for s in sequences], left=True, fill=0, **ints),
        "completion_ids": _padded([s.completion for s in sequences], left=False, fill=0, **ints),
        "completion_mask": _padded([[1] * len(s.completion) for s in sequences], left=False, fill=0, **ints),
        "tool_mask": _padded([s.mask for s in sequences], left=False, fill=0, **ints),
        "old_per_token_logps": _padded([s.old for s in sequences], left=False, fill=0.0, dtype=torch.float64),
        "sampling_per_token_logps": _padded([s.rollout for s in sequences], left=False, fill=0.0, dtype=torch.float64),
        "entropies": _padded([[1.5] * len(s.completion) for s in sequences], left=False, fill=0.0, dtype=torch.float32),
        "advantages": torch.tensor([s.advantage for s in sequences]),
        "num_items_in_batch": torch.tensor(5),
    }
    torch.save(batch, folder / "batch.pt")
    return folder / "batch.pt"


def verl(folder: Path, sequences: Sequence[Trained]) -> Path:
    """The tensors of a DataProto, with torch.save."""
    folder.mkdir(parents=True, exist_ok=True)
    ints = {"dtype": torch.int64}
    prompts = _padded([s.prompt for s in sequences], left=True, fill=0, **ints)
    responses = _padded([s.completion for s in sequences], left=False, fill=0, **ints)
    before = _padded([[1] * len(s.prompt) for s in sequences], left=True, fill=0, **ints)
    after = _padded([[1] * len(s.completion) for s in sequences], left=False, fill=0, **ints)
    mask = _padded([s.mask for s in sequences], left=False, fill=0, **ints)
    batch = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": torch.cat([prompts, responses], dim=1),
        "attention_mask": torch.cat([before, after], dim=1),
        "response_mask": mask,
        "old_log_probs": _padded([s.old for s in sequences], left=False, fill=0.0, dtype=torch.float64),
        "rollout_log_probs": _padded([s.rollout for s in sequences], left=False, fill=0.0, dtype=torch.float64),
        "entropys": _padded([[1.5] * len(s.completion) for s in sequences], left=False, fill=0.0, dtype=torch.float32),
        "advantages": _padded(
            [[s.advantage] * len(s.completion) for s in sequences], left=False, fill=0.0, dtype=torch.float32
        ),
    }
    torch.save(batch, folder / "batch.pt")
    return folder / "batch.pt"


def _rows(sequences: Sequence[Trained]) -> list[dict[str, Any]]:
    return [
        {
            "prompt_ids": s.prompt, "completion_ids": s.completion, "old_logprob": s.old, "rollout_logprob": s.rollout,
            "mask": s.mask, "advantage": s.advantage, "entropy": [1.5] * len(s.completion), "step": 3,
        }
        for s in sequences
    ]  # fmt: skip


def rows_zst(folder: Path, sequences: Sequence[Trained]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in _rows(sequences))
    with pa.CompressedOutputStream(str(folder / "train.jsonl.zst"), "zstd") as file:
        file.write(text.encode())
    return folder / "train.jsonl.zst"


def rows_gz(folder: Path, sequences: Sequence[Trained]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rows(sequences))  # one array
    (folder / "train.json.gz").write_bytes(gzip.compress(text.encode()))
    return folder / "train.json.gz"


def rows_parquet(folder: Path, sequences: Sequence[Trained]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(_rows(sequences)), folder / "train.parquet")
    return folder / "train.parquet"


def rows_arrow(folder: Path, sequences: Sequence[Trained]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(_rows(sequences))
    with pa.ipc.new_file(str(folder / "train.arrow"), table.schema) as writer:
        writer.write_table(table)
    return folder / "train.arrow"


def completions(folder: Path, sequences: Sequence[Trained]) -> Path:
    """`record --completions`: no values of the trainer's own."""
    rows = [
        {"request": i, "request_id": str(i), "index": 0, "prompt_token_ids": s.prompt, "token_ids": s.completion,
         "logprobs": s.rollout, "prompt_logprobs": None, "text": "t", "finish_reason": "length"}
        for i, s in enumerate(sequences)
    ]  # fmt: skip
    return _lines(folder / "client.jsonl", rows)


Writer = Callable[[Path, Sequence[Trained]], Path]

# name of the format -> what writes it; each holds ids, mask, both logprobs, entropy and advantage
WRITERS: dict[str, Writer] = {
    "prime-rl token export": prime_rl,
    "prime-rl annotations": prime_rl_annotations,
    "slime debug dump": slime,
    "TRL batch": trl,
    "verl batch": verl,
    "rows": rows_zst,
}
ROWS: list[Writer] = [rows_zst, rows_gz, rows_parquet, rows_arrow]


def random_sequences(count: int = 5, *, seed: int = 0, vocab: int = 160) -> list[Trained]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        length = int(rng.integers(3, 9))
        rollout = np.round(-rng.exponential(1.0, length) - 1e-3, 4)
        old = np.round(rollout - 0.01, 4)
        prompt = rng.integers(3, vocab, int(rng.integers(3, 7))).tolist()
        found.append(
            Trained(
                prompt,
                rng.integers(3, vocab, length).tolist(),
                old.tolist(),
                rollout.tolist(),
                float(rng.integers(1, 9)) / 4,
            )
        )
    return found
