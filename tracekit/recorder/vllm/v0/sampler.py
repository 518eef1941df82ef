"""Logprobs that nobody asked for, from V0's sampler: wraps in the process of the driver's worker, which samples.

`get_logprobs` sees the processed logprobs of the whole batch and picks what clients asked for; we pick every sampled
token's. The raw ones are made from a copy of the logits, on which the sampler works in place
(vllm/model_executor/layers/sampler.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tracekit.recorder.guard import failed
from tracekit.recorder.vllm import hooks
from tracekit.recorder.vllm.sampler import Held, held_now, say_unasked

Score = tuple[float, float | None]  # processed and raw, of one sampled token


class Scored(list[Any]):
    """The outputs of a step, one per group; `scores` has a `Score` for each that sampled and None for the others."""

    scores: list[Score | None]


def attach(option: str) -> None:
    """Wrap the sampler once per process; `option` is `engine` or `both`."""
    from vllm.model_executor.layers import sampler

    if not hasattr(sampler, "get_logprobs") or "forward" not in vars(getattr(sampler, "Sampler", object)):
        say_unasked("this vLLM has another sampler")
        return
    hooks.wrap(sampler, "get_logprobs", _get_logprobs)
    hooks.wrap(sampler.Sampler, "forward", _forward_both if option == "both" else _forward_engine)


# The parameters below have vLLM's names, so that it may also pass them by name.


def _forward_both(original: Callable[..., Any], self: Any, logits: Any, sampling_metadata: Any) -> Any:
    return _forward(lambda: Held(logits.clone()), original, self, logits, sampling_metadata)


def _forward_engine(original: Callable[..., Any], self: Any, logits: Any, sampling_metadata: Any) -> Any:
    return _forward(Held, original, self, logits, sampling_metadata)


def _forward(hold: Callable[[], Held], original: Callable[..., Any], self: Any, logits: Any, metadata: Any) -> Any:
    try:
        held = hold()
    except Exception as error:
        failed("Sampler.forward", error)
        return original(self, logits, metadata)
    with held:
        output = original(self, logits, metadata)
    if held.scores is not None and output is not None:
        output.outputs = Scored(output.outputs)
        output.outputs.scores = held.scores
    return output


def _get_logprobs(original: Callable[..., Any], logprobs: Any, sampling_metadata: Any, sample_results: Any) -> Any:
    held = held_now()
    if held is not None:
        try:
            held.scores = _scores(logprobs, held.before, sampling_metadata.seq_groups, sample_results)
        except Exception as error:
            failed("get_logprobs", error)
    return original(logprobs, sampling_metadata, sample_results)


def _scores(logprobs: Any, logits: Any, groups: Sequence[Any], results: Sequence[Any]) -> list[Score | None]:
    """Pick the sampled token's values of each group that samples.

    Args:
        logprobs: processed [rows, vocab] float32.
        logits: [rows, vocab] or None.
        groups: of the batch, with the rows of each.
        results: (token ids, places of their parents) of each group.
    """
    import torch

    rows = [g.sample_indices[0] + parents[0] for g, (_, parents) in zip(groups, results, strict=True) if g.do_sample]
    tokens = [ids[0] for g, (ids, _) in zip(groups, results, strict=True) if g.do_sample]
    if not rows:
        return [None for _ in groups]
    at = torch.tensor([rows, tokens], device=logprobs.device)
    processed = logprobs[at[0], at[1]].tolist()
    raw: list[float | None] = [None] * len(rows)
    if logits is not None:
        raw = logits[at[0]].log_softmax(dim=-1, dtype=torch.float32).gather(1, at[1].unsqueeze(1)).squeeze(1).tolist()
    found = iter(zip(processed, raw, strict=True))
    return [next(found) if g.do_sample else None for g in groups]
