"""Faults of what samples, and of what the engine's numbers mean.

V1's sampler takes a SamplingMetadata (vllm/v1/sample/metadata.py), V0's makes SamplingTensors of the requests'
parameters (vllm/model_executor/sampling_metadata.py).
"""

import math
from dataclasses import replace

import torch

from corpus.inside.patch import fault, patched

OFF = {"temperature": 1.0, "top_p": 1.0, "top_k": 1 << 20, "repetition": 1.0, "frequency": 0.0, "presence": 0.0}
V1_NAMES = {"repetition": "repetition_penalties", "frequency": "frequency_penalties", "presence": "presence_penalties"}
V0_NAMES = {
    "temperature": "temperatures",
    "top_p": "top_ps",
    "top_k": "top_ks",
    "min_p": "min_ps",
    "repetition": "repetition_penalties",
    "frequency": "frequency_penalties",
    "presence": "presence_penalties",
}


def is_v0(bench):
    return hasattr(bench, "worker")


def with_values(metadata, values, vocab_size):
    """V1's metadata with other values for all rows."""
    num = len(metadata.frequency_penalties)
    changes = {}
    for name, value in values.items():
        dtype = torch.int32 if name == "top_k" else torch.float32
        value = min(value, vocab_size) if name == "top_k" else value
        changes[V1_NAMES.get(name, name)] = torch.full((num,), value, dtype=dtype)
    if metadata.no_penalties:
        changes = {name: value for name, value in changes.items() if name not in V1_NAMES.values()}
    return replace(metadata, **changes)


@fault
def sampling_values(bench, **values):
    """The sampler works with these values, whatever the requests say."""
    min_p = values.pop("min_p", None)
    if is_v0(bench):
        with v0_values(bench, {**values, **({} if min_p is None else {"min_p": min_p})}):
            yield
        return

    def make(forward):
        def other(logits, sampling_metadata, **kwargs):
            metadata = with_values(sampling_metadata, values, logits.shape[1])
            if min_p is not None:
                for processor in metadata.logitsprocs.argmax_invariant:
                    if hasattr(processor, "min_p"):
                        processor.min_p.fill_(min_p)
            return forward(logits, metadata, **kwargs)

        return other

    with patched(bench.sampler, "forward", make):
        yield


def v0_values(bench, values):
    def make(init):
        def other(logits, metadata):
            init(logits, metadata)
            for name, value in values.items():
                tensor = getattr(bench.sampler._sampling_tensors, V0_NAMES[name])
                tensor.fill_(min(value, logits.shape[1]) if name == "top_k" else value)

        return other

    return patched(bench.sampler, "_init_sampling_tensors", make)


@fault
def sampling_off(bench, names):
    """The sampler does not know of these parameters."""
    with sampling_values(bench, **{name: OFF.get(name, 0.0) for name in names}):
        yield


@fault
def rounded_values(bench, dtype="bfloat16"):
    """Temperature and top-p are rounded to a narrow type, as V0 does with the logits' type."""

    def rounded(tensor):
        return None if tensor is None else tensor.to(getattr(torch, dtype)).float()

    def make(forward):
        def other(logits, sampling_metadata, **kwargs):
            changes = {name: rounded(getattr(sampling_metadata, name)) for name in ("temperature", "top_p")}
            return forward(logits, replace(sampling_metadata, **changes), **kwargs)

        return other

    with patched(bench.sampler, "forward", make):
        yield


@fault
def hidden_mask(bench, first, num, every=1):
    """Ids that the client did not forbid are masked before the sampler sees the logits."""

    def make(compute):
        def other(*args, **kwargs):
            logits = compute(*args, **kwargs).clone()
            logits[:, first : first + num * every : every] = -math.inf
            return logits

        return other

    with patched(bench.logits_owner, "compute_logits", make):
        yield


@fault
def hidden_bias(bench, first, num, by):
    """A bias on some ids that no request asked for."""

    def make(compute):
        def other(*args, **kwargs):
            logits = compute(*args, **kwargs).clone()
            logits[:, first : first + num] += by
            return logits

        return other

    with patched(bench.logits_owner, "compute_logits", make):
        yield


@fault
def logits_scaled(bench, by):
    """The logits are multiplied: a temperature that nobody asked for, of the model's raw output too."""

    def make(compute):
        return lambda *args, **kwargs: compute(*args, **kwargs) * by

    with patched(bench.logits_owner, "compute_logits", make):
        yield


def on_returned(bench, change):
    """Let `change` work on the logprobs [rows, 1 + k] that V1's sampler returns."""

    def make(forward):
        def other(logits, sampling_metadata, **kwargs):
            before = logits.float().clone()  # the sampler works in place
            output = forward(logits, sampling_metadata, **kwargs)
            tensors = output.logprobs_tensors
            if tensors is not None:
                changed = change(tensors.logprobs.clone(), before, output)
                output.logprobs_tensors = tensors._replace(logprobs=changed)
            return output

        return other

    return patched(bench.sampler, "forward", make)


@fault
def wrong_entry(bench):
    """The value returned is that of the most likely token, not of the sampled one (NeMo-RL PR#3297)."""

    def change(logprobs, logits, _output):
        logprobs[:, 0] = logits.log_softmax(-1).max(-1).values
        return logprobs

    with on_returned(bench, change):
        yield


@fault
def shifted(bench):
    """Each token gets the value of the token before it: off by one."""
    before = []

    def change(logprobs, _logits, _output):
        own = logprobs[:, 0].clone()
        if before and len(before[0]) == len(own):
            logprobs[:, 0] = before[0]
        before[:] = [own]
        return logprobs

    with on_returned(bench, change):
        yield


@fault
def permuted(bench):
    """Each row gets the value of the next one: the batch was joined in another order (RL-Kernel#335)."""
    with on_returned(bench, lambda logprobs, _logits, _output: logprobs.roll(1, 0)):
        yield


@fault
def sentinel(bench, value, every=5):
    """Some values are missing and filled with a constant."""
    steps = [0]

    def change(logprobs, _logits, _output):
        steps[0] += 1
        if steps[0] % every == 0:
            logprobs[:, 0] = float(value)
        return logprobs

    with on_returned(bench, change):
        yield


@fault
def rounded_logprobs(bench, dtype="bfloat16"):
    """Log-probabilities are kept in a narrow type on their way."""
    with on_returned(bench, lambda logprobs, _logits, _output: logprobs.to(getattr(torch, dtype)).float()):
        yield


@fault
def other_base(bench):
    """Logprobs in bits, not in nats."""
    with on_returned(bench, lambda logprobs, _logits, _output: logprobs / math.log(2.0)):
        yield


@fault
def sampled_otherwise(bench, temperature):
    """Tokens are drawn at another temperature than the one their logprobs are of: "agreeing but wrong"."""

    def make(forward):
        def other(logits, generators, k, p):
            sampled, logprobs = forward(logits.clone(), generators, k, p)
            sampled, _ = forward(logits / temperature, generators, k, p)
            return sampled, logprobs

        return other

    with patched(bench.sampler.topk_topp_sampler, "forward", make):
        yield
