"""Faults of the forward: one module, one layer, one kind of kernel; modules are those of vLLM's Llama and Gemma."""

import torch

from corpus.inside.patch import fault, patched


def layer_of(bench, number):
    return bench.model.model.layers[number]


def scaled_output(by):
    def make(forward):
        def other(*args, **kwargs):
            output = forward(*args, **kwargs)
            return (output[0] * by, *output[1:]) if isinstance(output, tuple) else output * by

        return other

    return make


@fault
def module_scaled(bench, layer, path, by):
    """What a module returns is multiplied, as by a wrong scale of a quantised kernel."""
    module = layer_of(bench, layer)
    for name in path.split("."):
        module = getattr(module, name)
    with patched(module, "forward", scaled_output(by)):
        yield


@fault
def module_noise(bench, layer, path, by):
    """A module's output is off by a random part of its size."""
    module = layer_of(bench, layer)
    for name in path.split("."):
        module = getattr(module, name)
    random = torch.Generator().manual_seed(layer)

    def noisy(value):
        spread = value.float().std() * by
        return value + (torch.randn(value.shape, generator=random) * spread).to(value.dtype)

    def make(forward):
        def other(*args, **kwargs):
            output = forward(*args, **kwargs)
            return (noisy(output[0]), *output[1:]) if isinstance(output, tuple) else noisy(output)

        return other

    with patched(module, "forward", make):
        yield


@fault
def head_zeroed(bench, layer, head):
    """One attention head gives nothing."""
    attention = layer_of(bench, layer).self_attn
    begin = head * attention.head_dim

    def make(forward):
        def other(*args, **kwargs):
            output = forward(*args, **kwargs).clone()
            output[..., begin : begin + attention.head_dim] = 0
            return output

        return other

    with patched(attention.attn, "forward", make):
        yield


@fault
def query_scaled(bench, layer, by):
    """A softmax scale that is off in one layer."""

    def make(forward):
        return lambda query, *args, **kwargs: forward(query * by, *args, **kwargs)

    with patched(layer_of(bench, layer).self_attn.attn, "forward", make):
        yield


def rotated(query, key, head_dim, positions, theta):
    """Rotary embedding of the neox style, in float32."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = positions.float()[:, None] * inverse[None]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]

    def turn(value):
        first, second = value.float().view(len(positions), -1, head_dim).chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).view(value.shape).to(value.dtype)

    return turn(query), turn(key)


@fault
def rope_theta(bench, layers, theta):
    """Rotary frequencies of another base; layers None: all of them (SkyRL PR#976)."""
    import contextlib

    every = bench.model.model.layers
    with contextlib.ExitStack() as stack:
        for number in range(len(every)) if layers is None else layers:
            attention = every[number].self_attn

            def other(positions, query, key, head_dim=attention.head_dim):
                return rotated(query, key, head_dim, positions, theta)

            own = torch.nn.Module()
            own.forward = other
            stack.enter_context(patched(attention, "_modules", lambda m, own=own: {**m, "rotary_emb": own}))
        yield


@fault
def positions_off(bench, after, by=1, layer=None):
    """From a position on, one layer's rotary positions are off by so many."""
    attention = layer_of(bench, layer).self_attn

    def make(forward):
        def other(positions, hidden_states, **kwargs):
            return forward(
                positions=torch.where(positions >= after, positions + by, positions),
                hidden_states=hidden_states,
                **kwargs,
            )

        return other

    with patched(attention, "forward", make):
        yield


@fault
def position_kernel(bench, layer, after, by):
    """An attention kernel that is wrong beyond one of its tiles (vllm#54035: exact before position 97)."""

    def make(forward):
        def other(positions, hidden_states, **kwargs):
            output = forward(positions=positions, hidden_states=hidden_states, **kwargs)
            return torch.where((positions >= after)[:, None], output * by, output)

        return other

    with patched(layer_of(bench, layer).self_attn, "forward", make):
        yield


@fault
def batch_kernel(bench, layer, more_than, by, rows_from=0, at_most=64):
    """An MLP kernel that is chosen for larger batches, and wrong."""

    def make(forward):
        def other(hidden):
            output = forward(hidden)
            if more_than < len(hidden) <= at_most:
                output = output.clone()
                output[rows_from:] *= by
            return output

        return other

    with patched(layer_of(bench, layer).mlp, "forward", make):
        yield


@fault
def decode_kernel(bench, layer, by):
    """Attention is wrong in decode steps only: prefill takes another kernel."""
    attention = layer_of(bench, layer).self_attn.attn

    def make(forward):
        def other(query, *args, **kwargs):
            return forward(query * (by if len(query) <= 16 else 1.0), *args, **kwargs)

        return other

    with patched(attention, "forward", make):
        yield


@fault
def norm_eps(bench, layer, eps, name="input_layernorm"):
    norm = layer_of(bench, layer)
    norm = getattr(norm, name)
    with patched(norm, "variance_epsilon", lambda _own: eps):
        yield


@fault
def norm_truncated(bench):
    """Every norm gives its output in bfloat16: the cast comes before the weight (verl-omni#637)."""
    import contextlib

    def narrow(value):
        return value.bfloat16().to(value.dtype)

    def make(forward):
        def other(*args, **kwargs):
            output = forward(*args, **kwargs)
            return (narrow(output[0]), *output[1:]) if isinstance(output, tuple) else narrow(output)

        return other

    with contextlib.ExitStack() as stack:
        for layer in bench.model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                stack.enter_context(patched(norm, "forward", make))
        yield


def quantised(weight, how):
    """Round a matrix as a format does, one scale a row."""
    weight = weight.float()
    if how == "fp8":
        scale = weight.abs().amax(1, keepdim=True) / 448
        return (weight / scale).to(torch.float8_e4m3fn).float() * scale
    top = {"int8": 127, "int4": 7}[how]
    scale = weight.abs().amax(1, keepdim=True) / top
    return (weight / scale).round().clamp(-top, top) * scale


def stored(bench, name):
    from pathlib import Path

    from safetensors import safe_open

    with safe_open(Path(bench.folder) / "model.safetensors", "pt") as file:
        return file.get_tensor(name)


@fault
def mlp_quantised(bench, layer, how):
    """One layer's MLP runs on rounded weights, activations as they are."""
    names = [f"model.layers.{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    gate, up, down = (quantised(stored(bench, name), how) for name in names)

    def make(_forward):
        def other(hidden):
            wide = hidden.float()
            return ((torch.nn.functional.silu(wide @ gate.T) * (wide @ up.T)) @ down.T).to(hidden.dtype)

        return other

    with patched(layer_of(bench, layer).mlp, "forward", make):
        yield


@fault
def kv_fp8(bench, layers):
    """Keys and values of some layers are stored in eight bits."""
    import contextlib

    def narrow(value):
        return value.to(torch.float8_e4m3fn).to(value.dtype)

    def make(forward):
        return lambda q, k, v, *args, **kwargs: forward(q, narrow(k), narrow(v), *args, **kwargs)

    with contextlib.ExitStack() as stack:
        for number in layers:
            stack.enter_context(patched(layer_of(bench, number).self_attn.attn, "forward", make))
        yield


@fault
def narrow_head(bench):
    """The head works in bfloat16, as every engine's does whose trainer has it in float32 (the article's fourth fix)."""
    head = stored(bench, "model.embed_tokens.weight").bfloat16()

    def make(_compute):
        return lambda hidden, *args, **kwargs: (hidden.bfloat16() @ head.T).to(hidden.dtype)

    with patched(bench.model, "compute_logits", make):
        yield


@fault
def stale_head(bench, by):
    """The head is another one than the embedding it is tied to: a copy that was not renewed."""
    random = torch.Generator().manual_seed(5)
    head = stored(bench, "model.embed_tokens.weight").float()
    head += torch.randn(head.shape, generator=random) * head.std() * by

    def make(_compute):
        return lambda hidden, *args, **kwargs: (hidden.float() @ head.T).to(hidden.dtype)

    with patched(bench.model, "compute_logits", make):
        yield
