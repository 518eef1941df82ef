"""Probing of V0: a wrap of the worker, which knows the order of a step's rows, and of the sampler, which gets logits.

Rows stand in the order of the request's `seq_group_metadata_list`, sequence by sequence (vllm/worker/
cpu_model_runner.py `_build_input_data`, vllm/worker/model_runner.py `ModelInputForGPUBuilder`). Profiling runs call the
model runner, not the worker.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracekit.recorder.guard import never_raise, say_once
from tracekit.recorder.vllm import hooks
from tracekit.recorder.vllm.probe import COMPILED, PLACE, PURPOSE, Probing, on_step_done
from tracekit.recorder.vllm.shares import is_within
from tracekit.recorder.vllm.v0.rows import family_of

_HIDDEN = "_tracekit_hidden"  # [T, H] behind the final norm, of the last forward
_ROWS = "_tracekit_rows"  # last row of each sequence in the step, in their order


def attach(folder: str, sample: float = 1.0) -> None:
    """Wrap the workers once per process; of a share of requests that is recorded, `sample`, some are probed."""
    from vllm.worker.worker_base import LocalOrDistributedWorkerBase

    hooks.after(LocalOrDistributedWorkerBase, "prepare_input", _prepared_for(folder, sample), PURPOSE)
    hooks.after(LocalOrDistributedWorkerBase, "execute_model", on_step_done, PURPOSE)


def probe(worker: Any, folder: str, sample: float = 1.0) -> Probing:
    """Probe a worker from now on."""
    probing = Probing(worker.get_model(), Path(folder), lambda name: is_within(family_of(name), sample))
    setattr(worker, PLACE, probing)
    sampler = getattr(worker.model_runner, "sampler", None) or worker.get_model().sampler
    before = never_raise(_to_sampler(probing, worker))
    probing.hooks.append(sampler.register_forward_pre_hook(before, with_kwargs=True))
    norm = next(m for name, m in worker.get_model().named_modules() if name.endswith("model.norm"))
    probing.hooks.append(norm.register_forward_hook(never_raise(_behind_norm(probing, worker))))
    return probing


def _prepared_for(folder: str, sample: float) -> Callable[..., None]:
    def _on_prepared(worker: Any, result: Any, request: Any = None, *_args: Any, **_kwargs: Any) -> None:
        if result is None or request is None or not request.seq_group_metadata_list:
            return
        if not worker.model_config.enforce_eager:
            say_once(COMPILED)
            return
        probing = getattr(worker, PLACE, None) or probe(worker, folder, sample)
        if probing.is_over:
            return
        probing.forget(request.finished_requests_ids)
        model_input, names, parts = result[0], [], {}
        for group in request.seq_group_metadata_list:
            for sequence in group.seq_data:
                # of a request with several sequences none is probed
                names.append(group.request_id if len(group.seq_data) == 1 else f"{group.request_id}/{sequence}")
        ends, nums = model_input.seq_lens, model_input.query_lens
        for name, end, num in zip(names, ends, nums, strict=True):
            parts[name] = end - num, num
        probing.admit(
            {
                group.request_id: sequence.get_prompt_len()
                for group in request.seq_group_metadata_list
                for sequence in group.seq_data.values()
                if group.is_prompt and parts.get(group.request_id, (1, 0))[0] == 0 and _is_plain(group)
            }
        )
        setattr(worker, _ROWS, [stop - 1 for stop in itertools.accumulate(nums)])
        probing.begin(parts, lambda: names)

    return _on_prepared


def _is_plain(group: Any) -> bool:
    """Whether nothing but the model makes its logits, and its first rows are not those of a request under way."""
    params = group.sampling_params
    alone = params is not None and params.n == 1 and not params.logits_processors and params.logit_bias is None
    return bool(alone and group.lora_request is None)


def _to_sampler(probing: Probing, worker: Any) -> Callable[..., None]:
    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        logits = args[0] if args else kwargs["logits"]
        metadata = args[1] if args[1:] else kwargs["sampling_metadata"]
        selected, hidden = metadata.selected_token_indices, getattr(worker, _HIDDEN, None)
        if logits is None or hidden is None or probing.is_over:
            return
        at = {row: number for number, row in enumerate(selected.tolist())}
        probing.head(hidden[selected], logits, [at.get(row, -1) for row in getattr(worker, _ROWS)])

    return hook


def _behind_norm(probing: Probing, worker: Any) -> Callable[..., None]:
    def hook(_module: Any, _args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        setattr(worker, _HIDDEN, None if probing.is_over else hidden)

    return hook
