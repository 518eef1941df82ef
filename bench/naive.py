"""What anyone would pick instead: a padded forward and a log-softmax; and other heads, with their error."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from tracekit.scoring.loading import load_model, pick_device
from tracekit.scoring.types import Sequence

ROWS = 512

Batches = Iterator[list[int]]
Plan = Callable[[list[int]], Batches]


def load(folder: str, dtype: str, device: str) -> torch.nn.Module:
    return load_model(Path(folder), dtype=dtype, device=pick_device(device))


def scorer(model: torch.nn.Module, plan: Plan) -> Callable[[list[Sequence]], list[np.ndarray]]:
    """Every position of every sequence through the head; a batch is padded to its longest."""
    device = next(model.parameters()).device

    @torch.inference_mode()
    def score(sequences: list[Sequence]) -> list[np.ndarray]:
        lengths = [len(s.prompt_token_ids) + len(s.token_ids) for s in sequences]
        results: list[np.ndarray] = [np.empty(0)] * len(sequences)
        for batch in plan(lengths):
            ids = torch.zeros(len(batch), max(lengths[i] for i in batch), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                tokens = np.concatenate([sequences[i].prompt_token_ids, sequences[i].token_ids]).astype(np.int64)
                ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.from_numpy(tokens), 1
            ids = ids.to(device)
            logits = model(input_ids=ids, attention_mask=mask.to(device), use_cache=False).logits
            logprobs = logits.float().log_softmax(dim=-1)
            chosen = logprobs[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2).cpu().numpy()
            for row, i in enumerate(batch):
                results[i] = chosen[row, len(sequences[i].prompt_token_ids) - 1 : lengths[i] - 1]
        return results

    return score


def like_with_like(max_batch_tokens: int, lengths: list[int]) -> Batches:
    """Batches of sequences of all groups, sorted by length, so that next to nothing is padded."""
    left = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while left:
        rows = max(max_batch_tokens // lengths[left[0]], 1)
        yield left[:rows]
        left = left[rows:]


def group_by_group(size: int, lengths: list[int]) -> Batches:
    """Batches as the rollouts of a prompt come, which is how a trainer's micro batches have them."""
    for first in range(0, len(lengths), size):
        yield list(range(first, min(first + size, len(lengths))))


@torch.inference_mode()
def head_errors(folder: str, device: str) -> dict:
    """Largest error of each head's logprob against float64, on the same bfloat16 hidden states, and its time."""
    from tracekit.scoring.params import Params
    from tracekit.scoring.rows import score_rows
    from tracekit.scoring.sampling import Segment
    from tracekit.scoring.scorer import Scorer

    ours = Scorer.load(folder, dtype="bfloat16", device=device)
    model = load(folder, "bfloat16", device)
    weight = model.get_output_embeddings().weight.detach()
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, min(len(weight), 30000), ROWS)).to(weight.device)
    hidden = model.base_model(input_ids=ids[None], use_cache=False)[0][0]
    targets = torch.from_numpy(rng.integers(0, len(weight), ROWS)).to(weight.device)
    exact = torch.cat(
        [
            (h.double() @ weight.double().T).log_softmax(-1).gather(1, t[:, None])[:, 0]
            for h, t in zip(hidden.split(64), targets.split(64), strict=True)
        ]
    )
    empty = np.zeros(1, np.uint32)

    def scorer_head() -> torch.Tensor:
        parts = []
        for first in range(0, ROWS, ours.chunk_rows):
            chunk = slice(first, min(first + ours.chunk_rows, ROWS))
            rows = chunk.stop - first
            segment = Segment(Params(), empty, np.zeros(rows, np.uint32), 0, rows)
            parts.append(
                score_rows(ours.model.logits(hidden[chunk], targets[chunk]), targets[chunk], [[segment]])[0].raw_logprob
            )
        return torch.cat(parts)

    def plain_head() -> torch.Tensor:
        return (hidden @ weight.T).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]

    heads = {"ours": scorer_head, "bfloat16 head": plain_head, **_others(hidden, weight, targets)}
    out = {}
    for name, head in heads.items():
        try:
            error = float((head().double() - exact).abs().max())
            out[f"head error in nats, {name}"] = float(f"{error:.2g}")
            out[f"head ms for {ROWS} rows, {name}"] = _milliseconds(head)
        except Exception as problem:  # an optional library that does not run on this device
            out[f"head, {name}"] = f"does not run here: {str(problem).splitlines()[0][:80]}"
    return out


def _others(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> dict:
    found = {}
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as liger

        found["liger-kernel"] = lambda: -liger(hidden, weight, targets, reduction="none")
    except ImportError:
        pass
    try:
        from cut_cross_entropy import linear_cross_entropy as cce

        found["cut-cross-entropy"] = lambda: -cce(hidden, weight, targets, reduction="none")
    except ImportError:
        pass
    return found


def _milliseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return round(1000 * sorted(times)[2], 2)
