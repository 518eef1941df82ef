"""Logprobs that nobody asked for, from V0's sampler: wraps in the process of the driver's worker, which samples.

`get_logprobs` sees the processed logprobs of the whole batch and picks what clients asked for; we pick every sampled
token's. The raw ones are made from a copy of the logits, on which the sampler works in place
(vllm/model_executor/layers/sampler.py).
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from tracekit.recorder.guard import failed, say_once
from tracekit.recorder.vllm import hooks

_now = threading.local()  # .held: the sampler call that runs on this thread

Score = tuple[float, float | None]  # processed and raw, of one sampled token


class Scored(list[Any]):
    """The outputs of a step, one a group; ``scores`` has a `Score` for each that sampled and None for the others."""

    scores: "list[Score | None]"


class _Held:
    """What is kept of the sampler call that runs."""

    def __init__(self, logits: Any) -> None:
        self.logits = logits  # [rows, vocab] as the model gave them; None where raw ones are not wanted
        self.scores: list[Score | None] | None = None


def attach(option: str) -> None:
    """Wrap the sampler once per process; ``option`` is ``engine`` or ``both``."""
    from vllm.model_executor.layers import sampler

    if not hasattr(sampler, "get_logprobs") or "forward" not in vars(getattr(sampler, "Sampler", object)):
        say_once("logprobs that the client does not ask for are not recorded: this vLLM has another sampler")
        return
    hooks.install(sampler, "get_logprobs", _get_logprobs)
    hooks.install(sampler.Sampler, "forward", _forward_both if option == "both" else _forward_engine)


def _forward_both(original: Callable[..., Any]) -> Callable[..., Any]:
    return _forward(original, lambda logits: _Held(logits.clone()))


def _forward_engine(original: Callable[..., Any]) -> Callable[..., Any]:
    return _forward(original, lambda _: _Held(None))


def _forward(original: Callable[..., Any], hold: Callable[[Any], _Held]) -> Callable[..., Any]:
    # the names are vLLM's, so that it may also be called with keywords
    def forward(self: Any, logits: Any, sampling_metadata: Any) -> Any:
        held = None
        try:
            held = _now.held = hold(logits)
        except Exception as error:
            failed("Sampler.forward", error)
        try:
            output = original(self, logits, sampling_metadata)
        finally:
            _now.held = None
        if held is not None and held.scores is not None and output is not None:
            output.outputs = Scored(output.outputs)
            output.outputs.scores = held.scores
        return output

    return forward


def _get_logprobs(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_logprobs(logprobs: Any, sampling_metadata: Any, sample_results: Any) -> Any:
        held = getattr(_now, "held", None)
        if held is not None:
            try:
                held.scores = _scores(logprobs, held.logits, sampling_metadata.seq_groups, sample_results)
            except Exception as error:
                failed("get_logprobs", error)
        return original(logprobs, sampling_metadata, sample_results)

    return get_logprobs


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
