"""Faults of the second set, of kinds that no detector was written for when they were."""

import contextlib

import torch

from corpus.inside.model_faults import layer_of, rotated
from corpus.inside.patch import fault, patched
from corpus.inside.sampler_faults import on_returned


@fault
def softmax_scale_all(bench, by):
    """The softmax scale of attention is off in every layer: a head size taken from another configuration."""

    def make(forward):
        return lambda query, *args, **kwargs: forward(query * by, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        for layer in bench.model.model.layers:
            stack.enter_context(patched(layer.self_attn.attn, "forward", make))
        yield


@fault
def rope_linear(bench, factor):
    """Positions are divided in every layer: a rope scaling that only one side has."""
    with contextlib.ExitStack() as stack:
        for layer in bench.model.model.layers:
            attention = layer.self_attn

            def other(positions, query, key, head_dim=attention.head_dim):
                return rotated(query, key, head_dim, positions.float() / factor, 1e5)

            own = torch.nn.Module()
            own.forward = other
            stack.enter_context(patched(attention, "_modules", lambda m, own=own: {**m, "rotary_emb": own}))
        yield


@fault
def no_final_norm(bench):
    """The last norm's weights are ones: a tensor that no sync sent."""
    norm = bench.model.model.norm

    def make(forward):
        def other(*args, **kwargs):
            output = forward(*args, **kwargs)
            plain = [part / norm.weight for part in output[:1]] if isinstance(output, tuple) else output / norm.weight
            return (*plain, *output[1:]) if isinstance(output, tuple) else plain

        return other

    with patched(norm, "forward", make):
        yield


@fault
def embedding_scaled(bench, by):
    """What the embedding gives is multiplied, as Gemma's is."""
    with patched(bench.model.model.embed_tokens, "forward", lambda own: lambda ids: own(ids) * by):
        yield


@fault
def norms_eps(bench, eps):
    """Every norm has another eps than the configuration says."""
    with contextlib.ExitStack() as stack:
        for layer in bench.model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                stack.enter_context(patched(norm, "variance_epsilon", lambda _own: eps))
        yield


@fault
def layer_skipped(bench, layer):
    """A layer passes on what it gets."""

    def make(_forward):
        return lambda positions, hidden_states, residual, **kwargs: (hidden_states, residual)

    with patched(layer_of(bench, layer), "forward", make):
        yield


@fault
def activation_gelu(bench, layers):
    """MLPs work with GELU in place of SiLU; layers None: all of them."""

    def make(_forward):
        def other(both):
            gate, up = both.chunk(2, -1)
            return torch.nn.functional.gelu(gate, approximate="tanh") * up

        return other

    with contextlib.ExitStack() as stack:
        for number in range(len(bench.model.model.layers)) if layers is None else layers:
            stack.enter_context(patched(layer_of(bench, number).mlp.act_fn, "forward", make))
        yield


@fault
def value_heads_rolled(bench, layer):
    """Groups of query heads read the values of the next group."""
    attention = layer_of(bench, layer).self_attn

    def make(forward):
        def other(query, key, value, *args, **kwargs):
            turned = value.view(len(value), -1, attention.head_dim).roll(1, 1).reshape(value.shape)
            return forward(query, key, turned, *args, **kwargs)

        return other

    with patched(attention.attn, "forward", make):
        yield


@fault
def values_rounded(bench, layer):
    """Values of one layer's KV are stored in five bits, one scale a token."""

    def make(forward):
        def other(query, key, value, *args, **kwargs):
            scale = value.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 15
            return forward(query, key, (value / scale).round() * scale, *args, **kwargs)

        return other

    with patched(layer_of(bench, layer).self_attn.attn, "forward", make):
        yield


@fault
def recomputed_wrong(bench, layer, after, by):
    """Attention is wrong where a preempted request's output is computed again, in one piece."""

    def make(forward):
        def other(positions, hidden_states, **kwargs):
            output = forward(positions=positions, hidden_states=hidden_states, **kwargs)
            follows = torch.zeros(len(positions), dtype=torch.bool)
            follows[1:] = positions[1:] == positions[:-1] + 1
            in_piece = follows.clone()  # rows of pieces of four and more
            for i in range(len(positions)):
                around = [follows[j] for j in range(max(0, i - 2), i + 1)]
                in_piece[i] = len(around) == 3 and all(around)
            return torch.where((in_piece & (positions >= after))[:, None], output * by, output)

        return other

    with patched(layer_of(bench, layer).self_attn, "forward", make):
        yield


@fault
def logits_rounded(bench, dtype="bfloat16"):
    """Logits are kept in a narrow type; what makes them is as wide as before (vllm#48641)."""

    def make(compute):
        def other(*args, **kwargs):
            logits = compute(*args, **kwargs)
            return logits.to(getattr(torch, dtype)).to(logits.dtype)

        return other

    with patched(bench.logits_owner, "compute_logits", make):
        yield


@fault
def logits_capped(bench, at):
    """Logits are bent towards a cap, as Gemma 2's are."""
    with patched(bench.logits_owner, "compute_logits", lambda own: lambda *a, **k: at * torch.tanh(own(*a, **k) / at)):
        yield


def metadata_changed(bench, change):
    """Let V1's sampler work with other metadata."""

    def make(forward):
        return lambda logits, sampling_metadata, **kwargs: forward(logits, change(sampling_metadata), **kwargs)

    return patched(bench.sampler, "forward", make)


@fault
def penalties_of_output(bench):
    """Penalties look at the output alone, not at the prompt."""
    from dataclasses import replace

    def change(metadata):
        prompt = metadata.prompt_token_ids
        return metadata if prompt is None else replace(metadata, prompt_token_ids=torch.full_like(prompt, 49152))

    with metadata_changed(bench, change):
        yield


@fault
def allowed_ignored(bench):
    """The sampler does not know which tokens are allowed."""
    from dataclasses import replace

    with metadata_changed(bench, lambda metadata: replace(metadata, allowed_token_ids_mask=None)):
        yield


@fault
def bias_ignored(bench):
    """The sampler does not know of logit biases."""

    def make(forward):
        def other(logits, sampling_metadata, **kwargs):
            with contextlib.ExitStack() as stack:
                for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
                    if hasattr(processor, "biases"):
                        stack.enter_context(patched(processor, "apply", lambda own: lambda values: values))
                return forward(logits, sampling_metadata, **kwargs)

        return other

    with patched(bench.sampler, "forward", make):
        yield


@fault
def temperatures_mixed_up(bench):
    """Each request is sampled at the temperature of the next one in the batch."""
    from dataclasses import replace

    with metadata_changed(bench, lambda metadata: replace(metadata, temperature=metadata.temperature.roll(1))):
        yield


@fault
def returned(bench, how):
    """The values returned are changed in one of these ways."""
    earlier = []

    def two_before(own):
        earlier.append(own)
        return earlier[-3] if len(earlier) > 2 and len(earlier[-3]) == len(own) else own

    ways = {
        "two before": two_before,
        "two rows on": lambda own: own.roll(2, 0),
        "negated": lambda own: -own,
        "probabilities": torch.exp,
        "at least -3": lambda own: own.clamp_min(-3.0),
        "two decimals": lambda own: (own * 100).round() / 100,
    }

    def change(logprobs, _logits, _output):
        logprobs[:, 0] = ways[how](logprobs[:, 0].clone())
        return logprobs

    with on_returned(bench, change):
        yield
